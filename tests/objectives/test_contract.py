"""Every registered objective keeps the contract, and the contract finds what breaks it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fusetune.objectives.base import BatchObjective, Objective
from fusetune.registry import OBJECTIVES
from fusetune.testing.objectives import check_objective

OPTIONS = {"supcon": {"target": "k"}}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_registered_objective_keeps_the_contract(name):
    check_objective(lambda model, tasks: OBJECTIVES.get(name)(model, tasks, **OPTIONS.get(name, {})))


class Good(Objective):
    name = "good"

    def forward(self, model, batch, outputs):
        return {"good": outputs.pooled.square().mean()}


class NotFinite(Good):
    def forward(self, model, batch, outputs):
        return {"good": outputs.pooled.sum() / (outputs.columns["c"].mask.any() * 1.0)}


class Detached(Good):
    def forward(self, model, batch, outputs):
        return {"good": outputs.pooled.detach().square().mean()}


class OtherName(Good):
    def forward(self, model, batch, outputs):
        return {"bad": outputs.pooled.square().mean()}


class KeepsTheModel(Good):
    def __init__(self, model, tasks):
        super().__init__(model, tasks)
        self.model = model


class ReadsMissingTargets(Good):
    def forward(self, model, batch, outputs):
        return {"good": (outputs.pooled.mean(1) - batch.targets["k"].values).square().mean()}


class Unreached(Good):
    def __init__(self, model, tasks):
        super().__init__(model, tasks)
        self.own = nn.Parameter(torch.ones(1))


class Ordered(BatchObjective):
    name = "ordered"

    def vectors(self, batch, outputs):
        return {"v": outputs.pooled}

    def of_vectors(self, vectors):
        return {"ordered": (vectors["v"][:, 0] * torch.arange(len(vectors["v"]))).mean()}


class ByBatch(Ordered):
    def vectors(self, batch, outputs):
        return {"v": outputs.pooled - outputs.pooled.mean(0)}

    def of_vectors(self, vectors):
        return {"ordered": vectors["v"].square().mean()}


def test_a_sound_objective_passes():
    check_objective(Good)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (NotFinite, "rows without 'c'"),
        (Detached, "has no gradient"),
        (OtherName, "not after 'good'"),
        (KeepsTheModel, "holds parameters of the model"),
        (ReadsMissingTargets, "a missing target is read"),
        (Unreached, "own has no finite gradient"),
        (Ordered, "in another order"),
        (ByBatch, "in parts"),
    ],
)
def test_what_is_broken_is_found(broken, said):
    with pytest.raises(AssertionError, match=said):
        check_objective(broken)
