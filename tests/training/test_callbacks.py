"""The best step is kept and put back; a stage stops when nothing gets better."""

from __future__ import annotations

import dataclasses
import io
import math
import re

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from fusetune.training import callbacks, progress
from fusetune.training.callbacks import Bar, BestStep, Check, EarlyStopping, better
from fusetune.training.progress import StageBar
from fusetune.training.score_error import ScoreError


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


@pytest.mark.parametrize("rows", [18, 80, 400])
def test_the_kept_step_has_the_best_score_to_within_a_quarter_of_its_standard_error(rows: int) -> None:
    error = ScoreError()
    error.add("accuracy", 0.8, lambda _: math.nan, np.ones(rows))
    error.close()
    best = BestStep(nn.Linear(1, 1), error=error)
    scores = [0.8 + 0.2 * (step % 7) / 7 for step in range(20)]
    for step, score in enumerate(scores):  # the loss rises all the time, so it never speaks for a later check
        best.on_check(check(score, loss=1 + step, step=step))
    assert best.check is not None and max(scores) - best.check.score <= error.margin
    few = BestStep(nn.Linear(1, 1), error=error)
    few.on_check(check(0.833, loss=0.4))
    few.on_check(check(0.889, loss=0.6, step=1))
    assert few.check is not None and few.check.step == 1


def test_a_stage_goes_on_while_the_score_rises_however_little_and_whatever_the_loss() -> None:
    stopping = EarlyStopping(2)
    for step in range(20):
        stopping.on_check(check(0.8 + 1e-4 * step, loss=1 + step))
        assert not stopping.stop
    for score in (0.801, 0.8018):
        stopping.on_check(check(score, loss=0.1))
    assert stopping.stop


def test_the_error_comes_back_with_the_best_step_and_older_checkpoints_leave_it_open() -> None:
    error = ScoreError(value=0.02)
    best = BestStep(nn.Linear(1, 1), error=error)
    best.on_check(check(0.5))
    state = best.state()
    again = BestStep(nn.Linear(1, 1), error=ScoreError())
    again.load(state)
    assert again.error.value == 0.02 and again.error.margin == error.margin
    again.load({key: value for key, value in state.items() if key != "error"})
    assert not again.error.known


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


def bar_on(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> tuple[Bar, io.StringIO]:
    written = io.StringIO()
    monkeypatch.setattr(progress, "console", lambda: Console(file=written, force_terminal=terminal, width=120))
    monkeypatch.setattr(callbacks, "console", progress.console)
    return Bar(), written


def measured(score: float, **metrics: dict[str, float]) -> Check:
    return dataclasses.replace(check(score), metrics=metrics)


def test_the_bar_takes_checks_before_and_between_stages(monkeypatch) -> None:
    bar, _ = bar_on(monkeypatch, terminal=True)
    try:
        bar.on_check(check(0.25))
        for stage in ("head", "tune"):
            bar.on_stage(stage, 3, 0)
            bar.on_update(1, {"a": 0.5, "b": 1.0}, 0.1, {})
            bar.on_check(measured(0.5, y={"f1": 0.5, "accuracy": 0.9}))
        assert isinstance(bar.display, StageBar)
        (task,) = bar.display.progress.tasks
        assert (task.description, task.completed, task.total) == ("tune", 1, 3)
        assert task.fields["note"] == "loss 1.5000  val f1 0.5000"
    finally:
        bar.on_end()


def test_without_a_terminal_lines_come_by_time(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar, written = bar_on(monkeypatch, terminal=False)
    bar.on_check(measured(0.25, y={"f1": 0.25}))
    bar.on_stage("head", 1000, 0)
    for step in range(1000):  # 1000 s
        now[0] += 1
        bar.on_update(step, {"a": 0.5}, 0.1, {})
    bar.on_check(measured(0.5, y={"f1": 0.5}, z={"mae": 2.0}))
    bar.on_stage("tune", 10, 0)  # is over before a line is due
    bar.on_update(1001, {"a": 0.25}, 0.1, {})
    bar.on_end()
    lines = written.getvalue().splitlines()
    assert "head  step 5/1,000  loss 0.5000  val f1 0.2500" in lines[0]
    assert 20 < len(lines) < 60
    assert lines[-2].endswith("head  step 1,000/1,000  loss 0.5000  val y: f1 0.5000, z: mae 2.0000")
    assert lines[-1].endswith("tune  step 1/10  loss 0.2500  val y: f1 0.5000, z: mae 2.0000")
    assert all(re.match(r"\d\d:\d\d:\d\d  ", line) for line in lines)
