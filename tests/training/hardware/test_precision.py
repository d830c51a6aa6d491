"""bf16 is chosen by hardware and model, never by a clock, and the choice leaves no trace."""

import itertools
import time

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    ConvNextConfig,
    ConvNextModel,
    MobileNetV2Config,
    MobileNetV2Model,
    ResNetConfig,
    ResNetModel,
)

from fusetune.training.hardware import precision
from fusetune.training.hardware.precision import choose_precision, suits_bf16


class Sized(nn.Module):
    """A loss from a linear map, which is off by a share in bf16."""

    def __init__(self, off=0.0, width=1001):
        super().__init__()
        self.linear = nn.Linear(1000, width)
        self.dropout = nn.Dropout(0.5)
        self.off, self.passes = off, 0

    def forward(self, batch):
        self.passes += 1
        low = torch.is_autocast_enabled("cpu")
        loss = self.dropout(self.linear(batch)).float().square().mean()
        return loss * (1 + self.off * low), {}, None


@pytest.fixture(autouse=True)
def processor(monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def choose(learner, setting="auto", updates=100):
    return choose_precision(setting, learner, lambda: torch.ones(4, 1000), list(learner.parameters()), updates)


def test_taken_where_the_loss_is_near():
    assert choose(Sized()) == "bf16"
    assert choose(Sized(off=0.2)) == "no"


@pytest.mark.parametrize("slower", [False, True])
def test_no_clock_decides(monkeypatch, slower):
    """A machine on which either arithmetic seems to take ever longer, or ever less."""
    ticks = itertools.accumulate(itertools.count(1) if slower else (1.0 / n for n in itertools.count(1)))
    for name in ("time", "perf_counter", "monotonic", "process_time"):
        monkeypatch.setattr(time, name, lambda: float(next(ticks)))
    assert choose(Sized()) == "bf16"


def test_nothing_is_computed_where_it_cannot_pay(monkeypatch):
    learner = Sized()
    assert choose(learner, updates=10) == "no"
    assert choose(learner, "bf16", updates=1) == "bf16" and choose(learner, "no") == "no"
    assert choose(small := Sized(width=10)) == "no" and small.passes == 0
    monkeypatch.setattr(precision, "has_bf16", lambda: False)
    assert choose(learner) == "no" and learner.passes == 0


def test_wide_matrices_suit_and_depthwise_convolutions_do_not():
    def suits(model):
        return suits_bf16(model, list(model.parameters()))

    def bert(width):
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 2}
        return BertModel(BertConfig(**sizes, num_attention_heads=2, vocab_size=30_000))

    assert suits(bert(128)) and not suits(bert(64))
    assert suits(ResNetModel(ResNetConfig(layer_type="basic", hidden_sizes=[64, 128, 256], depths=[1, 1, 1])))
    assert not suits(MobileNetV2Model(MobileNetV2Config()))
    assert not suits(ConvNextModel(ConvNextConfig(hidden_sizes=[40, 80, 160, 320], depths=[1, 1, 2, 1])))


def test_frozen_layers_do_not_count():
    model = nn.Sequential(nn.Linear(1100, 1100), nn.Linear(1100, 64), nn.Linear(64, 17_000))
    assert suits_bf16(model, list(model.parameters()))
    assert not suits_bf16(model, [*model[1].parameters(), *model[2].parameters()])


def test_the_choice_leaves_no_trace():
    learner = Sized().train()
    rng_state, weights = torch.get_rng_state(), {k: v.clone() for k, v in learner.state_dict().items()}
    choose(learner)
    assert torch.equal(rng_state, torch.get_rng_state()) and learner.training
    assert all(torch.equal(value, weights[name]) for name, value in learner.state_dict().items())
    assert all(parameter.grad is None for parameter in learner.parameters())
