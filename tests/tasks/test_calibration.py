"""Calibration against torchmetrics and scikit-learn; temperature against what it must undo."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from fusetune.tasks.panels.calibration import (
    adaptive_error,
    apply_temperature,
    brier,
    calibration_error,
    calibration_section,
    claims,
    fit_temperature,
    reliability,
)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def sample(rows: int, classes: int, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and classes drawn from them; `sharpness` above 1 then makes the probabilities too sure."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (rows, classes))
    truth = np.array([rng.choice(classes, p=row) for row in softmax(logits)])
    return softmax(sharpness * logits), truth


@pytest.mark.parametrize("bins", [10, 15])
def test_the_error_is_torchmetrics(bins: int) -> None:
    scores, truth = sample(500, 5, 2.0)
    ours = calibration_error(reliability(*claims(scores, truth), num_bins=bins))
    theirs = multiclass_calibration_error(torch.tensor(scores), torch.tensor(truth), 5, n_bins=bins)
    assert ours == pytest.approx(float(theirs), abs=1e-6)
    scores, truth = sample(500, 2, 2.0)
    ours = calibration_error(reliability(*claims(scores, truth), num_bins=bins))
    theirs = binary_calibration_error(torch.tensor(scores[:, 1]), torch.tensor(truth), n_bins=bins)
    assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_the_brier_score_is_sklearns() -> None:
    scores, truth = sample(300, 2)
    assert brier(scores, truth) == pytest.approx(brier_score_loss(truth, scores[:, 1]))
    scores, truth = sample(300, 4)
    one_by_one = [brier_score_loss(truth == index, scores[:, index]) for index in range(4)]
    assert brier(scores, truth) == pytest.approx(sum(one_by_one))


def test_bins_hold_every_row_and_take_the_ends() -> None:
    bins = reliability(np.array([0.0, 0.05, 0.5, 1.0]), np.array([0, 0, 1, 1]))
    assert [(one.low, one.rows) for one in bins] == [(0.0, 2), (0.5, 1), (0.9, 1)]


def test_adaptive_error_of_equal_confidences_is_the_gap() -> None:
    assert adaptive_error(np.full(100, 0.7), np.arange(100) < 50) == pytest.approx(0.2, abs=0.31)
    assert adaptive_error(np.linspace(0, 1, 100), np.linspace(0, 1, 100)) == pytest.approx(0)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_temperature_undoes_what_made_probabilities_too_sure(sharpness: float) -> None:
    scores, truth = sample(3000, 4, sharpness)
    temperature = fit_temperature(scores, truth)
    assert temperature == pytest.approx(sharpness, rel=0.1)
    scaled = apply_temperature(scores, temperature)
    np.testing.assert_array_equal(scaled.argmax(1), scores.argmax(1))
    np.testing.assert_allclose(scaled.sum(1), 1)
    assert calibration_error(reliability(*claims(scaled, truth))) < 0.03


def test_temperature_of_many_labels_at_once() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (2000, 3))
    truth = (rng.random((2000, 3)) < 1 / (1 + np.exp(-logits))).astype(int)
    sure = 1 / (1 + np.exp(-2.5 * logits))
    assert fit_temperature(sure, truth) == pytest.approx(2.5, rel=0.1)
    np.testing.assert_allclose(apply_temperature(sure, 2.5, multilabel=True), 1 / (1 + np.exp(-logits)), rtol=1e-6)


def test_probabilities_of_nought_and_one_are_taken() -> None:
    scores, truth = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), np.array([0, 1, 1])
    found = calibration_section(scores, truth, ["no", "yes"], validation=(scores, truth))
    assert set(found.figures) == {"ece", "adaptive_ece", "brier", "temperature", "ece_scaled"}
    assert np.isfinite(list(found.figures.values())).all()
    assert "yes" in found.panels[0].measures


def test_a_temperature_that_does_not_help_is_said_to_do_so() -> None:
    sure, truth = sample(3000, 4, 3.0)
    helps = calibration_section(sure, truth, list("abcd"), validation=(sure, truth))
    right, others = sample(3000, 4, 1.0)
    harms = calibration_section(right, others, list("abcd"), validation=(sure, truth))
    assert helps.figures["ece_scaled"] < helps.figures["ece"] and harms.figures["ece_scaled"] > harms.figures["ece"]
    assert not any("does not help" in note for note in helps.notes)
    assert any("does not help" in note for note in harms.notes)
