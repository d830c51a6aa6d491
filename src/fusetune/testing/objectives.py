"""What every objective must do, for objectives here and for plug-ins' authors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.config.sections import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.modalities.category import CategoryModality
from fusetune.modalities.number import NumberModality
from fusetune.models.build import build_model
from fusetune.models.understand import Understand
from fusetune.objectives.base import BatchObjective, Objective
from fusetune.objectives.gather import gathered
from fusetune.tasks.base import Task
from fusetune.tasks.classification import MulticlassTask
from fusetune.tasks.regression import RegressionTask
from fusetune.types import Batch

MakeObjective = Callable[[Understand, Mapping[str, Task]], Objective]
ROWS = 24


def make_parts(rows: int = ROWS, *, dropout: float = 0.0) -> tuple[Understand, dict[str, Task], Examples]:
    """A model of two numbers and a category, all of them missing here and there, with a class and a number to predict.

    Args:
        rows: how many; equal categories and equal classes are among them, and rows without a target.
        dropout: of the model.
    """
    rng = np.random.default_rng(0)
    records = []
    for place in range(rows):
        x = float(rng.normal())
        record = {"x": x, "z": x + float(rng.normal()), "c": "pqrstuvw"[place % 8], "y": 2 * x}
        record["k"] = "abc"[int(np.digitize(x, [-0.5, 0.5]))]
        missing = {0: "z", 3: "c", 4: "k", 5: "y"}.get(place % 9)
        records.append({name: None if name == missing else value for name, value in record.items()})
    modalities = {"x": NumberModality("x", bins=4), "z": NumberModality("z", bins=4), "c": CategoryModality("c")}
    tasks: dict[str, Task] = {"k": MulticlassTask("k"), "y": RegressionTask("y")}
    examples = Examples(Table.from_records(records), modalities, tasks)
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    torch.manual_seed(0)
    fusion = NamedConfig.model_validate({"name": "concat", "dim": 8, "modality_dropout": 0.0, "input_dropout": dropout})
    model = build_model(modalities, tasks, fusion, dropout=dropout)
    assert isinstance(model, Understand)
    for head in model.heads:
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model, tasks, examples


def check_objective(make: MakeObjective) -> None:
    """Hold an objective to its contract.

    Args:
        make: `make(model, tasks)` builds one.

    Raises:
        AssertionError: the contract is broken; the message says where.
    """
    for check in (
        check_own_parameters,
        check_losses,
        check_gradients,
        check_little,
        check_unlabelled,
        check_low_precision,
        check_parts,
        check_row_order,
    ):
        check(make)


def _loss(objective: Objective, model: Understand, batch: Batch) -> Tensor:
    torch.manual_seed(1)
    losses = objective(model, batch, model(batch))
    return torch.stack(list(losses.values())).sum()


def _built(make: MakeObjective) -> tuple[Objective, Understand, Batch]:
    model, tasks, examples = make_parts(dropout=0.1)
    torch.manual_seed(0)
    objective = make(model, tasks)
    assert isinstance(objective, Objective), f"made a {type(objective).__name__}, not an Objective"
    return objective.train(), model.train(), examples.batch(range(ROWS))


def check_losses(make: MakeObjective) -> None:
    """The losses are finite scalars under the objective's name, and the figures detached scalars."""
    objective, model, batch = _built(make)
    losses = objective(model, batch, model(batch))
    assert losses, "there is no loss"
    for name, loss in losses.items():
        assert name.split("/")[0] == objective.name, f"a loss is called {name!r}, not after {objective.name!r}"
        assert loss.shape == () and loss.isfinite(), f"{name} is {loss}"
        assert loss.requires_grad, f"{name} has no gradient"
    assert any(loss.detach().abs() > 1e-7 for loss in losses.values()), "there is nothing to minimise"
    for name, value in objective.figures.items():
        assert value.numel() == 1 and not value.requires_grad and value.isfinite(), f"the figure {name} is {value}"


