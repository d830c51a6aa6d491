"""R-Drop, mixup and unimodal heads, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fusetune.errors import ConfigError
from fusetune.objectives.mixup import Mixup
from fusetune.objectives.rdrop import RDrop
from fusetune.objectives.total import build_objectives
from fusetune.objectives.unimodal import Unimodal
from fusetune.testing.objectives import ROWS, make_parts


def parts(dropout: float = 0.0):
    model, tasks, examples = make_parts(dropout=dropout)
    return model.train(), tasks, examples.batch(range(ROWS))


def test_rdrop_is_the_symmetric_divergence_of_two_passes():
    model, tasks, batch = parts(0.4)
    torch.manual_seed(1)
    first = model(batch)
    found = RDrop(model, tasks)(model, batch, first)["rdrop"]
    torch.manual_seed(1)
    one, two = model(batch).logits, model(batch).logits
    p, q = one["k"].log_softmax(1), two["k"].log_softmax(1)
    both = F.kl_div(q, p, log_target=True, reduction="batchmean") + F.kl_div(
        p, q, log_target=True, reduction="batchmean"
    )
    wanted = both / 2 + (one["y"] - two["y"]).square().mean()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5) and found.item() > 1e-4


def test_rdrop_without_dropout_costs_nothing_and_says_so():
    model, tasks, batch = parts()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    objective = RDrop(model, tasks)
    assert objective(model, batch, model(batch))["rdrop"].item() == pytest.approx(0, abs=1e-9)
    assert any("no dropout" in said for said in objective.warnings)
    assert not RDrop(make_parts(dropout=0.1)[0], tasks).warnings


def test_mixup_is_the_papers_loss_of_mixed_vectors(monkeypatch):
    model, tasks, batch = parts()
    outputs = model(batch)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(torch, "randperm", lambda n: order)
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self: torch.tensor(0.3))
    found = Mixup(model, tasks)(model, batch, outputs)["mixup"]
    wanted = 0.0
    for place, name in enumerate(tasks):
        # The head of the mixed vectors, and the linear part of the mixed features.
        linear = outputs.logits[name] - model.heads[place](outputs.pooled)
        logits = model.heads[place](0.3 * outputs.pooled + 0.7 * outputs.pooled[order])
        logits = logits + 0.3 * linear + 0.7 * linear[order]
        target = batch.targets[name]
        both = target.labelled & target.labelled[order]
        assert both.any() and not both.all()
        one = tasks[name].loss(logits, target.where(both), torch.ones(ROWS))
        two = tasks[name].loss(logits, target.take(order).where(both), torch.ones(ROWS))
        wanted = wanted + 0.3 * one + 0.7 * two
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_mixup_draws_shares_of_its_distribution():
    model, tasks, batch = parts()
    seen = []
    sample = torch.distributions.Beta.sample

    def noted(self, *shape):
        seen.append((float(self.concentration1), float(self.concentration0), sample(self, *shape)))
        return seen[-1][2]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributions.Beta, "sample", noted)
        for _ in range(20):
            Mixup(model, tasks, alpha=0.2)(model, batch, model(batch))
    assert all((a, b) == (pytest.approx(0.2), pytest.approx(0.2)) for a, b, _ in seen)
    assert len({float(value) for *_, value in seen}) == 20


def test_unimodal_heads_see_their_column_alone():
    model, tasks, batch = parts()
    objective = Unimodal(model, tasks)
    outputs = model(batch)
    found = objective(model, batch, outputs)["unimodal"]
    wanted = 0.0
    for column, heads in zip(model.columns, objective.heads, strict=True):
        there = outputs.columns[column].mask.any(1)
        for (name, task), head in zip(tasks.items(), heads, strict=True):
            target = batch.targets[name]
            rows = there & target.labelled
            kept = target.take(rows)
            wanted += task.loss(head(outputs.columns[column].mean()[rows]), kept, torch.ones(int(rows.sum()))) / 3
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert set(objective.figures) == {"x", "z", "c"}
    assert objective.figures["x"].item() > 0
    found.backward()
    assert all(p.grad is None for p in model.fusion.parameters()) and all(
        p.grad is None for p in model.heads.parameters()
    )
    assert all(p.grad is not None for p in objective.parameters())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mixup": {"alpha": 0.0}}, "objectives.mixup.alpha is out of range"),
        ({"rdrop": {"weight": 0}}, "objectives.rdrop.weight is out of range"),
        ({"unimodal": {"weights": 1}}, "no setting 'weights'"),
    ],
)
def test_wrong_settings(settings, said):
    model, tasks, _ = parts()
    with pytest.raises(ConfigError, match=said):
        build_objectives(model, tasks, settings)


@pytest.mark.parametrize("name", [Mixup, RDrop, Unimodal])
def test_they_need_a_task(name):
    model, _, _ = parts()
    with pytest.raises(ConfigError, match="nothing is predicted"):
        name(model, {})
