"""Gradients of several tasks: PCGrad against the paper's algorithm, UPGrad against TorchJD's, FAMO against its code."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torchjd import aggregation, scalarization
from torchjd.linalg import QuadprogProjector

from fusetune import _optional, api
from fusetune.config.config import Config
from fusetune.config.section import NamedConfig
from fusetune.config.trainer import TrainerConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.errors import ConfigError, MissingExtra
from fusetune.modalities.category import CategoryModality
from fusetune.modalities.number import NumberModality
from fusetune.models.build import build_model
from fusetune.objectives import balance as balances
from fusetune.objectives.balance import Balance, Famo, build_balance
from fusetune.objectives.base import Objective
from fusetune.objectives.total import Total
from fusetune.tasks.classes.classification import MulticlassTask
from fusetune.tasks.regression import RegressionTask
from fusetune.training.learner import Learner
from fusetune.training.recipe import Recipe
from fusetune.training.updates.surgery import FamoGradients, Surgery, balanced, dual_cone, gramian
from fusetune.training.updates.update import plain

CPU = Accelerator(cpu=True)


class Small(Objective):
    """The mean square of what the heads read."""

    name = "small"

    def forward(self, model, batch, outputs):
        return {"small": outputs.pooled.square().mean()}


def make(name: str = "pcgrad", *, dropout: float = 0.0, objective: bool = False) -> tuple[Learner, Examples]:
    """A number, its opposite and a class, with missing targets; `name` is the balance."""
    rng = np.random.default_rng(0)
    records = []
    for place in range(48):
        x = float(rng.normal())
        records.append({"x": x, "c": "uvw"[place % 3], "y": 2 * x + 1, "z": -x + 0.3 * float(rng.normal())})
        records[-1]["k"] = "abc"[int(np.digitize(x, [-0.5, 0.5]))]
        for step, target in ((3, "y"), (5, "k")):
            if place % step == 0:
                records[-1][target] = None
    modalities = {"x": NumberModality("x", bins=4), "c": CategoryModality("c")}
    tasks = {"y": RegressionTask("y"), "z": RegressionTask("z"), "k": MulticlassTask("k")}
    examples = Examples(Table.from_records(records), modalities, tasks)
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    torch.manual_seed(0)
    model = build_model(modalities, tasks, NamedConfig(name="concat", dim=8, modality_dropout=0.0), dropout=dropout)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    extra = [Small(model, tasks, weight=0.5)] if objective else []
    made = build_balance(name, model, tasks, examples)
    return Learner(model, Total(tasks, extra, made)).train(), examples


def grads(learner: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    learner.zero_grad()
    return found


def by(learner, batches, method=None, accelerator=CPU, wrapped=None):
    strategy = Surgery(method, learner.objective.balance, seed=0) if method else plain
    losses = strategy(wrapped or learner, batches, accelerator)
    return {name: float(value) for name, value in losses.items()}, grads(learner)


def close(one, other, *, rtol=1e-4, atol=1e-6):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=rtol, atol=atol, msg=lambda said, n=name: f"{n}: {said}")


def apart(learner, batch) -> dict[str, dict[str, torch.Tensor]]:
    """Each loss's own gradients by parameter, those that it does not reach left out."""
    found = {}
    for name in learner(batch)[1]:
        learner(batch)[1][name].backward()
        found[name] = grads(learner)
    return found


def split(found, tasks):
    """The names of the parameters that two or more tasks reach, and per task its gradient there as one vector."""
    shared = [name for name in dict.fromkeys(itertools.chain(*found.values()))]
    shared = [name for name in shared if sum(name in found[task] for task in tasks) > 1]
    return shared, {task: torch.cat([found[task][name].flatten() for name in shared]) for task in tasks}


def pcgrad(vectors: list[torch.Tensor], order) -> torch.Tensor:
    """Algorithm 1 of the paper, `order[i]` being the order in which task i meets the others."""
    changed = []
    for place, vector in enumerate(vectors):
        found = vector.clone()
        for other in order[place]:
            if other != place and found @ vectors[other] < 0:
                found = found - (found @ vectors[other]) / (vectors[other] @ vectors[other]) * vectors[other]
        changed.append(found)
    return sum(changed)


def flat(found, names):
    return torch.cat([found[name].flatten() for name in names])


