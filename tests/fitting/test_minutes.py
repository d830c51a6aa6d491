"""`trainer.minutes`: the fit ends at its best step, says that its time was up, and what the report lacks for it."""

from __future__ import annotations

import numpy as np
import pytest

from fusetune import api
from fusetune.config.config import Config
from fusetune.training.deadline import Deadline


class Clock:
    """Seconds that pass only where something is asked for the time."""

    def __init__(self, step):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


@pytest.fixture
def ticking(monkeypatch):
    """`ticking(step)` has every look at the clock of a fit's deadline take so many seconds."""

    def begin(step):
        clock = Clock(step)
        monkeypatch.setattr(api, "Deadline", lambda minutes, start: Deadline(minutes, clock=clock, start=0.0))

    return begin


@pytest.fixture(scope="module")
def table(tmp_path_factory, write_csv):
    rng, rows = np.random.default_rng(0), []
    for place in range(200):
        x, z = rng.normal(size=2)
        mark, size = ("hi" if x + 0.3 * rng.normal() > 0 else "lo"), round(3 * x + z, 2)
        rows.append({"x": round(x, 3), "z": round(z, 3), "c": "pq"[place % 2], "mark": mark, "size": size})
    return write_csv(tmp_path_factory.mktemp("minutes") / "train.csv", rows)


def fit(table, quick, out, *targets, **more):
    trainer = {"epochs": 0, "head_epochs": 30, "trackers": [], "patience": None, "minutes": 1}
    settings = quick | {"trainer": trainer} | more
    return api.fit(str(table), target=list(targets), out=out, config=settings, progress=False)


def said(tuned):
    return " ".join(tuned.results.warnings)


def test_a_fit_within_its_time_is_the_fit_without_a_limit(table, quick, tmp_path):
    limited = fit(table, quick, tmp_path / "limited", "mark", "size")
    free = fit(
        table,
        quick,
        tmp_path / "free",
        "mark",
        "size",
        trainer={"epochs": 0, "head_epochs": 30, "trackers": [], "patience": None},
    )
    assert "trainer.minutes" not in said(limited)
    weights = zip(limited.bundle.model.state_dict().values(), free.bundle.model.state_dict().values(), strict=True)
    assert all(one.equal(other) for one, other in weights)


@pytest.mark.filterwarnings("ignore:The time for training")
def test_training_stops_at_its_share_and_keeps_the_best_step(table, quick, tmp_path, ticking):
    ticking(2.0)
    tuned = fit(table, quick, tmp_path / "model", "mark", "size")
    curve = tuned.results.curve
    last = max(point.step for point in curve.points)
    assert 0 < last <= 48 / 2  # four fifths of a minute, two seconds an update
    assert "time for training was up" in said(tuned)
    tested = api.load(tmp_path / "model").predict(str(table))
    assert len(tested) == 200


@pytest.mark.filterwarnings("ignore:The time for training")
def test_the_report_names_the_models_that_there_was_no_time_for(table, quick, tmp_path, ticking):
    ticking(2.0)
    tuned = fit(table, quick, tmp_path / "model", "mark", "size", report=quick["report"] | {"single": True})
    assert all(task.first("single") is None and task.first("after") for task in tuned.results.tasks)
    assert "mark by a model of its own, size by a model of its own" in said(tuned)
    assert "model of its own" in (tmp_path / "model" / "report.html").read_text()


@pytest.mark.filterwarnings("ignore:The time for training")
def test_no_encoder_is_tuned_once_the_time_is_up(tiny, shop_tables, quick, tmp_path, ticking):
    ticking(60.0)
    settings = quick | {
        "text": {"name": str(tiny("bert"))},
        "columns": {name: {"role": "ignore"} for name in ("photo", "voice")},
        "trainer": {"epochs": 2, "head_epochs": 2, "minutes": 1, "trackers": [], "soup": 2},
        "report": quick["report"] | {"alone": "tuned", "attack": {"name": "fgm"}},
    }
    given = {name: str(path) for name, path in shop_tables.items()}
    tuned = api.fit(given.pop("train"), target="label", config=settings, out=tmp_path / "m", progress=False, **given)
    task = tuned.results.tasks[0]
    assert not any(used.trained for used in tuned.results.backbones if used.kind == "text")
    assert not task.all("alone") and not task.all("attack")
    assert "tune stage was left out" in said(tuned)
    assert "text alone, tabular alone, the attack" in said(tuned)
    assert task.main(task.first("after")).value >= 0


@pytest.mark.filterwarnings("ignore:The time for training")
def test_no_further_fusion_is_tried_once_its_share_is_spent(table, quick, tmp_path, ticking):
    ticking(2.0)
    fusion = {"name": "auto", "dim": 16, "candidates": ["mean", "concat", "gated"]}
    choice = fit(
        table, quick, tmp_path / "model", "mark", fusion=fusion, columns={"size": {"role": "ignore"}}
    ).results.choice
    assert choice.cut and choice.candidates[0].tried and not choice.candidates[-1].tried
    assert "trainer.minutes" in choice.said


@pytest.mark.filterwarnings("ignore:The time for training")
@pytest.mark.parametrize(("step", "grown"), [(0.2, True), (60.0, False)])
def test_trees_take_what_is_left(table, quick, tmp_path, ticking, step, grown):
    pytest.importorskip("lightgbm")
    ticking(step)
    trainer = {"epochs": 0, "head_epochs": 2, "trackers": [], "minutes": 0.25}
    fusion = {"name": "stack", "base": {"name": "concat", "dim": 16}, "rounds": 500}
    columns = {"mark": {"role": "ignore"}}
    tuned = fit(table, quick, tmp_path / "model", "size", fusion=fusion, trainer=trainer, columns=columns)
    used = tuned.results.tasks[0].stack
    assert (used.trees > 0) == grown and used.trees < 75  # 0.9 of 15 seconds, a fifth of a second a round
    assert ("time was up" in used.said) == (not grown)


@pytest.mark.parametrize("minutes", [0, -1, "soon"])
def test_the_limit_is_a_positive_number(minutes):
    with pytest.raises(Exception, match=r"trainer\.minutes"):
        Config.build({"trainer": {"minutes": minutes}})
