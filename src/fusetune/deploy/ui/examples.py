"""Rows to click at: some rows of a table as values of the page's widgets, their pictures and sounds as files."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusetune.data.table import Table
from fusetune.deploy.serve.inputs import Inputs
from fusetune.deploy.serve.media import MEDIA
from fusetune.errors import BadCell
from fusetune.modalities.media.cells import CellLocation, read_part, split_cell
from fusetune.modalities.words import lists_of_words
from fusetune.tasks.entities.tagging import spans_of_tags

NUM_EXAMPLES = 12


@dataclass(frozen=True)
class ExampleRows:
    """Rows to show, by column.

    Attributes:
        rows: the cells that widgets take: texts, and paths of pictures and sounds.
        truth: of each row, the targets that the table has, as a text; "" for none.
        lists: columns whose cells are lists or objects; their widgets take JSON.
    """

    rows: Sequence[Mapping[str, Any]] = ()
    truth: Sequence[str] = ()
    lists: frozenset[str] = frozenset()


def example_rows(
    table: Table | None, inputs: Inputs, targets: Sequence[str], folder: Path, *, num: int = NUM_EXAMPLES, seed: int = 0
) -> ExampleRows:
    """Draw rows of a table and write their pictures and sounds into a folder.

    Args:
        table: rows with the columns of the model; None for none.
        inputs: the columns.
        targets: columns with the truth, which a table may lack.
        folder: for files.
        num: the most rows.
        seed: of the draw.
    """
    if table is None or not len(table) or any(name not in table for name in inputs.kinds):
        return ExampleRows()
    order = np.random.default_rng(seed).permutation(len(table))
    rows, truth, lists = [], [], set()
    for index in order[: 4 * num].tolist():
        cells = table.row(index)
        row = widget_values(table, index, inputs.kinds, folder)
        if all(value is None for value in row.values()):
            continue
        rows.append(row)
        lists |= {name for name in row if isinstance(cells[name], list | dict) and not lists_of_words([cells[name]])}
        known = {name: _truth(cells[name], cells) for name in targets if cells.get(name) is not None}
        truth.append("; ".join(f"{name}: {text}" if len(targets) > 1 else text for name, text in known.items()))
        if len(rows) == num:
            break
    return ExampleRows(rows, truth, frozenset(lists))


def widget_values(table: Table, index: int, kinds: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Return a row as values of widgets; its pictures and sounds are written into a folder.

    Args:
        table: the rows.
        index: of the row, from 0.
        kinds: of the columns, by name.
        folder: for files.
    """
    cells = table.row(index)
    return {
        name: _value(cells[name], kind, CellLocation(index, name, table.base_dir), folder)
        for name, kind in kinds.items()
    }


def _value(cell: Any, kind: str, location: CellLocation, folder: Path) -> Any:
    """Return a widget's value for a cell; None for one that is missing, or whose file cannot be read."""
    if cell is None:
        return None
    if kind in MEDIA:
        return _file(cell, location, folder)
    return _text(cell)


def _file(cell: Any, location: CellLocation, folder: Path) -> str | None:
    """Write the first file of a cell into the folder; return its path."""
    parts = split_cell(cell, location.base_dir)
    if not parts:
        return None
    try:
        data = read_part(parts[0], location)
    except BadCell:
        return None
    named = Path(parts[0]).name if isinstance(parts[0], str) and len(parts[0]) < 255 else ""
    known = (mimetypes.guess_type(named)[0] or "").startswith(("image/", "audio/"))
    home = folder / f"{location.row}-{len(list(folder.iterdir()))}"
    home.mkdir()
    path = home / (named if known else "file")
    path.write_bytes(data)
    return str(path)


def _truth(cell: Any, cells: Mapping[str, Any]) -> str:
    """Return a target's cell as a text: spans by their words, "none" for no span, else as it is."""
    if isinstance(cell, list) and cell and all(isinstance(tag, str) for tag in cell):
        words = next((own for own in cells.values() if own is not cell and _are_words(own, len(cell))), None)
        if words is not None:
            text, spans = " ".join(words), spans_of_tags(cell, words)
            return ", ".join(f"{text[start:end]} ({label})" for start, end, label in spans) or "none"
    return _text(cell)


def _are_words(cell: Any, num: int) -> bool:
    return isinstance(cell, list) and len(cell) == num and lists_of_words([cell])


def _text(cell: Any) -> str:
    if isinstance(cell, list) and lists_of_words([cell]):
        return " ".join(cell)
    if isinstance(cell, list | dict):
        return json.dumps(cell, ensure_ascii=False, default=str)
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)
