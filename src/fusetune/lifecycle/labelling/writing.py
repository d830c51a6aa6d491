"""Write the files of a labelling: a round's rows, tasks for Label Studio, and the labelled rows as a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusetune.data.table import is_missing
from fusetune.evaluation.report.write import replace_file
from fusetune.lifecycle.labelling.folder import LabelFolder
from fusetune.lifecycle.labelling.label_studio import OBJECTS, config_of, task_of
from fusetune.lifecycle.labelling.pool import Pool

LABELLED, CONFIG = "labelled.csv", "labelling.xml"


def write_files(folder: LabelFolder, pool: Pool, labels: Sequence[str]) -> None:
    """Write the files of all rounds that are not there, the labelling configuration and the labelled rows.

    Args:
        folder: the labelling.
        pool: its rows.
        labels: those that a person chooses from.

    Raises:
        StorageError: a file cannot be written.
    """
    columns = [name for name in pool.table.column_names if name != folder.target and pool.table.is_scalar(name)]
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
    return [
        task_of(
            (folder.row_id, row),
            {name: own[at] for name, own in cells.items()},
            pool.kinds,
            base_dir=pool.table.base_dir,
            control=folder.control,
            guesses=batch.guesses.get(row, []),
            version=f"fusetune round {number}",
        )
        for at, row in enumerate(batch.shown)
    ]


def _write_labelled(folder: LabelFolder, pool: Pool) -> None:
    """Write the pool's rows that have a label, as a table for `fit` and `retune`; paths of media become absolute."""
    own = {pool.positions[row]: label for row, label in folder.log.labels.items() if label and row in pool.positions}
    labels = dict(sorted({**{row: one for row, one in pool.given.items() if row >= pool.first}, **own}.items()))
    places = [row - pool.first for row in labels]
    names = [name for name in pool.table.column_names if name != folder.target and pool.table.is_scalar(name)]
    home = pool.table.base_dir.resolve()
    columns = [
        [_absolute(cell, home) if pool.kinds.get(name) in OBJECTS else _text(cell) for cell in cells]
        for name in names
        for cells in [pool.table.cells(name, places)]
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, folder.target])
    writer.writerows(zip(*columns, labels.values(), strict=True))
    replace_file(folder.path / LABELLED, text.getvalue())


def _text(cell: Any) -> Any:
    """Return a cell as a CSV file holds it."""
    if is_missing(cell):
        return ""
    return json.dumps(cell, ensure_ascii=False) if isinstance(cell, list | dict) else cell


def _absolute(cell: Any, home: Path) -> Any:
    """Return paths of media, of which a cell may have several, as absolute ones."""
    if not isinstance(cell, str):
        return _text(cell)
    return ";".join(part if "://" in part else str(home / part.strip()) for part in cell.split(";"))
