"""Whether probabilities mean what they say: reliability, calibration error, Brier score, temperature.

Legend: rows = evaluated rows, classes = labels of the task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar

from fusetune.tasks.panels.kinds import Cell, Head, Panel, ReliabilityBin, ReliabilityPanel, Section, TablePanel

TINY = 1e-12
NEAR = 0.05
"""A temperature nearer to 1 changes nothing to speak of."""
MIN_GAIN = 0.002
"""A smaller change of the calibration error is none."""


def reliability(confidence: np.ndarray, correct: np.ndarray, *, num_bins: int = 10) -> list[ReliabilityBin]:
    """Equal-width bins over [0, 1]; the last one holds 1 as well. Empty bins are left out.

    Args:
        confidence: (rows,) 0 to 1.
        correct: (rows,) bool or 0/1: whether what was claimed with this confidence is so.
        num_bins: at least 1.
    """
    which = np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)
    bins = []
    for index in np.unique(which):
        inside = which == index
        bins.append(
            ReliabilityBin(
                float(index / num_bins),
                float((index + 1) / num_bins),
                int(inside.sum()),
                float(confidence[inside].mean()),
                float(correct[inside].mean()),
            )
        )
    return bins


def calibration_error(bins: list[ReliabilityBin]) -> float:
    """ECE: the mean gap between confidence and accuracy, bins weighted by rows (Naeini et al. 2015); nan if empty."""
    rows = sum(one.rows for one in bins)
    return sum(one.rows * abs(one.confidence - one.accuracy) for one in bins) / rows if rows else math.nan


def adaptive_error(confidence: np.ndarray, correct: np.ndarray, *, num_bins: int = 10) -> float:
    """The calibration error over bins of equally many rows (Nixon et al. 2019, arXiv:1904.01685); nan if empty."""
    if len(confidence) == 0:
        return math.nan
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(num_bins, len(order)))
    gaps = [len(part) * abs(confidence[part].mean() - correct[part].mean()) for part in parts]
    return float(sum(gaps) / len(order))


def brier(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The Brier score, lower is better.

    Args:
        probabilities: (rows, classes).
        truth: (rows,) class indices, or (rows, classes) 0/1.

    Returns:
        Two classes: of the positive class alone, 0 to 1. More: summed over classes, 0 to 2. Multi-label: the mean.
    """
    if len(truth) == 0:
        return math.nan
    if truth.ndim == 2:
        return float(np.mean((probabilities - truth) ** 2))
    if probabilities.shape[1] == 2:
        return float(np.mean((probabilities[:, 1] - truth) ** 2))
    hot = np.eye(probabilities.shape[1])[truth]
    return float(np.mean(np.sum((probabilities - hot) ** 2, axis=1)))


