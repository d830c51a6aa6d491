"""Cached gradients are those of rows compared all at once."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from fusetune.config.trainer import TrainerConfig
from fusetune.objectives.contrastive import ContrastiveObjective
from fusetune.objectives.supcon import SupConObjective
from fusetune.objectives.total import Total
from fusetune.testing.objectives import ROWS, make_parts
from fusetune.training.learner import Learner
from fusetune.training.recipe import Recipe
from fusetune.training.updates.grad_cache import cached
from fusetune.training.updates.update import plain

CPU = Accelerator(cpu=True)


def make(dropout: float = 0.0):
    model, tasks, examples = make_parts(dropout=dropout)
    torch.manual_seed(0)
    objectives = [ContrastiveObjective(model, tasks, weight=0.5), SupConObjective(model, tasks, weight=2.0)]
    return Learner(model.train(), Total(tasks, objectives)), examples


def by(gradients, learner, batches, accelerator=CPU, wrapped=None) -> tuple[dict, dict]:
    learner.zero_grad()
    torch.manual_seed(3)
    losses = gradients(wrapped if wrapped is not None else learner, batches, accelerator)
    found = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    return {name: float(loss) for name, loss in losses.items()}, found


def close(found: dict, wanted: dict, atol: float = 1e-5) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=atol, rtol=1e-5)


def batches_of(examples, *sizes) -> list:
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [examples.batch(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


@pytest.mark.parametrize("sizes", [(12, 12), (8, 8, 8), (1, 20, 3)])
def test_micro_batches_have_the_losses_and_gradients_of_one_batch(sizes):
    learner, examples = make()
    wanted = by(plain, learner, [examples.batch(range(ROWS))])
    found = by(cached, learner, batches_of(examples, *sizes))
    assert found[0] == pytest.approx(wanted[0], abs=1e-5)
    close(found[1], wanted[1])
    assert any(name.endswith("log_scale") for name in wanted[1]) and any("heads" in name for name in wanted[1])
    apart = by(plain, learner, batches_of(examples, *sizes))
    assert abs(apart[0]["objective/contrastive"] - wanted[0]["objective/contrastive"]) > 1e-3


def test_dropout_draws_the_same_masks_in_both_passes():
    learner, examples = make(dropout=0.4)
    batches = batches_of(examples, 12, 12)
    found = by(cached, learner, batches)
    learner.zero_grad()
    torch.manual_seed(3)
    outputs = [learner.model(batch) for batch in batches]
    total = 0.0
    for objective in learner.objective.batch_objectives():
        vectors = [objective.vectors(batch, out) for batch, out in zip(batches, outputs, strict=True)]
        whole = {name: torch.cat([part[name] for part in vectors]) for name in vectors[0]}
        losses = objective.of_vectors(whole)
        total = total + sum(losses.values()) * objective.weight
        for name, loss in losses.items():
            assert found[0][f"objective/{name}"] == pytest.approx(float(loss.detach()) * objective.weight, abs=1e-5)
    only = {name for name in found[0] if name.startswith("objective/")}
    counts = {name: [float(b.targets[name].labelled.sum()) for b in batches] for name in ("k", "y")}
    for place, (batch, out) in enumerate(zip(batches, outputs, strict=True)):
        for name, loss in learner.objective.tasks(learner.model, batch, out).items():
            total = total + loss * counts[name][place] / sum(counts[name])
    total.backward()
    close(found[1], {name: p.grad for name, p in learner.named_parameters() if p.grad is not None})
    assert only == {"objective/contrastive", "objective/supcon"}


def test_the_generators_end_where_the_second_pass_leaves_them_and_buffers_move_once():
    learner, examples = make()
    learner.model.register_module("extra", torch.nn.BatchNorm1d(8))
    forward = learner.model.forward

    def counted(batch):
        outputs = forward(batch)
        learner.model.extra(outputs.pooled)
        return outputs

    learner.model.forward = counted
    by(cached, learner, batches_of(examples, 12, 12))
    assert int(learner.model.extra.num_batches_tracked) == 2


def test_one_micro_batch_and_no_such_objective_are_plain(monkeypatch):
    learner, examples = make()
    passes = []
    learner.model.register_forward_pre_hook(lambda *_: passes.append(1))
    by(cached, learner, [examples.batch(range(8))])
    assert len(passes) == 1
    alone = Learner(learner.model, Total(learner.objective.tasks.tasks))
    by(cached, alone, batches_of(examples, 8, 8))
    assert len(passes) == 3


def test_data_parallelism_exchanges_gradients_once(tmp_path):
    learner, examples = make()
    batches = batches_of(examples, 8, 8, 8)
    wanted = by(cached, learner, batches)

    class Distributed(Accelerator):
        def no_sync(self, model):
            return model.no_sync()

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/sync", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(learner)
        reduced = []

        def reduce(state, bucket):
            reduced.append(bucket.is_last())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        wrapped.register_comm_hook(None, reduce)
        found = by(cached, learner, batches, Distributed(cpu=True), wrapped)
    finally:
        distributed.destroy_process_group()
    assert found[0] == pytest.approx(wanted[0])
    close(found[1], wanted[1], atol=1e-6)
    assert sum(reduced) == 1


def test_the_stages_use_it_and_say_where_they_cannot():
    learner, _ = make()
    objectives = list(learner.objective.objectives)

    def recipe(**settings) -> Recipe:
        given = TrainerConfig(**settings)
        return Recipe(learner.model, objectives, given, {}, 0, starts_linear=False)

    assert recipe().tune_stage().gradients is cached and recipe().head_stage(10).gradients is cached
    assert recipe(accumulate=4).warnings() == []
    assert recipe(adversarial={"name": "fgm"}).warnings() == []
    (said,) = recipe(adversarial={"name": "fgm"}, accumulate=4).warnings()
    assert "compares the rows of one micro-batch, not of all 4" in said
