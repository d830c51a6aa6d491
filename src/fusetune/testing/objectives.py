"""The contract suite of objectives: one test a rule.

@pytest.mark.parametrize("make", [MyObjective, partial(MyObjective, margin=0.2)])
class TestMyObjective(ObjectiveContract):
    pass
"""

from __future__ import annotations

import inspect
import unittest
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.modalities.category import CategoryModality
from fusetune.modalities.number import NumberModality
from fusetune.models.build import build_model
from fusetune.models.family import Family
from fusetune.models.match import Match
from fusetune.models.understand import Understand
from fusetune.objectives.base import BatchObjective, Objective
from fusetune.objectives.gather import gather_rows
from fusetune.tasks.base import TargetTask
from fusetune.tasks.classes.classification import MulticlassTask
from fusetune.tasks.pair_classification import PairClassificationTask
from fusetune.tasks.regression import RegressionTask
from fusetune.testing.rules import Contract, check
from fusetune.types import Batch, Outputs

MakeObjective = Callable[..., Objective]
"""`make(model, tasks)`, and the objective's settings as keywords: the class, or a `functools.partial` of it."""
ROWS = 24


def make_parts(rows: int = ROWS, *, dropout: float = 0.0) -> tuple[Understand, dict[str, TargetTask], Examples]:
    """Return a model of two numbers and a category, each missing in some rows, that predicts a class and a number.

    A teacher has answered for all rows.

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
    tasks: dict[str, TargetTask] = {"k": MulticlassTask("k"), "y": RegressionTask("y")}
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
    drawn = {"k": rng.normal(size=(rows, 3)), "y": rng.normal(size=(rows, 1))}
    references = {name: torch.from_numpy(values).float() for name, values in drawn.items()}
    return model, tasks, examples.given(references=references)


def make_pairs(rows: int = ROWS, *, dropout: float = 0.0) -> tuple[Match, dict[str, TargetTask], Examples]:
    """Return a model of pairs of a number and a category with a number, each missing in some rows, and their labels.

    Args:
        rows: how many; rows without a target are among them.
        dropout: of the model.
    """
    rng = np.random.default_rng(0)
    records = []
    for place in range(rows):
        x, z = float(rng.normal()), float(rng.normal())
        record = {"x": x, "z": z, "c": "pqrstuvw"[place % 8], "k": "yes" if x * z > 0 else "no"}
        missing = {0: "z", 3: "c", 4: "k"}.get(place % 9)
        records.append({name: None if name == missing else value for name, value in record.items()})
    modalities = {"x": NumberModality("x", bins=4), "z": NumberModality("z", bins=4), "c": CategoryModality("c")}
    task = PairClassificationTask("k")
    task.compare(["x", "c"], ["z"])
    tasks: dict[str, TargetTask] = {"k": task}
    examples = Examples(Table.from_records(records), modalities, tasks)
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    torch.manual_seed(0)
    fusion = NamedConfig.model_validate({"name": "concat", "dim": 8, "modality_dropout": 0.0, "input_dropout": dropout})
    model = build_model(modalities, tasks, fusion, dropout=dropout)
    assert isinstance(model, Match)
    return model, tasks, examples


def parts_for(make: MakeObjective, *, dropout: float = 0.0) -> tuple[Family, dict[str, TargetTask], Examples]:
    """Return what `make_parts` or `make_pairs` makes, by the family that the objective trains."""
    objective = make.func if isinstance(make, partial) else make
    if getattr(objective, "family", None) == Match.name:
        return make_pairs(dropout=dropout)
    return make_parts(dropout=dropout)


def check_objective(make: MakeObjective) -> None:
    """Hold an objective to every rule of `ObjectiveContract`.

    Args:
        make: `make(model, tasks)` builds an objective.

    Raises:
        AssertionError: rules are broken; the message names all of them.
    """
    check(ObjectiveContract, make=make)


class ObjectiveContract(Contract):
    """What every objective must do. The rules take `make`: the class, or a `functools.partial` of it."""

    def test_losses_are_finite_scalars_under_its_name(self, make: MakeObjective) -> None:
        """There is a loss that is not always 0; each is called NAME or NAME/..., and has a gradient."""
        objective, model, batch = _built(make)
        losses = objective(model, batch, model(batch))
        assert losses, "there is no loss"
        for name, loss in losses.items():
            assert name.split("/")[0] == objective.name, f"a loss is called {name!r}, not after {objective.name!r}"
            assert loss.shape == () and loss.isfinite(), f"{name} is {loss}"
            assert loss.requires_grad, f"{name} has no gradient"
        assert any(loss.detach().abs() > 1e-7 for loss in losses.values()), "there is nothing to minimise"

    def test_figures_are_detached_scalars(self, make: MakeObjective) -> None:
        """What is logged besides the losses holds no graph and is finite."""
        objective, model, batch = _built(make)
        objective(model, batch, model(batch))
        for name, value in objective.figures.items():
            assert value.numel() == 1 and not value.requires_grad and value.isfinite(), f"the figure {name} is {value}"

    def test_the_model_receives_a_gradient(self, make: MakeObjective) -> None:
        """The model's gradient is finite and not all zero."""
        objective, model, batch = _built(make)
        torch.autograd.backward(_loss(objective, model, batch))
        reached = [p.grad for p in model.parameters() if p.grad is not None]
        assert reached and all(grad.isfinite().all() for grad in reached), "the model's gradient is not finite"
        assert any(grad.abs().max() > 1e-8 for grad in reached), "the model's gradient is zero"

    def test_its_own_parameters_receive_gradients(self, make: MakeObjective) -> None:
        """Every trainable parameter of the objective gets a finite gradient that is not all zero."""
        objective, model, batch = _built(make)
        torch.autograd.backward(_loss(objective, model, batch))
        theirs = {id(parameter) for parameter in model.parameters()}
        for name, parameter in objective.named_parameters():
            if parameter.requires_grad and id(parameter) not in theirs:
                assert parameter.grad is not None and parameter.grad.isfinite().all(), f"{name} has no finite gradient"
                assert parameter.grad.abs().max() > 1e-9, f"{name}'s gradient is zero"

    def test_it_holds_no_parameter_of_the_model(self, make: MakeObjective) -> None:
        """The model is not a submodule of the objective, nor is a part of it: its weights would be saved twice."""
        objective, model, _ = _built(make)
        theirs = {id(parameter) for parameter in model.parameters()}
        assert not any(id(own) in theirs for own in objective.parameters()), "it holds parameters of the model"

    def test_the_loss_is_a_mean_over_rows(self, make: MakeObjective) -> None:
        """The same rows four times over leave the gradient about as large; a sum would make it four times as large."""
        norms = []
        for times in (1, 4):
            objective, model, _ = _built(make)
            batch = parts_for(make)[2].batch(list(range(ROWS)) * times)
            total: list[Tensor] = []
            for seed in range(4):  # several draws of whatever is random
                model.zero_grad()
                torch.autograd.backward(_loss(objective, model, batch, seed=seed))
                grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
                total.append(torch.cat(grads).norm())
            norms.append(float(torch.stack(total).mean()))
        gap = f"four times the rows make the gradient {norms[1]:.3g}, not about {norms[0]:.3g}"
        assert norms[1] <= 2 * norms[0], gap

    def test_rows_of_weight_0_have_no_part(self, make: MakeObjective) -> None:
        """What the cells and targets of rows with weight 0 are changes nothing."""
        losses = []
        for changed in (False, True):
            objective, model, batch = _built(make)
            zero = torch.arange(len(batch)) % 3 == 1
            batch.weights = batch.weights.masked_fill(zero, 0)
            if changed:
                _swap(batch, zero)
            losses.append(_loss(objective, model, batch).detach())
        assert torch.allclose(losses[0], losses[1], rtol=1e-5, atol=1e-7), f"rows of weight 0 change the loss: {losses}"

    def test_the_scale_of_weights_does_not_matter(self, make: MakeObjective) -> None:
        """Weights of 3 for all rows give the loss of weights of 1."""
        objective, model, batch = _built(make)
        plain = _loss(objective, model, batch).detach()
        batch.weights = batch.weights * 3
        scaled = _loss(objective, model, batch).detach()
        assert torch.allclose(plain, scaled, rtol=1e-5, atol=1e-7), (
            f"with weights of 3 the loss is {scaled}, not {plain}"
        )

    def test_weights_count(self, make: MakeObjective) -> None:
        """Weights that differ from row to row give another loss than equal ones."""
        objective, model, batch = _built(make)
        plain = _loss(objective, model, batch).detach()
        batch.weights = torch.linspace(0.1, 4, len(batch))
        other = _loss(objective, model, batch).detach()
        assert not torch.allclose(plain, other, rtol=1e-5, atol=1e-7), "row weights are ignored"

    def test_it_does_not_weigh_itself(self, make: MakeObjective) -> None:
        """`weight` is applied by the total loss: the objective's own losses do not depend on it."""
        plain, model, batch = _built(make)
        expected = _loss(plain, model, batch).detach()
        taken = inspect.signature(make).parameters
        heavy, model, batch = _built(make, **({"weight": 3.0} if "weight" in taken else {}))
        heavy.weight = 3.0
        found = _loss(heavy, model, batch).detach()
        assert torch.allclose(expected, found, rtol=1e-5, atol=1e-7), (
            f"with weight=3 its loss is {found}, not {expected}"
        )

    def test_batch_and_outputs_are_left_as_they_are(self, make: MakeObjective) -> None:
        """Neither the batch's tensors nor the model's outputs are changed."""
        objective, model, batch = _built(make)
        outputs = model(batch)
        before = [(name, tensor.detach().clone()) for name, tensor in _tensors(batch, outputs)]
        objective(model, batch, outputs)
        after = dict(_tensors(batch, outputs))
        assert after.keys() == dict(before).keys(), "entries of the batch were added or removed"
        for name, tensor in before:
            same = tensor.shape == after[name].shape and torch.equal(tensor, after[name])
            assert same, f"{name} was changed"

    def test_one_row(self, make: MakeObjective) -> None:
        """A batch of one row gives a finite loss with a finite gradient."""
        objective, model, _ = _built(make)
        _finite(objective, model, parts_for(make)[2].batch([1]))

    def test_a_column_that_no_row_has(self, make: MakeObjective) -> None:
        """Rows that all lack a column give a finite loss with a finite gradient."""
        for column in ("x", "z", "c"):
            objective, model, batch = _built(make)
            batch.cells[column] = torch.full_like(batch.cells[column], -1)
            batch.codes[column] = batch.cells[column].clone()
            batch.inputs[column] = {}
            _finite(objective, model, batch, f"rows without {column!r}: ")

    def test_missing_targets_are_not_read(self, make: MakeObjective) -> None:
        """What stands in the place of a missing target changes nothing."""
        losses = []
        for filler in (0, 1):
            objective, model, batch = _built(make)
            for target in batch.targets.values():
                values = target.values
                missing = ~target.labelled.view(-1, *[1] * (values.ndim - 1)).expand_as(values)
                target.values = values.masked_fill(missing, filler)
            losses.append(_loss(objective, model, batch).detach())
        assert torch.equal(*losses), "a missing target is read"

    def test_without_any_target(self, make: MakeObjective) -> None:
        """A batch without targets gives a finite loss with a backward pass."""
        objective, model, batch = _built(make)
        for target in batch.targets.values():
            target.labelled = torch.zeros_like(target.labelled)
        _finite(objective, model, batch)

    def test_it_reads_no_target_where_it_says_so(self, make: MakeObjective) -> None:
        """With `needs_target` False, rows without a target count as those with one: none is read."""
        objective, model, batch = _built(make)
        if objective.needs_target:
            raise unittest.SkipTest("it needs a target")
        plain = _loss(objective, model, batch).detach()
        for target in batch.targets.values():
            target.labelled = torch.zeros_like(target.labelled)
        without = _loss(objective, model, batch)
        assert torch.allclose(plain, without.detach(), rtol=1e-5, atol=1e-7), (
            f"without any target the loss is {without}, not {plain}"
        )
        torch.autograd.backward(without)
        reached = [p.grad for p in model.parameters() if p.grad is not None]
        assert any(grad.abs().max() > 1e-8 for grad in reached), "rows without a target give no gradient"

    def test_bf16_autocast_agrees_with_float32(self, make: MakeObjective) -> None:
        """Under bf16 autocast the loss is about the same, and its gradient finite."""
        objective, model, batch = _built(make)
        plain = float(_loss(objective, model, batch).detach())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = _loss(objective, model, batch)
        assert abs(float(loss.detach()) - plain) <= 0.1 * abs(plain) + 0.05, f"{plain} becomes {loss}"
        torch.autograd.backward(loss)
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

    def test_vectors_made_in_parts_give_the_same_loss(self, make: MakeObjective) -> None:
        """Where rows are compared with rows: vectors of micro-batches, concatenated, give the loss of one batch."""
        objective, model = _comparing(make)
        _, _, examples = parts_for(make)
        whole, parts = examples.batch(range(ROWS)), [examples.batch(range(10)), examples.batch(range(10, ROWS))]
        with torch.no_grad():
            wanted = objective.of_vectors(gather_rows(objective.vectors(whole, model(whole))))
            vectors = [objective.vectors(part, model(part)) for part in parts]
            found = objective.of_vectors({name: torch.cat([part[name] for part in vectors]) for name in vectors[0]})
        for name, value in wanted.items():
            assert torch.allclose(value, found[name], rtol=1e-4, atol=1e-6), f"in parts {found[name]}, not {value}"

    def test_the_order_of_rows_does_not_matter(self, make: MakeObjective) -> None:
        """Where rows are compared with rows: their order does not matter."""
        objective, model = _comparing(make)
        _, _, examples = parts_for(make)
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(2)).tolist()
        with torch.no_grad():
            one, two = (_loss(objective, model, examples.batch(rows)) for rows in (list(range(ROWS)), order))
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-6), f"in another order the loss is {two}, not {one}"


