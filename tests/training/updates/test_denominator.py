"""The loss of an update has one denominator, however its rows are dealt out to micro-batches and processes."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

from fusetune.objectives.base import Objective, labelled_weights, weighted_mean
from fusetune.objectives.total import Total
from fusetune.tasks.classes.classification import BinaryTask, MulticlassTask
from fusetune.tasks.classes.multilabel import MultilabelTask
from fusetune.tasks.classes.ordinal import OrdinalTask
from fusetune.tasks.regression import RegressionTask
from fusetune.testing.tasks import example_features, example_targets
from fusetune.training.learner import Learner
from fusetune.training.updates.update import plain
from fusetune.types import Batch, Outputs

ROWS = 24
CELLS = example_targets(ROWS)
TASKS = {
    "binary": (BinaryTask("y"), CELLS["two words"]),
    "binary, class weights": (BinaryTask("y", class_weights={"yes": 7.0, "no": 0.3}), CELLS["two words"]),
    "multiclass": (MulticlassTask("y"), CELLS["three words"]),
    "multiclass, class weights": (
        MulticlassTask("y", class_weights={"NA": 9.0, "null": 0.2}, label_smoothing=0.1, focal=1.0),
        CELLS["three words"],
    ),
    "ordinal": (OrdinalTask("y"), CELLS["levels"]),
    "multilabel": (MultilabelTask("y", positive_weights="balanced"), CELLS["label sets"]),
    "regression": (RegressionTask("y", loss="huber"), CELLS["numbers"]),
}


class Head(nn.Module):
    """Logits from the batch's features alone."""

    def __init__(self, task):
        super().__init__()
        self.head = task.build_head(8)

    def forward(self, batch):
        features = batch.inputs["x"]["features"]
        return Outputs(logits={"y": self.head(features)}, pooled=features, columns={})


class Process:
    """What `loss_shares` asks of accelerate, for one of several processes whose totals are known."""

    def __init__(self, totals):
        self.num_processes, self.device, self._totals = len(totals), torch.device("cpu"), totals

    def reduce(self, tensor, how):
        assert how == "mean"
        return torch.tensor(self._totals, dtype=tensor.dtype).mean(0)

    def __getattr__(self, name):
        return getattr(Accelerator(cpu=True), name)


def batches(task, cells, *, weighted, missing, cuts):
    """The rows as micro-batches between the cuts."""
    cells = [None if missing and row % 5 == 0 else cell for row, cell in enumerate(cells)]
    weights = torch.linspace(0, 3, ROWS).double() if weighted else torch.ones(ROWS).double()
    features = torch.from_numpy(example_features(ROWS)).double()
    made = []
    for start, end in zip([0, *cuts], [*cuts, ROWS], strict=True):
        target = task.encode(cells[start:end])
        target.values = target.values.double() if target.values.is_floating_point() else target.values
        target.sizes = None if target.sizes is None else target.sizes.double()
        rows = torch.arange(start, end)
        inputs = {"x": {"features": features[start:end]}}
        made.append(Batch(inputs=inputs, cells={}, weights=weights[start:end], rows=rows, targets={"y": target}))
    return made


def gradient(learner, micro_batches, accelerator):
    learner.zero_grad()
    losses = plain(learner, micro_batches, accelerator)
    return float(losses["y"]), torch.cat([p.grad.flatten() for p in learner.parameters()]).clone()


