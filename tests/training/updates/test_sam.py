"""SAM: the gradient where the loss nearby is largest, the weights put back exactly, the same dropout in both passes."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate import Accelerator
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from fusetune.config.trainer import TrainerConfig
from fusetune.errors import ConfigError
from fusetune.objectives.contrastive import ContrastiveObjective
from fusetune.objectives.total import Total
from fusetune.testing.objectives import ROWS, make_parts
from fusetune.training.learner import Learner
from fusetune.training.recipe import Recipe
from fusetune.training.updates.grad_cache import cached
from fusetune.training.updates.sam import Sharpness
from fusetune.training.updates.update import plain

CPU = Accelerator(cpu=True)


def make(dropout: float = 0.0):
    model, tasks, examples = make_parts(dropout=dropout)
    return Learner(model.train(), Total(tasks)), examples


def grads(learner) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}


def by(gradients, learner, batches, accelerator=CPU, wrapped=None):
    learner.zero_grad()
    torch.manual_seed(3)
    losses = gradients(learner if wrapped is None else wrapped, batches, accelerator)
    return {name: float(value) for name, value in losses.items()}, grads(learner)


@pytest.mark.parametrize("num", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_it_is_the_gradient_up_the_slope_and_nothing_else_moves(num, dropout):
    learner, examples = make(dropout)
    batches = (
        [examples.batch(range(ROWS))] if num == 1 else [examples.batch(range(10)), examples.batch(range(10, ROWS))]
    )
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    losses, found = by(Sharpness(0.1, plain), learner, batches)
    assert all(torch.equal(p, before[name]) for name, p in learner.named_parameters())
    clean, slope = by(plain, learner, batches)
    assert losses == clean
    norm = math.sqrt(sum(float(g.square().sum()) for g in slope.values()))
    with torch.no_grad():
        for name, p in learner.named_parameters():
            if name in slope:
                p += 0.1 * slope[name] / norm
    _, wanted = by(plain, learner, batches)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4)
    assert any(not torch.allclose(found[name], slope[name], atol=1e-5) for name in found)


def test_buffers_move_once_and_the_draws_go_on():
    learner, examples = make()
    learner.model.register_module("extra", nn.BatchNorm1d(8))
    forward, seen = learner.model.forward, []

    def counted(batch):
        outputs = forward(batch)
        learner.model.extra(outputs.pooled)
        seen.append(1)
        return outputs

    learner.model.forward = counted
    by(Sharpness(0.1, plain), learner, [examples.batch(range(8))])
    assert len(seen) == 2 and int(learner.model.extra.num_batches_tracked) == 1


def test_a_gradient_that_is_not_finite_is_left_for_the_update_to_refuse():
    learner, examples = make()
    with torch.no_grad():
        next(iter(learner.model.heads)).weight.fill_(float("nan"))
    kept = [p.detach().clone() for p in learner.parameters()]
    _, found = by(Sharpness(0.1, plain), learner, [examples.batch(range(8))])
    assert any(not g.isfinite().all() for g in found.values())
    assert all(
        torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(kept, learner.parameters(), strict=True)
    )


def test_data_parallelism(tmp_path):
    learner, examples = make()
    batches = [examples.batch(range(10)), examples.batch(range(10, ROWS))]
    wanted = by(Sharpness(0.1, plain), learner, batches)

    class Distributed(Accelerator):
        def no_sync(self, model):
            return model.no_sync()

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/sync", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(learner)
        found = by(Sharpness(0.1, plain), learner, batches, Distributed(cpu=True), wrapped)
    finally:
        distributed.destroy_process_group()
    assert found[0] == pytest.approx(wanted[0])
    for name, value in wanted[1].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-6, rtol=1e-4)


def test_where_it_is_used_and_what_it_does_not_go_with():
    learner, _ = make()

    def recipe(**settings):
        given = TrainerConfig(sam=0.05, **settings)
        extra = [ContrastiveObjective(learner.model, dict(learner.objective.tasks.tasks), columns=["x", "z"])]
        return Recipe(learner.model, extra, given, {}, 0, starts_linear=False)

    found = recipe(head_epochs=0).tune_stage().gradients
    assert isinstance(found, Sharpness) and found.rho == 0.05 and found.gradients is cached
    assert recipe(accumulate=2).warnings() == []
    with pytest.raises(ValueError, match="sam and adversarial"):
        TrainerConfig(sam=0.05, adversarial={"name": "fgm"})
    with pytest.raises(ValueError, match="sam and balance=famo"):
        TrainerConfig(sam=0.05, balance="famo")

    class Spread:
        distributed_type = type("Type", (), {"name": "FSDP"})

    with pytest.raises(ConfigError, match="FSDP"):
        Sharpness(0.1, plain)(learner, [], Spread())
