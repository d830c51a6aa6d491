"""Classification: one of two or more labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.errors import ConfigError, TableError, shown, unmatched
from fusetune.modalities.base import Detection
from fusetune.modalities.values import merged
from fusetune.tasks import metrics as measures
from fusetune.tasks.abilities import Boosted, Categorical, Distilled, Divergent, Exported, Probed
from fusetune.tasks.answer_modules import SoftmaxAnswers
from fusetune.tasks.base import LinearPath, Metric, TargetTask
from fusetune.tasks.cells import is_whole, label_text, named_label, named_labels, sorted_labels
from fusetune.tasks.classes.focal import check_focal, focal_loss
from fusetune.tasks.classes.labels import TINY, LabelTask
from fusetune.tasks.classes.taught import label_logits
from fusetune.tasks.divergence import softened_softmax_divergence, softmax_divergence
from fusetune.tasks.linear import logistic_path, one_hot
from fusetune.types import Target, TextTokens

TRUE_WORDS = frozenset({"1", "true", "yes", "y", "t", "positive", "pos", "+", "on"})
"""Labels that are taken as the positive class of two, ignoring case."""

ClassWeights = Literal["balanced"] | Mapping[str, float] | None


class ClassificationTask(LabelTask, Probed, Divergent, Categorical, Distilled, Boosted, Exported):
    """Predict one label, by softmax and cross-entropy: the base class of `binary` and `multiclass`.

    Args:
        target: the target column's name.
        label_smoothing: share in [0, 1) of each target that is spread evenly over all classes.
        class_weights: "balanced", or a positive weight per label, 1 for labels that are not named.
        focal: γ of the focal loss, 0 or more.

    Raises:
        ConfigError: a setting is out of range.
    """

    main = Metric("accuracy")

    def __init__(
        self, target: str, *, label_smoothing: float = 0.0, class_weights: ClassWeights = None, focal: float = 0.0
    ) -> None:
        super().__init__(target)
        if not 0 <= label_smoothing < 1:
            raise ConfigError("label_smoothing is out of range", expected="0 <= value < 1", came=str(label_smoothing))
        if isinstance(class_weights, str) and class_weights != "balanced":
            raise ConfigError(
                "class_weights is unknown", expected='"balanced" or a weight per label', came=shown(class_weights)
            )
        if isinstance(class_weights, Mapping) and not all(weight > 0 for weight in class_weights.values()):
            raise ConfigError("a class weight is not positive", came=shown(dict(class_weights)))
        self.label_smoothing, self.focal = label_smoothing, check_focal(focal)
        self.class_weights = dict(class_weights) if isinstance(class_weights, Mapping) else class_weights

    def fit(self, values: Sequence[Any]) -> None:
        """Learn the labels and their counts from the train rows' cells.

        Raises:
            TableError: there are fewer than two labels.
            ConfigError: class_weights names a label that no train row has.
        """
        counts = self._learn(values)
        self.classes = self._order(counts)
        self.counts = [counts[label] for label in self.classes]
        if isinstance(self.class_weights, dict):
            self.class_weights = named_labels(self.class_weights, self.classes, where="class_weights")

    def _order(self, counts: Counter[str]) -> list[str]:
        return sorted_labels(counts)

    def build_head(self, dim: int) -> nn.Module:
        """Build a module from (batch, dim) to (batch, classes).

        Its bias starts at the log rates, or 0 with class weights.
        """
        head = nn.Linear(dim, len(self.classes))
        with torch.no_grad():
            rates = torch.tensor(self.counts, dtype=head.bias.dtype).clamp(min=1)
            head.bias.copy_(torch.zeros_like(rates) if self.class_weights else (rates / rates.sum()).log())
        return head

    def main_value(self, scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
        """Return the main metric only; accuracy is computed without the other metrics."""
        if self.main.name != "accuracy":
            return super().main_value(scores, truth, weights)
        correct = (scores.argmax(1) == truth).astype(float)
        empty = len(correct) == 0 or (weights is not None and not weights.sum() > 0)
        return float("nan") if empty else float(np.average(correct, weights=weights))

    def _class_weights(self, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """Return the class weights of the loss, (classes,), or None if all are 1."""
        if self.class_weights is None:
            return None
        if self.class_weights == "balanced":
            weights = [sum(self.counts) / (len(self.counts) * count) for count in self.counts]
        else:
            assert isinstance(self.class_weights, dict)
            weights = [float(self.class_weights.get(label, 1.0)) for label in self.classes]
        return torch.tensor(weights, dtype=dtype, device=device)

    def encode(self, values: Sequence[Any], tokens: TextTokens | None = None) -> Target:
        """Return class indices, (rows,) int64; a row's size is its class's weight."""
        target = super().encode(values)
        classes = self._class_weights(torch.float32, target.values.device)
        return target if classes is None else Target(target.values, target.labelled, classes[target.values])

    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """Return each row's cross-entropy times its class's weight, with torch's label smoothing, (batch,).

        Args:
            logits: (batch, classes).
            target: class indices, (batch,) int64.
        """
        classes = self._class_weights(logits.dtype, logits.device)
        losses = F.cross_entropy(
            logits, target.values, weight=classes, label_smoothing=self.label_smoothing, reduction="none"
        )
        correct = logits.softmax(1).gather(1, target.values.unsqueeze(1)).squeeze(1)
        return focal_loss(losses, correct, self.focal)

    def divergence(self, logits: Tensor, other: Tensor, real: Tensor | None = None) -> Tensor:
        """Return KL(softmax(logits) || softmax(other)) in nats, (batch,), for (batch, classes) logits."""
        return softmax_divergence(logits, other)

    def reference(self, teacher: TargetTask, answers: np.ndarray) -> np.ndarray:
        """Return log-probabilities, (rows, classes) float32; NaN for classes that the teacher does not know.

        Raises:
            ConfigError: the teacher's task has no classes, or fewer than two of these.
        """
        same = isinstance(teacher, ClassificationTask)
        return label_logits(self, teacher, np.log(np.maximum(answers, TINY)), same=same, least=2)

    def distillation(self, logits: Tensor, reference: Tensor, temperature: float) -> Tensor:
        """Return T² KL(teacher || softmax(logits)) in nats over the classes that the teacher knows, (batch,)."""
        return softened_softmax_divergence(logits, reference, temperature)

    def answers(self, logits: Tensor, tokens: TextTokens | None = None) -> np.ndarray:
        """Return probabilities, (rows, classes)."""
        return logits.detach().double().softmax(1).cpu().numpy()

    def answer_module(self) -> nn.Module:
        """Return a softmax."""
        return SoftmaxAnswers()

    def output_form(self) -> dict[str, Any]:
        """Return a form of the kind "label" that decides for the most probable class."""
        return {"kind": "label", "target": self.target, "labels": self.classes, "decide": "argmax"}

    def linear_path(self, features: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> LinearPath:
        """Return multinomial logistic regressions."""
        targets = one_hot(truth, len(self.classes))
        class_weights = self._class_weights(torch.float32, torch.device("cpu"))
        if class_weights is not None:
            weights = class_weights.numpy()[truth] * (1.0 if weights is None else weights)
        return logistic_path(features, targets, exclusive=True, weights=weights)

    def linear_score(self, scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
        """Return the negative log loss, then accuracy, whose best of many on a few hundred rows is often luck."""
        return -measures.log_loss(scores, truth), float(np.mean(scores.argmax(1) == truth))

    @property
    def num_boosters(self) -> int:
        """1: a single booster grows one tree a class and round, if there are more than two classes."""
        return 1

    @property
    def trees_per_round(self) -> int:
        """1 for two classes, else the number of classes."""
        return len(self.classes) if len(self.classes) > 2 else 1

    def boosting(self, truth: np.ndarray, booster: int) -> tuple[dict[str, Any], np.ndarray]:
        """Return the binary log loss, of the second class, for two classes; else softmax cross-entropy."""
        num_trees = self.trees_per_round
        return (
            {"objective": "multiclass", "num_class": num_trees} if num_trees > 1 else {"objective": "binary"}
        ), truth

    def boosted_logits(self, raw: Sequence[np.ndarray]) -> np.ndarray:
        """Return logits, (rows, classes); with two classes 0 and the second one's log odds."""
        return raw[0] if raw[0].ndim == 2 else np.stack([np.zeros_like(raw[0]), raw[0]], axis=1)

    def state(self) -> dict[str, Any]:
        """Return options, labels and counts as JSON data."""
        return {
            "label_smoothing": self.label_smoothing,
            "class_weights": self.class_weights,
            "focal": self.focal,
            "classes": self.classes,
            "counts": self.counts,
        }

    @classmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> ClassificationTask:
        """Restore a task from its `state()`."""
        options = {name: value for name, value in state.items() if name not in ("classes", "counts")}
        task = cls(target, **options)
        task.classes, task.counts = list(state["classes"]), list(state["counts"])
        return task


