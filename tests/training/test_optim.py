"""Optimisers by name, Lion against its paper's formula, and which parameters decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fusetune.errors import ConfigError
from fusetune.training.optim import OPTIMIZERS, Lion, build_optimizer, no_decay, param_groups


def test_lion_follows_the_papers_algorithm() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(5, dtype=torch.float64))
    expected, momentum = weight.detach().clone(), torch.zeros(5, dtype=torch.float64)
    optimizer = Lion([weight], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    for _ in range(7):
        gradient = torch.randn(5, dtype=torch.float64)
        weight.grad = gradient.clone()
        optimizer.step()
        direction = torch.sign(0.9 * momentum + 0.1 * gradient)
        expected = expected - 0.01 * (direction + 0.1 * expected)
        momentum = 0.99 * momentum + 0.01 * gradient
    torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_lowers_a_convex_loss(name: str) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.ones(4, 3))
    optimizer = build_optimizer(name, [{"params": [weight], "lr": 0.05, "weight_decay": 0.0}], lr=0.05)
    losses = []
    for _ in range(40):
        loss = (weight**2).sum()
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_a_misspelt_optimizer_gets_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="adamw"):
        build_optimizer("adanw", [{"params": [nn.Parameter(torch.ones(1))]}], lr=1.0)


def test_biases_and_norms_do_not_decay_and_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    model[2].weight.requires_grad_(False)
    groups = param_groups([(0.1, model.parameters())], weight_decay=0.01, undecayed=no_decay(model))
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    kept = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert decayed == {id(model[0].weight)}
    assert kept == {id(p) for p in (model[0].bias, *model[1].parameters(), model[2].bias, *model[3].parameters())}