def test_pcgrad_of_two_tasks_is_the_papers():
    learner, examples = make()
    learner.objective.balance = Balance({"y": 0.7, "z": 1.3})
    learner.objective.tasks.tasks.pop("k")
    batch = examples.batch(range(24))
    found = apart(learner, batch)
    shared, vectors = split(found, "yz")
    assert float(vectors["y"] @ vectors["z"]) < 0, "the tasks are at odds"
    assert any("fusion" in name for name in shared) and not any("heads" in name for name in shared)
    wanted = pcgrad(list(vectors.values()), [[1], [0]])
    losses, mine = by(learner, [batch], "pcgrad")
    torch.testing.assert_close(flat(mine, shared), wanted, rtol=1e-4, atol=1e-6)
    for task, other in (("y", "z"), ("z", "y")):
        own = [name for name in found[task] if name not in found[other]]
        assert own and all("heads" in name or "linear" in name for name in own)
        for name in own:
            torch.testing.assert_close(mine[name], found[task][name])
    total = learner(batch)[1]
    assert losses == pytest.approx({name: float(value.detach()) for name, value in total.items()})


def test_pcgrad_of_three_tasks_is_the_papers_in_some_order_and_the_same_each_time():
    learner, examples = make()
    batch = examples.batch(range(24))
    shared, vectors = split(apart(learner, batch), "yzk")
    orders = [[(1, 2), (2, 1)], [(0, 2), (2, 0)], [(0, 1), (1, 0)]]
    possible = [pcgrad(list(vectors.values()), order) for order in itertools.product(*orders)]
    mine = flat(by(learner, [batch], "pcgrad")[1], shared)
    assert min(float((mine - one).norm() / one.norm()) for one in possible) < 1e-5
    assert max(float((mine - one).norm() / one.norm()) for one in possible) > 1e-3
    torch.rand(7)
    assert torch.equal(flat(by(learner, [batch], "pcgrad")[1], shared), mine)


@pytest.mark.parametrize("tasks", [2, 3, 6])
def test_upgrad_is_torchjds(tasks):
    rng = torch.Generator().manual_seed(tasks)
    exact = QuadprogProjector(norm_eps=0.0, reg_eps=1e-9)
    oracle = aggregation.UPGrad(pref_vector=torch.ones(tasks, dtype=torch.float64), projector=exact)
    surgery = Surgery("upgrad", Balance(dict.fromkeys(map(str, range(tasks)), 1.0)), seed=0)
    for _ in range(20):
        jacobian = torch.randn(tasks, 7, generator=rng, dtype=torch.float64)
        jacobian[0] = -jacobian[-1] + 0.3 * jacobian[0]
        weights = surgery.weigh(gramian([[row] for row in jacobian]))
        mine = weights.double() @ jacobian
        torch.testing.assert_close(mine, oracle(jacobian), rtol=1e-4, atol=1e-4)
        assert float((jacobian @ mine).min()) > -1e-4, "no task's loss is raised"


def test_the_gradient_of_upgrad_is_torchjds_on_the_learner():
    learner, examples = make("upgrad")
    batch = examples.batch(range(24))
    shared, vectors = split(apart(learner, batch), "yzk")
    jacobian = torch.stack(list(vectors.values())).double()
    wanted = 3 * aggregation.UPGrad(projector=QuadprogProjector(norm_eps=0.0, reg_eps=1e-9))(jacobian)
    mine = flat(by(learner, [batch], "upgrad")[1], shared).double()
    assert float((mine - wanted).norm() / wanted.norm()) < 1e-3
    assert float((mine - jacobian.sum(0)).norm() / wanted.norm()) > 0.05


def test_the_dual_cone_of_parallel_and_of_no_gradients():
    ones = torch.eye(2, dtype=torch.float64)
    for rows in ([[1.0, 0.0], [-2.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]]):
        jacobian = torch.tensor(rows, dtype=torch.float64)
        found = dual_cone(ones, jacobian @ jacobian.T)
        assert found.isfinite().all() and (found >= ones - 1e-9).all()
        assert float((jacobian @ (found @ jacobian).T).min()) > -1e-4


@pytest.mark.parametrize("method", ["pcgrad", "upgrad"])
def test_gradients_that_agree_are_summed(method):
    learner, examples = make()
    learner.objective.balance = Balance({"y": 1.0, "k": 1.0})
    learner.objective.tasks.tasks.pop("z")
    with torch.no_grad():  # heads of one direction each: whatever y wants of the fusion, k wants too
        learner.model.heads[2].weight.copy_(
            learner.model.heads[0].weight.expand(3, -1) * torch.tensor([[-1], [0], [1]])
        )
    batch = examples.batch(range(24))
    vectors = split(apart(learner, batch), "yk")[1]
    assert float(vectors["y"] @ vectors["k"]) > 0
    plainly, mine = by(learner, [batch]), by(learner, [batch], method)
    close(mine[1], plainly[1], atol=1e-5)
    assert mine[0] == pytest.approx(plainly[0])


