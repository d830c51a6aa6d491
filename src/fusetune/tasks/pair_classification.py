"""Classification of pairs: whether the two sides of a row are related, by a threshold on their cosine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fusetune.errors import ConfigError, TableError, shown
from fusetune.modalities.base import Detection
from fusetune.modalities.values import merged
from fusetune.tasks.abilities import Thresholded
from fusetune.tasks.base import Metric
from fusetune.tasks.cells import label_text, present_cells, sorted_labels
from fusetune.tasks.classes.classification import BinaryTask
from fusetune.tasks.pair_metrics import best_f1_threshold, decided_pairs
from fusetune.tasks.pairs import PairTask
from fusetune.tasks.panels.kinds import Evidence, HistogramPanel, Panel, Section, WorstRows, WrongRow, ranked
from fusetune.types import Target, TextTokens

MARGIN = 0.5
"""Cosine distance from which `PairClassificationTask.terms` counts an unrelated pair as far enough apart."""


class PairClassificationTask(Thresholded, PairTask):
    """Learn whether two sides are related, from two values such as 0 and 1. Main metric: average_precision.

    A pair is related if the cosine of its sides' vectors reaches the threshold.

    Args:
        target: the target column's name.
        related: the value that means related. None: the only one that means true (1, true, yes, y, t, positive, pos, +,
            on), else the last in order.
        threshold: from -1 to 1, or "auto": that of the best F1 on validation rows.

    Raises:
        ConfigError: a setting is out of range.

    Loss: none of its own; the objective `similarity` trains the vectors. `terms` is the contrastive loss of Hadsell et
    al.: the squared cosine distance of a related pair, and of an unrelated one the square of what it lacks to a margin
    of 0.5.

    Answers: (rows,) cosines, -1 to 1.

    Requires: the settings `query` and `document`, and exactly two values in the train rows.

    Relations: `similarity` for graded scores; `binary` reads both sides' columns by one fusion.

    Example:
        >>> import torch
        >>> task = PairClassificationTask("duplicate", threshold=0.5)
        >>> task.fit(["no", "yes", "no"])
        >>> answers = task.answers(torch.tensor([0.9, 0.1, 0.4]))
        >>> task.evaluate(answers, task.truth(["yes", "no", "no"]))
        {'average_precision': 1.0, 'roc_auc': 1.0, 'f1': 1.0, 'accuracy': 1.0}

    Reference: Hadsell et al. 2006, "Dimensionality Reduction by Learning an Invariant Mapping".
    """

    name, main = "pair_classification", Metric("average_precision")

    def __init__(self, target: str, *, related: Any = None, threshold: float | str = "auto") -> None:
        super().__init__(target)
        is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if threshold != "auto" and not (is_number and -1 <= float(threshold) <= 1):
            raise ConfigError("threshold is out of range", expected='"auto", or -1 to 1', came=shown(threshold))
        self.setting = threshold
        self.threshold = 0.5 if threshold == "auto" else float(threshold)
        self.binary = BinaryTask(target, positive=related)

    @classmethod
    def detect(cls, values: Sequence[Any]) -> Detection:
        """Return high confidence for exactly two distinct values."""
        return BinaryTask.detect(values)

    @property
    def classes(self) -> list[str]:
        """The value of unrelated pairs, and that of related ones; empty before `fit`."""
        return self.binary.classes

    def fit(self, values: Sequence[Any]) -> None:
        """Learn the two values from the train rows' cells.

        Raises:
            TableError: there are not exactly two.
            ConfigError: `related` is none of them.
        """
        cells = Counter(label_text(cell) for cell in present_cells(values, self.target))
        labels = sorted_labels(merged(cells, numbers=True))
        if len(labels) > 2:
            raise TableError(
                f"the target has {len(labels)} distinct values",
                expected="2 for the task pair_classification: one for related pairs, one for others",
                came=", ".join(map(shown, labels[:10])),
                do=f"take tasks.{self.target}=similarity for graded numbers; leave query and document out to predict "
                "any classes from both sides' columns",
                column=self.target,
            )
        self.binary.fit(values)

    def check(self, value: Any, *, row: int) -> None:
        """Refuse a value that no train row has.

        Raises:
            BadCell: it is neither of the two.
        """
        self.binary.check(value, row=row)

    def truth(self, values: Sequence[Any]) -> np.ndarray:
        """Return 1 for related pairs and 0 for others, (rows,) int64."""
        return self.binary.truth(values)

    def encode(self, values: Sequence[Any], tokens: TextTokens | None = None) -> Target:
        """Return 1 for related pairs and 0 for others, (rows,) float32; 0 for unlabelled rows."""
        target = self.binary.encode(values)
        return Target(target.values.float(), target.labelled)

    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """Return each row's contrastive loss, (batch,)."""
        distance, related = 1 - logits, target.values.to(logits.dtype)
        return related * distance.square() + (1 - related) * (MARGIN - distance).clamp(min=0).square()

    def tune(self, answers: np.ndarray, truth: np.ndarray) -> None:
        """Choose the threshold of the best F1; it stays as it is unless there are related and unrelated pairs."""
        if self.setting == "auto" and not np.isnan(best := best_f1_threshold(answers, truth)):
            self.threshold = best

    def decide(self, answers: np.ndarray) -> np.ndarray:
        """Return 1 where the cosine reaches the threshold, else 0, (rows,)."""
        return np.asarray(answers >= self.threshold, dtype=np.int64)

    def measured(self, answers: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Return the cosine and the decision, (rows, 2)."""
        return np.stack([answers, self.decide(answers)], 1)

    def metrics(self, measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """See `fusetune.tasks.pair_metrics.decided_pairs`."""
        return decided_pairs(measured[:, 0], measured[:, 1], truth, weights)

    def perfect(self, truth: np.ndarray) -> np.ndarray:
        """Return a cosine of 1 for related pairs, else of -1."""
        return np.where(truth == 1, 1.0, -1.0)

    def constant(self, truth: np.ndarray, rows: int) -> np.ndarray:
        """Return the cosine of the more frequent value for every row, 1 or -1."""
        return np.full(rows, 1.0 if len(truth) and truth.mean() > 0.5 else -1.0)

    def columns(self, answers: np.ndarray) -> dict[str, list[Any]]:
        """Return the decision under the target's name, and the cosine."""
        decided = [self.classes[index] for index in self.decide(answers)]
        return {self.target: decided, f"{self.target}_similarity": answers.astype(float).tolist()}

    def panels(self, evidence: Evidence) -> list[Section]:
        """Return a histogram of the cosines for each value."""
        edges = np.histogram_bin_edges(evidence.answers, bins=20)
        panels = [
            HistogramPanel(
                f"Cosines of pairs with {self.target} = {label}",
                "cosine",
                edges.tolist(),
                np.histogram(evidence.answers[evidence.truth == index], bins=edges)[0].tolist(),
            )
            for index, label in enumerate(self.classes)
        ]
        chosen = "by F1 on validation rows" if self.setting == "auto" else "by the settings"
        return [Section("similarity", "Similarities", [*panels], [f"The threshold is {self.threshold:.4g}, {chosen}."])]

    def target_panels(self, truths: Mapping[str, np.ndarray]) -> list[Panel]:
        """Return a panel of both values' rows by split."""
        return self.binary.target_panels(truths)

    def worst(self, answers: np.ndarray, truth: np.ndarray, num: int) -> WorstRows:
        """Return the wrong decisions that are farthest from the threshold, in turn from both kinds."""
        gaps = np.abs(answers - self.threshold)
        decided = self.decide(answers)
        rows = [
            WrongRow(
                at,
                self.classes[int(truth[at])],
                f"{self.classes[int(decided[at])]} (cosine {answers[at]:.3f})",
                float("nan"),
                float(gaps[at]),
            )
            for at in ranked(gaps, truth, num, among=decided != truth)
        ]
        return WorstRows("wrong decisions that are farthest from the threshold", rows)

    def state(self) -> dict[str, Any]:
        """Return the sides, the values and the threshold as JSON data."""
        sides = {"query": list(self.query), "document": list(self.document)}
        return {**sides, "binary": self.binary.state(), "setting": self.setting, "threshold": self.threshold}

    @classmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> PairClassificationTask:
        """Restore a task from its `state()`."""
        task = cls(target, threshold=state["setting"])
        task.compare(map(str, state["query"]), map(str, state["document"]))
        binary = BinaryTask.from_state(target, state["binary"])
        assert isinstance(binary, BinaryTask)
        task.binary = binary
        task.threshold = float(state["threshold"])
        return task
