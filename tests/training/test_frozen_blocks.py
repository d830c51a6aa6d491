"""`freeze: auto`: the trial measures what an update gains on other rows, and what it chooses holds for the run."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import fusetune
from fusetune.backbones.freeze import lr_scales
from fusetune.backbones.load import load_backbone
from fusetune.training import frozen_blocks, loop
from fusetune.training.frozen_blocks import HALF_ROWS, block_gains, choose_frozen_blocks, num_frozen
from fusetune.training.recipe import Recipe


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def settings(tiny, quick, tmp_path):
    return quick | {
        "image": {"name": tiny("resnet"), "freeze": "auto"},
        "columns": {name: {"role": "ignore"} for name in ("voice", "note", "price", "plan")},
        "data": {"cache": str(tmp_path / "cache")},
        "trainer": {"epochs": 2, "head_epochs": 1, "trackers": [], "batch_size": 16, "precision": "no"},
        "report": {"bootstrap": 0, "alone": "none"},
    }


@pytest.fixture
def small_trial(monkeypatch):
    """A trial of few rows, which the fits of these tests are long enough for; the first block gains least in it."""

    def gains(learner, encoders, train, *, layer_decay):
        measured = block_gains(learner, encoders, train, layer_decay=layer_decay)
        return {key: [1e-6, *(abs(value) + 1.0 for value in values[1:])] for key, values in measured.items()}

    monkeypatch.setattr(frozen_blocks, "HALF_ROWS", 8)
    monkeypatch.setattr(frozen_blocks, "WORTHWHILE", 1)
    monkeypatch.setattr(frozen_blocks, "block_gains", gains)


def fit(tables, settings, out, **changes):
    sources = {"val": tables["val"], "test": tables["test"]}
    return fusetune.fit(tables["train"], target="label", **sources, out=out, config=settings, progress=False, **changes)


def weights(tuned) -> dict[str, torch.Tensor]:
    return tuned.bundle.model.state_dict()


@pytest.mark.parametrize(
    ("gains", "count"),
    [
        ([1.0, 1.0, 8.0, 90.0], 3),
        ([1.0, 20.0, 8.0, 71.0], 1),
        ([50.0, 1.0, 1.0, 1.0], 0),
        ([-3.0, -1.0, 0.0, 1.0], 3),
        ([-3.0, -1.0, -1.0], 0),
        ([0.0, 0.0], 0),
        ([float("nan"), 1.0], 0),
    ],
)
def test_as_many_blocks_as_have_a_tenth_of_the_gain(gains, count):
    assert num_frozen(gains) == count


def test_gains_are_what_a_small_step_lowers_the_loss_of_other_rows_by(shop_tables, settings, tmp_path, monkeypatch):
    """The oracle: take the step that Adam's first update takes, computed from one half, and measure the other half."""
    seen = {}

    def trial(recipe, learner, rows):
        recipe.tune_stage()
        (key,) = recipe.moving()
        encoder = recipe.model.encoders[key]
        train, _ = rows.given([], augmented=False)
        train = train.given(features={})
        before = copy.deepcopy(learner.state_dict())
        generator, mode = torch.get_rng_state(), learner.training
        gains = block_gains(learner, {key: encoder}, train, layer_decay=0.9)[key]
        assert gains == block_gains(learner, {key: encoder}, train, layer_decay=0.9)[key]
        assert torch.equal(torch.get_rng_state(), generator) and learner.training == mode
        assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
        assert all(parameter.grad is None for parameter in learner.parameters())
        seen["gain"], seen["lowered"] = sum(gains), lowered(learner, encoder, train)

    monkeypatch.setattr("fusetune.training.stages.choose_frozen_blocks", trial)
    fit(shop_tables, settings, tmp_path / "run")
    assert seen["gain"] == pytest.approx(seen["lowered"], rel=0.1, abs=1e-4)


