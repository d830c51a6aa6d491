"""The columns that a request's rows have to have, and rows of a request as records for the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusetune.data.joins import flat_names
from fusetune.data.table import Table
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.rows import needed_columns
from fusetune.deploy.serve.media import MEDIA, media_cell
from fusetune.deploy.serve.options import Limits
from fusetune.deploy.serve.problems import Problem
from fusetune.errors import nearest
from fusetune.modalities.media.cells import NO_FILES

Record = dict[str, Any]
"""A row's cells by column; pictures and sounds are lists of bytes."""
_EXAMPLE = '{"rows": [{"COLUMN": CELL, ...}, ...]}'


@dataclass(frozen=True)
class Inputs:
    """The columns of a model's rows.

    Attributes:
        kinds: the kind of each column that a row has to have, by name.
        extra: columns that are read if they are there: identifiers, which answers repeat.
    """

    kinds: Mapping[str, str]
    extra: tuple[str, ...] = ()

    @classmethod
    def of(cls, bundle: Bundle) -> Inputs:
        """Return those of a model."""
        joined = {
            name: bundle.modalities[column].kind
            for column, parts in bundle.schema.joins().items()
            if column in bundle.modalities
            for name in flat_names(parts)
        }
        own = {name: modality.kind for name, modality in bundle.modalities.items()}
        kinds = {name: own.get(name, joined.get(name, "text")) for name in needed_columns(bundle)}
        return cls(kinds, tuple(name for name in bundle.schema.names("id") if name not in kinds))

    def records(self, rows: Any, limits: Limits, *, missing: Collection[str] = ()) -> list[Record]:
        """Return a request's rows as records with all columns; cells that a row lacks are None.

        Args:
            rows: a list of objects, or of cells if there is one column.
            limits: of a request.
            missing: columns that all rows may lack.

        Raises:
            Problem: 422, rows are of another form, lack a column or have a cell that is refused; 413, there are too
                many rows.
        """
        if not isinstance(rows, list) or not rows:
            raise Problem(422, "invalid_rows", f"there are no rows; send {_EXAMPLE}")
        if len(rows) > limits.rows:
            message = f"there are {len(rows):,} rows; at most {limits.rows:,} are answered at once"
            raise Problem(413, "too_large", message)
        only = next(iter(self.kinds)) if len(self.kinds) == 1 else None
        objects = [self._object(row, number, only) for number, row in enumerate(rows)]
        self._check_names(objects, missing)
        return [self._record(row, number, limits) for number, row in enumerate(objects)]

    def _object(self, row: Any, number: int, only: str | None) -> Mapping[str, Any]:
        is_cell = not isinstance(row, dict) or (only is not None and row.keys() == {"bytes"} and only != "bytes")
        if not is_cell:
            checked: dict[str, Any] = row
            return checked
        if only is None:
            message = f"row {number} is no object; send {_EXAMPLE} with {', '.join(map(repr, self.kinds))}"
            raise Problem(422, "invalid_rows", message, row=number)
        return {only: row}

    def _check_names(self, rows: Sequence[Mapping[str, Any]], missing: Collection[str]) -> None:
        names = {name for row in rows for name in row}
        for name in missing:
            if name not in self.kinds:
                hint = nearest(str(name), self.kinds) or f"expected one of {', '.join(self.kinds)}"
                raise Problem(422, "unknown_column", f"{name!a} is no input column of the model; {hint}")
        lost = [name for name in self.kinds if name not in names and name not in missing]
        if not lost:
            return
        others = [name for name in names if name not in self.kinds]
        close = nearest(lost[0], others)
        raise Problem(
            422,
            "missing_column",
            f"no row has the column {lost[0]!r}" + (f"; {close}" if close else "") + f"; the model reads "
            f"{', '.join(map(repr, self.kinds))}. Name it in missing_columns to predict without it",
            column=lost[0],
        )

    def _record(self, row: Mapping[str, Any], number: int, limits: Limits) -> Record:
        record: Record = {}
        for name in (*self.kinds, *self.extra):
            cell, kind = row.get(name), self.kinds.get(name, "text")
            if kind in MEDIA:
                record[name] = media_cell(cell, kind, limits, row=number, column=name)
                continue
            if isinstance(cell, bytes):
                message = f"row {number}, column {name!r} holds no files; send its cell as a form field"
                raise Problem(422, "invalid_rows", message, row=number, column=name)
            if num_chars(cell) > limits.chars:
                message = f"row {number}, column {name!r} has more than {limits.chars:,} characters"
                raise Problem(413, "too_large", message, row=number, column=name)
            record[name] = cell
        return record


def num_chars(cell: Any) -> int:
    """Return the number of characters of all texts and numbers in a cell."""
    if isinstance(cell, str):
        return len(cell)
    if isinstance(cell, dict):
        return sum(len(name) + num_chars(part) for name, part in cell.items())
    if isinstance(cell, list):
        return sum(map(num_chars, cell))
    return len(str(cell))


def table_of(records: Sequence[Record]) -> Table:
    """Return records as a table whose cells name no files of this machine."""
    return Table.from_records(records, source="the rows", base_dir=NO_FILES)