class MulticlassTask(ClassificationTask):
    """Predict one of several labels, by softmax. Main metric: accuracy.

    Labels are the table's text, ordered by value if all are whole numbers, else alphabetically.

    Args:
        target: the target column's name.
        label_smoothing: share in [0, 1) of each target that is spread evenly over all classes.
        class_weights: "balanced" (rows / (classes · rows of the class)), or a positive weight per label, 1 for labels
            that are not named. They multiply the loss, never the metrics.
        focal: γ of the focal loss (arXiv 1708.02002), 0 or more: rows predicted well are weighted by (1 − p)^γ. It
            makes the probabilities less confident.

    Loss: cross-entropy, with optional label smoothing, class weights and focal loss.

    Answers: (rows, classes) probabilities.

    Requires: two labels or more in the train rows.

    Relations: `binary` has a positive class and its metrics; `ordinal` uses an order of the labels; `multilabel`
    predicts any number of labels.

    Example:
        >>> task = MulticlassTask("animal")
        >>> task.fit(["cat", "dog", "cow", "dog"])
        >>> task.labels
        ['cat', 'cow', 'dog']
        >>> task.columns(task.answers(torch.tensor([[0.0, 0.0, 2.0]])))["animal"]
        ['dog']

    Reference: Szegedy et al. 2016 (arXiv 1512.00567) for label smoothing; Lin et al. 2017 (arXiv 1708.02002) for the
    focal loss.
    """

    name = "multiclass"

    @classmethod
    def detect(cls, values: Sequence[Any]) -> Detection:
        """Return high confidence for repeated text labels and for few distinct whole numbers."""
        if any(isinstance(value, list | tuple | np.ndarray | dict) for value in values):
            return Detection(0.0, "cells are lists")
        labels = merged(Counter(label_text(value) for value in values), numbers=True)
        rows, distinct = len(values), len(labels)
        if distinct < 3:
            return Detection(0.1, f"{distinct} distinct values")
        all_whole = all(is_whole(label) for label in labels)
        repeats = rows / distinct
        if all_whole and distinct <= 10 and repeats >= 3:
            return Detection(0.85, f"whole numbers with only {distinct} distinct values in {rows} rows")
        if all_whole:
            return Detection(0.3, f"whole numbers with {distinct} distinct values in {rows} rows")
        if repeats >= 2 or (distinct <= 20 and repeats > 1):
            return Detection(0.7, f"{distinct} distinct labels in {rows} rows")
        return Detection(0.05, f"{distinct} distinct values in {rows} rows hardly repeat")

    def metrics(self, scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """See `fusetune.tasks.metrics.classification`."""
        return measures.classification(scores, truth, weights)


class BinaryTask(ClassificationTask):
    """Predict one of two labels. Main metric: accuracy.

    `f1`, `precision`, `recall`, `roc_auc` and `average_precision` are those of the positive class: the label that
    `positive` names; else the only label that means true (1, true, yes, y, t, positive, pos, +, on); else the last
    label in order. It is the second of `labels`.

    Args:
        target: the target column's name.
        positive: the positive class's label. None: the only label that means true, else the last in order.
        label_smoothing: share in [0, 1) of each target that is spread evenly over both classes.
        class_weights: "balanced" (rows / (2 · rows of the class)), or a positive weight per label, 1 for labels that
            are not named. They multiply the loss, never the metrics.
        focal: γ of the focal loss (arXiv 1708.02002), 0 or more: rows predicted well are weighted by (1 − p)^γ. It
            makes the probabilities less confident.

    Loss: cross-entropy, with optional label smoothing, class weights and focal loss.

    Answers: (rows, 2) probabilities.

    Requires: exactly two labels in the train rows.

    Relations: `multiclass` with two labels, plus a positive class and its metrics.

    Example:
        >>> task = BinaryTask("churned", positive="yes")
        >>> task.fit(["no", "yes", "no"])
        >>> task.labels
        ['no', 'yes']
        >>> task.evaluate(task.answers(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), task.truth(["no", "yes"]))["f1"]
        1.0

    Reference: Szegedy et al. 2016 (arXiv 1512.00567) for label smoothing; Lin et al. 2017 (arXiv 1708.02002) for the
    focal loss.
    """

    name = "binary"

    def __init__(
        self,
        target: str,
        *,
        positive: Any = None,
        label_smoothing: float = 0.0,
        class_weights: ClassWeights = None,
        focal: float = 0.0,
    ) -> None:
        super().__init__(target, label_smoothing=label_smoothing, class_weights=class_weights, focal=focal)
        self.positive = positive

    @classmethod
    def detect(cls, values: Sequence[Any]) -> Detection:
        """Return high confidence for exactly two distinct values."""
        if any(isinstance(value, list | tuple | np.ndarray | dict) for value in values):
            return Detection(0.0, "cells are lists")
        labels = sorted_labels(merged(Counter(label_text(value) for value in values), numbers=True))
        if len(labels) == 2:
            return Detection(0.9, f"two distinct values: {shown(labels[0], 40)} and {shown(labels[1], 40)}")
        if len(labels) == 1:
            return Detection(0.3, f"one distinct value: {shown(labels[0], 40)}")
        return Detection(0.0, f"{len(labels)} distinct values")

    def _order(self, counts: Counter[str]) -> list[str]:
        labels = sorted_labels(counts)
        if len(labels) > 2:
            raise TableError(
                f"the target has {len(labels)} distinct values",
                expected="2 for the task binary",
                came=", ".join(map(shown, labels[:10])),
                do="use the task multiclass",
                column=self.target,
            )
        if self.positive is not None:
            self.positive = named_label(self.positive, labels)
            if self.positive not in labels:
                raise ConfigError(
                    f"the positive class is a label that no train row has: {unmatched([self.positive], labels)}",
                    expected=" or ".join(map(shown, labels)),
                )
            return sorted(labels, key=lambda label: label == self.positive)
        true = [label for label in labels if label.strip().casefold() in TRUE_WORDS]
        return sorted(labels, key=lambda label: label in true) if len(true) == 1 else labels

    def metrics(self, scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """See `fusetune.tasks.metrics.classification`; the positive class is the second."""
        return measures.classification(scores, truth, weights, positive=1)

    def probabilities(self, answers: np.ndarray) -> np.ndarray:
        """The positive class's, (rows,)."""
        return np.asarray(answers[:, 1])

    def state(self) -> dict[str, Any]:
        """Return options, labels and counts as JSON data."""
        return {"positive": self.positive, **super().state()}
