"""Shared parts of the augmenters: parsing of options into a list of transforms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusetune.errors import ConfigError, nearest, shown

Transform = Callable[[Any, np.random.Generator], Any]
"""`transform(example, rng)` returns a changed example (or text, waveform, image) and leaves its argument unchanged."""


@dataclass(frozen=True)
class Option:
    """A setting of `augment.KIND`.

    Attributes:
        build: makes a transform from the setting's value.
        default: the value for `true`.
        low, high: the range of a numeric value, both ends included; None for other values.
    """

    build: Callable[[Any], Transform]
    default: Any
    low: float | None = None
    high: float | None = None


def transforms(kind: str, options: Mapping[str, Any], known: Mapping[str, Option]) -> list[Transform]:
    """Build the transforms of a kind's settings, in the order of `known`.

    Args:
        kind: of the columns, for errors.
        options: values by name; True is the default value, None and False turn the option off.
        known: the available settings.

    Raises:
        ConfigError: a name is unknown, or a value is out of range.
    """
    for name, value in options.items():
        if name not in known:
            raise ConfigError(
                f"augment.{kind} has no setting {name!r}", expected=", ".join(known), do=nearest(name, known)
            )
        _check(f"augment.{kind}.{name}", value, known[name])
    chosen = {name: known[name].default if value is True else value for name, value in options.items()}
    return [known[name].build(chosen[name]) for name in known if chosen.get(name) not in (None, False)]


def _check(where: str, value: Any, option: Option) -> None:
    if value is None or isinstance(value, bool) or option.low is None or option.high is None:
        return
    if not isinstance(value, int | float) or not option.low <= value <= option.high:
        raise ConfigError(
            f"{where} is out of range", expected=f"a number from {option.low:g} to {option.high:g}", came=shown(value)
        )


def settings(where: str, value: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping of settings, completed by the defaults in `known`.

    Raises:
        ConfigError: it is not a mapping, or has an unknown key.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} takes settings of its own", expected=", ".join(known), came=shown(value))
    for name in value:
        if name not in known:
            raise ConfigError(f"{where} has no setting {name!r}", expected=", ".join(known), do=nearest(name, known))
    return {**known, **value}
