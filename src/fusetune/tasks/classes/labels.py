"""The base class of tasks whose target is one of several labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fusetune.data.table import is_missing
from fusetune.errors import BadCell, TableError, nearest, shown
from fusetune.modalities.values import ValueIndex, merged
from fusetune.tasks.abilities import Labelled
from fusetune.tasks.cells import label_text, label_values, present_cells
from fusetune.tasks.output_columns import label_columns
from fusetune.tasks.panels.calibration import calibration_section
from fusetune.tasks.panels.classes import (
    as_matrix,
    balance_panel,
    class_rows,
    class_section,
    confusion_cells,
    confusion_section,
    curve_section,
    curves,
    unpredicted,
)
from fusetune.tasks.panels.kinds import Evidence, Panel, Section, WorstRows, WrongRow, ranked
from fusetune.types import Target, TextTokens

TINY = 1e-12
"""The smallest probability in logarithms."""


class LabelTask(Labelled):
    """Base class of tasks whose target is one of several labels: class indices, output columns and panels."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.classes = []
        self.counts: list[int] = []

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the scores' columns."""
        return self._classes

    @classes.setter
    def classes(self, classes: list[str]) -> None:
        self._classes = classes
        self._index_of = ValueIndex(classes)

    @property
    def labels(self) -> list[str]:
        """Class names in the order of the scores' columns."""
        return self._classes

    def _learn(self, values: Sequence[Any]) -> Counter[str]:
        """Return the counts of the labels in the train rows.

        Raises:
            TableError: there are fewer than two labels.
        """
        counts = merged(Counter(label_text(cell) for cell in present_cells(values, self.target)), numbers=True)
        if len(counts) < 2:
            raise TableError(
                "the target has one class only, so there is nothing to learn",
                expected="2 or more distinct values in the train rows",
                came=f"{shown(next(iter(counts)))} in all {counts.total()} labelled train rows",
                do="name another target column, or add rows of another class",
                column=self.target,
            )
        return counts

    def _index(self, value: Any) -> int | None:
        """Return the class index of a cell, whatever the form of its value, or None."""
        return self._index_of.find(label_text(value))

    def check(self, value: Any, *, row: int) -> None:
        """Refuse a label that no train row has.

        Raises:
            BadCell: it is not one of the classes.
        """
        if self._index(value) is None:
            few = ", ".join(map(shown, self.classes[:10])) + (", …" if len(self.classes) > 10 else "")
            raise BadCell(
                row=row,
                column=self.target,
                value=value,
                why=f"{self._not_known}; the {len(self.classes)} known ones are {few}",
                do=nearest(label_text(value), self.classes) or "correct it, or train on rows that have it",
            )

    @property
    def _not_known(self) -> str:
        """What a label is that is not one of the classes."""
        return "a label that no train row has"

    def truth(self, values: Sequence[Any]) -> np.ndarray:
        """Return class indices, (rows,) int64."""
        indices = [self._index(value) for value in values]
        assert None not in indices, "a label was not checked"
        return np.asarray(indices, dtype=np.int64)

    def encode(self, values: Sequence[Any], tokens: TextTokens | None = None) -> Target:
        """Return class indices, (rows,) int64; 0 for unlabelled rows."""
        labelled = [not is_missing(value) for value in values]
        indices = [
            self._index(value) if is_labelled else 0 for value, is_labelled in zip(values, labelled, strict=True)
        ]
        assert None not in indices, "a label was not checked"
        return Target(torch.tensor(indices, dtype=torch.int64), torch.tensor(labelled, dtype=torch.bool))

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Return the index of the most probable class, (rows,)."""
        return np.asarray(scores.argmax(1))

    def as_cells(self, values: np.ndarray) -> np.ndarray:
        """Return labels for class indices, (rows,): numbers or booleans where all labels are, else text."""
        return np.asarray(label_values(self.classes)[values])

    def perfect(self, truth: np.ndarray) -> np.ndarray:
        """Return probability 1 of the true class, (rows, classes)."""
        return np.asarray(np.eye(len(self.classes))[truth])

    def row_losses(self, scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Return each row's log loss in nats, (rows,), from (rows, classes) probabilities."""
        return np.asarray(-np.log(np.clip(scores[np.arange(len(truth)), truth], TINY, 1)))

    def panels(self, evidence: Evidence) -> list[Section]:
        """Return metrics by class, confusion matrix, curves and calibration."""
        scores, truth, labels = evidence.answers, evidence.truth, self.labels
        decided = self.decide(scores)
        roc, pr = curves(scores, truth, labels)
        return [
            class_section(class_rows(scores, decided, truth, labels, evidence.weights)),
            confusion_section(confusion_cells(decided, truth), labels),
            *curve_section(roc, pr, len(labels)),
            calibration_section(scores, truth, labels, validation=evidence.validation),
        ]

    def warnings(self, scores: np.ndarray, truth: np.ndarray) -> list[str]:
        """Warn if at least half of the classes are predicted for no row."""
        num = len(self.classes)
        return unpredicted(self.target, as_matrix(self.decide(scores), num), as_matrix(truth, num))

    def target_panels(self, truths: Mapping[str, np.ndarray]) -> list[Panel]:
        """Return the rows of each class by split."""
        return [balance_panel({s: np.bincount(t, minlength=len(self.classes)) for s, t in truths.items()}, self.labels)]

    def worst(self, answers: np.ndarray, truth: np.ndarray, num: int) -> WorstRows:
        """Return wrong decisions with the highest log loss, spread over the true classes."""
        decided, losses = self.decide(answers), self.row_losses(answers, truth)
        rows = [
            WrongRow(
                at,
                self.classes[truth[at]],
                self.classes[decided[at]],
                float(answers[at, decided[at]]),
                float(losses[at]),
            )
            for at in ranked(losses, truth, num, among=decided != truth)
        ]
        return WorstRows("wrongly predicted rows with the highest loss, spread over the classes", rows)

    def constant(self, truth: np.ndarray, rows: int) -> np.ndarray:
        """Return the classes' rates in `truth` for every row; the decision is the majority class."""
        rates = np.bincount(truth, minlength=len(self.classes)) / max(len(truth), 1)
        return np.tile(rates, (rows, 1))

    def columns(self, scores: np.ndarray) -> dict[str, list[Any]]:
        """Return the label under the target's name, its probability, and up to 20 classes' probabilities."""
        return label_columns(self.target, self.classes, scores, self.decide(scores))
