"""Multi-label classification: any number of labels a row."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.data.table import is_missing
from fusetune.errors import BadCell, ConfigError, TableError, nearest, shown
from fusetune.modalities.base import Detection
from fusetune.tasks import metrics as measures
from fusetune.tasks.abilities import Boosted, Divergent, Labelled, Probed, Thresholded
from fusetune.tasks.base import LinearModel, Metric
from fusetune.tasks.cells import is_whole, label_text, present_cells, sorted_labels
from fusetune.tasks.divergence import bernoulli_divergence
from fusetune.tasks.focal import check_focal, focused
from fusetune.tasks.labels import MAX_WRITTEN_CLASSES, TINY
from fusetune.tasks.linear import fit_logistic
from fusetune.types import Target

SEPARATORS = ("|", ";", ",", " ")
"""Looked for in this order where no separator is given."""

MAX_LABEL_CHARS = 60
"""Longer parts of a cell are taken for prose when a separator is looked for."""


def split_labels(cell: Any, separator: str | None) -> list[str]:
    """A cell's labels, each once, in the cell's order.

    Args:
        cell: a list, tuple or array of labels; text in brackets that is a list in JSON or as Python writes it; other
            text, which is split. White space around labels is not part of them.
        separator: what stands between labels; with " ", any white space. None takes the whole text as one label.

    Raises:
        ValueError: it is none of these; the message says why.
    """
    if isinstance(cell, np.ndarray):
        cell = cell.tolist()
    if isinstance(cell, str):
        text = cell.strip()
        if text.startswith("[") and text.endswith("]"):
            cell = _bracketed(text)
        elif separator is None:
            cell = [text]
        else:
            cell = text.split() if separator == " " else text.split(separator)
    elif not isinstance(cell, list | tuple | set | frozenset):
        cell = [cell]
    if any(part is None or isinstance(part, list | tuple | dict | set) for part in cell):
        raise ValueError("an element of the list is not a label")
    labels = (label_text(part).strip() for part in cell)
    return list(dict.fromkeys(label for label in labels if label))


def _bracketed(text: str) -> list[Any]:
    """The list that text in brackets writes."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        try:
            parsed = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError('text in brackets that is no list: labels are written as ["a", "b"]') from None
    assert isinstance(parsed, list)
    return parsed


def is_list(cell: Any) -> bool:
    """Whether a cell is a list, or text that looks like one."""
    if isinstance(cell, str):
        return cell.strip().startswith("[") and cell.strip().endswith("]")
    return isinstance(cell, list | tuple | set | frozenset | np.ndarray)


def find_separator(cells: Sequence[str]) -> tuple[str, str] | None:
    """The separator of labels in text cells and how it showed itself, or None.

    It is in 2 % of the cells or more ("|"), or in a tenth (the others); the parts are short, no bracket is torn
    apart, and each part comes up twice on average, or more often. With the others the number of parts differs between
    cells, as it does not in "Paris, France", and parts meet in new combinations, as those of a repeated sentence do
    not. With "," the parts are not all digits ("1,234"); with " " they all are
    whole numbers ("8 1 3").
    """
    for separator in SEPARATORS:
        split = [[part.strip() for part in cell.split(separator)] for cell in cells if not is_list(cell)]
        several = sum(len(parts) > 1 for parts in split)
        if not split or several < max(2, len(split) * (0.02 if separator == "|" else 0.1)):
            continue
        counts = Counter(part for parts in split for part in parts if part)
        codes = all(part.isdecimal() if separator == "," else is_whole(part) for part in counts)
        fits = {",": not codes, " ": codes}.get(separator, True)
        distinct = {tuple(parts) for parts in split}
        mixed = sum(map(len, distinct)) >= 1.5 * len(counts)
        varied = separator == "|" or (mixed and len({len(parts) for parts in split}) > 1)
        whole = all(len(part) <= MAX_LABEL_CHARS and part.count("(") == part.count(")") for part in counts)
        if counts and whole and varied and fits and counts.total() >= 2 * len(counts):
            return separator, f"{several} of {len(split)} cells hold labels set apart by {separator!r}"
    return None


