"""Write the files of a labelling: a round's rows, tasks for Label Studio, and the labelled rows as a table."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from fusetune.data.table import is_missing
from fusetune.errors import StorageError, reason
from fusetune.evaluation.report.write import replace_file
from fusetune.lifecycle.labelling.folder import LabelFolder
from fusetune.lifecycle.labelling.label_studio import OBJECTS, config_of, document_root, task_of
from fusetune.lifecycle.labelling.pool import Pool

CONFIG = "labelling.xml"


def write_files(folder: LabelFolder, pool: Pool, labels: Sequence[str]) -> None:
    """Write the files of all rounds that are not there, the labelling configuration and the labelled rows.

    Args:
        folder: the labelling.
        pool: its rows.
        labels: those that a person chooses from.

    Raises:
        StorageError: a file cannot be written.
    """
    columns = [name for name in pool.table.column_names if name != folder.target and not _holds_bytes(pool, name)]
    for number, batch in enumerate(folder.batches, 1):
        places = [pool.positions[row] - pool.first for row in batch.shown if row in pool.positions]
        if len(places) < len(batch.shown):
            continue  # the pool has changed since: the file cannot be made again
        folder.write_csv(number, {name: [_text(cell) for cell in pool.table.cells(name, places)] for name in columns})
        if not folder.tasks_file(number).exists():
            tasks = _tasks(folder, pool, number, places)
            replace_file(folder.tasks_file(number), json.dumps(tasks, ensure_ascii=False, indent=1))
    if folder.batches:
        kinds = {name: pool.kinds[name] for name in pool.inputs}
        config = config_of(kinds, labels, control=folder.control, row_id=folder.row_id)
        replace_file(folder.path / CONFIG, config)
    _write_labelled(folder, pool)


def _tasks(folder: LabelFolder, pool: Pool, number: int, places: Sequence[int]) -> list[dict[str, Any]]:
    """Return a round's rows as tasks; random rows have no prediction, which could sway the person who labels them."""
    batch = folder.batches[number - 1]
    cells = {name: pool.table.cells(name, places) for name in pool.inputs}
    root = media_root(pool)
    return [
        task_of(
            (folder.row_id, row),
            {name: own[at] for name, own in cells.items()},
            pool.kinds,
            base_dir=pool.table.base_dir,
            root=root or pool.table.base_dir,
            control=folder.control,
            guesses=batch.guesses.get(row, []),
            version=f"fusetune round {number}",
        )
        for at, row in enumerate(batch.shown)
    ]


def media_root(pool: Pool) -> Path | None:
    """Return the folder that Label Studio serves media from; None without columns of pictures or sounds."""
    columns = [name for name in pool.inputs if pool.kinds[name] in OBJECTS]
    return (
        document_root((cell for name in columns for cell in pool.table.lazy(name)), pool.table.base_dir)
        if columns
        else None
    )


def labelled_file(folder: LabelFolder, pool: Pool) -> Path:
    """Return the file of labelled rows: a CSV file, or Parquet where cells hold bytes or lists."""
    plain = all(pool.table.is_scalar(name) for name in pool.table.column_names)
    return folder.path / ("labelled.csv" if plain else "labelled.parquet")


def _write_labelled(folder: LabelFolder, pool: Pool) -> None:
    """Write the pool's rows that have a label, as a table for `fit` and `retune`; paths of media become absolute."""
    own = {pool.positions[row]: label for row, label in folder.log.labels.items() if label and row in pool.positions}
    labels = dict(sorted({**{row: one for row, one in pool.given.items() if row >= pool.first}, **own}.items()))
    table = pool.table.select([row - pool.first for row in labels])
    home = pool.table.base_dir.resolve()
    arrow = table.arrow.drop_columns([folder.target]) if folder.target in table else table.arrow
    for at, name in enumerate(arrow.column_names):
        if pool.kinds.get(name) in OBJECTS and pa.types.is_string(arrow.schema.field(name).type):
            paths = pa.array([_absolute(cell, home) for cell in arrow.column(name).to_pylist()], pa.string())
            arrow = arrow.set_column(at, name, paths)
    arrow = arrow.append_column(folder.target, pa.array(list(labels.values()), pa.string()))
    file = labelled_file(folder, pool)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        if file.suffix == ".csv":
            pyarrow.csv.write_csv(arrow, partial)
        else:
            pyarrow.parquet.write_table(arrow, partial)
        partial.replace(file)
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {reason(error)}") from error


def _holds_bytes(pool: Pool, name: str) -> bool:
    """Return whether a column's cells hold bytes, also as a part of them."""
    return "binary" in str(pool.table.arrow.schema.field(name).type)


def _text(cell: Any) -> Any:
    """Return a cell as a CSV file holds it."""
    if is_missing(cell):
        return ""
    return json.dumps(cell, ensure_ascii=False) if isinstance(cell, list | dict) else cell


def _absolute(cell: str | None, home: Path) -> str | None:
    """Return paths of media, of which a cell may have several, as absolute ones."""
    if cell is None or cell.startswith("data:"):
        return cell
    return ";".join(part if "://" in part else str(home / part.strip()) for part in cell.split(";"))
