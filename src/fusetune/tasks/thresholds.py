"""Decision thresholds: the probability from which on a label is given."""

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
"""With fewer positive validation rows, a label's own best threshold is mostly chance."""

DEFAULT = 0.5
F1 = Metric("f1_macro")

Setting = float | Literal["auto", "tuned"]
"""How thresholds are chosen: a fixed one, "auto", or "tuned"."""

Source = Literal["fixed", "own", "pooled", "default", "main", "main_pooled"]
"""Where a label's threshold comes from: the settings, its own validation rows, those of all labels, or `DEFAULT`; with
"main" it is chosen by the main metric instead of F1."""

DECIDED = frozenset({"f1_micro", "f1_samples", "subset_accuracy", "hamming_loss"})
"""Metrics that thresholds are chosen by where one is the main metric, besides functions of decisions. `f1_macro` is
best with each label's own best F1; the others do not depend on thresholds."""
CANDIDATES, LEAST = 100, 3
"""The most thresholds that are tried at a time, and the fewest, where there are many labels."""
TRIES, PASSES = 1500, 2
"""About how often the metric is computed in a pass over the labels, and the most passes."""

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
        values: probabilities above 0; a label is given from its threshold on.
        sources: where each one comes from.
    """

    values: list[float]
    sources: list[Source]


def check_threshold(setting: object) -> Setting:
    """Return the setting `threshold`.

    Raises:
        ConfigError: it is neither "auto", "tuned" nor a float between 0 and 1.
    """
    if setting == "auto" or setting == "tuned" or (isinstance(setting, float) and 0 < setting < 1):
        return setting
    raise ConfigError("threshold is out of range", expected='"auto", "tuned" or 0 < value < 1', came=shown(setting))


def initial_thresholds(setting: Setting, num_labels: int) -> Thresholds:
    """Return the thresholds before tuning: the fixed one, or `DEFAULT`."""
    if isinstance(setting, str):
        return Thresholds([DEFAULT] * num_labels, ["default"] * num_labels)
    return Thresholds([float(setting)] * num_labels, ["fixed"] * num_labels)


def tuned_thresholds(setting: Setting, scores: np.ndarray, truth: np.ndarray, main: Metric = F1) -> Thresholds:
    """Choose thresholds on validation rows, for F1 or for the main metric where that depends on them.

    "auto": a label that at least `MIN_POSITIVE` rows have gets its own threshold. The other labels share the one with
    the best F1 over all labels and rows (micro), if there are as many positives in all; else they get `DEFAULT`.
    "tuned": every label that any row has gets its own threshold, the others `DEFAULT`. A fixed setting stays.
    With a main metric that depends on them, thresholds go from there to where the metric is best, see `climb`.

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
    rest: tuple[float, Source] = (DEFAULT, "default")
    if setting == "auto" and truth.sum() >= MIN_POSITIVE:
        rest = best_threshold(scores.ravel(), truth.ravel()), "pooled"
    fewest = MIN_POSITIVE if setting == "auto" else 1
    found: list[tuple[float, Source]] = [
        (best_threshold(own, actual), "own") if actual.sum() >= fewest else rest
        for own, actual in zip(scores.T, truth.T, strict=True)
    ]
    chosen = Thresholds([value for value, _ in found], [source for _, source in found])
    depends = main.name in DECIDED or (main.function is not None and main.response_method == "predict")
    return _for_main(chosen, scores, truth, main) if depends and len(truth) else chosen


def _for_main(start: Thresholds, scores: np.ndarray, truth: np.ndarray, main: Metric) -> Thresholds:
    """Return thresholds that are at least as good by the main metric; labels that share one go on sharing it."""
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
    """Return thresholds, (labels,), that a metric prefers: coordinate ascent, one part of the labels after another.

    Candidates are midpoints between neighbouring scores, `CANDIDATES` evenly spaced ones or fewer. A threshold moves
    only where the metric gains.

    Args:
        scores: (rows, labels) probabilities.
        parts: numbers of labels that share a threshold; labels in none keep theirs.
        starts: thresholds to start from, (labels,) each; the best of them is taken.
        value: from thresholds to the metric, more is better; nan where undefined.
    """

    def known(thresholds: np.ndarray) -> float:
        found = value(thresholds)
        return -np.inf if np.isnan(found) else found

    values = [known(start) for start in starts]
    num = max(LEAST, min(CANDIDATES, TRIES // max(len(parts), 1)))
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
                if (found := known(tried)) > best:
                    best, thresholds = found, tried
        if best == before:
            break
    return thresholds


def best_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the threshold with the best F1, half way between two neighbouring scores; 0.5 without positive rows.

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
        num_predicted: (labels,), for how many rows each label is predicted.
    """
    counts = Counter(sources)
    if len(counts) == 1:
        how = _MEANINGS[sources[0]]
    else:
        how = "; ".join(f"{count} of {len(sources)} {_MEANINGS[source]}" for source, count in counts.most_common())
    notes = [f"A label is given where its probability reaches the threshold. Thresholds: {how}."]
    if never := int((num_predicted == 0).sum()):
        notes.append(f"{never} of {len(num_predicted)} labels are predicted for no row.")
    return notes
