"""How tasks find the texts that they read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusetune.errors import ConfigError, nearest

if TYPE_CHECKING:
    from fusetune.data.schema import Schema


@dataclass(frozen=True)
class Reading:
    """How a task needs a text to be read.

    Attributes:
        columns: the text columns; several are read as one sequence.
        read: what a cell gives, as `fusetune.modalities.passages.Read`.
        choices: the columns of the choices, or one column of lists of them, for "choices".
        by_token: whether the task answers token by token (or choice by choice), rather than once for the row.
        entities: by entity of "markers" its columns, if it is not marked in the text.
        also: columns of the table that the task uses for something else, and that the model does not read.
        reason: how the columns were found, if that needs saying.
    """

    columns: tuple[str, ...]
    read: str
    choices: tuple[str, ...] = ()
    entities: tuple[tuple[str, ...], ...] = ()
    by_token: bool = True
    also: tuple[str, ...] = ()
    reason: str = ""

    @property
    def name(self) -> str:
        """The name of the column that the model reads."""
        return " + ".join(self.parts)

    @property
    def passage(self) -> str | None:
        """The text that several rows may ask about: an answer's or choices' context, the text of spans or entities."""
        if self.read == "choices":
            return self.columns[0] if len(self.columns) > 1 else None
        return self.columns[-1] if self.read in ("answer", "markers", "tokens") else None

    @property
    def parts(self) -> list[str]:
        """The columns that are read as one."""
        return [*self.columns, *self.choices, *(name for columns in self.entities for name in columns)]


def text_column(schema: Schema, name: str | None, *, task: str, target: str, option: str = "text") -> str:
    """Return the text column that a task reads: the named one, or the only one.

    Args:
        schema: of the table.
        name: the column's name, or None.
        task, target: for errors.
        option: the task's option that names it.

    Raises:
        ConfigError: there is no such column, or it is not clear which it is.
    """
    texts = [column for column, spec in schema.columns.items() if spec.role == "input" and spec.kind == "text"]
    asked = f"tasks.{target}.{option}=COLUMN"
    if name is not None and name not in schema.columns:
        raise ConfigError(
            f"{asked.replace('COLUMN', name)} names no column",
            expected=", ".join(texts) or "a text column",
            do=nearest(name, schema.columns),
        )
    if name is not None:
        return name
    if len(texts) != 1:
        raise ConfigError(
            f"the task {task} of {target!r} reads one text column",
            came=f"{len(texts)}: {', '.join(texts)}" if texts else "none",
            do=f"name it: {asked}",
        )
    return texts[0]
