"""What every section of the settings is made of: the base models, sections given by name, and checks of names.

A section may be given as its name alone: `fusion: gated` is `fusion: {name: gated}`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from fusetune.errors import nearest
from fusetune.registry import Registry


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


ByName = BeforeValidator(_by_name)

StrList = Annotated[list[str], BeforeValidator(_as_list)]


class Section(BaseModel):
    """A group of settings; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True)


class NamedConfig(BaseModel):
    """A part by name; other keys are that part's own options, checked when it is made."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    name: str | None = None
    """Which one."""

    @property
    def options(self) -> dict[str, Any]:
        """The keys besides the name."""
        return dict(self.__pydantic_extra__ or {})


def check_known(name: str, table: Registry, also: Iterable[str] = ()) -> None:
    """Refuse a name that no part of a registry has.

    Args:
        name: as the user wrote it.
        table: the parts.
        also: names that a setting takes besides.

    Raises:
        ValueError: with the nearest known name, or all of them.
    """
    known = [*table, *also]
    if name not in known:
        raise ValueError(
            f"there is no {table.kind} called {name!r}; {nearest(name, known) or 'known: ' + ', '.join(known)}"
        )


def known_name(name: str, known: tuple[str, ...]) -> str:
    """Return a name that is known.

    Raises:
        ValueError: it is not; with the nearest known name, or all of them.
    """
    if name not in known:
        raise ValueError(f"there is no such method; {nearest(name, known) or 'known: ' + ', '.join(known)}")
    return name