@pytest.mark.parametrize("method", ["pcgrad", "upgrad"])
@pytest.mark.parametrize("cuts", [(9,), (1, 4, 20)])
def test_micro_batches_add_up_to_the_whole(method, cuts):
    learner, examples = make(objective=True)
    ends = [0, *cuts, 24]
    whole = [examples.batch(range(24))]
    parts = [examples.batch(range(*pair)) for pair in itertools.pairwise(ends)]
    one, two = by(learner, whole, method), by(learner, parts, method)
    assert one[0] == pytest.approx(two[0], rel=1e-4)
    close(one[1], two[1], atol=1e-5)


def test_other_objectives_are_added_as_they_are():
    learner, examples = make(objective=True)
    batch = examples.batch(range(24))
    found = apart(learner, batch)["objective/small"]
    with_it = by(learner, [batch], "pcgrad")
    learner.objective.objectives = nn.ModuleList()
    without = by(learner, [batch], "pcgrad")[1]
    assert with_it[0]["objective/small"] > 0
    for name, gradient in with_it[1].items():
        expected = without[name] + found.get(name, torch.zeros_like(without[name]))
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_weights_are_figures_and_draws_are_left_alone():
    learner, examples = make()
    batch = [examples.batch(range(24))]
    torch.manual_seed(4)
    by(learner, batch, "pcgrad")
    after = torch.rand(3)
    torch.manual_seed(4)
    assert torch.equal(torch.rand(3), after)
    found = learner.figures()
    assert set(found) == {"balance/y", "balance/z", "balance/k"} and max(found.values()) > 1.001


def test_frozen_parameters_stay_without_a_gradient():
    learner, examples = make()
    learner.model.projections.requires_grad_(False)
    found = by(learner, [examples.batch(range(12))], "upgrad")[1]
    assert found and not any("projections" in name for name in found)


def test_gradients_that_are_not_finite_reach_the_check():
    surgery = Surgery("upgrad", Balance({"a": 1.0, "b": 1.0}), seed=0)
    assert surgery.weigh(torch.tensor([[math.nan, 1.0], [1.0, 1.0]])).tolist() == [1, 1]


@pytest.mark.parametrize("method", ["pcgrad", "upgrad"])
def test_data_parallelism_averages_each_tasks_gradient_first(method, tmp_path):
    learner, examples = make(objective=True)
    batches = [examples.batch(range(12)), examples.batch(range(12, 24))]
    wanted = by(learner, batches, method)

    class Twice(Accelerator):
        """Two processes that have the same rows."""

        num_processes = 2
        reduced: list[str] = []  # noqa: RUF012

        def no_sync(self, model):
            return model.no_sync()

        def reduce(self, tensor, reduction):
            self.reduced.append(reduction)
            return tensor * 2 if reduction == "sum" else (tensor + tensor) / 2

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/sync", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(learner)
        found = by(learner, batches, method, Twice(cpu=True), wrapped)
    finally:
        distributed.destroy_process_group()
    assert found[0] == pytest.approx(wanted[0])
    close(found[1], wanted[1], atol=1e-6)
    assert Twice.reduced[-6:] == ["sum", *["mean"] * 4, "sum"]  # what is reached, 3 tasks and an objective, row ids


def test_spread_parameters_are_refused():
    learner, examples = make()
    spread = SimpleNamespace(distributed_type=SimpleNamespace(name="FSDP"))
    with pytest.raises(ConfigError, match="FSDP"):
        Surgery("upgrad", learner.objective.balance, seed=0)(learner, [examples.batch([0])], spread)


