"""Checks of the options that a part's constructor takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from fusetune.errors import ConfigError, all_at_once, nearest


def check_options(part: type, options: Mapping[str, Any] | Iterable[str], *, known: Iterable[str], where: str) -> None:
    """Refuse options that a part does not take, and values of another type than its constructor says.

    Raises:
        ConfigError: with the nearest option it does take, or the type.
    """
    known = list(known)
    hints = _hints(part) if isinstance(options, Mapping) else {}
    all_at_once([partial(_check_option, part, option, known, where) for option in options])
    if isinstance(options, Mapping):
        named = options.keys() & hints.keys()
        all_at_once([partial(check_value, f"{where}: {name}", options[name], hints[name]) for name in sorted(named)])


def _check_option(part: type, option: str, known: list[str], where: str) -> None:
    if option not in known:
        raise ConfigError(
            f"{where} has no setting {option!r}",
            expected=", ".join(known) or f"no settings for {part.__name__}",
            do=nearest(option, known),
        )


def check_value(name: str, value: Any, hint: Any) -> None:
    """Refuse a setting's value that is not of a type, which may be `Annotated` with its range.

    Raises:
        ConfigError: with what was expected.
    """
    if isinstance(value, Mapping) and "Mapping" in str(hint):
        return  # in Python, keys may be labels of any type; the part knows what it takes
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except PydanticSchemaGenerationError:  # a plug-in's own type
        return
    except ValidationError as error:
        expected = "; or: ".join(detail["msg"].removeprefix("Input should be ") for detail in error.errors())
        raise ConfigError(f"{name} cannot be {value!r}", expected=expected, came=type(value).__name__) from None


def _hints(part: type) -> dict[str, Any]:
    """The types of a constructor's arguments; what is imported for type checks alone is `Any`."""
    unknown: dict[str, Any] = {}
    while True:
        try:
            return get_type_hints(part.__init__, localns=unknown, include_extras=True)  # type: ignore[misc]
        except NameError as error:
            unknown[str(error.name)] = Any
