"""Probabilities of a row's choices, and what is measured of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fusetune.tasks.choice.cells import Right

TINY = 1e-12
"""The smallest probability in logarithms."""
TIE = 1e-9
"""Probabilities that differ less are equal."""
HIT, CHANCE, LOSS, BRIER = range(4)
"""Columns of `measure`."""
MEANINGS = {
    "adjusted_accuracy": "accuracy between a random choice, 0, and all right, 1",
    "brier": "mean squared error of probabilities, summed over the choices",
}


@dataclass(frozen=True)
class Scores:
    """The probabilities of a row's choices.

    Attributes:
        probabilities: (choices,) by position, NaN for blank choices.
        choices: their texts, "" for blank ones; empty for a guess that does not know them.
    """

    probabilities: np.ndarray
    choices: tuple[str, ...]

    @property
    def chosen(self) -> int | None:
        """The position of the most probable choice, None without any."""
        if np.isnan(self.probabilities).all():
            return None
        return int(np.nanargmax(self.probabilities))

    @property
    def text(self) -> str | None:
        """The text of the most probable choice, None if it is not known."""
        place = self.chosen
        return None if place is None or place >= len(self.choices) else self.choices[place]


def row_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of a row's logits, (choices,); NaN stays NaN."""
    if np.isnan(logits).all():
        return logits
    powers = np.exp(logits - np.nanmax(logits))
    shares: np.ndarray = powers / np.nansum(powers)
    return shares


def aligned(answer: Scores, right: Right) -> np.ndarray:
    """Return an answer's probabilities for the row's choices, (choices,), 0 for blank ones; they sum to 1.

    An answer without a probability for any of them gives all the same.
    """
    real, scores = right.real, np.zeros(len(right.choices))
    known = np.nan_to_num(answer.probabilities[: len(scores)])
    scores[: len(known)] = known
    only = np.zeros_like(scores)
    only[real] = scores[real] if scores[real].sum() > 0 else 1.0
    shares: np.ndarray = only / only.sum()
    return shares


def measure(answers: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return each row's part in the metrics, (rows, 4): hit, chance, log loss, squared error.

    The hit is 1 if the right choice is the most probable, 1/n if it is one of n equal ones. The chance is that of a
    random choice to be right.
    """
    rows = []
    for answer, right in zip(answers, truth, strict=True):
        shares, real = aligned(answer, right), right.real
        best = shares[real] >= shares[real].max() - TIE
        hit = float(shares[right.position] >= shares[real].max() - TIE) / best.sum()
        hot = np.eye(len(shares))[right.position]
        loss = -math.log(max(shares[right.position], TINY))
        rows.append((hit, 1 / len(real), loss, float(((shares - hot) ** 2).sum())))
    return np.array(rows, dtype=float).reshape(len(rows), 4)


def metrics_of(measured: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """Return accuracy, adjusted_accuracy, log_loss and brier.

    adjusted_accuracy = (accuracy - chance) / (1 - chance), with the mean chance of a random choice: 0 for a guess, 1 if
    all are right, whatever the rows' numbers of choices, as scikit-learn's balanced_accuracy_score(adjusted=True).

    Args:
        measured: (rows, 4) as `measure` returns it.
        weights: (rows,) or None.
    """
    weights = np.ones(len(measured)) if weights is None else weights
    if not weights.sum() > 0:
        return dict.fromkeys(("accuracy", "adjusted_accuracy", "log_loss", "brier"), math.nan)
    means = (measured * weights[:, None]).sum(0) / weights.sum()
    chance = means[CHANCE]
    adjusted = (means[HIT] - chance) / (1 - chance) if chance < 1 else math.nan
    return {
        "accuracy": float(means[HIT]),
        "adjusted_accuracy": float(adjusted),
        "log_loss": float(means[LOSS]),
        "brier": float(means[BRIER]),
    }
