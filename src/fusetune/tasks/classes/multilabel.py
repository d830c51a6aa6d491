"""Multi-label classification: any number of labels in a row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import logit
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.data.table import is_missing
from fusetune.errors import BadCell, ConfigError, TableError, shown
from fusetune.modalities.base import Detection
from fusetune.tasks import metrics as measures
from fusetune.tasks.abilities import Boosted, Distilled, Divergent, Exported, Labelled, Probed, Thresholded
from fusetune.tasks.answer_modules import SigmoidAnswers
from fusetune.tasks.base import LinearPath, Metric, TargetTask
from fusetune.tasks.cells import label_text, named_labels, present_cells, sorted_labels
from fusetune.tasks.classes.focal import check_focal, focal_loss
from fusetune.tasks.classes.label_sets import find_separator, hot_labels, is_list, multi_hot_names, split_labels
from fusetune.tasks.classes.labels import TINY
from fusetune.tasks.classes.taught import label_logits
from fusetune.tasks.classes.thresholds import (
    Setting,
    Source,
    Thresholds,
    check_threshold,
    initial_thresholds,
    threshold_notes,
    tuned_thresholds,
)
from fusetune.tasks.divergence import bernoulli_divergence, softened_bernoulli_divergence
from fusetune.tasks.linear import logistic_path
from fusetune.tasks.output_columns import label_set_columns, reached
from fusetune.tasks.panels.calibration import calibration_section
from fusetune.tasks.panels.classes import (
    CLASS_HEADS,
    balance_panel,
    class_rows,
    class_section,
    curve_section,
    curves,
    names,
    unpredicted,
)
from fusetune.tasks.panels.kinds import Evidence, Head, Panel, Section, WorstRows, WrongRow, ranked
from fusetune.tasks.state import state_of
from fusetune.types import Target, TextTokens

OPTIONS = ("separator", "min_count", "positive_weights", "threshold", "focal", "names")
FITTED = ("classes", "counts", "rows", "left_out", "multi_hot", "thresholds", "threshold_sources", "as_json")


class MultilabelTask(Labelled, Probed, Divergent, Distilled, Boosted, Thresholded, Exported):
    """Predict any number of labels in a row, by a sigmoid for each label. Main metric: map_macro.

    Cells are text such as `a|b`, JSON lists, or lists. An empty list, or the text "[]", is a row without any of the
    labels; an empty cell is an unlabelled row. Labels of fewer than `min_count` train rows are left out of predictions
    and metrics (`left_out`).

    Args:
        target: the target column's name.
        separator: the text between labels in a cell; " " is any white space. None: detected from the cells.
        min_count: minimum number of train rows of a label, 1 or more.
        positive_weights: factor of the loss of rows that have the label: "balanced" (rows without it / rows with it),
            or a positive weight per label, 1 for labels that are not named.
        threshold: a label is predicted if its probability reaches this value in (0, 1). "tuned": for each label, the
            value with the best F1 on validation rows. "auto": the same for labels that at least 10 validation rows
            have; for the other labels, the value with the best F1 over all labels.
        focal: γ of the focal loss (arXiv 1708.02002), 0 or more: labels predicted well are weighted by (1 − p)^γ.
        names: the labels of the positions of multi-hot lists such as [1, 0, 1]. None: "0", "1", ...

    Raises:
        ConfigError: a setting is out of range.

    Loss: the mean over labels of the binary cross-entropy.

    Answers: (rows, labels) probabilities. A label is predicted if its probability reaches the label's threshold.

    Requires: a label that some train rows have and others do not.

    Relations: `multiclass` predicts exactly one label in a row.

    Example:
        >>> task = MultilabelTask("genres")
        >>> task.fit(["drama|comedy", "comedy", "[]", "drama|war"])
        >>> task.labels
        ['comedy', 'drama', 'war']
        >>> task.columns(task.answers(torch.tensor([[2.0, 0.5, -3.0]])))["genres"]
        ['comedy|drama']

    Reference: Read et al. 2011, "Classifier chains for multi-label classification", on binary relevance.
    """

    name = "multilabel"
    main = Metric("map_macro")

    def __init__(
        self,
        target: str,
        *,
        separator: str | None = None,
        min_count: int = 1,
        positive_weights: Literal["balanced"] | Mapping[str, float] | None = None,
        threshold: Setting = "auto",
        focal: float = 0.0,
        names: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(target)
        if min_count < 1:
            raise ConfigError("min_count is out of range", expected="1 or more", came=str(min_count))
        if separator == "":
            raise ConfigError("the separator is empty", expected='such as "|", or " " for white space')
        if isinstance(positive_weights, str) and positive_weights != "balanced":
            raise ConfigError("positive_weights is unknown", expected='"balanced" or a weight per label')
        if isinstance(positive_weights, Mapping) and not all(weight > 0 for weight in positive_weights.values()):
            raise ConfigError("a positive weight is not above 0", came=shown(dict(positive_weights)))
        self.separator, self.min_count, self.threshold = separator, min_count, check_threshold(threshold)
        self.positive_weights = dict(positive_weights) if isinstance(positive_weights, Mapping) else positive_weights
        self.focal = check_focal(focal)
        self.classes: list[str] = []
        self.counts: list[int] = []
        self.rows = 0
        self.left_out: dict[str, int] = {}
        self.names = None if names is None else [label_text(name) for name in names]
        self.multi_hot = False
        self.thresholds: list[float] = []
        self.threshold_sources: list[Source] = []
        self.as_json = False

    @property
    def labels(self) -> list[str]:
        """The label names in the order of the answers' columns."""
        return self.classes

    @classmethod
    def detect(cls, values: Sequence[Any]) -> Detection:
        """Return high confidence for lists, and for a separator with repeating parts."""
        lists = sum(map(is_list, values))
        if hot := multi_hot_names(values, None):
            return Detection(0.97, f"lists of 0 and 1 for {len(hot)} labels, which the option names can name")
        if lists and lists >= 0.9 * len(values):
            return Detection(0.97, f"{lists} of {len(values)} cells are lists")
        split = find_separator([value for value in values if isinstance(value, str)])
        return Detection(0.95, split[1]) if split else Detection(0.0, "cells hold no separator with repeating parts")

    def fit(self, values: Sequence[Any]) -> None:
        """Learn the separator and the labels from the train rows' cells; cells that `check` refuses are skipped.

        Raises:
            TableError: no label has enough rows, or the only label is in every row.
            ConfigError: positive_weights names a label that is not learned.
        """
        cells = present_cells(values, self.target)
        if self.separator is None:
            separator = find_separator([cell for cell in cells if isinstance(cell, str)])
            self.separator = separator[0] if separator else "|"
        self.names = multi_hot_names(cells, self.names)
        self.multi_hot = self.names is not None
        counts: Counter[str] = Counter()
        self.rows = 0
        for cell in cells:
            try:
                counts.update(self._labels_of(cell))
                self.rows += 1
            except ValueError:
                continue
        learned = {label for label, count in counts.items() if count >= self.min_count}
        self.classes = sorted_labels(learned)
        self.counts = [counts[label] for label in self.classes]
        self.left_out = {label: counts[label] for label in sorted_labels(set(counts) - learned)}
        if not learned or (len(learned) == 1 and self.counts[0] == self.rows):
            raise TableError(
                "there is nothing to learn from the target's labels",
                expected=f"a label that {self.min_count} or more train rows have and others lack",
                came=", ".join(f"{label!r} in {count} of {self.rows} rows" for label, count in counts.most_common(5)),
                do="lower min_count, give the separator, or name another target column",
                column=self.target,
            )
        self.as_json = sum(map(is_list, cells)) * 2 > len(cells) or any(self.separator in c for c in self.classes)
        self._set_thresholds(initial_thresholds(self.threshold, len(self.classes)))
        if isinstance(self.positive_weights, dict):
            self.positive_weights = named_labels(self.positive_weights, self.classes, where="positive_weights")

    def _labels_of(self, cell: Any) -> list[str]:
        if self.multi_hot and len(cell):  # an empty list is a row without labels
            return hot_labels(cell, self.names or [])
        return split_labels(cell, self.separator)

    def check(self, value: Any, *, row: int) -> None:
        """Refuse a cell that cannot be read as labels.

        Raises:
            BadCell: it cannot be read.
        """
        try:
            self._labels_of(value)
        except ValueError as error:
            raise BadCell(row=row, column=self.target, value=value, why=str(error)) from None

    def unknown(self, values: Sequence[Any]) -> dict[str, int]:
        """Labels that no train row has."""
        known = {*self.classes, *self.left_out}
        return dict(Counter(label for value in values for label in self._labels_of(value) if label not in known))

    def truth(self, values: Sequence[Any]) -> np.ndarray:
        """Return a multi-hot matrix, (rows, labels) int8."""
        indices = {label: index for index, label in enumerate(self.classes)}
        matrix = np.zeros((len(values), len(self.classes)), dtype=np.int8)
        for row, value in enumerate(values):
            for label in self._labels_of(value):
                if label in indices:
                    matrix[row, indices[label]] = 1
        return matrix

    def encode(self, values: Sequence[Any], tokens: TextTokens | None = None) -> Target:
        """Return a multi-hot matrix, (rows, labels) float32; zeros for unlabelled rows."""
        labelled = [not is_missing(value) for value in values]
        matrix = self.truth([value if known else [] for value, known in zip(values, labelled, strict=True)])
        return Target(torch.from_numpy(matrix.astype(np.float32)), torch.tensor(labelled, dtype=torch.bool))

    def build_head(self, dim: int) -> nn.Module:
        """Build a linear head; its bias starts at the labels' log odds, or at 0 with positive weights."""
        head = nn.Linear(dim, len(self.classes))
        with torch.no_grad():
            rates = (torch.tensor(self.counts, dtype=head.bias.dtype) + 0.5) / (self.rows + 1)
            head.bias.copy_(torch.zeros_like(rates) if self.positive_weights else rates.logit())
        return head

    def _positive_weights(self, like: Tensor) -> Tensor | None:
        if self.positive_weights is None:
            return None
        if self.positive_weights == "balanced":
            weights = [max(self.rows - count, 1) / count for count in self.counts]
        else:
            assert isinstance(self.positive_weights, dict)
            weights = [float(self.positive_weights.get(label, 1.0)) for label in self.classes]
        return torch.tensor(weights, dtype=like.dtype, device=like.device)

    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """Return each row's mean binary cross-entropy over labels, (batch,).

        Args:
            logits: (batch, labels).
            target: 0 and 1, (batch, labels).
        """
        losses = F.binary_cross_entropy_with_logits(
            logits, target.values.to(logits.dtype), pos_weight=self._positive_weights(logits), reduction="none"
        )
        likely = logits.sigmoid()
        return focal_loss(losses, torch.where(target.values > 0, likely, 1 - likely), self.focal).mean(1)

    def divergence(self, logits: Tensor, other: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the mean over labels of KL(sigmoid(logits) || sigmoid(other)) in nats, (batch,)."""
        return bernoulli_divergence(logits, other)

    def reference(self, teacher: TargetTask, answers: np.ndarray) -> np.ndarray:
        """Return logits, (rows, labels) float32; NaN for labels that the teacher does not know.

        Raises:
            ConfigError: the teacher's task has no label sets, or none of these labels.
        """
        same = isinstance(teacher, MultilabelTask)
        return label_logits(self, teacher, logit(np.clip(answers, TINY, 1 - TINY)), same=same, least=1)

    def distillation(self, logits: Tensor, reference: Tensor, temperature: float) -> Tensor:
        """Return the mean of T² KL(teacher || sigmoid(logits)) in nats over labels that the teacher knows, (batch,)."""
        return softened_bernoulli_divergence(logits, reference, temperature)

    def answers(self, logits: Tensor, tokens: TextTokens | None = None) -> np.ndarray:
        """Return probabilities, (rows, labels)."""
        return logits.detach().double().sigmoid().cpu().numpy()

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Return predicted labels, (rows, labels) int8: 1 if the probability reaches the label's threshold."""
        return reached(scores, self.thresholds)

    def answer_module(self) -> nn.Module:
        """Return a sigmoid for each label."""
        return SigmoidAnswers()

    def output_form(self) -> dict[str, Any]:
        """Return a form of the kind "label_set"."""
        form: dict[str, Any] = {"kind": "label_set", "target": self.target, "labels": self.classes}
        how = {"separator": self.separator, "as_json": self.as_json}
        return form | {"thresholds": self.thresholds, **how}

    def tune(self, scores: np.ndarray, truth: np.ndarray) -> None:
        """Choose the thresholds on these validation rows, unless the settings fix one; see `tuned_thresholds`."""
        self._set_thresholds(tuned_thresholds(self.threshold, scores, truth, self.main))

    def _set_thresholds(self, thresholds: Thresholds) -> None:
        self.thresholds, self.threshold_sources = thresholds.values, thresholds.sources

    def measured(self, scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Return the probabilities, then the predicted labels, (rows, 2 · labels)."""
        return np.concatenate([scores, self.decide(scores)], axis=1)

    def metrics(self, measured: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """See `fusetune.tasks.metrics.multilabel`; F1, subset accuracy and Hamming loss use the predicted labels."""
        scores, decided = np.split(measured, 2, axis=1)
        return measures.multilabel(scores, decided.astype(np.int8), truth, weights)

    def compared(self, metric: Metric, measured: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the true labels, and the predicted ones or their probabilities, (rows, labels) each."""
        scores, decided = np.split(measured, 2, axis=1)
        return truth, decided.astype(np.int8) if metric.response_method == "predict" else scores

    def warnings(self, scores: np.ndarray, truth: np.ndarray) -> list[str]:
        """Return a warning if most labels are predicted for no row."""
        return unpredicted(self.target, self.decide(scores), truth)

    def constant(self, truth: np.ndarray, rows: int) -> np.ndarray:
        """Return each label's rate in `truth` for every row."""
        return np.tile(truth.mean(0, dtype=float), (rows, 1))

    def linear_path(self, features: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> LinearPath:
        """Return a logistic regression per label, with one penalty for all."""
        return logistic_path(features, truth, exclusive=False, weights=weights)

    def linear_score(self, scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
        """Return map_macro."""
        precisions = [measures.average_precision(s, t) for s, t in zip(scores.T, truth.T, strict=True)]
        real = [value for value in precisions if not np.isnan(value)]
        return float(np.mean(real)) if real else 0.0, 0.0

    def columns(self, scores: np.ndarray) -> dict[str, list[Any]]:
        """Return the labels in the train rows' format ("[]" for none), and the probabilities of up to 20 labels."""
        separator = None if self.as_json else str(self.separator)
        return label_set_columns(self.target, self.classes, scores, self.decide(scores), separator=separator)

    def panels(self, evidence: Evidence) -> list[Section]:
        """Return the panels by label with the thresholds, the curves and the calibration."""
        scores, truth, labels = evidence.answers, evidence.truth, self.labels
        decided = self.decide(scores)
        given = decided.sum(0)
        rows = class_rows(scores, decided, truth, labels, evidence.weights)
        rows = [
            [*row[:2], int(count), *row[2:], threshold]
            for row, count, threshold in zip(rows, given, self.thresholds, strict=True)
        ]
        heads = [*CLASS_HEADS[:2], Head("predicted", "count"), *CLASS_HEADS[2:], Head("threshold", "number")]
        roc, pr = curves(scores, truth, labels)
        return [
            class_section(rows, heads, threshold_notes(self.threshold_sources, given)),
            *curve_section(roc, pr, len(labels)),
            calibration_section(scores, truth, labels, validation=evidence.validation),
        ]

    def target_panels(self, truths: Mapping[str, np.ndarray]) -> list[Panel]:
        """Return a panel of each label's rows by split."""
        return [balance_panel({split: truth.sum(0) for split, truth in truths.items()}, self.labels)]

    def worst(self, answers: np.ndarray, truth: np.ndarray, num: int) -> WorstRows:
        """Return wrongly predicted rows with the highest log loss, spread over the label with the highest loss."""
        decided, losses = self.decide(answers), self.row_losses(answers, truth)
        likely = np.clip(np.where(truth > 0, answers, 1 - answers), TINY, 1)
        rows = [
            WrongRow(at, names(self.classes, truth[at]), names(self.classes, decided[at]), math.nan, float(losses[at]))
            for at in ranked(losses, likely.argmin(1), num, among=(decided != truth).any(1))
        ]
        return WorstRows("wrongly predicted rows with the highest loss, spread over the labels", rows)

    @property
    def num_boosters(self) -> int:
        """The number of labels."""
        return len(self.classes)

    def boosting(self, truth: np.ndarray, booster: int) -> tuple[dict[str, Any], np.ndarray]:
        """Return the log loss of one label."""
        return {"objective": "binary"}, truth[:, booster].astype(float)

    def boosted_logits(self, raw: Sequence[np.ndarray]) -> np.ndarray:
        """Return logits, (rows, labels)."""
        return np.stack(raw, axis=1)

    def row_losses(self, scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Return each row's mean log loss over labels in nats, (rows,)."""
        given = np.clip(scores, TINY, 1 - TINY)
        return np.asarray(-np.where(truth > 0, np.log(given), np.log1p(-given)).mean(1))

    def state(self) -> dict[str, Any]:
        """Return options, labels, counts and thresholds as JSON data."""
        return state_of(self, OPTIONS, FITTED)

    @classmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> MultilabelTask:
        """Restore a task from its `state()`."""
        task = cls(target, **state["options"])
        for name in FITTED:
            setattr(task, name, copy(state.get(name, getattr(task, name))))
        if "threshold_sources" not in state:  # saved by a version with tuned and fixed thresholds only
            task.threshold_sources = ["own" if task.threshold == "tuned" else "fixed"] * len(task.thresholds)
        return task
