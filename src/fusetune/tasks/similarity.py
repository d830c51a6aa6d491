"""Similarity: order pairs by how alike their two sides are, as graded scores do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune.data.table import is_missing
from fusetune.errors import TableError, shown
from fusetune.modalities.base import Detection
from fusetune.tasks.base import Metric
from fusetune.tasks.cells import number_of, present_cells, read_number
from fusetune.tasks.metrics import ranks
from fusetune.tasks.pair_metrics import correlations
from fusetune.tasks.pairs import PairTask
from fusetune.tasks.panels.kinds import Evidence, Panel, ScatterPanel, Section, WorstRows, WrongRow, ranked
from fusetune.tasks.panels.numbers import range_panel
from fusetune.types import Target, TextTokens

MAX_POINTS = 1000
"""Most rows that a panel draws as points."""


class SimilarityTask(PairTask):
    """Learn how alike two sides are from graded scores, such as 0 to 5. Main metric: spearman.

    The cosine of the sides' vectors is to order pairs as their scores do; it is no score itself.

    Args:
        target: the target column's name.

    Loss: none of its own; the objective `similarity` trains the vectors. `terms` is the squared difference of the
    cosine and the score, scaled to [0, 1] over the train rows.

    Answers: (rows,) cosines, -1 to 1.

    Requires: the settings `query` and `document`, and numbers with two or more distinct values in the train rows.

    Relations: `pair_classification` for two values, related or not; `retrieval` for pairs without a target.

    Example:
        >>> import torch
        >>> task = SimilarityTask("score")
        >>> task.fit(["0", "5", "2.5"])
        >>> task.encode(["5", "2.5", None]).values.tolist()
        [1.0, 0.5, 0.0]
        >>> answers = task.answers(torch.tensor([0.9, 0.1, 0.4]))
        >>> task.evaluate(answers, task.truth(["5", "0", "2.5"]))["spearman"]
        1.0

    Reference: Cer et al. 2017, "SemEval-2017 Task 1: Semantic Textual Similarity" (arXiv 1708.00055).
    """

    name, main = "similarity", Metric("spearman")

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.low, self.high = 0.0, 1.0

    @classmethod
    def detect(cls, values: Sequence[Any]) -> Detection:
        """Return high confidence for numbers, low confidence for two values."""
        share = sum(number_of(value) is not None for value in values) / max(len(values), 1)
        if share < 0.95:
            return Detection(0.0, f"{share:.0%} of the sampled cells are numbers")
        distinct = len({number_of(value) for value in values})
        return Detection(0.8 if distinct > 2 else 0.2, f"numbers with {distinct} distinct values")

    def fit(self, values: Sequence[Any]) -> None:
        """Learn the range from the train rows' cells; cells that `check` refuses are skipped.

        Raises:
            TableError: no cell is a number, or all numbers are equal.
        """
        cells = present_cells(values, self.target)
        numbers = [value for value in map(number_of, cells) if value is not None]
        if not numbers or min(numbers) == max(numbers):
            raise TableError(
                "the scores of the pairs are equal everywhere" if numbers else "no train row has a number as its score",
                expected="numbers that differ, such as 0 to 5",
                came=", ".join(shown(cell, 40) for cell in cells[:3]),
                do="name another target column, or leave the target out if every row is a match",
                column=self.target,
            )
        self.low, self.high = min(numbers), max(numbers)

    def check(self, value: Any, *, row: int) -> None:
        """Refuse a cell that is not a finite number.

        Raises:
            BadCell: it is not.
        """
        read_number(value, row=row, column=self.target)

    def truth(self, values: Sequence[Any]) -> np.ndarray:
        """Return the scores, (rows,) float64."""
        return np.asarray([number_of(value) for value in values], dtype=np.float64)

    def encode(self, values: Sequence[Any], tokens: TextTokens | None = None) -> Target:
        """Return the scores as (score − low) / (high − low), (rows,) float32; 0 for unlabelled rows.

        low and high are the least and the greatest score of the train rows.
        """
        labelled = np.asarray([not is_missing(value) for value in values], dtype=bool)
        encoded = np.zeros(len(values))
        known = self.truth([value for value in values if not is_missing(value)])
        encoded[labelled] = (known - self.low) / (self.high - self.low)
        return Target(torch.tensor(encoded, dtype=torch.float32), torch.from_numpy(labelled))

    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """Return each row's squared difference of cosine and scaled score, (batch,)."""
        return (logits - target.values.to(logits.dtype)).square()

    def metrics(self, measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """Return spearman and pearson; NaN if the cosines or the scores are constant."""
        return correlations(measured.reshape(len(truth)), truth, weights)

    def constant(self, truth: np.ndarray, rows: int) -> np.ndarray:
        """Return a cosine of 0 for every row; its correlation with the scores is undefined."""
        return np.zeros(rows)

    def columns(self, answers: np.ndarray) -> dict[str, list[Any]]:
        """Return the cosines under the target's name."""
        return {self.target: answers.astype(float).tolist()}

    def panels(self, evidence: Evidence) -> list[Section]:
        """Return the cosines against the scores, both as ranks from 0 to 1."""
        rows = len(evidence.truth)
        drawn = np.arange(rows)
        if rows > MAX_POINTS:
            drawn = np.sort(np.random.default_rng(evidence.seed).choice(rows, MAX_POINTS, replace=False))
        scores, cosines = (ranks(values) / rows for values in (evidence.truth, evidence.answers))
        panel = ScatterPanel(
            "Ranks of the cosine against ranks of the score",
            f"rank of {self.target}, as a share of the rows",
            "rank of the cosine",
            scores[drawn].tolist(),
            cosines[drawn].tolist(),
            "the same order",
        )
        notes = [f"{len(drawn):,} of {rows:,} rows are drawn as points."] if len(drawn) < rows else []
        return [Section("similarity", "Similarities", [panel], notes)]

    def target_panels(self, truths: Mapping[str, np.ndarray]) -> list[Panel]:
        """Return a panel of the scores' range by split."""
        return [range_panel(truths)]

    def worst(self, answers: np.ndarray, truth: np.ndarray, num: int) -> WorstRows:
        """Return the rows whose ranks by cosine and by score differ most, in turn from too alike and too different."""
        gaps = (ranks(answers) - ranks(truth)) / max(len(truth), 1)
        rows = [
            WrongRow(at, f"score {truth[at]:.6g}", f"cosine {answers[at]:.3f}", float("nan"), float(abs(gaps[at])))
            for at in ranked(np.abs(gaps), np.sign(gaps), num)
            if gaps[at]
        ]
        return WorstRows("pairs whose ranks by cosine and by score differ most", rows)

    def state(self) -> dict[str, Any]:
        """Return the sides and the range as JSON data."""
        return {"query": list(self.query), "document": list(self.document), "range": [self.low, self.high]}

    @classmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> SimilarityTask:
        """Restore a task from its `state()`."""
        task = cls(target)
        task.compare(map(str, state["query"]), map(str, state["document"]))
        task.low, task.high = map(float, state["range"])
        return task