@pytest.mark.parametrize("missing", [False, True], ids=["labelled", "partly labelled"])
@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("name", TASKS)
def test_accumulated_and_distributed_losses_equal_the_plain_one(name, weighted, missing):
    task, cells = TASKS[name]
    task.fit(cells)
    learner = Learner(Head(task), Total({"y": task})).double()
    whole = {"weighted": weighted, "missing": missing}
    one = Accelerator(cpu=True)
    loss, expected = gradient(learner, batches(task, cells, cuts=[], **whole), one)
    for cuts in ([11], [3, 9, 20]):
        summed, added = gradient(learner, batches(task, cells, cuts=cuts, **whole), one)
        assert summed == pytest.approx(loss, rel=1e-6)
        assert torch.allclose(added, expected, rtol=1e-6, atol=1e-9)
    parts = batches(task, cells, cuts=[5, 9, 16], **whole)
    shares = [parts[:1], parts[1:]]  # of two processes, which have different numbers of rows and micro-batches
    totals = [
        [sum(float(b.targets["y"].counts(b.weights).sum()) for b in own), sum(float(b.weights.sum()) for b in own)]
        for own in shares
    ]
    found = [gradient(learner, own, Process(totals)) for own in shares]
    assert sum(each for each, _ in found) / 2 == pytest.approx(loss, rel=1e-6)
    assert torch.allclose((found[0][1] + found[1][1]) / 2, expected, rtol=1e-6, atol=1e-9)


class Spread(Objective):
    """The weighted mean of the logits' squares."""

    name = "spread"

    def forward(self, model, batch, outputs):
        return {self.name: weighted_mean(outputs.logits["y"].square().mean(1), batch.weights)}


def test_an_objectives_weighted_mean_is_the_same_over_micro_batches():
    task, cells = TASKS["binary"]
    task.fit(cells)
    model = Head(task)
    learner = Learner(model, Total({"y": task}, [Spread(model, {"y": task})])).double()
    losses = [
        plain(learner, batches(task, cells, weighted=True, missing=True, cuts=cuts), Accelerator(cpu=True))
        for cuts in ([], [3, 9, 20])
    ]
    assert float(losses[1]["objective/spread"]) == pytest.approx(float(losses[0]["objective/spread"]), rel=1e-6)


class SpreadOfLabelled(Spread):
    """The same of the rows with a target."""

    def forward(self, model, batch, outputs):
        return {self.name: weighted_mean(outputs.logits["y"].square().mean(1), self.counts(batch))}

    def counts(self, batch):
        return labelled_weights(batch)


def test_an_objectives_mean_over_labelled_rows_is_the_same_over_micro_batches():
    task, cells = TASKS["binary"]
    task.fit(cells)
    model = Head(task)
    learner = Learner(model, Total({"y": task}, [SpreadOfLabelled(model, {"y": task})])).double()
    found = [
        gradient(learner, batches(task, cells, weighted=True, missing=True, cuts=cuts), Accelerator(cpu=True))[1]
        for cuts in ([], [3, 9, 20])
    ]
    assert torch.allclose(found[0], found[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("cuts", [[], [3, 9, 20]], ids=["at once", "in parts"])
@pytest.mark.parametrize("missing", [False, True], ids=["labelled", "partly labelled"])
def test_a_class_weighted_loss_is_torchs_over_all_rows(missing, cuts):
    """torch divides by the sum of the weights of the rows' classes; a row without a label is ignored."""
    task = MulticlassTask("y", class_weights={"a": 3.0, "b": 0.5})
    cells = ["abc"[row % 3 if row % 7 else 0] for row in range(ROWS)]
    task.fit(cells)
    learner = Learner(Head(task), Total({"y": task})).double()
    loss, found = gradient(
        learner, batches(task, cells, weighted=False, missing=missing, cuts=cuts), Accelerator(cpu=True)
    )
    (rows,) = batches(task, cells, weighted=False, missing=missing, cuts=[])
    target = rows.targets["y"]
    labels = torch.where(target.labelled, target.values, -100)
    weight = torch.tensor([3.0, 0.5, 1.0]).double()
    learner.zero_grad()
    expected = F.cross_entropy(learner.model(rows).logits["y"], labels, weight=weight, ignore_index=-100)
    expected.backward()
    wanted = torch.cat([p.grad.flatten() for p in learner.parameters()])
    assert loss == pytest.approx(float(expected), rel=1e-9) and torch.allclose(found, wanted, rtol=1e-9, atol=1e-12)