def check_gradients(make: MakeObjective) -> None:
    """The model and every parameter of the objective get gradients that are finite and not all zero."""
    objective, model, batch = _built(make)
    _loss(objective, model, batch).backward()  # type: ignore[no-untyped-call]
    reached = [p.grad for p in model.parameters() if p.grad is not None]
    assert reached and all(grad.isfinite().all() for grad in reached), "the model's gradient is missing or not finite"
    assert any(grad.abs().max() > 1e-8 for grad in reached), "the model's gradient is zero"
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), f"{name} has no finite gradient"
            assert parameter.grad.abs().max() > 1e-9, f"{name}'s gradient is zero"


def check_own_parameters(make: MakeObjective) -> None:
    """The model's parameters are not the objective's, nor is the model part of it."""
    objective, model, _ = _built(make)
    theirs = {id(parameter) for parameter in model.parameters()}
    assert not any(id(own) in theirs for own in objective.parameters()), "it holds parameters of the model"


def check_little(make: MakeObjective) -> None:
    """One row, and rows that all lack a column, give a finite loss with a backward pass."""
    for column in ("", "x", "z", "c"):
        objective, model, batch = _built(make)
        if column:
            batch.cells[column] = torch.full_like(batch.cells[column], -1)
            batch.codes[column] = batch.cells[column].clone()
            batch.inputs[column] = {}
        else:
            batch = make_parts()[2].batch([1])
        loss = _loss(objective, model, batch)
        what = f"rows without {column!r}" if column else "one row"
        assert loss.isfinite(), f"{what}: the loss is {loss}"
        loss.backward()  # type: ignore[no-untyped-call]
        grads = [p.grad for p in [*model.parameters(), *objective.parameters()] if p.grad is not None]
        assert all(grad.isfinite().all() for grad in grads), f"{what}: a gradient is not finite"


def check_unlabelled(make: MakeObjective) -> None:
    """What stands in the place of a missing target changes nothing, and no target at all gives a finite loss."""
    found = []
    for filler in (0, 1):
        objective, model, batch = _built(make)
        for target in batch.targets.values():
            values = target.values
            missing = ~target.labelled.view(-1, *[1] * (values.ndim - 1)).expand_as(values)
            target.values = values.masked_fill(missing, filler)
        found.append(_loss(objective, model, batch).detach())
    assert torch.equal(*found), "a missing target is read"
    objective, model, batch = _built(make)
    for target in batch.targets.values():
        target.labelled = torch.zeros_like(target.labelled)
    loss = _loss(objective, model, batch)
    assert loss.isfinite(), f"without any target the loss is {loss}"
    loss.backward()  # type: ignore[no-untyped-call]


def check_low_precision(make: MakeObjective) -> None:
    """Under bf16 autocast the loss is about the same, and its gradient finite."""
    objective, model, batch = _built(make)
    plain = _loss(objective, model, batch).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = _loss(objective, model, batch)
    assert abs(float(loss.detach()) - float(plain)) <= 0.1 * abs(float(plain)) + 0.05, f"{plain} becomes {loss}"
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def check_parts(make: MakeObjective) -> None:
    """Where rows are compared with rows: vectors made in parts give the loss of vectors made at once."""
    objective, model, _ = _built(make)
    if not isinstance(objective, BatchObjective):
        return
    model.eval()
    _, _, examples = make_parts()
    whole, parts = examples.batch(range(ROWS)), [examples.batch(range(10)), examples.batch(range(10, ROWS))]
    with torch.no_grad():
        wanted = objective.of_vectors(gathered(objective.vectors(whole, model(whole))))
        vectors = [objective.vectors(part, model(part)) for part in parts]
        found = objective.of_vectors({name: torch.cat([part[name] for part in vectors]) for name in vectors[0]})
    for name, value in wanted.items():
        assert torch.allclose(value, found[name], rtol=1e-4, atol=1e-6), f"in parts {found[name]}, not {value}"


def check_row_order(make: MakeObjective) -> None:
    """Where rows are compared with rows: their order does not matter."""
    objective, model, _ = _built(make)
    if not isinstance(objective, BatchObjective):
        return
    model.eval()
    _, _, examples = make_parts()
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(2)).tolist()
    with torch.no_grad():
        one, two = (_loss(objective, model, examples.batch(rows)) for rows in (list(range(ROWS)), order))
    assert torch.allclose(one, two, rtol=1e-4, atol=1e-6), f"in another order the loss is {two}, not {one}"
