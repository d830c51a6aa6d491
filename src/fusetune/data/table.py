"""`Table`: rows with ids on top of memory-mapped Arrow."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import pyarrow as pa

from fusetune.data.distinct import Cells, as_cells, distinct, is_missing, missing_in
from fusetune.data.joins import Parts, flat_names, joined_column
from fusetune.data.quarantine import Rejected
from fusetune.data.reading.arrow import (
    encode_column,
    from_cells,
    is_json,
    is_text,
    lone_surrogates,
    python_cell,
)
from fusetune.data.reading.cell_forms import CellForm
from fusetune.data.storage.mapped import mapped_arange, mapped_flatnonzero, mapped_narrow, mapped_take, mapped_zeros
from fusetune.errors import EmptyTable, TableError, nearest

if TYPE_CHECKING:
    import datasets
    import pandas

    from fusetune.config.read import ReadConfig
    from fusetune.data.reading.fetch import MediaFetcher

__all__ = ["Source", "Table", "is_missing"]

AT_ONCE = 8 * 2**20
"""Bytes of a column that are processed together, about."""

Source: TypeAlias = Union[str, Path, "pandas.DataFrame", "datasets.Dataset", pa.Table, "Table"]


class Table:
    """Rows of a source, in its order, without the rejected ones.

    `len(table) + len(table.rejected)` is the number of rows of the source, as long as no rows were selected.
    Cells are read lazily from the memory-mapped file. `select` copies nothing.

    Attributes:
        source: name of the source in error messages.
        base_dir: folder that relative media paths start from.
        rows: (rows,) int64 row ids; 0 is the first row of data in the source.
        rejected: rows of the source that are not in the table, with the reason.
        notes: remarks for the user on how the source was read.
        files: the sources with the id of each one's first row; several where tables were joined.
        keep: an object that must live as long as the table, such as its temporary file.
        lone: whether relative media paths cannot be resolved, because the table was copied from a remote address.
        fetcher: fetches media at addresses, if that was asked for; else None.
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
            source: see the attributes.
            base_dir: see the attributes.
            rows: (rows,) ids, 0, 1, 2, ... where None.
            rejected: the other rows.
            notes: see the attributes.
            keep: see the attributes.
            files: see the attributes; only `source` where empty.
        """
        self.files = list(files) or [(source, 0)]
        self.source, self.base_dir = source, base_dir
        self.rows = mapped_arange(arrow.num_rows) if rows is None else rows
        self.rejected, self.notes = list(rejected), list(notes)
        self._base, self.keep = arrow, keep
        self.lone = False
        self.fetcher: MediaFetcher | None = None
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
            source: a CSV, TSV, JSON, JSONL, Parquet, Arrow, Feather or annotation file, a folder with the shards of
                one table in one of these formats, a pandas DataFrame, a Hugging Face `Dataset`, an Arrow table, or a
                `Table`, which is returned unchanged.
            base_dir: folder that relative media paths start from. None: the file's folder, or the current one for
                objects in memory.
            cache_dir: folder that keeps the Arrow form of a text or Parquet file for the next time. None: a private
                temporary folder that is deleted with the table.
            read: separator, quotes and encoding of text files; unset ones are detected. Also which media
                are fetched from addresses.

        Raises:
            TableError: it cannot be read; the message names the file, the position and what to do.
            TooManyRejected: no row, or hardly any, can be used.
        """
        from fusetune.data.reading.fetch import MediaFetcher
        from fusetune.data.reading.readers import read_source

        fetcher = MediaFetcher.of(read)
        if isinstance(source, Table):
            if fetcher is None or source.fetcher is not None:
                return source
            table = copy.copy(source)
        else:
            table = read_source(source, base_dir=base_dir, cache_dir=cache_dir, read=read)
        table.fetcher = fetcher
        return table

    @classmethod
    def from_records(
        cls, records: Iterable[Mapping[str, Any]], *, source: str = "the records", base_dir: str | Path | None = None
    ) -> Table:
        """Return a table of records; a key that a record lacks is a missing cell.

        Raises:
            TableError: there are no records, or a cell has a type that no column can hold.
        """
        rows: Sequence[Mapping[Any, Any]] = list(records)
        rows = [{str(name): cell for name, cell in row.items()} for row in rows]
        names = list(dict.fromkeys(name for row in rows for name in row))
        if not names:
            raise EmptyTable("there are no rows", expected="at least one row with one column", file=source)
        columns = {name: [python_cell(row.get(name)) for row in rows] for name in names}
        home = Path(base_dir or Path.cwd())
        try:
            return cls(from_cells(columns, source), source=source, base_dir=home)
        except UnicodeEncodeError:
            rejected = lone_surrogates(columns)
        lost = {item.row for item in rejected}
        kept = [index for index in range(len(rows)) if index not in lost]
        if not kept or not rejected:
            raise TableError("no row's text can be written as UTF-8", do="decode the text again", file=source)
        part = {name: [cells[index] for index in kept] for name, cells in columns.items()}
        ids = np.asarray(kept, dtype=np.int64)
        return cls(from_cells(part, source), source=source, base_dir=home, rows=ids, rejected=rejected)

    def come_from(self, address: str, note: str, *, keep: object, media: bool) -> None:
        """Record that the table was copied from a remote address.

        Args:
            address: the new `source`.
            note: what was copied, added to `notes`.
            keep: an object that must live as long as the table.
            media: whether the files named in its cells were copied too.
        """
        self.source, self.files, self.lone = address, [(address, 0)], not media
        self.notes.append(note)
        self.keep = (self.keep, keep)

    def read_as(self, forms: Mapping[str, CellForm]) -> Table:
        """Return the same rows with some columns' cells parsed in other forms; nothing is copied.

        Args:
            forms: by column; columns that the table lacks are ignored.
        """
        table = copy.copy(self)
        table._forms = {name: form for name, form in forms.items() if name in self and form != CellForm()}
        return table

    def with_missing(self, columns: Iterable[str]) -> Table:
        """Return the same rows with additional columns whose cells are all missing; nothing is copied."""
        table = copy.copy(self)
        table._ends = {}
        for name in columns:
            table._base = table._base.append_column(name, pa.nulls(table._base.num_rows, pa.string()))
        return table

    def with_joined(self, joins: Mapping[str, Parts]) -> Table:
        """Return the rows with further columns, whose cells are lists of others' cells (see `fusetune.data.joins`)."""
        self.require(name for parts in joins.values() for name in flat_names(parts))
        table, every = copy.copy(self), copy.copy(self)
        every._places, every._ends, table._ends, table._json = None, {}, {}, {*self._json, *joins}
        for name in [name for name in joins if name not in self]:
            column = joined_column(name, every.cells, self._base.num_rows, joins[name])
            table._base = table._base.append_column(*column)
        return table

    @property
    def arrow(self) -> pa.Table:
        """The rows as Arrow: the mapped file itself, or a copy of the selected rows.

        The strings of columns with mixed types, lists or objects are JSON; `cells` decodes them.
        """
        return self._base if self._places is None else self._base.take(self._places)

    @property
    def column_names(self) -> list[str]:
        """Column names, in the source's order."""
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
            TableError: columns are missing; the message suggests the nearest names.
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
        positions = self._places
        if indices is not None:
            wanted = np.asarray(indices, dtype=np.int64)
            positions = wanted if positions is None else positions[wanted]
        if positions is None:
            return [cell for chunk in data.iterchunks() for cell in self._cells(column, chunk)]
        result: list[Any] = [None] * len(positions)
        for group, cells in _parts(data, self._chunk_ends(column), positions):
            for index, cell in zip(group.tolist(), self._cells(column, cells), strict=True):
                result[index] = cell
        return result

    def _cells(self, column: str, array: pa.Array) -> list[Any]:
        """Return an array's cells as Python values, read in the column's form."""
        cells = as_cells(array, column in self._json)
        form = self._forms.get(column)
        return cells if form is None else [form.read(cell) for cell in cells]

    def lazy(self, column: str, indices: np.ndarray | None = None) -> Cells:
        """Return a lazy sequence of a column's cells, or of those of some rows.

        Raises:
            TableError: there is no such column.
        """
        self.require([column])
        return Cells(self, column, indices)

    def distinct(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the column's cells as codes, like `pandas.factorize`.

        Returns:
            (rows,) codes of the distinct cells, -1 for missing ones; and (cells,) the first row of each distinct cell,
            rising. int32 where that is wide enough, else int64.

        Raises:
            TableError: there is no such column.
        """
        self.require([column])
        return distinct(self._arrays(column), column in self._json, len(self))

    def at_once(self, column: str) -> int:
        """Return the number of a column's cells that take about 8 MiB, from 16 to 65,536."""
        data = self._base.column(column)
        return int(np.clip(AT_ONCE * len(data) // max(data.nbytes, 1), 16, 65_536))

    def _arrays(self, column: str) -> Iterator[pa.Array]:
        """Yield a column's cells in order, in chunks, parsed in the column's form."""
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
        """Return the exclusive end position of each of a column's chunks, (chunks,)."""
        if column not in self._ends:
            self._ends[column] = np.cumsum([len(chunk) for chunk in self._base.column(column).iterchunks()])
        return self._ends[column]

    def is_scalar(self, column: str) -> bool:
        """Return whether the column's cells are strings, numbers, booleans or JSON, which are cheap to read."""
        kind = self._base.schema.field(column).type
        return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def row(self, index: int) -> dict[str, Any]:
        """Return one row by position, as {column: cell}."""
        return {column: self.cells(column, [index])[0] for column in self.column_names}

    def missing(self, column: str) -> np.ndarray:
        """Return (rows,) bool, True where the cell is missing."""
        self.require([column])
        result, start = mapped_zeros((len(self),), bool), 0
        for array in self._arrays(column):
            result[start : start + len(array)] = missing_in(array, column in self._json)
            start += len(array)
        return result

    def parts(self) -> np.ndarray:
        """Return the index in `files` of each row's source, (rows,) int64."""
        return np.searchsorted([first for _, first in self.files], self.rows, side="right") - 1

    def file_and_row(self, row: int) -> tuple[str, int]:
        """Return the source that a row was read from, and its row number there.

        Args:
            row: its id in this table.
        """
        source, first = next(item for item in reversed(self.files) if item[1] <= row)
        return source, row - first

    def select(self, indices: Sequence[int] | np.ndarray) -> Table:
        """Return the rows at these positions, in this order and with their ids; nothing is copied.

        The result has no rejected rows: they stay with the original table.

        Args:
            indices: positions, or a (rows,) bool mask.
        """
        wanted = np.asarray(indices)
        wanted = mapped_flatnonzero(wanted) if wanted.dtype == bool else mapped_narrow(wanted, len(self))
        rows = mapped_take(self.rows, wanted)
        part = Table(self._base, source=self.source, base_dir=self.base_dir, rows=rows, keep=self.keep)
        part.files, part.lone, part.fetcher = self.files, self.lone, self.fetcher
        part._ends, part._forms = self._ends, self._forms
        part._places = wanted if self._places is None else mapped_take(self._places, wanted)
        return part


def _parts(data: pa.ChunkedArray, ends: np.ndarray, indices: np.ndarray) -> Iterator[tuple[np.ndarray, pa.Array]]:
    """Yield the cells at some positions, chunk by chunk: indices into `indices`, and these cells.

    Each chunk is visited once, and only the requested cells are read.
    """
    if len(indices) and (indices.min() < 0 or indices.max() >= (ends[-1] if len(ends) else 0)):
        raise IndexError(f"row positions lie between 0 and {len(data) - 1}")
    which = np.searchsorted(ends, indices, side="right")
    order = np.argsort(which, kind="stable")
    cuts = np.flatnonzero(np.diff(which[order])) + 1
    for group in np.split(order, cuts) if len(indices) else ():
        number = int(which[group[0]])
        chunk = data.chunk(number)
        yield group, chunk.take(pa.array(indices[group] - (int(ends[number]) - len(chunk))))
