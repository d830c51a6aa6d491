"""Read what persons labelled: a round's CSV, or an export of Label Studio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fusetune.data.table import Table, is_missing
from fusetune.errors import TableError, UserError, nearest, reason, shown
from fusetune.lifecycle.labelling.folder import Given, LabelFolder
from fusetune.lifecycle.labelling.label_studio import decide, read_tasks
from fusetune.modalities.values import ValueIndex
from fusetune.security.untrusted import read_json
from fusetune.tasks.cells import label_text

CANNOT = "?"
"""What a person writes for a row that cannot be labelled."""


def read_labels(path: Path, folder: LabelFolder, notes: list[str]) -> list[Given]:
    """Read the labels in a file; empty cells say nothing.

    Args:
        path: a table with the ids and the labels, or an export of Label Studio.
        folder: the labelling.
        notes: sentences for the user are appended.

    Raises:
        TableError: it cannot be read, or has no ids or no labels.
    """
    if path.suffix.lower() == ".json":
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            came = reason(error) if isinstance(error, OSError) else str(error)
            raise TableError("the export cannot be read", came=came, file=str(path)) from None
        labels, split = read_tasks(content, folder.row_id, folder.control, file=str(path))
    else:
        labels, split = decide(_read_table(path, folder, notes))
    if split:
        notes.append(f"{path.name}: {len(split)} rows have different labels without a majority and still need one.")
    return [Given(row, None if label is None else label.strip(), path.name) for row, label in labels.items()]


def _read_table(path: Path, folder: LabelFolder, notes: list[str]) -> dict[str, list[str | None]]:
    """Return the labels of each row in a table, of which there may be several."""
    table = Table.read(path)
    column = folder.target if folder.target in table else folder.control
    if folder.row_id not in table or column not in table:
        raise TableError(
            "the file has no rows of this labelling",
            expected=f"the columns {folder.row_id} and {folder.target}",
            came=", ".join(table.column_names),
            do="fill in a round's file, or export from Label Studio as JSON, JSON-MIN or CSV",
            file=str(path),
        )
    if table.rejected:
        notes.append(f"{path.name}: row {table.rejected[0].row} cannot be read: {table.rejected[0].why}.")
    given: dict[str, list[str | None]] = {}
    for row, cell in zip(table.cells(folder.row_id), table.cells(column), strict=True):
        if not is_missing(row) and not is_missing(cell) and (text := label_text(cell).strip()):
            given.setdefault(str(row), []).append(None if text == CANNOT else text)
    return given


def settle_labels(
    given: Sequence[Given], known: Sequence[str], *, closed: bool, notes: list[str]
) -> tuple[list[Given], list[Given]]:
    """Return labels in the form of the known ones, and those that are not accepted.

    A label that differs from a known one in case or in the form of a number is that one.

    Args:
        given: as they were read.
        known: the labels so far.
        closed: whether only known labels are accepted.
        notes: sentences for the user are appended.
    """
    names, new = list(known), []
    accepted, refused = [], []
    for one in given:
        label = one.label
        if label is not None and label not in names:
            place = ValueIndex(names).find(label)
            folded = [name for name in names if name.casefold() == label.casefold()]
            if place is not None or folded:
                label = names[place] if place is not None else folded[0]
            elif closed:
                refused.append(one)
                continue
            else:
                new.append(label)
                names.append(label)
        accepted.append(Given(one.row, label, one.file))
    hints = {label: nearest(label, known) for label in new}
    for label, hint in hints.items():
        if hint:
            notes.append(f"{shown(label, 60)} is a new label; {hint} Then correct it in its file.")
    if plain := [shown(label, 60) for label, hint in hints.items() if not hint]:
        notes.append(f"New labels: {', '.join(plain)}.")
    return accepted, refused


def refusal(refused: Sequence[Given], known: Sequence[str]) -> TableError:
    """Return the error about labels that are not known."""
    near = {one.label: f" ({hint})" if (hint := nearest(one.label or "", known)) else "" for one in refused}
    first = [f"{one.file}, {one.row}: {shown(one.label, 60)}{near[one.label]}" for one in refused[:10]]
    more = f"; and {len(refused) - 10} more" if len(refused) > 10 else ""
    return TableError(
        f"{len(refused)} {'label is' if len(refused) == 1 else 'labels are'} not known; the others have been recorded",
        expected=", ".join(known[:30]),
        came="; ".join(first) + more,
        do="correct them in the file, or accept them as new labels: --new-labels",
    )


def read_all(folder: LabelFolder, imports: Sequence[Path], notes: list[str]) -> list[list[Given]]:
    """Read the rounds' files that are there, then the imports; return one list a file.

    Raises:
        UserError: one cannot be read.
    """
    files = [file for number in range(1, len(folder.batches) + 1) if (file := folder.csv_file(number)).is_file()]
    result = []
    for path in [*files, *imports]:
        try:
            result.append(read_labels(path, folder, notes))
        except UserError as error:
            raise error.in_file(str(path)) from None
    return result
