"""What the augmentations of all kinds of columns share: options by name, and transforms one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusetune.errors import ConfigError, nearest, shown

Transform = Callable[[Any, np.random.Generator], Any]
"""From an example (or what it is made of) to another one; what comes is left as it is."""


@dataclass(frozen=True)
class Option:
    """One setting of `augment.KIND`.

    Attributes:
        build: from the setting's value to a transform.
        default: the value where the setting is given by its name alone.
        low, high: the range of a value that is a number; None where it is none.
    """

    build: Callable[[Any], Transform]
    default: Any
    low: float | None = None
    high: float | None = None


def transforms(kind: str, options: Mapping[str, Any], known: Mapping[str, Option]) -> list[Transform]:
    """Return the transforms that a kind's settings name, in the order of `known`.

    Args:
        kind: names the setting in errors.
        options: per name its value; True for the default, None or False for none.
        known: the settings there are.

    Raises:
        ConfigError: an unknown name, or a value out of range.
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
    """Return a mapping's settings over their defaults.

    Raises:
        ConfigError: it is no mapping, or has a key that is not known.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} takes settings of its own", expected=", ".join(known), came=shown(value))
    for name in value:
        if name not in known:
            raise ConfigError(f"{where} has no setting {name!r}", expected=", ".join(known), do=nearest(name, known))
    return {**known, **value}
