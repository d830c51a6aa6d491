"""Label errors: the rows whose given label is likely wrong, by probabilities of probes that did not see it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fusetune.api import load
from fusetune.data.folds import fold_of
from fusetune.data.reading.joined import concat
from fusetune.data.table import Source, Table
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.fine_tuned import FineTuned
from fusetune.deploy.rows import read_source
from fusetune.errors import ConfigError, TableError, nearest
from fusetune.evaluation.report.cells import show_cell
from fusetune.evaluation.report.write import render_page, replace_file
from fusetune.evaluation.results import plain
from fusetune.evaluation.shown import Shown
from fusetune.lifecycle.confident import WrongLabels, best_other, self_confidence, wrong_labels
from fusetune.lifecycle.frozen import FrozenRows, read_frozen
from fusetune.lifecycle.held_out import all_rows
from fusetune.tasks.abilities import Labelled, Probed
from fusetune.tasks.base import TargetTask
from fusetune.training.probes.cross_validation import out_of_fold
from fusetune.training.probes.probe import side_by_side
from fusetune.training.probes.selection import column_weights
from fusetune.training.progress import track

MIN_ROWS = 50
SHOWN = 60
"""The most rows that the page shows; the CSV and the JSON have all that are listed."""


@dataclass
class LabelError:
    """A row whose label is likely wrong.

    Attributes:
        file, row: the row's table, and its number there.
        given, suggested: the label that it has, and the most probable other one.
        score: the probability of the given label by probes that did not see it, in [0, 1].
        probability: that of the suggested label.
        cells: the row's.
    """

    file: str
    row: int
    given: str
    suggested: str
    score: float
    probability: float
    cells: list[Shown] = field(default_factory=list)


@dataclass
class LabelErrors:
    """What was found.

    Attributes:
        source, target: of the labels.
        num_rows: the labelled rows that were judged.
        accuracy: how often the probes agree with the given labels.
        wrong: the estimated number of wrong labels, with its interval.
        max_share: the share of wrong labels above which there is an alarm; None raises none.
        rows: the likely wrong labels, the likeliest first.
        notes: sentences for the user.
    """

    source: str
    target: str
    num_rows: int
    accuracy: float
    wrong: WrongLabels
    max_share: float | None
    rows: list[LabelError]
    notes: list[str]

    @property
    def alarm(self) -> bool:
        """Whether the interval's lower end is above the share of wrong labels that is accepted."""
        return self.max_share is not None and self.wrong.low > self.max_share * self.num_rows

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        low, high = (f"{round(value):,}" for value in (self.wrong.low, self.wrong.high))
        return (
            f"The probes are confident of another label for about {round(self.wrong.value):,} of {self.num_rows:,} "
            f"rows of {self.target} ({low} to {high}): wrong labels and hard rows. {len(self.rows):,} rows are listed, "
            "the likeliest errors first."
        )

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        content: dict[str, Any] = plain(self)
        return {"headline": self.headline, "alarm": self.alarm} | content

    def save(self, folder: str | Path) -> Path:
        """Write label_errors.html, .json and .csv into a folder.

        Raises:
            StorageError: they cannot be written.
        """
        folder = Path(folder)
        replace_file(folder / "label_errors.json", json.dumps(self.to_json(), ensure_ascii=False, indent=1))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "row", "given", "suggested", "score"])
        writer.writerows([row.file, row.row, row.given, row.suggested, f"{row.score:.6f}"] for row in self.rows)
        replace_file(folder / "label_errors.csv", text.getvalue())
        page = render_page("label_errors.html.j2", report=self, rows=self.rows[:SHOWN])
        replace_file(folder / "label_errors.html", page)
        return folder


