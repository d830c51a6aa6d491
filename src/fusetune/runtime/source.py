"""Rows to predict, from dictionaries or from a table, as columns of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fusetune.data.quarantine import Rejected
from fusetune.errors import MissingExtra, TableError, nearest
from fusetune.modalities.media.image_files import image_to_png


@dataclass(frozen=True)
class SourceRows:
    """Rows to predict.

    Attributes:
        rows: ids of all rows, rejected ones included, in order.
        cells: by column, a cell for each of `rows`; None in rejected rows.
        rejected: rows that could not be read.
        base_dir: folder that relative media paths start from.
    """

    rows: list[int]
    cells: dict[str, list[Any]]
    base_dir: Path
    rejected: list[Rejected] = field(default_factory=list)


@dataclass(frozen=True)
class TableForm:
    """How a model's tables are read.

    Attributes:
        needed: the input columns.
        ids: identifier columns, which are copied to the output if the table has them.
        forms: by column, notations of numbers, dates and missing cells; see `CellForm`.
        read: settings of text files; see `ReadConfig`.
    """

    needed: list[str]
    ids: list[str]
    forms: Mapping[str, Any]
    read: Mapping[str, Any]


def read_source(source: Any, form: TableForm, missing: Sequence[str]) -> SourceRows:
    """Return the rows of a source.

    Args:
        source: a row as a dictionary, a list of these, or, for a model with one input column, of cells; or a table: a
            path, or an object that `fusetune.data.table.Table` reads.
        form: how the model's tables are read.
        missing: input columns that the rows may lack.

    Raises:
        TableError: it cannot be read or lacks a column.
        MissingExtra: a table is read and pyarrow, pydantic or pyyaml is not installed.
    """
    if isinstance(source, Mapping):
        source = [source]
    if isinstance(source, list | tuple):
        return _from_rows([_row(entry, form.needed) for entry in source], form, missing)
    return _from_table(source, form, missing)


def _row(entry: Any, needed: Sequence[str]) -> Mapping[str, Any]:
    if isinstance(entry, Mapping):
        return entry
    if len(needed) != 1:
        raise TableError(
            "a row has no column names",
            expected=f"rows as dictionaries with {', '.join(needed)}",
            came=f"a {type(entry).__name__}",
        )
    return {needed[0]: entry}


def _require(known: Sequence[str], form: TableForm, missing: Sequence[str]) -> None:
    absent = [name for name in form.needed if name not in known and name not in missing]
    if absent:
        hints = [hint for name in absent if (hint := nearest(name, known))]
        raise TableError(
            f"there is no column {', '.join(map(repr, absent))}",
            expected=", ".join(form.needed),
            came=", ".join(map(str, known)) or "no columns",
            do=" ".join([*hints, f"missing_columns={absent!r} predicts without"]),
        )


def _from_rows(rows: Sequence[Mapping[str, Any]], form: TableForm, missing: Sequence[str]) -> SourceRows:
    known = list(dict.fromkeys(str(name) for row in rows for name in row))
    if rows:
        _require(known, form, missing)
    names = [*form.needed, *(name for name in form.ids if name in known)]
    cells = {name: [_plain(row.get(name)) for row in rows] for name in names}
    if form.forms:
        from fusetune.data.reading.cell_forms import CellForm

        for name, settings in form.forms.items():
            notation = CellForm.from_dict(settings)
            cells |= {name: [notation.read(cell) for cell in cells[name]]} if name in cells else {}
    return SourceRows(list(range(len(rows))), cells, Path.cwd())


def _plain(cell: Any) -> Any:
    """Return a cell with numpy scalars as Python values, and images as the bytes of a PNG file."""
    if isinstance(cell, Image.Image | np.ndarray):
        png = image_to_png(cell)
        return cell.tolist() if png is None and isinstance(cell, np.ndarray) else png
    return cell.item() if isinstance(cell, np.generic) else cell


def _from_table(source: Any, form: TableForm, missing: Sequence[str]) -> SourceRows:
    try:
        from fusetune.config.read import ReadConfig
        from fusetune.data.reading.cell_forms import CellForm
        from fusetune.data.table import Table
    except ImportError as error:
        raise MissingExtra(
            f"reading tables needs more than rows do ({error})",
            expected="rows as dictionaries, or pyarrow, pydantic and pyyaml",
            do="pip install pyarrow pydantic pyyaml",
        ) from error
    from fusetune.errors import EmptyTable

    try:
        table = Table.read(source, read=ReadConfig(**{**form.read, "media": []}))
    except EmptyTable:
        return SourceRows([], {name: [] for name in form.needed}, Path.cwd())
    table = table.read_as({name: CellForm.from_dict(settings) for name, settings in form.forms.items()})
    _require(table.column_names, form, missing)
    rows = np.concatenate([table.rows, np.asarray([item.row for item in table.rejected], dtype=np.int64)])
    order = np.argsort(rows, kind="stable") if table.rejected else np.arange(len(rows))
    places = np.argsort(order, kind="stable")[: len(table)]
    cells: dict[str, list[Any]] = {}
    for name in [*form.needed, *form.ids]:
        own: list[Any] = [None] * len(rows)
        if name in table:
            for place, cell in zip(places, table.cells(name), strict=True):
                own[place] = cell
        if name in table or name in form.needed:
            cells[name] = own
    return SourceRows(rows[order].tolist(), cells, table.base_dir, table.rejected)
