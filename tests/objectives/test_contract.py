"""Every registered objective keeps the contract, and each rule of the contract finds what breaks it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fusetune.objectives.base import BatchObjective, Objective
from fusetune.objectives.unimodal import Unimodal
from fusetune.registry import OBJECTIVES
from fusetune.testing.objectives import ObjectiveContract, check_objective
from fusetune.testing.rules import broken_rules, rules_of


@pytest.mark.parametrize("make", [OBJECTIVES.get(name) for name in OBJECTIVES], ids=list(OBJECTIVES))
class TestRegistered(ObjectiveContract):
    pass


class Good(Objective):
    name = "good"

    def forward(self, model, batch, outputs):
        return {"good": self.mean(outputs.fused[:, 0].square(), batch)}

    def mean(self, losses, batch):
        return (losses * batch.weights).sum() / batch.weights.sum()


def loss_of(change):
    """`Good` with another loss: `change(self, model, batch, outputs, sound loss)`."""

    class Changed(Good):
        def forward(self, model, batch, outputs):
            return {"good": change(self, model, batch, outputs, super().forward(model, batch, outputs)["good"])}

    return Changed


class OtherName(Good):
    def forward(self, model, batch, outputs):
        return {"bad": outputs.fused.square().mean()}


class GraphInFigures(Good):
    def forward(self, model, batch, outputs):
        losses = super().forward(model, batch, outputs)
        self.figures = {"size": outputs.fused.norm()}
        return losses


class KeepsTheModel(Good):
    def __init__(self, model, tasks):
        super().__init__(model, tasks)
        self.model = model


class Unreached(Good):
    def __init__(self, model, tasks):
        super().__init__(model, tasks)
        self.own = nn.Parameter(torch.ones(1))


class WeighsItself(Good):
    def forward(self, model, batch, outputs):
        return {"good": super().forward(model, batch, outputs)["good"] * self.weight}


class WeighsItselfFromTheStart(Good):
    def __init__(self, model, tasks, *, weight=1.0):
        super().__init__(model, tasks, weight=weight)
        self.factor = weight

    def forward(self, model, batch, outputs):
        return {"good": super().forward(model, batch, outputs)["good"] * self.factor}


class Summed(Good):
    def mean(self, losses, batch):
        return (losses * batch.weights).sum()


class SummedOfNormalised(Good):
    """A sum whose weights have mean 1."""

    def mean(self, losses, batch):
        return (losses * batch.weights / batch.weights.mean()).sum()


class DividedByRows(Good):
    def mean(self, losses, batch):
        return (losses * batch.weights).mean()


class Unweighted(Good):
    def mean(self, losses, batch):
        return losses.mean()


class Doubled(Good):
    """Counts all rows of a weight alike."""

    def mean(self, losses, batch):
        return losses[batch.weights > 0].mean()


class ChangesWeights(Good):
    def forward(self, model, batch, outputs):
        losses = super().forward(model, batch, outputs)
        batch.weights = batch.weights / batch.weights.sum()
        return losses


class AddsInputs(Good):
    def forward(self, model, batch, outputs):
        batch.inputs["more"] = {"values": torch.zeros(1)}
        return super().forward(model, batch, outputs)


class ChangesOutputs(Good):
    def forward(self, model, batch, outputs):
        losses = super().forward(model, batch, outputs)
        outputs.columns["x"].values.data.mul_(2)
        return losses


class NeedsTwoRows(Good):
    def forward(self, model, batch, outputs):
        assert len(batch) > 1, "one row cannot be compared"
        return super().forward(model, batch, outputs)


class Plain16(Good):
    """Adds a thousand in low precision before it takes it off."""

    def mean(self, losses, batch):
        pooled = losses.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else losses
        return super().mean(((pooled + 1000) - 1000).float() + 0 * losses, batch)


class Compared(BatchObjective):
    """A sound objective of rows against rows."""

    name = "compared"

    def vectors(self, batch, outputs):
        return {"v": outputs.fused[:, :2], "w": batch.weights}

    def of_vectors(self, vectors):
        rows = vectors["v"][vectors["w"] > 0]
        weights = vectors["w"][vectors["w"] > 0] / vectors["w"].sum()
        return {"compared": (weights @ rows).square().sum() + weights @ rows.square().sum(1)}


class Ordered(Compared):
    def of_vectors(self, vectors):
        places = torch.arange(len(vectors["v"])) + 1
        return super().of_vectors({**vectors, "v": vectors["v"] / places.unsqueeze(1)})


class ByBatch(Compared):
    def vectors(self, batch, outputs):
        found = super().vectors(batch, outputs)
        here = found["w"] > 0
        return {**found, "v": found["v"] - found["v"][here].mean(0)}


class ClaimsToNeedNone(Unimodal):
    """Says that it needs no target, and reads them."""

    needs_target = False


def missing_sum(target):
    return target.values[~target.labelled].sum()


FAULTS = [
    (OtherName, "losses_are_finite_scalars_under_its_name rows_of_weight_0_have_no_part weights_count"),
    (loss_of(lambda self, model, batch, outputs, loss: loss.expand(1)), "losses_are_finite_scalars_under_its_name"),
    (GraphInFigures, "figures_are_detached_scalars"),
    (loss_of(lambda self, model, batch, outputs, loss: loss.detach() + 0 * loss), "the_model_receives_a_gradient"),
    (Unreached, "its_own_parameters_receive_gradients"),
    (KeepsTheModel, "it_holds_no_parameter_of_the_model"),
    (Summed, "the_loss_is_a_mean_over_rows the_scale_of_weights_does_not_matter"),
    (SummedOfNormalised, "the_loss_is_a_mean_over_rows"),
    (DividedByRows, "the_scale_of_weights_does_not_matter"),
    (Unweighted, "rows_of_weight_0_have_no_part weights_count"),
    (Doubled, "weights_count"),
    (WeighsItself, "it_does_not_weigh_itself"),
    (WeighsItselfFromTheStart, "it_does_not_weigh_itself"),
    (ChangesWeights, "batch_and_outputs_are_left_as_they_are"),
    (AddsInputs, "batch_and_outputs_are_left_as_they_are"),
    (ChangesOutputs, "batch_and_outputs_are_left_as_they_are"),
    (NeedsTwoRows, "one_row"),
    (loss_of(lambda self, model, batch, outputs, loss: loss / outputs.columns["c"].mask.any()),
     "a_column_that_no_row_has"),
    (loss_of(lambda self, model, batch, outputs, loss: loss + 0.1 * missing_sum(batch.targets["k"])),
     "missing_targets_are_not_read"),
    (loss_of(lambda self, model, batch, outputs, loss: loss / batch.targets["k"].labelled.any()), "without_any_target"),
    (Plain16, "bf16_autocast_agrees_with_float32"),
    (Ordered, "the_order_of_rows_does_not_matter"),
    (ByBatch, "vectors_made_in_parts_give_the_same_loss"),
    (ClaimsToNeedNone, "it_reads_no_target_where_it_says_so"),
]  # fmt: skip


@pytest.mark.parametrize("make", [Good, Compared])
def test_sound_objectives_pass(make):
    check_objective(make)


@pytest.mark.parametrize(("broken", "rules"), FAULTS)
def test_each_fault_breaks_its_rules(broken, rules):
    found = broken_rules(ObjectiveContract, make=broken)
    assert {name.removeprefix("test_") for name in found} == set(rules.split()), found


def test_every_rule_is_shown_to_find_a_fault():
    shown = {f"test_{name}" for _, rules in FAULTS for name in rules.split()}
    assert shown == set(rules_of(ObjectiveContract))
