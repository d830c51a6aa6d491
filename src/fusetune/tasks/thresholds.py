"""Decision thresholds: the probability from which on a label is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fusetune.errors import ConfigError, shown

MIN_POSITIVE = 10
"""With fewer positive validation rows, a label's own best threshold is mostly chance."""

DEFAULT = 0.5

Setting = float | Literal["auto", "tuned"]
"""How thresholds are chosen: a fixed one, "auto", or "tuned"."""

Source = Literal["fixed", "own", "pooled", "default"]
"""Where a label's threshold comes from: the settings, its own validation rows, those of all labels, or `DEFAULT`."""

_MEANINGS: dict[str, str] = {
    "fixed": "as the settings say",
    "own": "tuned for the label's F1 on validation rows",
    "pooled": f"tuned for all labels together, as fewer than {MIN_POSITIVE} validation rows have the label",
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


def tuned_thresholds(setting: Setting, scores: np.ndarray, truth: np.ndarray) -> Thresholds:
    """Choose thresholds for F1 on validation rows.

    "auto": a label that at least `MIN_POSITIVE` rows have gets its own threshold. The other labels share the one with
    the best F1 over all labels and rows (micro), if there are as many positives in all; else they get `DEFAULT`.
    "tuned": every label that any row has gets its own threshold, the others `DEFAULT`. A fixed setting stays.

    Args:
        setting: see `check_threshold`.
        scores: (rows, labels) probabilities.
        truth: (rows, labels) of 0 and 1.

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
    return Thresholds([value for value, _ in found], [source for _, source in found])


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
