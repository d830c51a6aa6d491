"""Classification: one label of two, or of several."""

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
from fusetune.tasks.abilities import Boosted, Divergent, Probed
from fusetune.tasks.base import LinearModel, Metric
from fusetune.tasks.cells import is_whole, label_text, named_label, named_labels, sorted_labels
from fusetune.tasks.divergence import softmax_divergence
from fusetune.tasks.focal import check_focal, focused
from fusetune.tasks.labels import LabelTask
from fusetune.tasks.linear import fit_logistic, one_hot
from fusetune.types import Target

TRUE_WORDS = frozenset({"1", "true", "yes", "y", "t", "positive", "pos", "+", "on"})
"""Labels taken as the positive class of two, in any case of letters."""

ClassWeights = Literal["balanced"] | Mapping[str, float] | None


class ClassificationTask(LabelTask, Probed, Divergent, Boosted):
    """One label of several: softmax and cross-entropy. `binary` and `multiclass` differ in labels and metrics."""

    main = Metric("accuracy")

    def __init__(
        self, target: str, *, label_smoothing: float = 0.0, class_weights: ClassWeights = None, focal: float = 0.0
    ) -> None:
        """
        Args:
            target: the target column's name.
            label_smoothing: share in [0, 1) of each target that is spread evenly over all classes.
            class_weights: "balanced" (rows / (classes · rows of the class)), or a positive weight per label, 1 for
                labels left out; they multiply the loss, never the metrics.
            focal: γ of the focal loss (arXiv 1708.02002), 0 or more: rows answered well count (1 − p)^γ as much. It
                makes probabilities less sure than they should be.

        Raises:
            ConfigError: a setting is out of range.
        """
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
        """(batch, dim) to (batch, classes), its bias starting at the classes' log rates unless they are weighted."""
        head = nn.Linear(dim, len(self.classes))
        with torch.no_grad():
            rates = torch.tensor(self.counts, dtype=head.bias.dtype).clamp(min=1)
            head.bias.copy_(torch.zeros_like(rates) if self.class_weights else (rates / rates.sum()).log())
        return head

    def main_value(self, scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
        """Accuracy; a subclass's own main metric."""
        if self.main.name != "accuracy":
            return super().main_value(scores, truth, weights)
        right = (scores.argmax(1) == truth).astype(float)
        empty = len(right) == 0 or (weights is not None and not weights.sum() > 0)
        return float("nan") if empty else float(np.average(right, weights=weights))

    def _class_weights(self, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """(classes,) weights of the loss, or None where all are 1."""
        if self.class_weights is None:
            return None
        if self.class_weights == "balanced":
            weights = [sum(self.counts) / (len(self.counts) * count) for count in self.counts]
        else:
            assert isinstance(self.class_weights, dict)
            weights = [float(self.class_weights.get(label, 1.0)) for label in self.classes]
        return torch.tensor(weights, dtype=dtype, device=device)

    def encode(self, values: Sequence[Any]) -> Target:
        """Class indices; a row's size is its class's weight."""
        target = super().encode(values)
        classes = self._class_weights(torch.float32, target.values.device)
        return target if classes is None else Target(target.values, target.labelled, classes[target.values])

    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """Each row's cross-entropy times its class's weight, with torch's label smoothing, (batch,).

        Args:
            logits: (batch, classes).
            target: class indices, (batch,) int64.
        """
        classes = self._class_weights(logits.dtype, logits.device)
        losses = F.cross_entropy(
            logits, target.values, weight=classes, label_smoothing=self.label_smoothing, reduction="none"
        )
        right = logits.softmax(1).gather(1, target.values.unsqueeze(1)).squeeze(1)
        return focused(losses, right, self.focal)

    def divergence(self, logits: Tensor, other: Tensor) -> Tensor:
        """KL(softmax(logits) || softmax(other)) in nats, (batch,), of (batch, classes)."""
        return softmax_divergence(logits, other)

    def answers(self, logits: Tensor) -> np.ndarray:
        """(rows, classes) probabilities."""
        return logits.detach().double().softmax(1).cpu().numpy()

    def linear(
        self,
        features: np.ndarray,
        truth: np.ndarray,
        val_features: np.ndarray,
        val_truth: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> LinearModel:
        """Multinomial logistic regression, its penalty chosen by log loss (ties: accuracy) on validation rows."""

        def judge(scores: np.ndarray) -> tuple[float, float]:
            # Accuracy on a few hundred rows is too coarse to choose by: its best of many is often luck.
            return -measures.log_loss(scores, val_truth), float(np.mean(scores.argmax(1) == val_truth))

        targets = one_hot(truth, len(self.classes))
        class_weights = self._class_weights(torch.float32, torch.device("cpu"))
        if class_weights is not None:
            weights = class_weights.numpy()[truth] * (1.0 if weights is None else weights)
        return fit_logistic(features, targets, val_features, judge, exclusive=True, weights=weights)

    @property
    def num_boosters(self) -> int:
        """One, with a tree a class where there are more than two."""
        return 1

    @property
    def trees_per_round(self) -> int:
        """One tree for two classes, else one a class."""
        return len(self.classes) if len(self.classes) > 2 else 1

    def boosting(self, truth: np.ndarray, booster: int) -> tuple[dict[str, Any], np.ndarray]:
        """Log loss of the second of two classes, or softmax cross-entropy."""
        many = self.trees_per_round
        return ({"objective": "multiclass", "num_class": many} if many > 1 else {"objective": "binary"}), truth

    def boosted_logits(self, raw: Sequence[np.ndarray]) -> np.ndarray:
        """(rows, classes); of two classes 0 and the second one's log odds."""
        return raw[0] if raw[0].ndim == 2 else np.stack([np.zeros_like(raw[0]), raw[0]], axis=1)

    def state(self) -> dict[str, Any]:
        """Options, labels and counts."""
        return {
            "label_smoothing": self.label_smoothing,
            "class_weights": self.class_weights,
            "focal": self.focal,
            "classes": self.classes,
            "counts": self.counts,
        }

    @classmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> ClassificationTask:
        """The task that `state()` described."""
        options = {name: value for name, value in state.items() if name not in ("classes", "counts")}
        task = cls(target, **options)
        task.classes, task.counts = list(state["classes"]), list(state["counts"])
        return task


class MulticlassTask(ClassificationTask):
    """Predict one label of several, by softmax. Main metric: accuracy.

    Labels are text exactly as in the table, in order of value where all are whole numbers, else of their characters.

    Loss: cross-entropy, with label smoothing, class weights and focal loss where asked for.

    Answers: (rows, classes) probabilities.

    Requires: two labels or more in the train rows.

    Relations: `binary` has a positive class and its metrics; `ordinal` uses an order of the labels; `multilabel` gives
    any number of them.

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
        """Sure of repeated text labels and of few distinct whole numbers."""
        if any(isinstance(value, list | tuple | np.ndarray | dict) for value in values):
            return Detection(0.0, "cells are lists")
        labels = merged(Counter(label_text(value) for value in values), numbers=True)
        rows, distinct = len(values), len(labels)
        if distinct < 3:
            return Detection(0.1, f"{distinct} distinct values")
        whole = all(is_whole(label) for label in labels)
        repeats = rows / distinct
        if whole and distinct <= 10 and repeats >= 3:
            return Detection(0.85, f"whole numbers with only {distinct} distinct values in {rows} rows")
        if whole:
            return Detection(0.3, f"whole numbers with {distinct} distinct values in {rows} rows")
        if repeats >= 2 or (distinct <= 20 and repeats > 1):
            return Detection(0.7, f"{distinct} distinct labels in {rows} rows")
        return Detection(0.05, f"{distinct} distinct values in {rows} rows hardly repeat")

    def metrics(self, scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """See `fusetune.tasks.metrics.classification`."""
        return measures.classification(scores, truth, weights)


class BinaryTask(ClassificationTask):
    """Predict one label of two. Main metric: accuracy.

    The positive class, to which `f1`, `precision`, `recall`, `roc_auc` and `average_precision` refer, is the one named
    by `positive`; else the one label that reads as true (1, true, yes, y, t, positive, pos, +, on); else the last in
    order. It is the second of `labels`.

    Loss: cross-entropy, with label smoothing, class weights and focal loss where asked for.

    Answers: (rows, 2) probabilities.

    Requires: exactly two labels in the train rows.

    Relations: `multiclass` of two labels, with a positive class and its metrics.

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
        """
        Args:
            target: the target column's name.
            positive: the positive class's label; where None, the one label that reads as true, else the last in order.
            label_smoothing: share in [0, 1) of each target that is spread evenly over both classes.
            class_weights: "balanced" (rows / (2 · rows of the class)), or a positive weight per label, 1 for labels
                left out; they multiply the loss, never the metrics.
            focal: γ of the focal loss (arXiv 1708.02002), 0 or more: rows answered well count (1 − p)^γ as much.
        """
        super().__init__(target, label_smoothing=label_smoothing, class_weights=class_weights, focal=focal)
        self.positive = positive

    @classmethod
    def detect(cls, values: Sequence[Any]) -> Detection:
        """Sure of exactly two distinct values."""
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
        """See `fusetune.tasks.metrics.classification`, with a positive class."""
        return measures.classification(scores, truth, weights, positive=1)

    def probabilities(self, answers: np.ndarray) -> np.ndarray:
        """The positive class's, (rows,)."""
        return np.asarray(answers[:, 1])

    def state(self) -> dict[str, Any]:
        """Options, labels and counts."""
        return {"positive": self.positive, **super().state()}