def label_errors(
    model: FineTuned | str | Path,
    source: Source | None = None,
    *,
    target: str | None = None,
    count: int | None = None,
    max_share: float | None = None,
    folds: int = 5,
    seed: int = 0,
    progress: bool = False,
) -> LabelErrors:
    """List the rows whose label is likely wrong, by confident learning with out-of-fold linear probes.

    The probes read the pretrained encoders' outputs before tuning, and n-grams of texts. A tuned model has learned the
    labels and would hide their errors.

    Args:
        model: the tuned model, or its folder.
        source: labelled rows. None: the run's train and validation rows, read again from its tables.
        target: the column, if the model predicts several.
        count: the rows to list; None lists as many as are estimated to be wrong.
        max_share: the share of wrong labels that is accepted, in [0, 1); see `LabelErrors.alarm`. None accepts all: as
            hard rows count as wrong, only rows that you trust tell which share is usual.
        folds: of the cross-validation, 2 or more. Rows of a group are in one fold.
        seed: of the folds and the interval.
        progress: whether to show progress on standard error.

    Raises:
        ConfigError: the target is not one of several labels, the run's rows cannot be read again, or an argument is out
            of range.
        TableError: a table cannot be read, lacks a column, or has too few rows.

    Example:
        >>> found = ft.label_errors("runs/tickets")
        >>> found.wrong.value, found.rows[0].given, found.rows[0].suggested
        (41.3, 'billing', 'shipping')

    Reference:
        Northcutt, Jiang & Chuang 2021, Confident learning: estimating uncertainty in dataset labels, arXiv 1911.00068.
    """
    if not 0 <= (max_share or 0) < 1 or folds < 2 or (count is not None and count < 1):
        raise ConfigError(
            "an argument is out of range",
            expected="0 <= max_share < 1, folds of 2 or more, count of 1 or more",
            came=f"{max_share=}, {folds=}, {count=}",
        )
    tuned = model if isinstance(model, FineTuned) else load(model)
    key, task = task_of(tuned.bundle.targets, target)
    table = read_source(tuned.bundle, source) if source is not None else _learned_rows(tuned)
    frozen = read_frozen(tuned.bundle, table, targets=True, progress=track if progress else None)
    rows = frozen.examples.labelled(key)
    if len(rows) < MIN_ROWS:
        raise TableError(
            "there are too few labelled rows", expected=f"{MIN_ROWS} or more", came=str(len(rows)), file=table.source
        )
    truth = frozen.examples.truth(key, rows)
    probabilities = held_out_probabilities(task, frozen, rows, truth, folds=folds, seed=seed)
    wrong = wrong_labels(truth, probabilities, seed=seed)
    scores = self_confidence(truth, probabilities)
    order = np.argsort(scores, kind="stable")
    order = order[probabilities.argmax(1)[order] != truth[order]][: round(wrong.value) if count is None else count]
    suggested, other = best_other(truth, probabilities)
    listed = []
    for index in order:
        file_and_row, cells = _shown(tuned.bundle, frozen, int(rows[index]))
        labels = task.labels[truth[index]], task.labels[suggested[index]]
        listed.append(LabelError(*file_and_row, *labels, float(scores[index]), float(other[index]), cells))
    accuracy = float(np.mean(probabilities.argmax(1) == truth))
    return LabelErrors(
        table.source,
        task.target,
        len(rows),
        accuracy,
        wrong,
        max_share,
        listed,
        _notes(frozen, truth, len(task.labels)),
    )


def _learned_rows(tuned: FineTuned) -> Table:
    """Return the train and validation rows of the model."""
    splits = all_rows(tuned)
    parts = [splits[split] for split in ("train", "val") if split in splits]
    return concat(parts, " + ".join(dict.fromkeys(part.source for part in parts)))


def task_of(targets: Mapping[str, TargetTask], target: str | None) -> tuple[str, Probed]:
    """Return the name of the task to judge, and the task.

    Raises:
        ConfigError: there is none such, or several and none is named.
    """
    names = [task.target for task in targets.values()]
    if target is not None and target not in names:
        raise ConfigError(
            f"the model predicts no {target!r}", expected=", ".join(names), do=nearest(target, names) or ""
        )
    able = [
        (name, task)
        for name, task in targets.items()
        if isinstance(task, Labelled) and isinstance(task, Probed) and task.reads is None and not _is_multilabel(task)
    ]
    matching = [(name, task) for name, task in able if target in (None, task.target)]
    if len(matching) > 1:
        raise ConfigError(
            "the model predicts several targets",
            expected=f"one of {', '.join(task.target for _, task in matching)}",
            do="name it: --target",
        )
    if not matching:
        raise ConfigError(
            "label errors are found for targets with one of several labels",
            came=f"{target or ', '.join(names)}, which has numbers, several labels a row or labels of words",
        )
    return matching[0]


def _is_multilabel(task: Labelled) -> bool:
    """Return whether a row of the task has several labels."""
    scores = np.full((1, len(task.labels)), 1 / len(task.labels))
    return task.decide(scores).ndim != 1


def held_out_probabilities(
    task: Probed, frozen: FrozenRows, rows: np.ndarray, truth: np.ndarray, *, folds: int, seed: int
) -> np.ndarray:
    """Return each row's probabilities by probes of the other folds, (rows, labels)."""
    blocks = frozen.blocks(rows)

    def features(learned: np.ndarray) -> np.ndarray:
        some = {key: values[learned] for key, values in blocks.items()}
        return side_by_side(blocks, column_weights(some, truth[learned], len(task.labels)))

    groups = np.asarray(frozen.examples.groups[rows], dtype=np.int64)
    weights = np.asarray(frozen.examples.weights[rows])
    return out_of_fold(task, features, truth, weights, fold_of(groups, folds, seed=seed)).scores


def _shown(bundle: Bundle, frozen: FrozenRows, position: int) -> tuple[tuple[str, int], list[Shown]]:
    """Return a row's file and number, and its cells."""
    table = frozen.table
    cells = [
        show_cell(name, spec.kind, table.cells(name, [position])[0], base_dir=table.base_dir)
        for name, spec in bundle.schema.columns.items()
        if spec.role == "input" and name in table
    ]
    return table.file_and_row(int(table.rows[position])), cells


def _notes(frozen: FrozenRows, truth: np.ndarray, num_labels: int) -> list[str]:
    notes = []
    if frozen.left_out:
        notes.append(f"Encoders trained from scratch are not read: {', '.join(frozen.left_out)}.")
    if lost := len({item.row for item in [*frozen.table.rejected, *frozen.examples.rejected]}):
        notes.append(f"{lost} rows could not be read, or have a label that the model does not know, and are left out.")
    counts = np.bincount(truth, minlength=num_labels)
    if few := int(np.count_nonzero((counts > 0) & (counts < 10))):
        notes.append(f"Labels with fewer than 10 rows, too few to judge: {few}.")
    return notes
