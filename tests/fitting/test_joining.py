"""`text.join: auto`: both readings of two texts are tuned, and validation rows choose."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import fusetune as ft
from fusetune.errors import ConfigError
from fusetune.evaluation.decisions import ReadingTried
from fusetune.fitting import joining
from fusetune.fitting.findings import Findings
from fusetune.tasks.base import Metric

FIRST, OTHERS = ["w1", "w2", "w3", "w4"], ["w10", "w11", "w12", "w13", "w14"]


def pairs(rows, seed, names=("text_a", "text_b")):
    """Two texts, and whether they begin with the same word."""
    rng, table = np.random.default_rng(seed), []
    for _ in range(rows):
        first = str(rng.choice(FIRST))
        second = first if rng.random() < 0.5 else str(rng.choice(FIRST))
        texts = [" ".join([word, *rng.choice(OTHERS, 3)]) for word in (first, second)]
        table.append(
            {**dict(zip(names, texts, strict=True)), "size": int(rng.integers(9)), "same": str(first == second)}
        )
    return pd.DataFrame(table)


def settings(tiny, probe="columns", **text):
    return {
        "target": ["same"],
        "text": {"name": tiny("bert"), **text},
        "trainer": {"epochs": 1, "head_epochs": 2, "batch_size": 32, "checkpoint_minutes": 0, "probe": probe},
        "report": {"bootstrap": 50, "alone": "none"},
    }


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(joining, "MIN_ROWS", 20)
    monkeypatch.setattr(joining, "MIN_VAL_ROWS", 10)


@pytest.fixture(scope="module")
def fitted(tiny, tmp_path_factory):
    """Fits 60 train rows with these settings of texts; with the names of columns and an output folder."""

    def fit(out=None, names=("text_a", "text_b"), resume=None, **text):
        tables = {split: pairs(rows, seed, names) for split, rows, seed in (("val", 20, 1), ("test", 20, 2))}
        out, config = out or tmp_path_factory.mktemp("runs") / "run", settings(tiny, **text)
        return ft.fit(pairs(60, 0, names), **tables, out=out, config=config, resume=resume)

    return fit


@pytest.fixture(scope="module")
def named(fitted):
    """Fits whose reading the settings name."""
    return {"apart": fitted(join=[]), "together": fitted(join=[["text_a", "text_b"]])}


def choosing(monkeypatch, name):
    """Let the choice fall on one of the readings, whatever the scores."""
    choose = joining.choose

    def chosen(fit, trials, num_rows):
        choice = choose(fit, trials, num_rows)
        choice.chosen = name
        return choice

    monkeypatch.setattr(joining, "choose", chosen)


def inputs(tuned):
    return [name for name in tuned.bundle.modalities if name != "size"]


def answers(tuned):
    return tuned.predict(pairs(15, 3)).table


def test_a_pair_by_its_names_is_tuned_both_ways(fitted):
    tuned = fitted()
    choice = tuned.results.reading
    assert [item.name for item in choice.tried] == ["apart", "together"] and choice.num_rows == 60
    assert all(math.isfinite(item.score) for item in choice.tried)
    expected = ["text_a", "text_b"] if choice.chosen == "apart" else ["text_a + text_b"]
    assert inputs(tuned) == expected
    report = json.loads((tuned.folder / "report.json").read_text())
    assert report["reading"]["said"] == choice.said
    assert choice.said in (tuned.folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["apart", "together"])
def test_the_chosen_model_is_the_one_that_the_setting_gives(fitted, named, monkeypatch, name):
    choosing(monkeypatch, name)
    chosen = fitted()
    assert inputs(chosen) == inputs(named[name])
    assert answers(chosen).equals(answers(named[name]))
    assert answers(ft.load(chosen.folder)).equals(answers(chosen))
    assert named[name].results.reading is None


def test_a_stopped_trial_goes_on_to_the_same_model(fitted, named, monkeypatch, tmp_path):
    choosing(monkeypatch, "together")
    trial = joining._trial

    def stopped(candidate, fusion, *, whole):
        if candidate.name == "together":
            raise KeyboardInterrupt
        return trial(candidate, fusion, whole=whole)

    monkeypatch.setattr(joining, "_trial", stopped)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "run")
    monkeypatch.setattr(joining, "_trial", trial)
    assert answers(fitted(tmp_path / "run", resume=True)).equals(answers(named["together"]))


def test_a_trial_on_some_rows_leaves_the_training_to_the_chosen_reading(fitted, named, monkeypatch):
    monkeypatch.setattr(joining, "MAX_ROWS", 30)
    monkeypatch.setattr(joining, "TRIAL_ROWS", 25)
    choosing(monkeypatch, "together")
    chosen = fitted()
    assert chosen.results.reading.num_rows == 25
    assert answers(chosen).equals(answers(named["together"]))


def test_before_is_the_best_frozen_reading_on_validation_rows(fitted, monkeypatch):
    seen, frozen = [], Findings._frozen

    def spied(findings, name, task):
        best, rows = frozen(findings, name, task)
        for fit in (findings.fit, findings.fit.apart):
            val = fit.rows[name]["val"]
            seen.append((task.main_value(fit.probes[name].scores(val), val.truth), fit is best, list(fit.modalities)))
        return best, rows

    monkeypatch.setattr(Findings, "_frozen", spied)
    before = fitted(join=[["text_a", "text_b"]], probe="auto").results.tasks[0].first("before")
    assert {tuple(columns) for _, _, columns in seen} == {("size", "text_a + text_b"), ("text_a", "text_b", "size")}
    best = max(seen, key=lambda item: item[0])
    assert best[1] and before.columns == best[2]


def test_auto_takes_two_texts_of_any_name(fitted, monkeypatch):
    tuned = fitted(names=("title", "body"), join="auto")
    assert tuned.results.reading.columns == ["title", "body"] and len(tuned.results.reading.tried) == 2


def test_auto_says_why_it_tries_nothing(fitted, monkeypatch):
    monkeypatch.setattr(joining, "MIN_ROWS", 1000)
    few = fitted(join="auto").results.reading
    assert few.chosen == "apart" and not few.tried and "1000" in few.said
    assert fitted(join="auto", freeze="all").results.reading.chosen == "apart"


def test_a_dry_run_says_that_both_are_tuned(tiny):
    tables = {split: pairs(20, seed) for split, seed in (("val", 1), ("test", 2))}
    both = ft.dry_run(pairs(60, 0), **tables, config=settings(tiny), progress=False)
    named = ft.dry_run(pairs(60, 0), **tables, config=settings(tiny, join=[]), progress=False)
    assert any("text_a and text_b" in note for note in both.notes)
    assert not any("text_a" in note for note in named.notes)


def test_auto_without_two_texts_is_refused(tiny, tmp_path):
    table = pairs(60, 0).drop(columns="text_b")
    with pytest.raises(ConfigError, match="text_a"):
        ft.fit(table, config=settings(tiny, join="auto"), out=tmp_path / "run")


@pytest.mark.parametrize(
    ("apart", "together", "chosen"),
    [(0.80, 0.85, "together"), (0.80, 0.81, "apart"), (0.8, 0.7, "apart"), (0.8, math.nan, "apart")],
)
def test_together_must_be_better_by_more_than_chance(apart, together, chosen):
    fit = SimpleNamespace(
        tables=SimpleNamespace(pair=("one", "two")), targets={"x": SimpleNamespace(main=Metric("r2"))}
    )
    scores = {"apart": apart, "together": together}
    trials = [joining.Trial(ReadingTried(name, score, 1.0), 0.02, None) for name, score in scores.items()]
    assert joining.choose(fit, trials, 100).chosen == chosen
