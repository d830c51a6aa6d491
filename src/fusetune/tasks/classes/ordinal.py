"""Ordinal regression: one of several ordered levels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.errors import ConfigError, TableError, shown
from fusetune.modalities.base import Detection
from fusetune.tasks import metrics as measures
from fusetune.tasks.abilities import Boosted, Divergent, Exported, Probed
from fusetune.tasks.answer_modules import LevelAnswers
from fusetune.tasks.base import LinearPath, Metric
from fusetune.tasks.cells import label_text, named_label
from fusetune.tasks.classes.labels import LabelTask
from fusetune.tasks.divergence import bernoulli_divergence
from fusetune.tasks.linear import logistic_path
from fusetune.tasks.output_columns import median_level
from fusetune.types import Target, TextTokens


class CumulativeHead(nn.Module):
    """Map (batch, dim) to (batch, levels - 1), the logits of "above level k", which never increase with k.

    logit_k = w · x + b_k, with b_{k+1} = b_k - softplus(g_k), so the levels' probabilities are never negative.

    Args:
        dim: features of x.
        rates: (levels - 1,) the share of train rows above each level, decreasing, in (0, 1). b starts at their logits.
    """

    def __init__(self, dim: int, rates: Tensor) -> None:
        super().__init__()
        self.slope = nn.Linear(dim, 1, bias=False)
        bias = rates.logit()
        self.first = nn.Parameter(bias[:1].clone())
        gaps = (bias[:-1] - bias[1:]).clamp(min=1e-2)
        self.gaps = nn.Parameter(gaps.expm1().log()) if len(gaps) else None

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits, (batch, levels - 1), for (batch, dim) features."""
        bias: Tensor = self.first
        if self.gaps is not None:
            bias = torch.cat([bias, bias - F.softplus(self.gaps).cumsum(0)])
        logits: Tensor = self.slope(features) + bias
        return logits