class MultilabelTask(Labelled, Probed, Divergent, Boosted, Thresholded):
    """Any number of labels a row: a sigmoid and binary cross-entropy each. Main metric: map_macro.

    Cells are `a|b`, JSON lists, or lists. "[]" (or an empty list) is a row that has none of the labels; an empty cell
    is an unlabelled row. Labels that fewer than `min_count` train rows have, among them those that no train row has,
    are neither predicted nor counted in metrics; `left_out` has the former with their counts.
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
        threshold: float | Literal["tuned"] = 0.5,
        focal: float = 0.0,
    ) -> None:
        """
        Args:
            target: the target column's name.
            separator: between labels in text cells; " " is any white space. Found from the cells where None.
            min_count: the fewest train rows that a label must have, 1 or more.
            positive_weights: how much more a row counts that has the label: "balanced" (rows without it / rows with
                it), or a positive weight per label, 1 for labels left out.
            threshold: the probability in (0, 1) from which on a label is given, or "tuned": per label the one with the
                best F1 on validation rows.
            focal: γ of the focal loss (arXiv 1708.02002), 0 or more: labels answered well count (1 − p)^γ as much.

        Raises:
            ConfigError: a setting is out of range.
        """
        super().__init__(target)
        if min_count < 1:
            raise ConfigError("min_count is out of range", expected="1 or more", came=str(min_count))
        if threshold != "tuned" and not (isinstance(threshold, float) and 0 < threshold < 1):
            raise ConfigError("threshold is out of range", expected='0 < value < 1 or "tuned"', came=shown(threshold))
        if separator == "":
            raise ConfigError("the separator is empty", expected='such as "|", or " " for white space')
        if isinstance(positive_weights, str) and positive_weights != "balanced":
            raise ConfigError("positive_weights is unknown", expected='"balanced" or a weight per label')
        if isinstance(positive_weights, Mapping) and not all(weight > 0 for weight in positive_weights.values()):
            raise ConfigError("a positive weight is not above 0", came=shown(dict(positive_weights)))
        self.separator, self.min_count, self.threshold = separator, min_count, threshold
        self.positive_weights = dict(positive_weights) if isinstance(positive_weights, Mapping) else positive_weights
        self.focal = check_focal(focal)
        self.classes: list[str] = []
        self.counts: list[int] = []
        self.rows = 0
        self.left_out: dict[str, int] = {}
        self.thresholds: list[float] = []
        self.as_json = False

    @property
    def labels(self) -> list[str]:
        """Label names in the order of the scores' columns."""
        return self.classes

    @classmethod
    def detect(cls, values: Sequence[Any]) -> Detection:
        """Sure of lists, and of a separator with repeating parts."""
        lists = sum(map(is_list, values))
        if lists and lists >= 0.9 * len(values):
            return Detection(0.97, f"{lists} of {len(values)} cells are lists")
        found = find_separator([value for value in values if isinstance(value, str)])
        return Detection(0.95, found[1]) if found else Detection(0.0, "cells hold no separator with repeating parts")

    def fit(self, values: Sequence[Any]) -> None:
        """Learn the separator and the labels from the train rows' cells; unreadable ones are left to `check`.

        Raises:
            TableError: no label has rows enough, or one label is in every row.
            ConfigError: positive_weights names a label that is not learned.
        """
        cells = present_cells(values, self.target)
        if self.separator is None:
            found = find_separator([cell for cell in cells if isinstance(cell, str)])
            self.separator = found[0] if found else "|"
        counts: Counter[str] = Counter()
        self.rows = 0
        for cell in cells:
            try:
                counts.update(split_labels(cell, self.separator))
                self.rows += 1
            except ValueError:
                continue
        kept = {label for label, count in counts.items() if count >= self.min_count}
        self.classes = sorted_labels(kept)
        self.counts = [counts[label] for label in self.classes]
        self.left_out = {label: counts[label] for label in sorted_labels(set(counts) - kept)}
        if not kept or (len(kept) == 1 and self.counts[0] == self.rows):
            raise TableError(
                "there is nothing to learn from the target's labels",
                expected=f"a label that {self.min_count} or more train rows have and others lack",
                came=", ".join(f"{label!r} in {count} of {self.rows} rows" for label, count in counts.most_common(5)),
                do="lower min_count, give the separator, or name another target column",
                column=self.target,
            )
        self.as_json = sum(map(is_list, cells)) * 2 > len(cells) or any(self.separator in c for c in self.classes)
        self.thresholds = [0.5 if self.threshold == "tuned" else float(self.threshold)] * len(self.classes)
        for label in self.positive_weights if isinstance(self.positive_weights, dict) else ():
            if label not in kept:
                raise ConfigError(
                    f"positive_weights names {label!r}, which is not among the learned labels",
                    do=nearest(label, self.classes),
                )

    def check(self, value: Any, *, row: int) -> None:
        """Refuse a cell that cannot be read as labels.

        Raises:
            BadCell: it cannot.
        """
        try:
            split_labels(value, self.separator)
        except ValueError as error:
            raise BadCell(row=row, column=self.target, value=value, why=str(error)) from None

    def truth(self, values: Sequence[Any]) -> np.ndarray:
        """(rows, labels) int8 of 0 and 1."""
        places = {label: place for place, label in enumerate(self.classes)}
        matrix = np.zeros((len(values), len(self.classes)), dtype=np.int8)
        for row, value in enumerate(values):
            for label in split_labels(value, self.separator):
                if label in places:
                    matrix[row, places[label]] = 1
        return matrix

    def encode(self, values: Sequence[Any]) -> Target:
        """(rows, labels) float32 of 0 and 1; zeros where unlabelled."""
        labelled = [not is_missing(value) for value in values]
        matrix = self.truth([value if known else [] for value, known in zip(values, labelled, strict=True)])
        return Target(torch.from_numpy(matrix.astype(np.float32)), torch.tensor(labelled, dtype=torch.bool))

    def build_head(self, dim: int) -> nn.Module:
        """(batch, dim) to (batch, labels), its bias starting at the log odds of each label's rate unless weighted."""
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
        """Each row's mean binary cross-entropy over labels, (batch,).

        Args:
            logits: (batch, labels).
            target: 0 and 1, (batch, labels).
        """
        losses = F.binary_cross_entropy_with_logits(
            logits, target.values.to(logits.dtype), pos_weight=self._positive_weights(logits), reduction="none"
        )
        likely = logits.sigmoid()
        return focused(losses, torch.where(target.values > 0, likely, 1 - likely), self.focal).mean(1)

    def divergence(self, logits: Tensor, other: Tensor) -> Tensor:
        """The mean over labels of KL(sigmoid(logits) || sigmoid(other)) in nats, (batch,), of (batch, labels)."""
        return bernoulli_divergence(logits, other)

    def scores(self, logits: Tensor) -> np.ndarray:
        """(rows, labels) probabilities."""
        return logits.detach().double().sigmoid().cpu().numpy()

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """(rows, labels) int8: 1 where the probability reaches the label's threshold."""
        return (scores >= np.asarray(self.thresholds)).astype(np.int8)

    def tune(self, scores: np.ndarray, truth: np.ndarray) -> None:
        """With threshold="tuned", take each label's threshold of best F1 on these validation rows; 0.5 without any."""
        if self.threshold == "tuned":
            columns = range(len(self.classes))
            self.thresholds = [_best_threshold(scores[:, place], truth[:, place]) for place in columns]

    def metrics(self, scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
        """See `fusetune.tasks.metrics.multilabel`; F1, subset accuracy and Hamming loss use the thresholds."""
        return measures.multilabel(scores, self.decide(scores), truth, weights)

    def constant(self, truth: np.ndarray, rows: int) -> np.ndarray:
        """Each label's rate in `truth`, the same for every row."""
        return np.tile(truth.mean(0, dtype=float), (rows, 1))

    def linear(
        self,
        features: np.ndarray,
        truth: np.ndarray,
        val_features: np.ndarray,
        val_truth: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> LinearModel:
        """Logistic regression a label, one penalty for all, chosen by map_macro on validation rows."""

        def judge(scores: np.ndarray) -> tuple[float, float]:
            found = [measures.average_precision(s, t) for s, t in zip(scores.T, val_truth.T, strict=True)]
            real = [value for value in found if not np.isnan(value)]
            return float(np.mean(real)) if real else 0.0, 0.0

        return fit_logistic(features, truth, val_features, judge, exclusive=False, weights=weights)

    def columns(self, scores: np.ndarray) -> dict[str, list[Any]]:
        """The labels under the target's name, written as the train rows write them, and up to 20 probabilities.

        A row without labels has "[]".
        """
        given = [
            [label for label, there in zip(self.classes, row, strict=True) if there] for row in self.decide(scores)
        ]
        result: dict[str, list[Any]] = {self.target: [self._written(labels) for labels in given]}
        if len(self.classes) <= MAX_WRITTEN_CLASSES:
            for place, label in enumerate(self.classes):
                result[f"{self.target}:{label}"] = scores[:, place].astype(float).tolist()
        return result

    def _written(self, labels: list[str]) -> str:
        if self.as_json or not labels:
            return json.dumps(labels, ensure_ascii=False)
        return str(self.separator).join(labels)

    @property
    def num_boosters(self) -> int:
        """One a label."""
        return len(self.classes)

    def boosting(self, truth: np.ndarray, booster: int) -> tuple[dict[str, Any], np.ndarray]:
        """Log loss of one label."""
        return {"objective": "binary"}, truth[:, booster].astype(float)

    def boosted_logits(self, raw: Sequence[np.ndarray]) -> np.ndarray:
        """(rows, labels)."""
        return np.stack(raw, axis=1)

    def row_losses(self, scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Each row's mean log loss over labels in nats, (rows,), of (rows, labels) probabilities."""
        given = np.clip(scores, TINY, 1 - TINY)
        return np.asarray(-np.where(truth > 0, np.log(given), np.log1p(-given)).mean(1))

    def state(self) -> dict[str, Any]:
        """Options, labels, counts and thresholds."""
        return {
            "options": {
                "separator": self.separator,
                "min_count": self.min_count,
                "positive_weights": self.positive_weights,
                "threshold": self.threshold,
                "focal": self.focal,
            },
            "classes": self.classes,
            "counts": self.counts,
            "rows": self.rows,
            "left_out": self.left_out,
            "thresholds": self.thresholds,
            "as_json": self.as_json,
        }

    @classmethod
    def from_state(cls, target: str, state: dict[str, Any]) -> MultilabelTask:
        """The task that `state()` described."""
        task = cls(target, **state["options"])
        task.classes, task.counts, task.rows = list(state["classes"]), list(state["counts"]), state["rows"]
        task.left_out, task.thresholds = dict(state["left_out"]), list(state["thresholds"])
        task.as_json = state["as_json"]
        return task


def _best_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """The middle between the two neighbouring scores that parts labels with the best F1; 0.5 without positive rows."""
    if not truth.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(truth) + 1) + truth.sum())
    f1[np.append(np.diff(ranked) == 0, False)] = -1  # equal scores cannot be parted
    best = int(f1.argmax())
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float(max((ranked[best] + below) / 2, np.finfo(float).tiny))
