"""The settings that `fusetune search-settings` tries, and the values of each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from fusetune.config.config import Config, merge, read_mapping
from fusetune.config.paths import rebased
from fusetune.config.section import Section
from fusetune.errors import ConfigError

FIXED = (
    *("train", "val", "test", "users", "target", "query", "document", "negative", "user", "item", "tasks", "seed"),
    *("out", "schema_file", "catalogue", "interactions", "report", "data.split", "data.read", "trainer.metric"),
)
"""Settings that say what is predicted from what and how it is measured: trials that differ in them do not compare."""


class Range(Section):
    """Numbers between two ends; whole numbers if both ends, and the step, are whole numbers."""

    low: int | float
    """The least value."""
    high: int | float
    """The largest value."""
    log: bool = False
    """Whether values are drawn evenly by their logarithm."""
    step: float | None = Field(default=None, gt=0)
    """Distance between two values; null for any value, or for every whole number."""
    num: int = Field(default=3, ge=2)
    """Values that a grid takes, from end to end."""

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError("low must be less than high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a logarithmic range starts above 0 and has no step")
        return self

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        step = 1 if self.step is None else self.step
        return isinstance(self.low, int) and isinstance(self.high, int) and step == int(step)

    def grid(self) -> list[float]:
        """Return `num` values from end to end, fewer if there are not so many."""
        ends = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        shares = [ends[0] + (ends[1] - ends[0]) * index / (self.num - 1) for index in range(self.num)]
        values = [self.low, *(math.exp(x) if self.log else x for x in shares[1:-1]), self.high]
        if self.step is not None:
            values = [self.low + round((value - self.low) / self.step) * self.step for value in values]
            values = [value for value in values if value <= self.high]
        return list(dict.fromkeys(round(value) if self.whole else float(f"{value:.6g}") for value in values))

    def holding(self, value: float) -> Range:
        """Return the range, widened to hold a value if it has no step and the value can be one of it."""
        if self.step is not None or (self.log and value <= 0) or (self.whole and value != int(value)):
            return self
        value = int(value) if self.whole else value
        return self.model_copy(update={"low": min(self.low, value), "high": max(self.high, value)})

    def contains(self, value: float) -> bool:
        """Return whether a number is one of its values."""
        if not self.low <= value <= self.high:
            return False
        step = self.step or (1 if self.whole else None)
        return step is None or abs((value - self.low) / step - round((value - self.low) / step)) < 1e-9


@dataclass(frozen=True)
class Choice:
    """Some values of a setting: texts, numbers, lists or sections; `{}` leaves the section as it is."""

    values: tuple[Any, ...]

    @property
    def labels(self) -> list[str]:
        """Each value as short text."""
        return [label_of(value) for value in self.values]

    def value_of(self, label: str) -> Any:
        """Return the value with this label."""
        return self.values[self.labels.index(label)]


Parameter = Range | Choice
Space = dict[str, Parameter]
"""By the setting's dotted key, its values."""


def label_of(value: Any) -> str:
    """Return a value as short text: `adapter: lora`, `as it is` for an empty section."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_inner(part)}" for key, part in value.items()) or "as it is"
    return _inner(value)


def _inner(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def nested(key: str, value: Any) -> dict[str, Any]:
    """Return `{"a": {"b": value}}` for the key `a.b`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def settings_of(params: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Return a trial's parameters as nested settings.

    Args:
        params: by key, a number of a range or the label of a choice.
        space: the space that they are of.
    """
    settings: dict[str, Any] = {}
    for key in sorted(space, key=lambda key: key.count(".")):  # a section before the settings in it
        parameter, value = space[key], params[key]
        merge(settings, nested(key, parameter.value_of(value) if isinstance(parameter, Choice) else value))
    return settings


def read_space(source: str | Path | Mapping[str, Any], config: Config) -> Space:
    """Read a search space.

    Args:
        source: a YAML file, or its content: by setting, a list of values or `{low: ..., high: ...}`. Relative paths in
            a file start at its folder.
        config: the settings that the values are laid over.

    Raises:
        ConfigError: it cannot be read, or a setting or value is wrong; all of them are named.
    """
    path = None if isinstance(source, Mapping) else Path(source)
    content = source if isinstance(source, Mapping) else read_mapping(Path(source))
    folder = Path.cwd() if path is None else path.parent
    problems: list[str] = []
    space: Space = {}
    for key, given in _flat(content):
        if any(key == name or key.startswith(f"{name}.") for name in FIXED):
            problems.append(f"{key}: says what is predicted or measured, so it cannot be searched")
            continue
        try:
            space[key] = _parameter(key, given, folder)
        except (ValidationError, ValueError) as error:
            problems.append(f"{key}: {_reason(error)}")
            continue
        parameter = space[key]
        for value in parameter.values if isinstance(parameter, Choice) else (parameter.low, parameter.high):
            try:
                config.with_overrides(nested(key, value))
            except ConfigError as error:
                problems.append("; ".join(line.strip() for line in str(error).splitlines()[1:]) or str(error))
                break
    if problems or not space:
        raise ConfigError(
            "the search space is wrong:\n    " + "\n    ".join(problems or ["it names no setting"]),
            expected="lines as `trainer.lr: {low: 1.0e-4, high: 1.0e-2, log: true}` or `fusion: [gated, concat]`",
            file=None if path is None else str(path),
        )
    return space


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and what is given for each; sections may be nested, as in a file of settings."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value and not {"low", "high"} & value.keys():
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parameter(key: str, given: Any, folder: Path) -> Parameter:
    if isinstance(given, Mapping) and given:
        return TypeAdapter(Range).validate_python(given)
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given) > 1:
        values = tuple(_value_at(rebased(nested(key, value), folder), key) for value in given)
        if len({label_of(value) for value in values}) < len(values):
            raise ValueError("a value is there twice")
        return Choice(values)
    raise ValueError(f"expected a list of two values or more, or a range with low and high, came {given!r}")


def _value_at(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = settings[part]
    return settings


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    details = [(".".join(map(str, detail["loc"])), detail["msg"]) for detail in error.errors()]
    return "; ".join(f"{place} {message.removeprefix('Value error, ')}".strip() for place, message in details)
