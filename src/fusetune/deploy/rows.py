"""Rows to predict, as a table: files, DataFrames, rows as dictionaries, images in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from fusetune.config.config import Config
from fusetune.config.read import ReadConfig
from fusetune.data.joins import flat_names
from fusetune.data.table import Source, Table
from fusetune.deploy.bundle import Bundle
from fusetune.errors import ConfigError, TableError, nearest
from fusetune.modalities.base import Modality
from fusetune.modalities.media.image_files import image_to_png

Rows = Source | Mapping[str, Any] | Sequence[Any]
"""A table, a row as a dictionary, a list of such rows, or, for a model with one input column, a list of cells."""


def read_rows(bundle: Bundle, source: Rows, *, missing: Iterable[str] = ()) -> Table:
    """Return a table of rows to predict, with all input columns of a model.

    Args:
        bundle: the tuned model.
        source: `Rows`. Images may be PIL images or uint8 arrays, (height, width) or (height, width, 3 or 4).
        missing: input columns that the rows may lack; their cells are then missing.

    Raises:
        TableError: it cannot be read or lacks a column.
        ConfigError: `missing` names a column that is not an input.
    """
    missing, needed = list(missing), needed_columns(bundle)
    if lost := [name for name in missing if name not in needed]:
        raise ConfigError(
            f"{lost[0]!r} is no input column of the model",
            expected=", ".join(needed),
            do=nearest(lost[0], needed),
        )
    table = read_source(bundle, source).read_as(bundle.schema.forms())
    table = table.with_missing(name for name in missing if name not in table)
    try:
        table.require(needed)
    except TableError as error:
        absent = [name for name in needed if name not in table]
        declare = f"--missing-columns {absent[0]} (in Python missing_columns={absent!r}) predicts without"
        raise TableError(
            error.what,
            expected=error.expected,
            do=f"{error.do} {declare}" if error.do else declare,
            file=error.file,
        ) from None
    return table.with_joined(bundle.schema.joins())


def read_source(bundle: Bundle, source: Rows) -> Table:
    """Return a table of rows as it is, whichever columns it has; see `read_rows`.

    Raises:
        TableError: it cannot be read.
    """
    return Table.read(_as_source(source, bundle.modalities, needed_columns(bundle)), read=reading_of(bundle))


def needed_columns(bundle: Bundle) -> list[str]:
    """Return the columns that a table needs: the inputs, and those that joined inputs are made of."""
    joins = {name: parts for name, parts in bundle.schema.joins().items() if name in bundle.modalities}
    own = [name for name in bundle.modalities if name not in joins]
    return list(dict.fromkeys([*own, *(name for parts in joins.values() for name in flat_names(parts))]))


def reading_of(bundle: Bundle, media: Sequence[str] = ()) -> ReadConfig:
    """Return how a model's tables are read; whoever asks says which media are fetched, never the model's folder."""
    asked = Config.build({"data": {"read": {"media": list(media)}}}, origin="media")
    return bundle.config.data.read.model_copy(update={"media": asked.data.read.media})


def index_of(source: Any) -> Any:
    """Return the index of a pandas DataFrame, None for any other source."""
    return source.index if _is_frame(source) else None


def _is_frame(source: Any) -> bool:
    return type(source).__module__.split(".")[0] == "pandas" and type(source).__name__ == "DataFrame"


def _is_picture(cell: Any) -> bool:
    return isinstance(cell, Image.Image | np.ndarray)


def _as_source(source: Any, columns: Mapping[str, Modality], needed: Sequence[str]) -> Source:
    """Convert rows to a source for `Table.read`; `needed` are the columns that a table has to have."""
    if _is_frame(source):
        changed = {
            name: source[name].map(lambda cell, name=name: _as_cell(cell, columns[name]))
            for name in columns
            if name in source and source[name].dtype == object and any(map(_is_picture, source[name]))
        }
        frame: Source = source.assign(**changed) if changed else source
        return frame
    if type(source).__module__.split(".")[0] == "datasets":
        result: Source = source
        return result
    if isinstance(source, Mapping) or _is_picture(source):
        source = [source]
    if not isinstance(source, list | tuple):
        read: Source = source
        return read
    rows = [row if isinstance(row, Mapping) else _single_cell(row, needed) for row in source]
    return Table.from_records(
        [{name: _as_cell(cell, columns.get(str(name))) for name, cell in row.items()} for row in rows],
        source="the rows",
    )


def _single_cell(cell: Any, columns: Sequence[str]) -> dict[str, Any]:
    """Return a row of a single cell, for models with one input column."""
    if len(columns) != 1:
        raise TableError(
            "a row has no column names",
            expected=f"rows as dictionaries with {', '.join(columns)}",
            came=f"a {type(cell).__name__}",
        )
    return {columns[0]: cell}


def _as_cell(cell: Any, column: Modality | None) -> Any:
    """Convert images to the bytes of a PNG file, and other arrays to lists."""
    if isinstance(cell, Image.Image):
        return image_to_png(cell)
    if isinstance(cell, np.ndarray) and column is not None and column.kind == "image":
        if (png := image_to_png(cell)) is None:
            raise TableError(
                "this array is no picture",
                expected="uint8, (height, width) or (height, width, 3 or 4)",
                came=f"{cell.dtype}, {cell.shape}",
                column=column.column,
            )
        return png
    if isinstance(cell, np.ndarray | np.generic):
        return cell.tolist()
    if isinstance(cell, Mapping):
        return {key: _as_cell(part, None) for key, part in cell.items()}
    return cell