def test_torchjd_is_an_extra(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(_optional.importlib, "import_module", absent)
    with pytest.raises(MissingExtra, match=r"trainer.balance=pcgrad(.|\n)*fusetune\[multitask\]"):
        Surgery("pcgrad", Balance({"a": 1.0, "b": 1.0}), seed=0)


# FAMO


def official(learner, batches, lr, updates):
    """The paper's code around SGD, with TorchJD's FAMO: weighted loss, step, the same rows again."""
    method = scalarization.FAMO(3, min_losses=torch.full((3,), 1e-8 - balances.FAMO_FLOOR))
    scale = learner.objective.balance.scale
    solver = torch.optim.SGD(learner.model.parameters(), lr)

    def values(batch):
        found = learner.objective.tasks(learner.model, batch, learner.model(batch))
        return torch.stack(list(found.values())) * scale

    for batch in batches[:updates]:
        solver.zero_grad()
        method(values(batch)).backward()
        solver.step()
        with torch.no_grad():
            method.update(values(batch))
    return method._w.detach(), {name: p.detach().clone() for name, p in learner.model.named_parameters()}


def test_famo_is_the_papers_code():
    learner, examples = make("famo")
    other, _ = make("famo")
    rng = np.random.default_rng(0)
    batches = [examples.batch(rng.permutation(48)[:16]) for _ in range(13)]
    solver = torch.optim.SGD(learner.model.parameters(), 0.1)
    strategy = FamoGradients(learner.objective.balance)
    for batch in batches[:12]:
        strategy(learner, [batch], CPU)
        solver.step()
        solver.zero_grad()
        strategy.after_step(learner, [batch], CPU)
    state = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    logits, wanted = official(other, batches, 0.1, 12)
    assert float(logits.abs().max()) > 0.05
    torch.testing.assert_close(learner.objective.balance.logits, logits, rtol=1e-3, atol=1e-4)
    close(state, wanted, atol=1e-5)


def test_looking_back_repeats_the_draws_and_leaves_no_trace():
    learner, examples = make("famo", dropout=0.5)
    balance, strategy = learner.objective.balance, FamoGradients(learner.objective.balance)
    learner.model.register_buffer("mean", torch.zeros(()))
    learner.model.register_forward_hook(lambda model, _, outputs: (model.mean.add_(1), outputs)[1])
    batches = [examples.batch(range(8)), examples.batch(range(8, 24))]
    told = []
    update_logits = Famo.update_logits
    balance.update_logits = lambda *given: (told.append(given), update_logits(balance, *given))
    torch.manual_seed(1)
    strategy(learner, batches, CPU)
    expected = torch.rand(3)
    strategy.after_step(learner, batches, CPU)  # no update in between: nothing has changed
    (before, after, present) = told[0]
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-6)
    assert present.all() and float(learner.model.mean) == 2
    torch.manual_seed(1)
    FamoGradients(balance)(learner, batches, CPU)
    assert torch.equal(torch.rand(3), expected)


# In a fit


def test_which_balance_computes_gradients_its_own_way():
    learner, _ = make()
    made = learner.objective.balance
    assert all(balanced(name, made, 0) is None for name in ("sum", "uncertainty", "dwa"))
    assert balanced("pcgrad", None, 0) is None and balanced("famo", None, 0) is None
    recipe = Recipe(learner.model, [], TrainerConfig(balance="pcgrad"), {}, 0, starts_linear=False, balance=made)
    assert isinstance(recipe.head_stage(10).gradients, Surgery) and isinstance(recipe.tune_stage().gradients, Surgery)


@pytest.mark.parametrize("balance", ["famo", "pcgrad", "upgrad"])
def test_adversarial_training_goes_with_losses_alone(balance):
    with pytest.raises(ConfigError, match="adversarial goes with balance sum, uncertainty or dwa"):
        Config.build({"trainer": {"adversarial": "fgm", "balance": balance}})


def test_uncertainties_are_learned_without_decay():
    learner, _ = make("uncertainty")
    made = learner.objective.balance
    recipe = Recipe(learner.model, [], TrainerConfig(balance="uncertainty"), {}, 0, starts_linear=False, balance=made)
    (group,) = [
        group
        for group in recipe.head_stage(10).groups
        if any(parameter is made.log_variance for parameter in group["params"])
    ]
    assert group["weight_decay"] == 0 and group["lr"] == TrainerConfig().lr


@pytest.mark.parametrize("balance", balances.BALANCES)
def test_a_fit_of_mixed_kinds_with_missing_targets(tiny, shop, write_csv, tmp_path, balance):
    folder, rows = shop
    rows = [dict(row) for row in rows]
    for place, row in enumerate(rows):
        for step, name in ((3, "rating"), (4, "tags"), (5, "label")):
            if place % step == 0:
                row[name] = ""
    table = write_csv(folder / f"mixed-{balance}.csv", rows, ["note", "price", "plan", "label", "rating", "tags"])
    tuned = api.fit(
        table,
        target=["label", "rating", "tags"],
        out=tmp_path / "model",
        config={
            "text": tiny("bert"),
            "fusion": {"name": "concat", "dim": 16},
            "trainer": {"epochs": 1, "head_epochs": 3, "balance": balance, "trackers": []},
            "report": {"bootstrap": 0, "errors": 0, "alone": "none"},
            "tasks": {"tags": "multilabel"},
        },
        progress=False,
    )
    results = tuned.results
    assert [(task.target, task.name) for task in results.tasks] == [
        ("label", "binary"),
        ("rating", "regression"),
        ("tags", "multilabel"),
    ]
    for task in results.tasks:
        labelled = sum(bool(cell) for cell in (row[task.target] for row in rows))
        assert 0 < task.rows < 0.3 * labelled
        assert math.isfinite(task.main(task.first("after")).value)
    assert sum(used.rows_in for used in results.tables) == 120
    found = tuned.predict(table)
    assert found.num_errors == 0 and all(found[name][0] is not None for name in ("label", "rating", "tags"))
    assert balance == "sum" or api.load(tmp_path / "model").bundle.config.trainer.balance == balance
