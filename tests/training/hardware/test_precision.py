"""bf16 is taken where it is faster and near, and never changes what the trial was made with."""

import pytest
import torch
from torch import nn

from fusetune.training.hardware import precision
from fusetune.training.hardware.precision import chosen


class Sized(nn.Module):
    """A loss from a linear map, after so many seconds in each arithmetic on a clock of its own."""

    def __init__(self, clock, slow, fast, off=0.0):
        super().__init__()
        self.linear = nn.Linear(1000, 1001)
        self.dropout = nn.Dropout(0.5)
        self.clock, self.slow, self.fast, self.off = clock, slow, fast, off

    def forward(self, batch):
        low = torch.is_autocast_enabled("cpu")
        self.clock[0] += self.fast if low else self.slow
        loss = self.dropout(self.linear(batch)).float().square().mean()
        return loss * (1 + self.off * low), {}, None


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(precision, "has_bf16", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return now


def choose(learner, asked="auto", updates=100):
    return chosen(asked, learner, lambda: torch.randn(4, 1000), list(learner.parameters()), updates)


def test_taken_where_faster_and_near(clock):
    assert choose(Sized(clock, slow=2.0, fast=1.0)) == "bf16"
    assert choose(Sized(clock, slow=1.1, fast=1.0)) == "no"
    assert choose(Sized(clock, slow=2.0, fast=1.0, off=0.2)) == "no"


def test_no_trial_where_it_cannot_pay(clock, monkeypatch):
    learner = Sized(clock, slow=2.0, fast=1.0)
    assert choose(learner, updates=10) == "no"
    assert choose(learner, "bf16", updates=1) == "bf16" and choose(learner, "no") == "no"
    monkeypatch.setattr(precision, "has_bf16", lambda: False)
    assert choose(learner) == "no" and clock == [0.0]
    monkeypatch.setattr(precision, "has_bf16", lambda: True)
    learner.linear = nn.Linear(1000, 10)
    assert choose(learner) == "no" and clock == [0.0]


def test_the_trial_leaves_no_trace(clock):
    learner = Sized(clock, slow=2.0, fast=1.0).train()
    chance, weights = torch.get_rng_state(), {k: v.clone() for k, v in learner.state_dict().items()}
    chosen("auto", learner, lambda: torch.ones(4, 1000), list(learner.parameters()), 100)
    assert torch.equal(chance, torch.get_rng_state()) and learner.training
    assert all(torch.equal(value, weights[name]) for name, value in learner.state_dict().items())
    assert all(parameter.grad is None for parameter in learner.parameters())
