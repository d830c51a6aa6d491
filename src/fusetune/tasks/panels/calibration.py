"""Calibration of predicted probabilities: reliability, calibration error, Brier score, temperature scaling.

Legend: rows = evaluated rows, classes = labels of the task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar

from fusetune.tasks.panels.kinds import Cell, Head, Panel, ReliabilityBin, ReliabilityPanel, Section, TablePanel

TINY = 1e-12
NEUTRAL = 0.05
"""A temperature that differs less from 1 counts as 1."""
MIN_GAIN = 0.002
"""A smaller change of the calibration error counts as none."""


def reliability(confidence: np.ndarray, correct: np.ndarray, *, num_bins: int = 10) -> list[ReliabilityBin]:
    """Return the non-empty ones of `num_bins` equal-width bins over [0, 1].

    Args:
        confidence: (rows,) in [0, 1]; 1 belongs to the last bin.
        correct: (rows,) bool or 0/1, whether the prediction with this confidence is true.
        num_bins: at least 1.
    """
    bin_of = np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)
    bins = []
    for index in np.unique(bin_of):
        inside = bin_of == index
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
    """Return the expected calibration error (ECE, Naeini et al. 2015), 0 to 1; NaN without rows.

    It is the mean gap between confidence and accuracy, with bins weighted by their rows.
    """
    rows = sum(bin.rows for bin in bins)
    return sum(bin.rows * abs(bin.confidence - bin.accuracy) for bin in bins) / rows if rows else math.nan


def adaptive_error(confidence: np.ndarray, correct: np.ndarray, *, num_bins: int = 10) -> float:
    """Return the calibration error over bins of equally many rows; NaN without rows.

    Reference: Nixon et al. 2019, "Measuring Calibration in Deep Learning" (arXiv 1904.01685).
    """
    if len(confidence) == 0:
        return math.nan
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(num_bins, len(order)))
    gaps = [len(part) * abs(confidence[part].mean() - correct[part].mean()) for part in parts]
    return float(sum(gaps) / len(order))


def brier(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Return the Brier score, lower is better; NaN without rows.

    Args:
        probabilities: (rows, classes).
        truth: (rows,) class indices, or (rows, classes) 0/1.

    Returns:
        For two classes that of the positive class, 0 to 1; for more the sum over classes, 0 to 2; for multi-label
        targets the mean over labels, 0 to 1.
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
    """Return confidences and whether they came true, `(confidence, correct)`, both one-dimensional.

    For two classes the confidence is the positive class's probability, for more the most probable class's; for
    multi-label targets every label's probability is a confidence.
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
    measures: str = "",
) -> Section:
    """Return the report's section on the calibration of a task's probabilities.

    Args:
        probabilities: (rows, classes).
        truth: (rows,) class indices, or (rows, classes) 0/1 for multi-label.
        labels: class names.
        validation: probabilities and truth of the validation rows, on which the temperature is fitted.
        num_bins: at least 1.
        measures: what the confidences are; "" for the usual words.
    """
    confidence, correct = claims(probabilities, truth)
    bins = reliability(confidence, correct, num_bins=num_bins)
    if not measures and truth.ndim == 2:
        measures = "probability of each label"
    elif not measures:
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
    """Return the calibration section from its figures.

    Args:
        measures: what the confidences are, such as "probability of each label".
        bins: the non-empty bins.
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
        if temperature > 1 + NEUTRAL
        else "The model is underconfident"
        if temperature < 1 - NEUTRAL
        else "Its confidence is about right"
    )
    diagnosis = f"{kind} on the validation rows."
    if abs(temperature - 1) <= NEUTRAL:
        return diagnosis
    if after < before - MIN_GAIN:
        return (
            f"{diagnosis} Dividing log-probabilities by {temperature:.2f} lowers the error to {100 * after:.1f} points."
        )
    change = "raises" if after > before + MIN_GAIN else "hardly changes"
    return f"{diagnosis} Dividing log-probabilities by {temperature:.2f} does not help here: it {change} the error."


def apply_temperature(probabilities: np.ndarray, temperature: float, *, multilabel: bool = False) -> np.ndarray:
    """Return probabilities, (rows, classes), with their logits divided by `temperature`, which is above 0.

    A class with probability 0 keeps it.
    """
    logs = np.log(np.clip(probabilities, TINY, 1))
    if multilabel:
        logits = logs - np.log(np.clip(1 - probabilities, TINY, 1))
        scaled: np.ndarray = 1 / (1 + np.exp(-logits / temperature))
        return scaled
    powers = np.exp(logs / temperature - (logs / temperature).max(axis=1, keepdims=True)) * (probabilities > 0)
    divided: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return divided


def fit_temperature(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Return the temperature, 0.05 to 20, with the lowest log loss on these rows (Guo et al. 2017, arXiv 1706.04599).

    Fit it on validation rows, never on test rows. It does not change the ranking of classes within a row, so it changes
    no predicted label.

    Args:
        probabilities: (rows, classes), at least one row.
        truth: (rows,) class indices, or (rows, classes) 0/1 for multi-label.
    """

    def loss(log_temperature: float) -> float:
        scaled = apply_temperature(probabilities, math.exp(log_temperature), multilabel=truth.ndim == 2)
        if truth.ndim == 2:
            return float(-np.mean(np.log(np.clip(np.where(truth > 0, scaled, 1 - scaled), TINY, 1))))
        return float(-np.mean(np.log(np.clip(scaled[np.arange(len(truth)), truth], TINY, 1))))

    solution = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded")
    return float(math.exp(solution.x))
