"""Every registered task keeps the contract, and each rule of the contract finds what breaks it."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fusetune.registry import TASKS
from fusetune.tasks.abilities import Writes
from fusetune.tasks.base import LinearModel, TargetTask
from fusetune.tasks.classes.classification import MulticlassTask
from fusetune.tasks.classes.multilabel import MultilabelTask
from fusetune.tasks.pairs import PairTask
from fusetune.tasks.regression import RegressionTask
from fusetune.tasks.token_task import TokenTask
from fusetune.testing.rules import broken_rules, rules_of
from fusetune.testing.tasks import TaskContract, check_task, example_targets, usable_targets
from fusetune.types import Target

OPTIONS = {
    "smoothed": partial(MulticlassTask, label_smoothing=0.1, class_weights="balanced"),
    "tuned": partial(MultilabelTask, threshold="tuned", positive_weights="balanced"),
    "fixed threshold": partial(MultilabelTask, threshold=0.3),
    **{
        f"{transform} {loss}": partial(RegressionTask, transform=transform, loss=loss, clip=loss == "mae")
        for transform, loss in (("none", "mse"), ("yeo-johnson", "huber"), ("quantile", "mae"), ("standard", "mse"))
    },
}
TARGET_TASKS = {
    name: TASKS.get(name)
    for name in TASKS
    if issubclass(TASKS.get(name), TargetTask) and not issubclass(TASKS.get(name), TokenTask | PairTask | Writes)
}
MAKES = TARGET_TASKS | OPTIONS
CASES = [
    pytest.param(make, cells, id=f"{name} of {kind}")
    for name, make in MAKES.items()
    for kind, cells in usable_targets(make).items()
]


def test_every_task_has_an_example_target():
    assert all(usable_targets(make) for make in MAKES.values())


@pytest.mark.parametrize(("make", "cells"), CASES)
class TestRegistered(TaskContract):
    pass


class ChecksTooMuch(MulticlassTask):
    def check(self, value, *, row):
        super().check("unheard of" if value == "null" else value, row=row)


class LabelsTheMissing(MulticlassTask):
    def encode(self, values):
        target = super().encode(values)
        target.labelled = torch.ones_like(target.labelled)
        return target


class NeedsRows(MulticlassTask):
    def encode(self, values):
        assert values, "there is no row"
        return super().encode(values)


class LearnsTheMissing(MulticlassTask):
    def fit(self, values):
        super().fit(values)
        self.counts[0] = len(values)


class TermsOfTheBatch(MulticlassTask):
    def terms(self, logits, target):
        terms = super().terms(logits, target)
        return terms + terms.mean()


class Greedy(MulticlassTask):
    """Lets unlabelled rows into the loss."""

    def loss(self, logits, target, weights):
        return super().loss(logits, Target(target.values, torch.ones_like(target.labelled)), weights)


class Summed(MulticlassTask):
    def loss(self, logits, target, weights):
        return (self.terms(logits.float(), target) * weights * target.labelled).sum()


class DividesByNothing(MulticlassTask):
    def loss(self, logits, target, weights):
        counts = weights * target.labelled
        return (self.terms(logits.float(), target) * counts).sum() / counts.sum()


class IdleHead(MulticlassTask):
    def build_head(self, dim):
        head = super().build_head(dim)
        head.register_parameter("idle", nn.Parameter(torch.zeros(1)))
        return head


class NotFinite(MulticlassTask):
    def answers(self, logits):
        answers = super().answers(logits)
        return np.where(np.abs(logits.detach().numpy()) > 1000, np.nan, answers)


class Squeezed(MulticlassTask):
    def answers(self, logits):
        return super().answers(logits).squeeze()


class ColumnOfNumbers(RegressionTask):
    def answers(self, logits):
        return super().answers(logits)[:, None]


class DecidesAColumn(MulticlassTask):
    def decide(self, answers):
        return super().decide(answers)[:, None]


class MeasuresTheBatch(MulticlassTask):
    def measured(self, answers, truth):
        return answers / max(1, len(answers))


class Infinite(MulticlassTask):
    def metrics(self, measured, truth, weights=None):
        return {**super().metrics(measured, truth, weights), "odds": 1.0 if len(truth) else float("inf")}


class IgnoresWeights(MulticlassTask):
    def metrics(self, measured, truth, weights=None):
        return super().metrics(measured, truth)


class IgnoresWeightsInOne(RegressionTask):
    def metrics(self, measured, truth, weights=None):
        return {**super().metrics(measured, truth, weights), "mae": super().metrics(measured, truth)["mae"]}


class VaryingConstant(MulticlassTask):
    def constant(self, truth, rows):
        return super().constant(truth, rows) + 1e-9 * np.arange(rows)[:, None]


class ProbabilityFirst(MulticlassTask):
    def columns(self, answers):
        columns = super().columns(answers)
        return {name: columns[name] for name in reversed(columns)}


class Capitals(MulticlassTask):
    def columns(self, answers):
        columns = super().columns(answers)
        return {**columns, "target": [label.upper() for label in columns["target"]]}


class Forgetful(RegressionTask):
    """Loses its scale when it is saved."""

    def state(self):
        state = super().state()
        return {**state, "transform": {**state["transform"], "mean": 0.0}}


class Blind(MulticlassTask):
    def linear_path(self, features, truth, weights=None):
        return super().linear_path(features * 0, truth, weights)


class Doubled(LinearModel):
    """A linear model that tells twice its coefficients."""

    def __init__(self, model):
        self.model = model

    def scores(self, features):
        return self.model.scores(features)

    def coefficients(self):
        weight, bias = self.model.coefficients()
        return 2 * weight, bias


class WrongCoefficients(MulticlassTask):
    def linear(self, *args, **kwargs):
        return Doubled(super().linear(*args, **kwargs))


class NeedsValidation(MulticlassTask):
    def linear(self, features, truth, val_features, val_truth, weights=None):
        model = super().linear(features, truth, val_features, val_truth, weights)
        model.bias = model.bias + (0 if len(val_truth) or len(features) < 120 else np.nan)
        return model


class LinearIgnoresWeights(MulticlassTask):
    def linear_path(self, features, truth, weights=None):
        return super().linear_path(features, truth)


class DivergesByBatch(MulticlassTask):
    def divergence(self, logits, other):
        return super().divergence(logits, other) * len(logits)


class AlwaysDiverges(MulticlassTask):
    def divergence(self, logits, other):
        return super().divergence(logits, other) + 0.1


class OneSided(MulticlassTask):
    def divergence(self, logits, other):
        return super().divergence(logits, other.detach())


class DivergesInHalf(MulticlassTask):
    def divergence(self, logits, other):
        return super().divergence(logits, other).to(logits.dtype)


class BoostsAMatrix(MulticlassTask):
    def boosting(self, truth, booster):
        parameters, labels = super().boosting(truth, booster)
        return parameters, labels[:, None]


class FlatBoosted(MulticlassTask):
    def boosted_logits(self, raw):
        return super().boosted_logits(raw).ravel()


class PrefersErrors(MulticlassTask):
    def row_losses(self, answers, truth):
        return -super().row_losses(answers, truth)


class WorstThresholds(MultilabelTask):
    def tune(self, answers, truth):
        if len(truth):
            self.thresholds = [2.0] * len(self.labels)


class RashThresholds(MultilabelTask):
    def tune(self, answers, truth):
        if not len(truth):
            self.thresholds = [2.0] * len(self.labels)


class DecidesInMetrics(MultilabelTask):
    def metrics(self, measured, truth, weights=None):
        scores = measured[:, : len(self.labels)]
        return super().metrics(np.concatenate([scores, self.decide(scores)], axis=1), truth, weights)


FAULTS = [
    (ChecksTooMuch, "cells_that_were_fitted_are_accepted predictions_can_be_read_as_targets"),
    (LabelsTheMissing, "missing_cells_are_unlabelled"),
    (NeedsRows, "no_rows_are_encoded"),
    (LearnsTheMissing, "missing_cells_are_not_learned_from"),
    (TermsOfTheBatch, "terms_are_a_finite_number_a_row the_loss_is_a_weighted_mean some_rows_have_no_part_in_the_loss"),
    (Greedy, "some_rows_have_no_part_in_the_loss no_labelled_row_gives_0"),
    (Summed, "the_loss_is_a_weighted_mean"),
    (DividesByNothing, "no_labelled_row_gives_0"),
    (IdleHead, "the_head_learns"),
    (NotFinite, "answers_are_finite"),
    (Squeezed, "answers_keep_their_shape"),
    (
        ColumnOfNumbers,
        "answers_keep_their_shape decisions_have_the_form_of_truth coefficients_agree_with_scores "
        "the_constant_guess_is_constant predictions_can_be_read_as_targets",
    ),
    (
        DecidesAColumn,
        "decisions_have_the_form_of_truth columns_hold_the_prediction predictions_can_be_read_as_targets "
        "the_state_restores_it",
    ),
    (MeasuresTheBatch, "what_is_measured_is_a_row_of_figures metrics_heed_weights"),
    (Infinite, "metrics_are_named_numbers"),
    (IgnoresWeights, "metrics_heed_weights"),
    (IgnoresWeightsInOne, "metrics_heed_weights"),
    (VaryingConstant, "the_constant_guess_is_constant"),
    (ProbabilityFirst, "columns_hold_the_prediction"),
    (Capitals, "predictions_can_be_read_as_targets"),
    (Forgetful, "the_state_restores_it"),
    (Blind, "the_linear_model_beats_the_constant row_losses_prefer_the_truth"),
    (WrongCoefficients, "coefficients_agree_with_scores"),
    (NeedsValidation, "the_linear_model_needs_no_validation_rows row_losses_prefer_the_truth"),
    (LinearIgnoresWeights, "the_linear_model_heeds_weights"),
    (DivergesByBatch, "divergence_is_a_finite_number_a_row"),
    (AlwaysDiverges, "divergence_of_equal_predictions_is_0"),
    (OneSided, "divergence_has_gradients_to_both"),
    (DivergesInHalf, "divergence_is_float32"),
    (BoostsAMatrix, "boosters_learn_a_number_a_row"),
    (FlatBoosted, "boosted_logits_have_the_heads_form"),
    (PrefersErrors, "row_losses_prefer_the_truth"),
    (WorstThresholds, "tuned_thresholds_improve_a_metric"),
    (RashThresholds, "tuning_without_rows_changes_nothing"),
    (DecidesInMetrics, "the_decisions_are_measured"),
]


def cells_of(task):
    kinds = {MulticlassTask: "three words", RegressionTask: "numbers", MultilabelTask: "label sets"}
    return example_targets()[next(kind for base, kind in kinds.items() if issubclass(task, base))]


@pytest.mark.parametrize(("broken", "rules"), FAULTS)
def test_each_fault_breaks_its_rules(broken, rules):
    found = broken_rules(TaskContract, make=broken, cells=cells_of(broken))
    assert {name.removeprefix("test_") for name in found} == set(rules.split()), found


def test_every_rule_is_shown_to_find_a_fault():
    shown = {f"test_{name}" for _, rules in FAULTS for name in rules.split()}
    assert shown == set(rules_of(TaskContract))


def test_one_call_checks_every_target():
    assert check_task(TASKS.get("binary")) == ["two words"]
    with pytest.raises(AssertionError, match=r"(?s)some_rows_have_no_part_in_the_loss.*no_labelled_row_gives_0"):
        check_task(Greedy)
