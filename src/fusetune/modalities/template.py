"""Templates of prompts: text with the names of columns in braces."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fusetune.errors import ConfigError, nearest

_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|([{}])")


@dataclass(frozen=True)
class Field:
    """A place in a template that a column fills."""

    column: str


class Template:
    """Text with columns in braces: `Translate to German: {en}`; `{{` and `}}` are braces.

    A line that names columns is left out of a row's prompt where the row lacks all of them.

    Args:
        text: the template.

    Attributes:
        columns: the columns that it names, each once, in order.

    Raises:
        ConfigError: a brace is open, or nothing is named between two.

    Example:
        >>> Template("{title}\\nby {author}\\nsummary:").fill({"title": "Emma", "author": None})
        'Emma\\nsummary:'
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._lines = [_parse(line, text) for line in text.split("\n")]
        fields = [part.column for line in self._lines for part in line if isinstance(part, Field)]
        self.columns = tuple(dict.fromkeys(fields))

    def fill(self, cells: Mapping[str, str | None]) -> str:
        """Return the text with the columns' cells, None for a missing one."""
        lines = []
        for line in self._lines:
            named = [part.column for part in line if isinstance(part, Field)]
            if named and all(cells[column] is None for column in named):
                continue
            lines.append("".join(part if isinstance(part, str) else cells[part.column] or "" for part in line))
        return "\n".join(lines)

    def check(self, columns: Iterable[str], *, where: str) -> None:
        """Refuse a template that names no column, or one that is not there.

        Args:
            columns: those that it may name.
            where: the setting, for errors.

        Raises:
            ConfigError: it does.
        """
        known = list(columns)
        if unknown := [name for name in self.columns if name not in known]:
            raise ConfigError(
                f"{where} names {unknown[0]!r}, which is no column that is read",
                expected=", ".join(known),
                do=nearest(unknown[0], known) or "name one of these; write {{ and }} for braces",
            )
        if not self.columns:
            raise ConfigError(
                f"{where} names no column", expected=f"one of {', '.join(known)} in braces", came=self.text[:80]
            )


def default_template(columns: Iterable[str], target: str) -> str:
    """Return a template with a line per column, `name: {name}`, and the target's name at the end."""

    def escaped(name: str) -> str:
        return name.replace("{", "{{").replace("}", "}}")

    return "\n".join([*(f"{escaped(name)}: {{{name}}}" for name in columns), f"{escaped(target)}:"])


def _parse(line: str, whole: str) -> list[str | Field]:
    """Return a line's texts and fields."""
    parts: list[str | Field] = []
    start = 0
    for match in _PART.finditer(line):
        parts.append(line[start : match.start()])
        start = match.end()
        if match[2] or (match[1] is not None and not match[1].strip()):
            raise ConfigError(
                "a prompt's template has a brace that holds no column's name",
                expected="{column}, or {{ and }} for braces",
                came=whole[:120],
            )
        parts.append(match[0][0] if match[1] is None else Field(match[1].strip()))
    parts.append(line[start:])
    return [part for part in parts if part != ""]
