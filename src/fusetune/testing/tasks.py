"""What every task must do, for tasks here and for plug-ins' authors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fusetune.errors import UserError
from fusetune.tasks.abilities import Divergent, Probed, Thresholded
from fusetune.tasks.base import LinearModel, Task

ROWS = 120
DIM = 8
MakeTask = Callable[[str], Task]


def example_targets(rows: int = ROWS) -> dict[str, list[Any]]:
    """Target columns of several kinds, learnable from `example_features`.

    Args:
        rows: how many cells each has.
    """
    hidden = example_features(rows)[:, :3].sum(1)
    ranks = hidden.argsort().argsort()
    thirds = ranks * 3 // rows
    return {
        "two words": ["yes" if rank * 2 >= rows else "no" for rank in ranks],
        "three words": [("NA", "null", "00501")[third] for third in thirds],
        "levels": [str(third + 1) for third in thirds],
        "label sets": [("a|b", "[]", "b|c|d")[third] for third in thirds],
        "lists": [(["a", "b"], [], ["b", "c"])[third] for third in thirds],
        "numbers": [f"{value:.3f}" for value in hidden],
        "skewed numbers": [math.exp(2 * float(value)) for value in hidden],
    }


def example_features(rows: int = ROWS, *, seed: int = 0) -> np.ndarray:
    """(rows, 8) float32 features that `example_targets` depend on."""
    return np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)


def check_task(make: MakeTask, values: Sequence[Any] | None = None) -> list[str]:
    """Hold a task to its contract.

    Args:
        make: `make(target)` builds one.
        values: 120 cells to check it with, learnable from `example_features()`. Where None, those of
            `example_targets` are taken that its `fit` does not refuse and in which labels repeat.

    Returns:
        The names of the targets it was checked with.

    Raises:
        AssertionError: the contract is broken, or `fit` refuses all targets.
    """
    targets = example_targets() if values is None else {"given": list(values)}
    taken = []
    for name, cells in targets.items():
        task = make("target")
        try:
            task.fit(cells)
        except UserError:
            continue
        if len(task.labels) * 4 > len(cells):
            continue  # numbers taken for labels: too few rows a label to learn from
        taken.append(name)
        for check in (
            check_encoding,
            check_loss,
            check_divergence,
            check_learning,
            check_scores,
            check_comparisons,
            check_state,
        ):
            check(make, cells)
    assert taken, f"fit refuses every one of the example targets: {', '.join(targets)}"
    return taken


def _fitted(make: MakeTask, cells: Sequence[Any]) -> Task:
    task = make("target")
    task.fit(cells)
    return task


def _logits(task: Task, seed: int = 0, rows: int = ROWS) -> torch.Tensor:
    torch.manual_seed(seed)
    logits: torch.Tensor = task.build_head(DIM)(torch.from_numpy(example_features(rows)))
    return logits


def check_encoding(make: MakeTask, cells: Sequence[Any]) -> None:
    """Missing cells give unlabelled rows and change nothing in the others; what was fitted passes `check`."""
    task = _fitted(make, cells)
    for row, cell in enumerate(cells):
        task.check(cell, row=row)
    holes = [None if row % 3 == 0 else "" if row % 3 == 1 else cell for row, cell in enumerate(cells)]
    full, partly = task.encode(cells), task.encode(holes)
    assert full.labelled.all() and len(full.values) == len(cells), "a labelled row is encoded as unlabelled"
    assert partly.labelled.tolist() == [row % 3 == 2 for row in range(len(cells))], "unlabelled rows are not told apart"
    assert torch.equal(full.values[2::3], partly.values[2::3]), "an encoded row depends on the other rows"
    assert partly.values.isfinite().all(), "an unlabelled row's value is not finite"
    assert len(task.truth(cells)) == len(cells), "truth has other rows than came"
    assert not task.encode([]).labelled.numel() and not len(task.truth([])), "no rows cannot be encoded"
    gaps = make("target")
    gaps.fit([*cells, None, "", float("nan")])
    assert gaps.state() == task.state(), "missing cells change what is learned"


def check_loss(make: MakeTask, cells: Sequence[Any]) -> None:
    """The loss is a scalar over labelled rows, weighted; unlabelled rows and rows of weight 0 have no part in it."""
    task = _fitted(make, cells)
    logits, target, ones = _logits(task), task.encode(cells), torch.ones(len(cells))
    loss = task.loss(logits, target, ones)
    assert loss.shape == () and loss.isfinite() and loss >= 0, f"the loss is {loss}"
    assert torch.allclose(loss, task.loss(logits, target, ones * 3), rtol=1e-5), "the weights' scale changes the mean"

    half = torch.arange(len(cells)) < len(cells) // 2
    first = task.loss(logits[half], target.take(half), ones[half])
    masked = task.loss(logits, target.where(half), ones)
    weightless = task.loss(logits, target, half.float())
    assert torch.allclose(first, masked, rtol=1e-5), "unlabelled rows have a part in the loss"
    assert torch.allclose(first, weightless, rtol=1e-5), "rows of weight 0 have a part in the loss"

    doubled = torch.where(half, 2.0, 1.0)
    again = torch.cat([torch.arange(len(cells)), torch.arange(len(cells))[half]])
    twice = task.loss(logits[again], target.take(again), torch.ones(len(again)))
    assert torch.allclose(task.loss(logits, target, doubled), twice, rtol=1e-5), "weight 2 is not the row twice"

    leaf = logits.detach().requires_grad_()
    nothing = task.loss(leaf, target.where(torch.zeros_like(target.labelled)), ones)
    torch.autograd.backward(nothing)
    assert nothing == 0 and leaf.grad is not None and not leaf.grad.any(), "no labelled row must give 0 with a gradient"


def check_divergence(make: MakeTask, cells: Sequence[Any]) -> None:
    """The divergence is one finite number of 0 or more a row, 0 with no gradient for equal predictions."""
    task = _fitted(make, cells)
    if not isinstance(task, Divergent):
        return
    logits = _logits(task).detach().requires_grad_()
    other = (_logits(task) + 0.5 * _logits(task).flip(0)).detach().requires_grad_()
    apart = task.divergence(logits, other)
    assert apart.shape == (len(cells),) and apart.isfinite().all(), f"the divergence has the shape {apart.shape}"
    assert (apart >= -1e-6).all() and apart.mean() > 1e-4, "the divergence of different predictions is not above 0"
    row = task.divergence(logits[3:4], other[3:4])
    assert torch.allclose(row, apart[3:4], rtol=1e-5), "a row's divergence depends on the other rows"
    for leaf, grad in zip((logits, other), torch.autograd.grad(apart.sum(), (logits, other)), strict=True):
        assert grad.shape == leaf.shape and grad.any(), "a prediction receives no gradient"
    same = task.divergence(logits, logits.detach())
    assert torch.allclose(same, torch.zeros_like(same), atol=1e-6), "equal predictions diverge"
    (grad,) = torch.autograd.grad(same.sum(), logits)
    assert torch.allclose(grad, torch.zeros_like(grad), atol=1e-5), "the divergence is not least where they are equal"
    extreme = task.divergence(logits.detach() * 1e4, -logits.detach() * 1e4)
    assert extreme.isfinite().all(), "extreme logits give a divergence that is not finite"
    half = task.divergence(logits.to(torch.bfloat16), other.to(torch.bfloat16))
    assert half.isfinite().all() and half.dtype == torch.float32, "bfloat16 logits are not compared as float32"


def check_learning(make: MakeTask, cells: Sequence[Any]) -> None:
    """Every parameter of the head receives a gradient, and a few steps lower the loss."""
    task = _fitted(make, cells)
    torch.manual_seed(0)
    head, features = task.build_head(DIM), torch.from_numpy(example_features())
    target, ones = task.encode(cells), torch.ones(len(cells))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    losses: list[float] = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = task.loss(head(features), target, ones)
        torch.autograd.backward(loss)
        for name, parameter in head.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), f"{name} has no finite gradient"
            assert losses or parameter.grad.any(), f"{name}'s gradient is zero"
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], f"the loss does not fall: {losses[0]} to {losses[-1]}"
    half = task.loss(head(features).to(torch.bfloat16), target, ones)
    assert half.isfinite(), "bfloat16 logits give a loss that is not finite"


def check_scores(make: MakeTask, cells: Sequence[Any]) -> None:
    """Scores are finite numpy rows; metrics, decisions, classes and output columns follow from them."""
    task = _fitted(make, cells)
    scores, truth = task.answers(_logits(task)), task.truth(cells)
    assert isinstance(scores, np.ndarray) and len(scores) == len(cells) and np.isfinite(scores).all()
    extreme = task.answers(_logits(task) * 1e4)
    assert np.isfinite(extreme).all(), "extreme logits give scores that are not finite"
    if task.labels:
        assert scores.shape == (len(cells), len(task.labels)), "there is not a score a label"
        assert ((scores >= 0) & (scores <= 1 + 1e-9)).all(), "scores of labels are not probabilities"
    assert task.decide(scores).shape == truth.shape, "decisions have another shape than the truth"

    found = task.metrics(scores, truth)
    assert task.main.name in found, f"the main metric {task.main.name!r} is not among the metrics"
    assert all(isinstance(value, float) for value in found.values()), "a metric is not a float"
    assert found == task.metrics(scores, truth, np.ones(len(cells))), "weights of 1 change a metric"
    for rows in (0, 1):
        few = task.metrics(scores[:rows], truth[:rows])
        assert few.keys() == found.keys() and not any(map(math.isinf, few.values())), f"metrics of {rows} rows fail"

    columns = task.columns(scores)
    assert next(iter(columns)) == "target", "the prediction is not under the target's name"
    assert all(isinstance(column, list) and len(column) == len(cells) for column in columns.values())
    json.dumps(columns)
    for row, predicted in enumerate(columns["target"]):
        task.check(predicted, row=row)
    written = task.truth(columns["target"])
    assert np.allclose(written, task.decide(scores), equal_nan=False), "a prediction, read as a target, is another one"
    assert all(not column for column in task.columns(scores[:0]).values()), "no rows give output"


def check_comparisons(make: MakeTask, cells: Sequence[Any]) -> None:
    """The constant guess is constant, the linear model learns; both give scores."""
    task = _fitted(make, cells)
    truth, features = task.truth(cells), example_features()
    cut = len(cells) * 2 // 3
    constant = task.constant(truth[:cut], len(cells) - cut)
    assert len(constant) == len(cells) - cut and (constant == constant[:1]).all(), "the constant guess varies"
    if not isinstance(task, Probed):
        return
    mid = cut * 3 // 4  # 60 rows to learn from: fewer say too little of numbers as skewed as some of the examples
    linear = task.linear(features[:mid], truth[:mid], features[mid:cut], truth[mid:cut])
    assert isinstance(linear, LinearModel)
    scores = linear.scores(features[cut:])
    assert scores.shape == constant.shape and np.isfinite(scores).all(), "the linear model's scores differ in shape"
    name, sign = task.main.name, 1 if task.main.greater_is_better else -1
    learned, guessed = task.metrics(scores, truth[cut:])[name], task.metrics(constant, truth[cut:])[name]
    assert sign * learned > sign * guessed, (
        f"the linear model's {name} {learned} does not beat the constant's {guessed}"
    )
    blind = task.linear(features[:cut], truth[:cut], features[:0], truth[:0])
    assert np.isfinite(blind.scores(features[cut:])).all(), "the linear model needs validation rows"


def check_state(make: MakeTask, cells: Sequence[Any]) -> None:
    """The state is JSON, and what is made from it does the same."""
    task = _fitted(make, cells)
    scores, truth = task.answers(_logits(task)), task.truth(cells)
    if isinstance(task, Thresholded):
        task.tune(scores, truth)
    text = json.dumps(task.state(), allow_nan=False)
    again = type(task).from_state("target", json.loads(text))
    assert again.state() == task.state() and again.labels == task.labels, "the state is not kept"
    assert np.array_equal(again.answers(_logits(again)), task.answers(_logits(task))), "scores differ after the state"
    assert again.columns(scores) == task.columns(scores), "output columns differ after the state"
    one, two = again.encode(cells), task.encode(cells)
    assert torch.equal(one.values, two.values) and torch.equal(one.labelled, two.labelled), "encoding differs"
