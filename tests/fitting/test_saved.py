"""The tuned model is saved before it is compared: a fault in the report loses nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from fusetune import api
from fusetune.cli.main import app
from fusetune.errors import ReportError, TableError
from fusetune.fitting import findings, understand
from fusetune.training.loop import run_stage


@pytest.fixture(scope="module")
def table(tmp_path_factory, write_csv):
    rng, rows = np.random.default_rng(0), []
    for place in range(120):
        x, z = rng.normal(size=2)
        rows.append({"x": round(x, 2), "z": round(z, 2), "plan": "pq"[place % 2], "mark": "hi" if x > 0 else "lo"})
    return write_csv(tmp_path_factory.mktemp("saved") / "train.csv", rows)


@pytest.fixture
def settings(quick):
    return quick | {"trainer": {"epochs": 0, "head_epochs": 3, "trackers": []}}


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def planted(*_args, **_more):
    raise ZeroDivisionError("planted")


PLACES = {
    "a model is compared": (findings, "judge"),
    "the page is written": (api, "write_report"),
    "an alone model is trained": (understand, "alone_models"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_crash_after_training_costs_no_training(table, settings, tmp_path, monkeypatch, place):
    out = tmp_path / "model"
    whole = api.fit(str(table), target="mark", out=tmp_path / "whole", config=settings, progress=False)
    with monkeypatch.context() as patched, pytest.raises(ReportError, match="planted") as told:
        patched.setattr(*PLACES[place], planted)
        api.fit(str(table), target="mark", out=out, config=settings, progress=False)
    assert str(out) in str(told.value) and "fusetune report" in str(told.value)
    assert api.load(out).predict(str(table)).table == whole.predict(str(table)).table

    monkeypatch.setattr("fusetune.training.stages.run_stage", planted)  # the tuned model is not trained again
    monkeypatch.setattr(understand, "alone_models", lambda fit: {})
    before = weights(out)
    answer = CliRunner().invoke(app, ["report", str(out)], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    assert weights(out) == before == weights(tmp_path / "whole")
    ours, theirs = (json.loads((folder / "report.json").read_text()) for folder in (out, tmp_path / "whole"))
    assert ours["curve"] == theirs["curve"]
    kinds = {system["kind"] for system in ours["tasks"][0]["systems"]}
    assert kinds >= {"baseline", "before", "after"}
    assert not (out / "checkpoints").exists() and (out / "report.html").is_file()
    assert json.loads((out / "bundle.json").read_text())["metrics"]["mark"]["accuracy"] > 0.5


def test_the_stage_that_the_test_plants_its_crash_in_is_the_one_that_trains():
    from fusetune.training import stages

    assert stages.run_stage is run_stage


def test_alignment_is_saved_before_it_is_compared(table, settings, tmp_path, monkeypatch):
    out = tmp_path / "model"
    more = {"objectives": {"contrastive": {}}, "columns": {"plan": {"kind": "category"}}}
    with monkeypatch.context() as patched, pytest.raises(ReportError, match="planted"):
        patched.setattr("fusetune.fitting.match.judge", planted)
        api.fit(str(table), target=[], out=out, config=settings | more, progress=False)
    before = weights(out)
    tuned = api.resume(out, progress=False)
    assert weights(out) == before and tuned.results.tasks[0].first("after") is not None


def test_a_slice_that_no_table_has_is_refused_before_training(table, settings, tmp_path, monkeypatch):
    monkeypatch.setattr("fusetune.training.stages.run_stage", planted)
    report = settings["report"] | {"slices": ["nowhere"]}
    with pytest.raises(TableError, match="nowhere"):
        api.fit(str(table), target="mark", out=tmp_path / "m", config=settings | {"report": report}, progress=False)


def test_beginning_anew_forgets_the_saved_model(table, settings, tmp_path, monkeypatch):
    out = tmp_path / "model"
    with monkeypatch.context() as patched, pytest.raises(ReportError):
        patched.setattr(findings, "judge", planted)
        api.fit(str(table), target="mark", out=out, config=settings, progress=False)
    changed = settings | {"seed": settings.get("seed", 0) + 1}
    anew = api.fit(str(table), target="mark", out=out, config=changed, resume=False, overwrite=True, progress=False)
    assert anew.results.seed == changed["seed"] and not (out / "checkpoints").exists()
