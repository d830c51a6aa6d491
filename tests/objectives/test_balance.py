"""What each task's loss counts: against the papers' formulas in numpy, and against TorchJD's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torchjd import scalarization

from fusetune.config.config import Config
from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.errors import ConfigError
from fusetune.modalities.number import NumberModality
from fusetune.models.build import build_model
from fusetune.objectives import balance as module
from fusetune.objectives.balance import (
    BALANCES,
    Balance,
    DynamicAverage,
    Famo,
    Uncertainty,
    build_balance,
    constant_losses,
)
from fusetune.objectives.total import Total
from fusetune.tasks.classes.classification import BinaryTask, MulticlassTask
from fusetune.tasks.classes.multilabel import MultilabelTask
from fusetune.tasks.classes.ordinal import OrdinalTask
from fusetune.tasks.regression import RegressionTask
from fusetune.training.learner import Learner
from fusetune.training.optim import no_decay
from fusetune.types import Batch, Target

NAMES = ("a", "b", "c")
ONES = dict.fromkeys(NAMES, 1.0)


def batch(*labelled: int, rows: int = 4) -> Batch:
    """So many rows labelled for each of the tasks a, b, c."""
    masks = {name: torch.arange(rows) < number for name, number in zip(NAMES, labelled, strict=True)}
    targets = {name: Target(torch.zeros(rows), mask) for name, mask in masks.items()}
    return Batch({}, {}, torch.ones(rows), torch.arange(rows), targets)


def losses(*values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, requires_grad=True) for name, value in zip(NAMES, values, strict=True)}


def counted(made: Balance, given: dict[str, torch.Tensor], rows: Batch | None = None) -> list[float]:
    """The factor that each loss's gradient is multiplied by."""
    parts = made(given, rows or batch(4, 4, 4))
    sum(parts.values()).backward()
    return [float(loss.grad) for loss in given.values()]


@pytest.fixture(scope="module")
def mixed():
    """Five kinds of targets, each with missing ones, and a number to learn from."""
    rng = np.random.default_rng(3)
    records = []
    for _ in range(240):
        x = float(rng.normal())
        record = {
            "x": x,
            "yes": "yes" if rng.random() < 0.2 else "no",
            "kind": rng.choice(["u", "v", "w"], p=[0.6, 0.3, 0.1]),
            "price": 40 + 9 * rng.normal(),
            "tags": "|".join(tag for tag, p in (("p", 0.5), ("q", 0.1), ("r", 0.7)) if rng.random() < p) or "r",
            "stars": str(rng.integers(1, 5)),
        }
        for number, name in enumerate(("yes", "kind", "price", "tags", "stars")):
            if rng.random() < 0.1 * number:
                record[name] = None
        records.append(record)
    tasks = {
        "yes": BinaryTask("yes"),
        "kind": MulticlassTask("kind"),
        "price": RegressionTask("price"),
        "tags": MultilabelTask("tags"),
        "stars": OrdinalTask("stars"),
    }
    modalities = {"x": NumberModality("x", bins=0)}
    examples = Examples(Table.from_records(records), modalities, tasks)
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    torch.manual_seed(0)
    model = build_model(modalities, tasks, NamedConfig(name="concat", dim=8))
    return model, tasks, examples


def entropy(values) -> float:
    shares = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(shares * np.log(shares)).sum())


def test_the_constant_guess_costs_what_the_labels_entropy_and_the_numbers_spread_say(mixed):
    model, tasks, examples = mixed
    found = constant_losses(model, tasks, examples)
    cells = {name: [examples.targets[name][row] for row in examples.labelled(name)] for name in tasks}
    assert found["yes"] == pytest.approx(entropy(cells["yes"]), rel=1e-4)
    assert found["kind"] == pytest.approx(entropy(cells["kind"]), rel=1e-4)
    assert found["price"] == pytest.approx(1.0, rel=1e-3)  # it is learned at unit variance
    each = np.asarray([[tag in cell.split("|") for tag in "pqr"] for cell in cells["tags"]])
    assert found["tags"] == pytest.approx(np.mean([entropy(column) for column in each.T]), rel=1e-3)
    steps = [[int(cell) > level for cell in cells["stars"]] for level in range(1, 4)]
    assert found["stars"] == pytest.approx(np.mean([entropy(step) for step in steps]), rel=1e-3)


@pytest.mark.parametrize("loss", ["mae", "huber"])
def test_the_constant_guess_of_any_loss_is_the_best_one(mixed, loss):
    _, _, examples = mixed
    task = RegressionTask("price", loss=loss)
    values = [examples.targets["price"][row] for row in examples.labelled("price")]
    task.fit(values)
    target, weights = task.encode(values), torch.ones(len(values))
    by_search = min(float(task.loss(torch.full((len(values),), c), target, weights)) for c in np.linspace(-1, 1, 801))
    found = module.constant_loss(task, torch.zeros(()), target, np.ones(len(values), dtype=np.float32))
    assert found == pytest.approx(by_search, rel=2e-3)