def _loss(objective: Objective, model: Family, batch: Batch, *, seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    losses = objective(model, batch, model(batch))
    return torch.stack(list(losses.values())).sum()


def _built(make: MakeObjective, **settings: float) -> tuple[Objective, Family, Batch]:
    model, tasks, examples = parts_for(make, dropout=0.1)
    torch.manual_seed(0)
    objective = make(model, tasks, **settings)
    assert isinstance(objective, Objective), f"made a {type(objective).__name__}, not an Objective"
    return objective.train(), model.train(), examples.batch(range(ROWS))


def _comparing(make: MakeObjective) -> tuple[BatchObjective, Family]:
    """Return the objective and the model in evaluation, skipped where rows are not compared with rows."""
    objective, model, _ = _built(make)
    if not isinstance(objective, BatchObjective):
        raise unittest.SkipTest("rows are not compared with rows")
    return objective, model.eval()


def _finite(objective: Objective, model: Family, batch: Batch, what: str = "") -> None:
    loss = _loss(objective, model, batch)
    assert loss.isfinite(), f"{what}the loss is {loss}"
    torch.autograd.backward(loss)
    grads = [p.grad for p in [*model.parameters(), *objective.parameters()] if p.grad is not None]
    assert all(grad.isfinite().all() for grad in grads), f"{what}a gradient is not finite"


def _swap(batch: Batch, rows: Tensor) -> None:
    """Give some rows the cells and targets of the first of them."""
    order = torch.arange(len(batch))
    order[rows] = int(rows.nonzero()[0])
    batch.cells = {column: cells[order] for column, cells in batch.cells.items()}
    batch.codes = {column: codes[order] for column, codes in batch.codes.items()}
    batch.targets = {name: target.take(order) for name, target in batch.targets.items()}


def _tensors(batch: Batch, outputs: Outputs) -> Sequence[tuple[str, Tensor]]:
    """Return every tensor of a batch and of the outputs, by a name for messages."""
    named = [("batch.weights", batch.weights), ("batch.rows", batch.rows)]
    for column, tensors in batch.inputs.items():
        named += [(f"batch.inputs[{column!r}][{name!r}]", tensor) for name, tensor in tensors.items()]
    for what, by_column in (("cells", batch.cells), ("codes", batch.codes)):
        named += [(f"batch.{what}[{column!r}]", tensor) for column, tensor in by_column.items()]
    for name, target in batch.targets.items():
        named += [(f"batch.targets[{name!r}].values", target.values)]
        named += [(f"batch.targets[{name!r}].labelled", target.labelled)]
    named += [(f"outputs.logits[{name!r}]", logits) for name, logits in outputs.logits.items()]
    for column, tokens in outputs.columns.items():
        named += [(f"outputs.columns[{column!r}]", tokens.values), (f"outputs.columns[{column!r}].mask", tokens.mask)]
    return named if outputs.pooled is None else [*named, ("outputs.pooled", outputs.pooled)]
