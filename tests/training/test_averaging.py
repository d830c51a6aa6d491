"""Moving averages, greedy soups and interpolation: by hand on small modules, and in a fit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fusetune import api
from fusetune.training.averaging import (
    SHARES,
    Average,
    BestSteps,
    copy_to_cpu,
    interpolate,
    load_weights,
    soup,
    trained_weights,
)
from fusetune.training.callbacks import Check


def check(step: int, score: float, loss: float = 1.0, stage: str = "tune") -> Check:
    return Check(stage, step, 1.0, 1.0, loss, score, {}, 0.1)


class Point(nn.Module):
    """One trained number, one that is frozen."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor([value]))
        self.frozen = nn.Parameter(torch.tensor([5.0]), requires_grad=False)

    def validate(self, goal: float):
        """Scores by the distance to a goal."""
        return lambda: (0.0, -abs(float(self.at.detach()) - goal), {})


def test_what_is_trained_is_covered():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    module[0].bias.requires_grad_(False)
    module[2].requires_grad_(False)
    assert set(trained_weights(module)) == {"0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var"}


def test_the_moving_average_follows_its_formula_and_swaps_exactly():
    module = Point(0.0)
    average, wanted = Average(module, 0.9), 0.0
    for step in range(1, 200):
        module.at.data.fill_(math.sin(step))
        average.on_update(step, {}, 0.1, {})
        decay = min(0.9, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * math.sin(step)
    own = module.at.detach().clone()
    with average.swapped():
        assert float(module.at.detach()) == pytest.approx(wanted, abs=1e-5)
    assert torch.equal(module.at.detach(), own)
    with pytest.raises(RuntimeError), average.swapped():
        raise RuntimeError
    assert torch.equal(module.at.detach(), own)


def test_the_best_few_steps_of_the_stage_are_kept():
    module = Point(0.0)
    kept = BestSteps(module, "tune", 3)
    for step, score in enumerate([0.1, 0.5, 0.2, 0.9, 0.3]):
        module.at.data.fill_(float(step))
        kept.on_check(check(step, score))
    kept.on_check(check(9, 5.0, stage="head"))
    assert [(one.step, float(weights["at"])) for one, weights in kept.checks] == [(3, 3.0), (1, 1.0), (4, 4.0)]
    assert "frozen" not in kept.checks[0][1]


def test_a_soup_takes_in_only_what_raises_the_score():
    module = Point(1.0)
    others = [(check(step, 0.0), {"at": torch.tensor([value])}) for step, value in ((2, 9.0), (3, 3.0), (4, 2.0))]
    best = check(1, -1.0)
    steps = soup(module, best, copy_to_cpu(trained_weights(module)), others, module.validate(2.0))
    assert steps == [1, 3] and float(module.at.detach()) == 2.0  # 9 is far off; 1 and 3 meet at 2; 2 changes nothing
    assert float(module.frozen) == 5.0


def test_a_soup_of_nothing_better_is_the_best_step():
    module = Point(2.0)
    others = [(check(1, 0.0), {"at": torch.tensor([2.0])}), (check(2, 0.0), {"at": torch.tensor([0.0])})]
    assert soup(module, check(1, 0.0, 0.0), copy_to_cpu(trained_weights(module)), others, module.validate(2.0)) == [1]
    assert float(module.at.detach()) == 2.0


@pytest.mark.parametrize(("goal", "share"), [(3.0, 0.7), (4.2, 1.0), (0.0, 0.0), (-9.0, 0.0), (1.96, 0.4)])
def test_interpolation_stops_where_it_validates_best(goal, share):
    module = Point(4.0)
    start = {"at": torch.tensor([0.6])}
    best = (-abs(4.0 - goal), 0.0)
    assert interpolate(module, start, best, module.validate(goal)) == pytest.approx(share)
    assert float(module.at.detach()) == pytest.approx(0.6 + share * 3.4)
    assert len(SHARES) == 9


def test_the_tuned_weights_stay_to_the_bit_where_nothing_is_better():
    module = Point(0.1)
    tuned = module.at.detach().clone()
    assert interpolate(module, {"at": torch.tensor([7.3])}, (0.0, 0.0), module.validate(float(tuned))) == 1.0
    assert torch.equal(module.at.detach(), tuned)
    load_weights(module, {"at": torch.tensor([2.0])})
    assert float(module.at.detach()) == 2.0


@pytest.mark.parametrize("epochs", [0, 3])
def test_a_fit_with_all_of_them_is_no_worse_on_validation_rows_and_says_what_it_did(
    tiny, shop_tables, tmp_path, quick, epochs
):
    def fit(**trainer):
        settings = quick | {
            "text": tiny("bert"),
            "image": {"name": tiny("vit"), "freeze": "all"},
            "audio": {"name": tiny("wav2vec2"), "freeze": "all"},
            "trainer": {"epochs": epochs, "head_epochs": 4, "lr": 0.02, "backbone_lr": 1e-3, "trackers": []} | trainer,
        }
        tables = {name: str(shop_tables[name]) for name in ("val", "test")}
        out = tmp_path / f"model{len(trainer)}"
        return api.fit(str(shop_tables["train"]), target="label", **tables, out=out, config=settings, progress=False)

    tuned = fit(ema=0.9, soup=3, interpolate=True)
    said = " ".join(tuned.results.warnings)
    assert "soup" in said and "The weights are interpolated" in said
    curve = tuned.results.curve
    best = next(point for point in curve.points if point.step == curve.best_step)
    found = tuned.evaluate(str(shop_tables["val"])).tasks[0]
    assert found.main(found.systems[0]).value >= best.val_metric - 1e-6
    again = api.load(tuned.folder)
    assert again.predict(str(shop_tables["test"])).table.equals(tuned.predict(str(shop_tables["test"])).table)
