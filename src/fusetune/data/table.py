"""A table: rows of cells with row ids, memory-mapped Arrow behind it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import pyarrow as pa

from fusetune.data.distinct import Cells, as_cells, distinct, is_missing, missing_in
from fusetune.data.quarantine import Rejected
from fusetune.data.reading.arrow import (
    encode_column,
    from_cells,
    half_characters,
    is_json,
    is_text,
    picture_bytes,
    time_text,
)
from fusetune.data.reading.cell_forms import CellForm
from fusetune.data.storage.mapped import mapped_arange, mapped_flatnonzero, mapped_narrow, mapped_take, mapped_zeros
from fusetune.errors import EmptyTable, TableError, nearest

if TYPE_CHECKING:
    import datasets
    import pandas

    from fusetune.config.read import ReadConfig

__all__ = ["Source", "Table", "is_missing"]

AT_ONCE = 8 * 2**20
"""About so many bytes of a column are looked at together."""

Source: TypeAlias = Union[str, Path, "pandas.DataFrame", "datasets.Dataset", pa.Table, "Table"]


class Table:
    """Rows of a source, in its order, without the rejected ones.

    `len(table) + len(table.rejected)` is the number of rows that came, as long as nothing was selected.
    Cells are read from the memory-mapped file when asked for; selecting copies nothing.

    Attributes:
        source: what it was read from, as errors show it.
        base_dir: where relative media paths start.
        rows: (rows,) int64, each row's id: 0 is the first row of data in the source.
        rejected: rows of the source that are not here, with the reason.
        notes: what a user should know about how it was read.
        files: what it was read from, each with its first row's id here; several where tables were joined.
        keep: what lives as long as it does, as the temporary file that it is mapped from.
        lone: whether files that its cells name relative to it are out of reach, as it was copied from an address.
    """

    def __init__(
        self,
        arrow: pa.Table,
        *,
        source: str,
        base_dir: Path,
        rows: np.ndarray | None = None,
        rejected: Sequence[Rejected] = (),
        notes: Sequence[str] = (),
        keep: object = None,
        files: Sequence[tuple[str, int]] = (),
    ) -> None:
        """
        Args:
            arrow: the accepted rows.
            source: what it was read from.
            base_dir: where relative media paths start.
            rows: (rows,) ids; from 0 where None.
            rejected: the other rows.
            notes: what a user should know about how it was read.
            keep: held as long as the table lives, as the temporary file that `arrow` is mapped from.
            files: as the attribute; the source alone where empty.
        """
        self.files = list(files) or [(source, 0)]
        self.source, self.base_dir = source, base_dir
        self.rows = mapped_arange(arrow.num_rows) if rows is None else rows
        self.rejected, self.notes = list(rejected), list(notes)
        self._base, self.keep = arrow, keep
        self.lone = False
        self._places: np.ndarray | None = None
        self._json = {field.name for field in arrow.schema if is_json(field)}
        self._ends: dict[str, np.ndarray] = {}
        self._forms: dict[str, CellForm] = {}

    @classmethod
    def read(
        cls,
        source: Source,
        *,
        base_dir: str | Path | None = None,
        cache_dir: str | Path | None = None,
        read: ReadConfig | None = None,
    ) -> Table:
        """Read a table.

        Args:
            source: a CSV, TSV, JSONL, Parquet, Arrow or Feather file, a folder of such files of one kind, which are the
                parts of one table, a pandas DataFrame, a Hugging Face `Dataset`, an Arrow table, or a `Table`, which is
                returned as it is.
            base_dir: where relative media paths start; the file's folder, or the current one for objects.
            cache_dir: keeps the Arrow form of a text or Parquet file there for the next time; where None it lies in
                a private temporary folder until the table is gone.
            read: separator, quotes and encoding of text files; what it leaves open is detected.

        Raises:
            TableError: it cannot be read; the message names the file, the place and what to do.
            TooManyRejected: no row, or hardly any, can be used.
        """
        if isinstance(source, Table):
            return source
        from fusetune.data.reading.readers import read_source

        return read_source(source, base_dir=base_dir, cache_dir=cache_dir, read=read)

    @classmethod
    def from_records(
        cls, records: Iterable[Mapping[str, Any]], *, source: str = "the records", base_dir: str | Path | None = None
    ) -> Table:
        """Return a table of rows given as mappings; a key that a row lacks is a missing cell.

        Raises:
            TableError: there is no row, or a cell is of a type that no column can hold.
        """
        rows: Sequence[Mapping[Any, Any]] = list(records)
        rows = [{str(name): cell for name, cell in row.items()} for row in rows]
        names = list(dict.fromkeys(name for row in rows for name in row))
        if not names:
            raise EmptyTable("there are no rows", expected="at least one row with one column", file=source)
        columns = {name: [_python(row.get(name)) for row in rows] for name in names}
        home = Path(base_dir or Path.cwd())
        try:
            return cls(from_cells(columns, source), source=source, base_dir=home)
        except UnicodeEncodeError:
            rejected = half_characters(columns)
        lost = {item.row for item in rejected}
        kept = [place for place in range(len(rows)) if place not in lost]
        if not kept or not rejected:
            raise TableError("no row's text can be written as UTF-8", do="decode the text again", file=source)
        part = {name: [cells[place] for place in kept] for name, cells in columns.items()}
        ids = np.asarray(kept, dtype=np.int64)
        return cls(from_cells(part, source), source=source, base_dir=home, rows=ids, rejected=rejected)

    def come_from(self, address: str, note: str, *, keep: object, media: bool) -> None:
        """Say that the table was copied from an address.

        Args:
            address: what it is called from now on.
            note: what was copied.
            keep: held as long as the table lives.
            media: whether the files that its cells name are here.
        """
        self.source, self.files, self.lone = address, [(address, 0)], not media
        self.notes.append(note)
        self.keep = (self.keep, keep)

    def read_as(self, forms: Mapping[str, CellForm]) -> Table:
        """Return the same rows with the text of some columns' cells read in other forms; nothing is copied.

        Args:
            forms: by column; columns that are not there are passed over.
        """
        table = copy.copy(self)
        table._forms = {name: form for name, form in forms.items() if name in self and form != CellForm()}
        return table

    def with_missing(self, columns: Iterable[str]) -> Table:
        """Return the same rows with further columns, every cell of which is missing; nothing is copied."""
        table = copy.copy(self)
        table._ends = {}
        for name in columns:
            table._base = table._base.append_column(name, pa.nulls(table._base.num_rows, pa.string()))
        return table

    @property
    def arrow(self) -> pa.Table:
        """The rows as Arrow: the mapped file itself, or a copy of the selected rows.

        The strings of columns with mixed types, lists or objects are JSON; `cells` decodes them.
        """
        return self._base if self._places is None else self._base.take(self._places)

    @property
    def column_names(self) -> list[str]:
        """The columns in the source's order."""
        return list(self._base.column_names)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, column: object) -> bool:
        return column in self._base.column_names

    def __repr__(self) -> str:
        return f"Table({self.source!r}, {len(self)} rows, columns {self.column_names})"

    def require(self, columns: Iterable[str]) -> None:
        """Check that the table has these columns.

        Raises:
            TableError: some are not there; the message has the nearest names.
        """
        lost = [column for column in columns if column not in self]
        if not lost:
            return
        known = self.column_names
        hints = [f"{column!r}: {hint}" for column in lost if (hint := nearest(column, known))]
        raise TableError(
            f"there is no column {', '.join(map(repr, lost))}",
            expected=f"one of {', '.join(map(repr, known[:40]))}{', …' if len(known) > 40 else ''}",
            do="; ".join(hints) if len(lost) > 1 else (hints[0].split(": ", 1)[1] if hints else None),
            file=self.source,
        )

    def cells(self, column: str, indices: Sequence[int] | np.ndarray | None = None) -> list[Any]:
        """Return a column's cells as Python values: str, int, float, bool, bytes, list, dict or None.

        Args:
            column: its name.
            indices: which rows, by position (0 to len - 1), in any order; all where None.

        Raises:
            TableError: there is no such column.
        """
        self.require([column])
        data = self._base.column(column)
        places = self._places
        if indices is not None:
            wanted = np.asarray(indices, dtype=np.int64)
            places = wanted if places is None else places[wanted]
        if places is None:
            return [cell for chunk in data.iterchunks() for cell in self._cells(column, chunk)]
        found: list[Any] = [None] * len(places)
        for group, cells in _parts(data, self._chunk_ends(column), places):
            for place, cell in zip(group.tolist(), self._cells(column, cells), strict=True):
                found[place] = cell
        return found

    def _cells(self, column: str, array: pa.Array) -> list[Any]:
        """Return an array's cells as Python values, read in the column's form."""
        cells = as_cells(array, column in self._json)
        form = self._forms.get(column)
        return cells if form is None else [form.read(cell) for cell in cells]

    def lazy(self, column: str, indices: np.ndarray | None = None) -> Cells:
        """Return a column's cells, or those of some rows, which are read when they are asked for.

        Raises:
            TableError: there is no such column.
        """
        self.require([column])
        return Cells(self, column, indices)

    def distinct(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (rows,), which of the column's distinct cells each row has, -1 for missing ones; and (cells,), the
        first row of each, in order; int32 where that is wide enough.

        Raises:
            TableError: there is no such column.
        """
        self.require([column])
        return distinct(self._arrays(column), column in self._json, len(self))

    def at_once(self, column: str) -> int:
        """Return how many of a column's cells are about 8 MiB together, 16 to 65,536."""
        data = self._base.column(column)
        return int(np.clip(AT_ONCE * len(data) // max(data.nbytes, 1), 16, 65_536))

    def _arrays(self, column: str) -> Iterator[pa.Array]:
        """Yield a column's cells in order, some at a time, read in the column's form."""
        if column not in self._forms:
            yield from self._raw_arrays(column)
            return
        field = self._base.schema.field(column)
        for array in self._raw_arrays(column):
            yield encode_column(self._cells(column, array), field) if is_text(field) else array

    def _raw_arrays(self, column: str) -> Iterator[pa.Array]:
        data, step = self._base.column(column), self.at_once(column)
        if self._places is None:
            for chunk in data.iterchunks():
                for start in range(0, len(chunk), step):
                    yield chunk.slice(start, step)
            return
        for start in range(0, len(self._places), step):
            groups = list(_parts(data, self._chunk_ends(column), self._places[start : start + step]))
            order = np.concatenate([group for group, _ in groups])
            if (np.diff(order) > 0).all():
                yield from (cells for _, cells in groups)
            else:
                yield pa.concat_arrays([cells for _, cells in groups]).take(pa.array(np.argsort(order)))

    def _chunk_ends(self, column: str) -> np.ndarray:
        """Return (chunks,) where each of a column's chunks ends."""
        if column not in self._ends:
            self._ends[column] = np.cumsum([len(chunk) for chunk in self._base.column(column).iterchunks()])
        return self._ends[column]

    def is_scalar(self, column: str) -> bool:
        """Return whether the column's cells are strings, numbers, booleans or JSON, which are cheap to look at."""
        kind = self._base.schema.field(column).type
        return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def row(self, index: int) -> dict[str, Any]:
        """Return one row by position, as {column: cell}."""
        return {column: self.cells(column, [index])[0] for column in self.column_names}

    def missing(self, column: str) -> np.ndarray:
        """Return (rows,) bool, True where the cell is missing."""
        self.require([column])
        found, start = mapped_zeros((len(self),), bool), 0
        for array in self._arrays(column):
            found[start : start + len(array)] = missing_in(array, column in self._json)
            start += len(array)
        return found

    def parts(self) -> np.ndarray:
        """Return (rows,) int64, the place in `files` of what each row was read from."""
        return np.searchsorted([first for _, first in self.files], self.rows, side="right") - 1

    def file_and_row(self, row: int) -> tuple[str, int]:
        """Return what a row was read from, and its number there.

        Args:
            row: its id here.
        """
        source, first = next(one for one in reversed(self.files) if one[1] <= row)
        return source, row - first

    def select(self, indices: Sequence[int] | np.ndarray) -> Table:
        """Return the rows at these positions, with their ids, in this order; nothing is copied.

        Rejected rows stay with the table that was read.

        Args:
            indices: positions, or a (rows,) bool mask.
        """
        wanted = np.asarray(indices)
        wanted = mapped_flatnonzero(wanted) if wanted.dtype == bool else mapped_narrow(wanted, len(self))
        rows = mapped_take(self.rows, wanted)
        part = Table(self._base, source=self.source, base_dir=self.base_dir, rows=rows, keep=self.keep)
        part.files, part.lone, part._ends, part._forms = self.files, self.lone, self._ends, self._forms
        part._places = wanted if self._places is None else mapped_take(self._places, wanted)
        return part


def _parts(data: pa.ChunkedArray, ends: np.ndarray, places: np.ndarray) -> Iterator[tuple[np.ndarray, pa.Array]]:
    """Cells by position; each chunk is visited once, and only its wanted cells are touched: which of the places they
    are for, and the cells."""
    if len(places) and (places.min() < 0 or places.max() >= (ends[-1] if len(ends) else 0)):
        raise IndexError(f"row positions lie between 0 and {len(data) - 1}")
    which = np.searchsorted(ends, places, side="right")
    order = np.argsort(which, kind="stable")
    cuts = np.flatnonzero(np.diff(which[order])) + 1
    for group in np.split(order, cuts) if len(places) else ():
        number = int(which[group[0]])
        chunk = data.chunk(number)
        yield group, chunk.take(pa.array(places[group] - (int(ends[number]) - len(chunk))))


def _python(value: Any) -> Any:
    """Return a numpy scalar as the Python value it stands for, times as text and durations as seconds."""
    value = value.item() if isinstance(value, np.generic) else value
    if (picture := picture_bytes(value)) is not None:
        return picture
    if isinstance(value, timedelta):
        return value.total_seconds()
    return time_text(value) if isinstance(value, date | time) else value