def test_each_loss_is_divided_by_the_constant_guess(mixed):
    model, tasks, examples = mixed
    made = build_balance("sum", model, tasks, examples)
    rows = examples.batch(examples.used)
    outputs = model.eval()(rows)
    plain, parts = Total(tasks)(model, rows, outputs), Total(tasks, balance=made)(model, rows, outputs)
    for name, constant in constant_losses(model, tasks, examples).items():
        assert float(parts[name].detach()) == pytest.approx(float(plain[name].detach()) / constant, rel=1e-5)
    assert made.scales()["yes"] == pytest.approx(1 / constant_losses(model, tasks, examples)["yes"])


@pytest.mark.parametrize("name", BALANCES)
def test_one_task_is_left_as_it_is(mixed, name):
    model, tasks, examples = mixed
    assert build_balance(name, model, {"yes": tasks["yes"]}, examples) is None


def test_a_task_of_one_class_nearly_everywhere_does_not_drown_the_others():
    assert Balance({"a": 1e-6, "b": 2.0}).scale.tolist() == pytest.approx([100.0, 0.5])
    assert Balance({"a": math.inf}).scale.tolist() == [1.0]


def test_an_unknown_balance_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="'pcgrad' or 'upgrad'"):
        Config.build({"trainer": {"balance": "pcgard"}})


def test_a_part_reaches_its_own_head_alone(mixed):
    model, tasks, examples = mixed
    made = build_balance("uncertainty", model, tasks, examples)
    learner = Learner(model, Total(tasks, balance=made))
    parts = learner(examples.batch(examples.used[:16]))[1]
    found = torch.autograd.grad(parts["kind"], list(model.heads.parameters()), allow_unused=True)
    reached = {name.split(".")[0] for name, _ in model.heads.named_parameters()}
    own = {
        name.split(".")[0]
        for (name, _), gradient in zip(model.heads.named_parameters(), found, strict=True)
        if gradient is not None
    }
    assert own == {"1"} and len(reached) == 5


# Kendall et al. 2018


def test_uncertainty_is_torchjds():
    oracle = scalarization.UW(3)
    made = Uncertainty(ONES)
    with torch.no_grad():
        made.log_variance.copy_(torch.tensor([0.3, -1.0, 2.0]))
        oracle.log_var.copy_(made.log_variance)
    mine, theirs = losses(0.5, 2.0, 1.5), losses(0.5, 2.0, 1.5)
    total, wanted = sum(made(mine, batch(4, 4, 4)).values()), oracle(torch.stack(list(theirs.values())))
    torch.testing.assert_close(total, wanted)
    total.backward()
    wanted.backward()
    torch.testing.assert_close(made.log_variance.grad, oracle.log_var.grad)
    for name in NAMES:
        torch.testing.assert_close(mine[name].grad, theirs[name].grad)


def test_uncertainties_start_as_the_sum_and_become_the_losses():
    made = Uncertainty(ONES)
    assert counted(made, losses(0.5, 2.0, 1.5)) == pytest.approx([1, 1, 1])
    solver = torch.optim.Adam(made.parameters(), lr=0.05)
    for _ in range(800):
        solver.zero_grad()
        sum(made(losses(0.5, 2.0, 0.1), batch(4, 4, 4)).values()).backward()
        solver.step()
    assert made.log_variance.exp().tolist() == pytest.approx([0.5, 2.0, 0.1], rel=1e-3)
    assert no_decay(made) == {made.log_variance}


# Liu et al. 2019


def test_dynamic_averages_are_torchjds_and_the_formulas():
    rng = np.random.default_rng(0)
    made, oracle = DynamicAverage(ONES).train(), scalarization.DWA(temperature=2.0)
    means = []
    for _ in range(5):
        values = rng.uniform(0.1, 3, (4, 3))
        for row in values:
            mine = counted(made, losses(*row))
            theirs = losses(*row)
            oracle(torch.stack(list(theirs.values()))).backward()
            assert mine == pytest.approx([float(loss.grad) for loss in theirs.values()], rel=1e-4)
        if len(means) > 1:
            powers = np.exp(means[-1] / means[-2] / 2)
            assert mine == pytest.approx(3 * powers / powers.sum(), rel=1e-4)
        else:
            assert mine == [1, 1, 1]
        means.append(values.mean(0))
        made.end_epoch()
        oracle.step()
    assert made.factor.tolist() != [1, 1, 1]


def test_an_epochs_mean_counts_labelled_rows_in_training():
    made = DynamicAverage(ONES).train()
    made(losses(1.0, 1.0, 1.0), batch(4, 4, 4))
    made.end_epoch()
    made(losses(1.0, 4.0, 0.0), batch(4, 1, 0))
    made(losses(1.0, 1.0, 0.0), batch(4, 3, 0))
    made.eval()(losses(9.0, 9.0, 9.0), batch(4, 4, 4))
    with torch.no_grad():
        made.train()(losses(9.0, 9.0, 9.0), batch(4, 4, 4))
    made.end_epoch()
    powers = np.exp(np.array([1.0, (4 + 3) / 4, 1.0]) / 2)  # c had no labelled row: its ratio is 1
    assert made.factor.tolist() == pytest.approx(3 * powers / powers.sum())


