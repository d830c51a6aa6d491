"""The best step is kept and put back; a stage stops when nothing gets better."""

from __future__ import annotations

import math

import torch
from torch import nn

from fusetune.training.callbacks import Bar, BestStep, Check, EarlyStopping, better


def check(score: float, *, loss: float = 1.0, step: int = 0) -> Check:
    return Check("head", step, 0.0, None, loss, score, {}, 0.1)


def test_better_goes_by_score_then_by_loss_and_undefined_beats_nothing() -> None:
    assert better(check(0.6), check(0.5)) and not better(check(0.5), check(0.6))
    assert better(check(0.5, loss=0.9), check(0.5, loss=1.0)) and not better(check(0.5), check(0.5))
    assert better(check(0.1), check(math.nan)) and not better(check(math.nan, loss=0.0), check(0.1))
    assert better(check(math.nan, loss=0.5), check(math.nan, loss=1.0))


def test_a_small_gain_counts_only_if_the_loss_confirms_it() -> None:
    old = check(0.80, loss=0.5)
    assert better(check(0.83, loss=0.5), old, 0.05) and better(check(0.86, loss=0.9), old, 0.05)
    assert not better(check(0.83, loss=0.6), old, 0.05) and not better(check(0.79, loss=0.1), old, 0.05)


def test_the_best_weights_come_back_with_buffers_and_with_what_was_frozen_then() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].requires_grad_(False)
    best = BestStep(model)
    best.on_check(check(0.5))
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    model[0].requires_grad_(True)
    best.cover()
    with torch.no_grad():
        for tensor in [*model.parameters(), model[1].running_mean]:
            tensor.add_(1)
    best.on_check(check(0.4))
    best.restore()
    assert best.check is not None and best.check.score == 0.5
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, kept[name])


def test_stopping_waits_for_its_patience_and_starts_again_after_a_better_check() -> None:
    stopping = EarlyStopping(2)
    stops = []
    for score in (0.5, 0.4, 0.6, 0.5, 0.5):
        stopping.on_check(check(score))
        stops.append(stopping.stop)
    assert stops == [False, False, False, False, True]
    never = EarlyStopping(None)
    for score in (0.5, 0.4, 0.3, 0.2):
        never.on_check(check(score))
    assert not never.stop


def test_the_bar_takes_checks_before_and_between_stages() -> None:
    bar = Bar()
    try:
        bar.on_check(check(0.25))
        for stage in ("head", "tune"):
            bar.on_stage(stage, 3, 0)
            bar.on_update(1, {"a": 0.5, "b": 1.0}, 0.1, {})
            bar.on_check(check(0.5))
        (task,) = bar.progress.tasks
        assert (task.description, task.completed, task.total) == ("tune", 1, 3)
        assert task.fields["note"] == "loss 1.500 val 0.5000"
    finally:
        bar.on_end()