def claims(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What was claimed with which confidence, and whether it is so: `(confidence, correct)`, flat.

    Two classes: the positive class's probability. More: the most probable class's. Multi-label: every label's.
    """
    if truth.ndim == 2:
        return probabilities.ravel(), truth.ravel().astype(bool)
    if probabilities.shape[1] == 2:
        return probabilities[:, 1], truth == 1
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == truth


def calibration_section(
    probabilities: np.ndarray,
    truth: np.ndarray,
    labels: Sequence[str],
    *,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    num_bins: int = 10,
) -> Section:
    """Return whether one task's probabilities mean what they say.

    Args:
        probabilities: (rows, classes).
        truth: (rows,) class indices, or (rows, classes) 0/1 for multi-label.
        labels: class names.
        validation: the same two for the validation rows, on which the temperature is fitted.
        num_bins: at least 1.
    """
    confidence, correct = claims(probabilities, truth)
    bins = reliability(confidence, correct, num_bins=num_bins)
    if truth.ndim == 2:
        measures = "probability of each label"
    else:
        measures = f"probability of “{labels[1]}”" if len(labels) == 2 else "probability of the predicted label"
    figures = {
        "ece": calibration_error(bins),
        "adaptive_ece": adaptive_error(confidence, correct, num_bins=num_bins),
        "brier": brier(probabilities, truth),
        "temperature": math.nan,
        "ece_scaled": math.nan,
    }
    if validation is not None and len(validation[1]) > 0:
        figures["temperature"] = fit_temperature(*validation)
        scaled = claims(apply_temperature(probabilities, figures["temperature"], multilabel=truth.ndim == 2), truth)
        figures["ece_scaled"] = calibration_error(reliability(*scaled, num_bins=num_bins))
    return section_of(measures, bins, figures)


def section_of(measures: str, bins: list[ReliabilityBin], figures: dict[str, float]) -> Section:
    """Return the section from figures that are known.

    Args:
        measures: what a claim is, for people.
        bins: filled ones.
        figures: "ece" (expected calibration error, 0 to 1; Naeini et al. 2015), "adaptive_ece" (over bins of equal
            rows; Nixon et al. 2019, arXiv:1904.01685), "brier", "temperature" (by which validation rows'
            log-probabilities are best divided; above 1, the model is overconfident) and "ece_scaled" (`ece` after
            dividing by it); nan where not measured.
    """
    rows: list[list[Cell]] = [
        [f"expected calibration error, {len(bins)} filled bins of equal width", figures["ece"]],
        ["adaptive calibration error (bins of equal rows)", figures["adaptive_ece"]],
        ["Brier score (lower is better)", figures["brier"]],
    ]
    notes = []
    if math.isfinite(figures["ece"]):
        points = 100 * figures["ece"]
        notes.append(f"On average its probabilities are {points:.1f} percentage points off what came true.")
    temperature, scaled = figures["temperature"], figures["ece_scaled"]
    if math.isfinite(temperature):
        rows.append(["temperature fitted on validation rows", temperature])
        rows.append(["expected calibration error after dividing by it", scaled])
        notes.append(_temperature_note(temperature, figures["ece"], scaled))
    notes.append("The line is how often predictions of a probability were right; grey bars are how many there were.")
    panels: list[Panel] = [ReliabilityPanel(measures, bins), TablePanel([Head(""), Head("", "number")], rows)]
    return Section("calibration", "Calibration", panels, notes, figures)


def _temperature_note(temperature: float, before: float, after: float) -> str:
    kind = (
        "The model is overconfident"
        if temperature > 1 + NEAR
        else "The model is underconfident"
        if temperature < 1 - NEAR
        else "Its confidence is about right"
    )
    told = f"{kind} on the validation rows."
    if abs(temperature - 1) <= NEAR:
        return told
    if after < before - MIN_GAIN:
        return f"{told} Dividing log-probabilities by {temperature:.2f} lowers the error to {100 * after:.1f} points."
    change = "raises" if after > before + MIN_GAIN else "hardly changes"
    return f"{told} Dividing log-probabilities by {temperature:.2f} does not help here: it {change} the error."


def apply_temperature(probabilities: np.ndarray, temperature: float, *, multilabel: bool = False) -> np.ndarray:
    """Probabilities with their logits divided by `temperature` (above 0), (rows, classes) to the same."""
    logs = np.log(np.clip(probabilities, TINY, 1))
    if multilabel:
        logits = logs - np.log(np.clip(1 - probabilities, TINY, 1))
        scaled: np.ndarray = 1 / (1 + np.exp(-logits / temperature))
        return scaled
    powers = np.exp(logs / temperature - (logs / temperature).max(axis=1, keepdims=True))
    divided: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return divided


def fit_temperature(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The temperature, 0.05 to 20, with the least log loss on these rows (Guo et al. 2017, arXiv:1706.04599).

    Fit it on validation rows, never on test rows. It changes no ranking within a row, so no predicted label.

    Args:
        probabilities: (rows, classes), rows at least 1.
        truth: (rows,) class indices, or (rows, classes) 0/1 for multi-label.
    """

    def loss(log_temperature: float) -> float:
        scaled = apply_temperature(probabilities, math.exp(log_temperature), multilabel=truth.ndim == 2)
        if truth.ndim == 2:
            return float(-np.mean(np.log(np.clip(np.where(truth > 0, scaled, 1 - scaled), TINY, 1))))
        return float(-np.mean(np.log(np.clip(scaled[np.arange(len(truth)), truth], TINY, 1))))

    found = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded")
    return float(math.exp(found.x))