# Liu et al. 2023


def test_famo_is_torchjds():
    rng = np.random.default_rng(1)
    made = Famo(ONES).train()
    oracle = scalarization.FAMO(3, min_losses=torch.full((3,), 1e-8 - module.FAMO_FLOOR))
    for _ in range(60):
        before = rng.uniform(0.05, 3, 3)
        after = before * np.array([0.5, 0.9, 1.02]) * rng.uniform(0.95, 1.05, 3)
        theirs = losses(*before)
        oracle(torch.stack(list(theirs.values()))).backward()
        assert counted(made, losses(*before)) == pytest.approx([float(one.grad) for one in theirs.values()], rel=1e-3)
        oracle.update(torch.tensor(after, dtype=torch.float32))
        made.update_logits(
            *(torch.tensor(one, dtype=torch.float32) for one in (before, after)), torch.ones(3, dtype=bool)
        )
    torch.testing.assert_close(made.logits, oracle._w.detach(), rtol=1e-3, atol=1e-4)
    assert made.logits[0] < made.logits[1] < made.logits[2]  # what falls fastest counts least


def test_famos_step_by_hand():
    made = Famo(ONES).train()
    floor, lr = module.FAMO_FLOOR, module.FAMO_LR
    before, after = np.array([1.0, 0.5, 2.0]), np.array([0.8, 0.5, 1.9])
    weights = (1 / 3) / (before + floor)
    assert counted(made, losses(*before)) == pytest.approx(weights / weights.sum(), rel=1e-5)
    assert counted(made, losses(*before)) == pytest.approx(weights / weights.sum(), rel=1e-5)
    made.update_logits(*(torch.tensor(one, dtype=torch.float32) for one in (before, after)), torch.ones(3, dtype=bool))
    gain = np.log(before + floor) - np.log(after + floor)
    gradient = (gain - gain.mean()) / 3
    assert made.logits.tolist() == pytest.approx(-lr * np.sign(gradient), rel=1e-4)  # Adam's first step


def test_a_task_without_labels_takes_no_weight_and_learns_nothing():
    made = Famo(ONES).train()
    assert counted(made, losses(1.0, 0.0, 1.0), batch(4, 0, 4)) == pytest.approx([0.5, 0, 0.5])
    present = torch.tensor([True, False, True])
    made.update_logits(torch.tensor([1.0, math.nan, 1.0]), torch.tensor([0.5, math.nan, 0.9]), present)
    assert made.logits[1] == 0 and made.logits[0] < 0 < made.logits[2]
    assert counted(made, losses(0.0, 0.0, 0.0), batch(0, 0, 0)) == [0, 0, 0]


# All


@pytest.mark.parametrize("name", BALANCES)
def test_state_is_saved_with_the_learner_and_weights_are_figures(mixed, name):
    model, tasks, examples = mixed
    made = build_balance(name, model, tasks, examples)
    learner = Learner(model, Total(tasks, [], made)).train()
    learner(examples.batch(examples.used[:32]))
    figures = learner.figures()
    assert set(figures) == {f"balance/{target}" for target in tasks}
    assert all(math.isfinite(value) and value > 0 for value in figures.values())
    for _ in range(2):
        made.end_epoch()
        learner(examples.batch(examples.used[32:64]))
    if isinstance(made, Famo):
        made.update_logits(torch.rand(5), torch.rand(5), torch.ones(5, dtype=bool))
    other = Learner(model, Total(tasks, [], BALANCES[name](ONES | dict.fromkeys("de", 1.0))))
    other.load_state_dict(learner.state_dict())
    for key, value in made.state_dict().items():
        torch.testing.assert_close(other.objective.balance.state_dict()[key], value, equal_nan=True)
    kept = {"sum": 1, "uncertainty": 2, "dwa": 5, "famo": 5}.get(name, 1)
    assert len(made.state_dict()) == kept


def test_mean_losses_since_the_last_time():
    made = Balance({"a": 2.0, "b": 1.0, "c": 1.0}).train()
    assert made.pop_means() == {}
    made(losses(1.0, 1.0, 0.0), batch(4, 1, 0))
    made(losses(2.0, 3.0, 0.0), batch(4, 3, 0))
    found = made.pop_means()
    assert (found["a"], found["b"]) == (0.75, 2.5) and math.isnan(found["c"])
    assert made.pop_means() == {}


def test_nothing_of_the_balance_is_a_module_of_the_model(mixed):
    model, tasks, examples = mixed
    before = {name for name, _ in model.named_parameters()}
    learner = Learner(model, Total(tasks, [], build_balance("uncertainty", model, tasks, examples)))
    assert {name for name, _ in model.named_parameters()} == before
    assert isinstance(learner.objective.balance, nn.Module)
    assert "objective.balance.log_variance" in dict(learner.named_parameters())