class OrdinalTask(LabelTask, Probed, Divergent, Boosted, Exported):
    """Predict one of several ordered levels, by a cumulative-logit model with CORAL's loss. Main metric: qwk.

    Args:
        target: the target column's name.
        order: the levels from lowest to highest. None: by value, if all levels are numbers.

    Raises:
        ConfigError: a level is named twice, or there are fewer than two.

    Loss: the mean over thresholds k of the binary cross-entropy of "the level is above k". All thresholds share the
    head's weights w and differ by their biases.

    Answers: (rows, levels) probabilities. The predicted level is the median: the number of thresholds that are exceeded
    with a probability above one half.

    Requires: two or more levels; levels that are not numbers need `order`.

    Relations: `multiclass` ignores the order; `regression` assumes equal distances between levels.

    Example:
        >>> task = OrdinalTask("size", order=["small", "medium", "large"])
        >>> task.fit(["small", "large", "medium", "small"])
        >>> answers = task.answers(torch.tensor([[3.0, -2.0]]))  # likely above small, unlikely above medium
        >>> task.columns(answers)["size"]
        ['medium']

    Reference: Cao et al. 2020, "Rank consistent ordinal regression for neural networks" (arXiv 1901.07884). There,
    the biases are ordered at the optimum; here they are always ordered.
    """

    name = "ordinal"
    main = Metric("qwk")

    def __init__(self, target: str, *, order: Sequence[Any] | None = None) -> None:
        super().__init__(target)
        self.order = None if order is None else list(order)
        if self.order is not None and (
            len(self.order) < 2 or len({label_text(level) for level in self.order}) < len(self.order)
        ):
            raise ConfigError("order must name two or more levels, each once", came=shown(self.order))

    @classmethod
    def detect(cls, values: Sequence[Any]) -> Detection:
        """Return no confidence, because an order cannot be seen in the labels."""
        return Detection(0.0, "an order of labels must be asked for")

    def fit(self, values: Sequence[Any]) -> None:
        """Learn the levels from the train rows' cells.

        Raises:
            TableError: there are fewer than two levels.
            ConfigError: no order is given and a level is not a number.
        """
        counts = self._learn(values)
        if self.order is not None:
            self.order = [named_label(level, counts) for level in self.order]
        self.classes = _by_value(counts, self.target) if self.order is None else list(self.order)
        self.counts = [counts[level] for level in self.classes]
        if sum(count > 0 for count in self.counts) < 2:
            raise TableError(
                "fewer than two of the target's levels have train rows",
                expected=", ".join(self.classes),
                came=", ".join(map(shown, list(counts)[:10])),
                do="correct the task's order",
                column=self.target,
            )

    @property
    def _not_known(self) -> str:
        return super()._not_known if self.order is None else "a level that the order does not name"

    def build_head(self, dim: int) -> nn.Module:
        """Build a `CumulativeHead`, whose biases start at the train rows' rates."""
        counts = torch.tensor(self.counts, dtype=torch.get_default_dtype()) + 0.5
        above = counts.flip(0).cumsum(0).flip(0)[1:]
        return CumulativeHead(dim, above / counts.sum())

    def terms(self, logits: Tensor, target: Target) -> Tensor:
        """Return each row's mean binary cross-entropy over thresholds, (batch,).

        Args:
            logits: (batch, levels - 1).
            target: level indices, (batch,) int64.
        """
        thresholds = torch.arange(logits.shape[1], device=logits.device)
        above = (target.values.unsqueeze(1) > thresholds).to(logits.dtype)  # (batch, levels - 1)
        return F.binary_cross_entropy_with_logits(logits, above, reduction="none").mean(1)

    def divergence(self, logits: Tensor, other: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the mean over thresholds of KL(sigmoid(logits) || sigmoid(other)) in nats, (batch,)."""
        return bernoulli_divergence(logits, other)

    def answers(self, logits: Tensor, tokens: TextTokens | None = None) -> np.ndarray:
        """Return probabilities, (rows, levels)."""
        return level_probabilities(logits.detach().double().cpu().numpy())

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Return the index of the median level, (rows,)."""
        return median_level(scores)

    def answer_module(self) -> nn.Module:
        """Return a module from thresholds' logits to levels' probabilities."""
        return LevelAnswers()

    def output_form(self) -> dict[str, Any]:
        """Return a form of the kind "label" that decides for the median level."""
        return {"kind": "label", "target": self.target, "labels": self.classes, "decide": "median"}

    def metrics(self, scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """Return qwk, accuracy, balanced_accuracy, mae (in levels), spearman (of the expected level) and log_loss."""
        decided = self.decide(scores)
        expected = scores @ np.arange(scores.shape[1])
        table = measures.confusion(decided, truth, scores.shape[1], weights)
        numbers = measures.regression(decided, truth, weights)
        rows, recalled = table.sum(1), np.diag(table)
        return {
            "qwk": measures.quadratic_kappa(decided, truth, scores.shape[1], weights),
            "accuracy": float(recalled.sum() / rows.sum()) if rows.sum() else float("nan"),
            "balanced_accuracy": float((recalled[rows > 0] / rows[rows > 0]).mean()) if rows.any() else float("nan"),
            "mae": numbers["mae"],
            "spearman": measures.regression(expected, truth, weights)["spearman"],
            "log_loss": measures.log_loss(scores, truth, weights),
        }

    def linear_path(self, features: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> LinearPath:
        """Return a logistic regression per threshold (Frank and Hall 2001), with one penalty for all."""
        above = (truth[:, None] > np.arange(len(self.classes) - 1)).astype(np.int8)
        return logistic_path(features, above, exclusive=False, finish=level_probabilities, weights=weights)

    def linear_score(self, scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
        """Return quadratic weighted kappa, then the negative log loss."""
        kappa = measures.quadratic_kappa(self.decide(scores), truth, len(self.classes))
        return (-1.0 if np.isnan(kappa) else kappa), -measures.log_loss(scores, truth)

    @property
    def num_boosters(self) -> int:
        """One for each threshold (Frank and Hall 2001)."""
        return len(self.classes) - 1

    def boosting(self, truth: np.ndarray, booster: int) -> tuple[dict[str, Any], np.ndarray]:
        """Return the log loss of "above level k", with k the booster's index."""
        return {"objective": "binary"}, (truth > booster).astype(float)

    def boosted_logits(self, raw: Sequence[np.ndarray]) -> np.ndarray:
        """Return the logits of the thresholds, (rows, levels - 1)."""
        return np.stack(raw, axis=1)

    def state(self) -> dict[str, Any]:
        """Return order, levels and counts as JSON data."""
        return {"order": self.order, "classes": self.classes, "counts": self.counts}

    @classmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> OrdinalTask:
        """Restore a task from its `state()`."""
        task = cls(target, order=state["order"])
        task.classes, task.counts = list(state["classes"]), list(state["counts"])
        return task


def level_probabilities(logits: np.ndarray) -> np.ndarray:
    """Convert logits of "above level k" to probabilities of the levels.

    Args:
        logits: (rows, levels - 1). A logit above its left neighbour, possible if each threshold has its own model, is
            replaced by the neighbour.

    Returns:
        (rows, levels) probabilities, 0 or more, which sum to 1 in each row.
    """
    above = expit(np.minimum.accumulate(logits, axis=1))
    ends = np.ones((len(above), 1))
    return np.asarray(np.concatenate([ends, above], axis=1) - np.concatenate([above, ends * 0], axis=1))


def _by_value(labels: Iterable[str], target: str) -> list[str]:
    """Sort labels that are numbers, from low to high.

    Raises:
        ConfigError: a label is not a number.
    """
    try:
        return sorted(labels, key=lambda label: (float(label), label))
    except ValueError:
        raise ConfigError(
            f"the order of the levels of {target!r} is unknown, as they are not all numbers",
            came=", ".join(map(shown, sorted(labels)[:10])),
            do=f"give the levels from lowest to highest: tasks.{target}.order='[low, mid, high]'",
        ) from None
