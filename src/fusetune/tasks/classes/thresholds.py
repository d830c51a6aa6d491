"""Decision thresholds: a label is predicted if its probability reaches its threshold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fusetune.errors import ConfigError, shown
from fusetune.tasks.main_metric import Metric
from fusetune.tasks.metrics import label_sets

MIN_POSITIVE = 10
"""With fewer positive validation rows, the best threshold of a label is mostly chance."""

DEFAULT = 0.5
F1 = Metric("f1_macro")

Setting = float | Literal["auto", "tuned"]
"""How thresholds are chosen: a fixed value, "auto" or "tuned"."""

Source = Literal["fixed", "own", "pooled", "default", "main", "main_pooled"]
"""Where a threshold comes from: the settings, the label's validation rows, those of all labels, or `DEFAULT`. "main"
marks one that was chosen by the main metric."""

DECIDED = frozenset({"f1_micro", "f1_samples", "subset_accuracy", "hamming_loss"})
"""Main metrics by which thresholds are chosen, besides functions of predicted labels. `f1_macro` is best with the best
F1 of each label; other metrics do not depend on thresholds."""
MAX_CANDIDATES, MIN_CANDIDATES = 100, 3
"""Maximum number of candidates for a threshold, and the minimum if there are many labels."""
TRIES, PASSES = 1500, 2
"""Approximate number of evaluations of the metric in a pass over the labels, and the maximum number of passes."""

_ALL = f"for all labels together, as fewer than {MIN_POSITIVE} validation rows have the label"
_MEANINGS: dict[str, str] = {
    "fixed": "as the settings say",
    "own": "tuned for the label's F1 on validation rows",
    "pooled": f"tuned {_ALL}",
    "main": "tuned for the main metric on validation rows",
    "main_pooled": f"tuned for the main metric, {_ALL}",
    "default": f"{DEFAULT}, as too few validation rows have labels",
}


@dataclass(frozen=True)
class Thresholds:
    """One threshold per label.

    Attributes:
        values: probabilities above 0.
        sources: where each value comes from.
    """

    values: list[float]
    sources: list[Source]


def check_threshold(setting: object) -> Setting:
    """Return the setting `threshold`, if it is valid.

    Raises:
        ConfigError: it is neither "auto", "tuned" nor a float between 0 and 1.
    """
    if setting == "auto" or setting == "tuned" or (isinstance(setting, float) and 0 < setting < 1):
        return setting
    raise ConfigError("threshold is out of range", expected='"auto", "tuned" or 0 < value < 1', came=shown(setting))


def initial_thresholds(setting: Setting, num_labels: int) -> Thresholds:
    """Return the thresholds before tuning: the fixed value, or `DEFAULT`."""
    if isinstance(setting, str):
        return Thresholds([DEFAULT] * num_labels, ["default"] * num_labels)
    return Thresholds([float(setting)] * num_labels, ["fixed"] * num_labels)


def tuned_thresholds(setting: Setting, scores: np.ndarray, truth: np.ndarray, main: Metric = F1) -> Thresholds:
    """Choose thresholds on validation rows, for F1 or for the main metric if that depends on them.

    "auto": a label that at least `MIN_POSITIVE` rows have gets its own threshold. The other labels share the threshold
    with the best micro-averaged F1 over all labels, if there are that many positives in total; else they get `DEFAULT`.
    "tuned": every label that some row has gets its own threshold, the others get `DEFAULT`. A fixed value is kept.
    If the main metric depends on thresholds, they are then improved by that metric, see `climb`.

    Args:
        setting: see `check_threshold`.
        scores: (rows, labels) probabilities.
        truth: (rows, labels) of 0 and 1.
        main: the main metric.

    Reference: Lipton et al. 2014, "Optimal Thresholding of Classifiers to Maximize F1 Measure", arXiv 1402.1892.
    """
    initial = initial_thresholds(setting, truth.shape[1])
    if not isinstance(setting, str):
        return initial
    shared: tuple[float, Source] = (DEFAULT, "default")
    if setting == "auto" and truth.sum() >= MIN_POSITIVE:
        shared = best_threshold(scores.ravel(), truth.ravel()), "pooled"
    min_positive = MIN_POSITIVE if setting == "auto" else 1
    by_label: list[tuple[float, Source]] = [
        (best_threshold(label_scores, label_truth), "own") if label_truth.sum() >= min_positive else shared
        for label_scores, label_truth in zip(scores.T, truth.T, strict=True)
    ]
    chosen = Thresholds([value for value, _ in by_label], [source for _, source in by_label])
    depends = main.name in DECIDED or (main.function is not None and main.response_method == "predict")
    return _for_main(chosen, scores, truth, main) if depends and len(truth) else chosen


def _for_main(start: Thresholds, scores: np.ndarray, truth: np.ndarray, main: Metric) -> Thresholds:
    """Return thresholds that are at least as good by the main metric; labels that share a threshold still do."""
    sign = 1.0 if main.greater_is_better else -1.0

    def value(thresholds: np.ndarray) -> float:
        decided = (scores >= thresholds).astype(np.int8)
        own = main.function is not None
        return sign * (main.value(truth, decided, None) if own else label_sets(decided, truth, None)[main.name])

    sources = np.asarray(start.sources)
    parts = [np.asarray([label]) for label in np.flatnonzero(sources == "own")]
    parts += [np.flatnonzero(sources == "pooled")] if "pooled" in start.sources else []
    fixed = np.where(sources == "default", np.asarray(start.values), DEFAULT)
    values = climb(scores, parts, [np.asarray(start.values), fixed], value).tolist()
    named: dict[Source, Source] = {"own": "main", "pooled": "main_pooled"}
    return Thresholds(values, [named.get(source, source) for source in start.sources])


def climb(
    scores: np.ndarray, parts: Sequence[np.ndarray], starts: Sequence[np.ndarray], value: Callable[[np.ndarray], float]
) -> np.ndarray:
    """Improve a metric by coordinate ascent over thresholds; return these, (labels,).

    The candidates for a threshold are midpoints between neighbouring scores, at most `MAX_CANDIDATES` evenly spaced
    ones. A threshold changes only if the metric rises.

    Args:
        scores: (rows, labels) probabilities.
        parts: indices of labels that share a threshold; the thresholds of labels in no part are fixed.
        starts: initial thresholds, (labels,) each, of which the best is used.
        value: maps thresholds to the metric, higher is better; NaN if undefined.
    """

    def defined(thresholds: np.ndarray) -> float:
        metric = value(thresholds)
        return -np.inf if np.isnan(metric) else metric

    values = [defined(start) for start in starts]
    num = max(MIN_CANDIDATES, min(MAX_CANDIDATES, TRIES // max(len(parts), 1)))
    best, thresholds = max(values), starts[int(np.argmax(values))].copy()
    for _ in range(PASSES):
        before = best
        for part in parts:
            distinct = np.unique(scores[:, part])
            middles = (distinct[1:] + distinct[:-1]) / 2
            at = np.unique(np.linspace(0, len(middles) - 1, min(len(middles), num)).astype(int))
            for candidate in middles[at]:
                tried = thresholds.copy()
                tried[part] = candidate
                if (metric := defined(tried)) > best:
                    best, thresholds = metric, tried
        if best == before:
            break
    return thresholds


def best_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the threshold with the best F1, midway between two neighbouring scores; 0.5 without positive rows.

    Args:
        scores: (rows,) probabilities.
        truth: (rows,) of 0 and 1.
    """
    if not truth.any():
        return DEFAULT
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(truth[order], dtype=np.int64)
    f1 = 2 * hits / (np.arange(1, len(truth) + 1) + hits[-1])
    f1[np.append(np.diff(ranked) == 0, False)] = -1  # equal scores cannot be separated
    best = int(f1.argmax())
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float(max((ranked[best] + below) / 2, np.finfo(float).tiny))


def threshold_notes(sources: Sequence[Source], num_predicted: np.ndarray) -> list[str]:
    """Return the report's notes on the thresholds: where they come from, and labels that are never predicted.

    Args:
        sources: per label.
        num_predicted: (labels,) number of rows for which each label is predicted.
    """
    counts = Counter(sources)
    if len(counts) == 1:
        how = _MEANINGS[sources[0]]
    else:
        how = "; ".join(f"{count} of {len(sources)} {_MEANINGS[source]}" for source, count in counts.most_common())
    notes = [f"A label is predicted if its probability reaches its threshold. Thresholds: {how}."]
    if never := int((num_predicted == 0).sum()):
        notes.append(f"{never} of {len(num_predicted)} labels are predicted for no row.")
    return notes