def lowered(learner: nn.Module, encoder: nn.Module, train, step: float = 1e-5) -> float:
    """How much the loss of each half falls by a sign step from the other half, in units of the step; the mean."""
    used = train.used[np.unique(np.linspace(0, len(train.used) - 1, 2 * HALF_ROWS).astype(np.int64))]
    halves = [train.batch(used[start::2], epoch=0) for start in (0, 1)]
    learner.eval()
    scales = {id(p): scale for scale, named in lr_scales(encoder, 0.9) for _, p in named}
    parameters = [p for p in encoder.parameters() if id(p) in scales]
    falls = []
    for first, second in (halves, halves[::-1]):
        grads = torch.autograd.grad(learner(first)[0], parameters)
        losses = []
        for sign in (1, -1):  # central differences
            with torch.no_grad():
                for parameter, grad in zip(parameters, grads, strict=True):
                    parameter.add_(grad.sign(), alpha=sign * step * scales[id(parameter)])
                losses.append(float(learner(second)[0]))
                for parameter, grad in zip(parameters, grads, strict=True):
                    parameter.sub_(grad.sign(), alpha=sign * step * scales[id(parameter)])
        falls.append((losses[0] - losses[1]) / (2 * step))
    return sum(falls) / 2


def test_the_first_blocks_stay_as_pretrained_and_the_report_says_so(shop_tables, settings, tmp_path, small_trial):
    settings["trainer"] |= {"backbone_lr": 0.05, "patience": None}
    tuned = fit(shop_tables, settings, tmp_path / "run")
    (note,) = [warning for warning in tuned.results.warnings if "stay as pretrained" in warning]
    count = int(note.split()[2])
    (encoder,) = [value for key, value in tuned.bundle.model.encoders.items() if key.startswith("image")]
    fresh = load_backbone(settings["image"]["name"], "image")
    same = [
        all(torch.equal(a, b) for a, b in zip(tuned_block.parameters(), block.parameters(), strict=True))
        for (_, tuned_block), (_, block) in zip(encoder.blocks(), fresh.blocks(), strict=True)
    ]
    assert 0 < count < len(same) and all(same[:count])
    if not any("No encoder's weights were changed" in warning for warning in tuned.results.warnings):
        assert not all(same)
        assert f"freeze=bottom:{count}" in tuned.results.backbones[0].how


def test_a_short_fit_makes_no_trial(shop_tables, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen_blocks, "block_gains", lambda *args, **options: pytest.fail("a trial was made"))
    fit(shop_tables, settings, tmp_path / "run")


def test_none_makes_no_trial_and_gives_what_it_gave(shop_tables, settings, tmp_path, small_trial, monkeypatch):
    settings["image"] |= {"freeze": "none"}
    monkeypatch.setattr(frozen_blocks, "block_gains", lambda *args, **options: pytest.fail("a trial was made"))
    tuned = fit(shop_tables, settings, tmp_path / "run")
    assert not any("stay as pretrained" in warning for warning in tuned.results.warnings)


def test_a_run_that_is_killed_in_the_tune_stage_goes_on_with_its_choice(
    shop_tables, settings, tmp_path, small_trial, monkeypatch
):
    settings["trainer"] |= {"checkpoint_minutes": 0, "patience": None, "backbone_lr": 0.05}
    chosen = []
    real_choice = choose_frozen_blocks

    def choice(recipe: Recipe, *rest):
        real_choice(recipe, *rest)
        chosen.append(dict(recipe.num_frozen))

    monkeypatch.setattr("fusetune.training.stages.choose_frozen_blocks", choice)
    updates = []
    real = loop.update

    def counted(*args, where, **options):
        updates.append(where)
        return real(*args, where=where, **options)

    monkeypatch.setattr(loop, "update", counted)
    whole = fit(shop_tables, settings, tmp_path / "whole")
    in_tune = [number for number, where in enumerate(updates, 1) if "'tune'" in where]
    assert len(in_tune) >= 4

    def dying(*args, **options):
        if len(updates) + 1 == in_tune[2]:
            raise Killed
        return counted(*args, **options)

    updates.clear()
    monkeypatch.setattr(loop, "update", dying)
    with pytest.raises(Killed):
        fit(shop_tables, settings, tmp_path / "parts", resume=True)
    monkeypatch.setattr(loop, "update", counted)
    trials = []
    monkeypatch.setattr(frozen_blocks, "block_gains", lambda *args, **options: trials.append(args))
    parts = fit(shop_tables, settings, tmp_path / "parts", resume=True)
    assert not trials and chosen[0] == chosen[1] == chosen[2] and any(chosen[0].values())
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(parts)[name]), name
