"""The search of settings: what trials see, what stops and goes on, what it says, the files and the verb."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

import fusetune as ft
from fusetune.cli.main import app
from fusetune.config.config import Config
from fusetune.errors import ConfigError, NonFiniteLoss, RunError
from fusetune.evaluation.results import Interval
from fusetune.lifecycle.searching import job as search_job
from fusetune.lifecycle.searching.compare import Comparison, Measured, _measured
from fusetune.lifecycle.searching.report import Searched
from fusetune.lifecycle.searching.trials import TrialRecord
from fusetune.testing.tiny_models import WORDS

SPACE = {"trainer.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "fusion": ["attention", "gated"]}
SETTINGS = {"data": {"cache": "none"}, "trainer": {"epochs": 0, "head_epochs": 8, "lr": 1e-4}}
OPTIONS = {"progress": False, "space": SPACE, "config": SETTINGS, "sampler": "random"}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 2))
    label = np.where(x[:, 0] * x[:, 1] > 0, "yes", "no")
    path = tmp_path_factory.mktemp("search") / "t.csv"
    pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "label": label}).to_csv(path, index=False)
    return path


@pytest.fixture
def fits(monkeypatch):
    """Stands in for `fit`: the value is that of a smooth function of the learning rate; notes each call."""
    calls = []

    def fit(train, target, *, val, test, overrides, out, **options):
        calls.append(SimpleNamespace(train=train, val=val, test=test, overrides=overrides, out=out))
        if (hook := fits_hook.get("before")) is not None:
            hook(len(calls) - 1, options)
        value = 1 - abs(np.log10(overrides["trainer"].get("lr", 1e-3)) + 2.5) / 10
        system = SimpleNamespace()
        task = SimpleNamespace(metric="accuracy", greater_is_better=True, first=lambda kind: system)
        task.main = lambda system: SimpleNamespace(value=value)
        return SimpleNamespace(results=SimpleNamespace(tasks=[task]))

    fits_hook = {}
    monkeypatch.setattr(search_job, "fit", fit)
    return SimpleNamespace(calls=calls, hook=fits_hook)


@pytest.fixture(scope="module")
def searched(table, tmp_path_factory):
    out = tmp_path_factory.mktemp("searched")
    return out, ft.search_settings(table, "label", out=out, trials=3, seeds=2, **OPTIONS)


def test_files_hold_the_result(searched, table):
    out, result = searched
    content = json.loads((out / "search.json").read_text())
    assert content["headline"] == result.headline and len(content["trials"]) == 3
    page = (out / "search.html").read_text()
    assert "Parallel coordinates" in page and page.count("<svg") >= 2
    best = Config.from_yaml(out / "best.yaml")
    assert (best.train, best.target, best.out) == ([str(table)], ["label"], None)
    chosen = result.best_trial.params if result.found_better else {"trainer.lr": 1e-4}
    assert best.trainer.lr == pytest.approx(chosen["trainer.lr"]) and best.report == Config().report
    assert {path.name for path in (out / "trials").rglob("*") if path.is_file()} == {"settings.yaml", "history.json"}


def test_the_value_is_the_metric_on_validation_rows(searched, table, tmp_path):
    _, result = searched
    record = result.trials[1]
    settings = {"trainer": {"lr": record.params["trainer.lr"], "trackers": []}, "fusion": record.params["fusion"]}
    tuned = ft.fit(table, "label", config=SETTINGS, overrides=settings, out=tmp_path / "run", progress=False)
    curve = tuned.results.curve
    assert record.value == pytest.approx(
        next(point.val_metric for point in curve.points if point.step == curve.best_step)
    )


def test_the_winner_and_the_settings_as_they_are_have_the_same_seeds_and_test_rows(searched):
    _, result = searched
    assert result.best != result.current, "the settings as they are learn too slowly for a product"
    (test,) = result.comparison.tests
    assert result.comparison.seeds == [0, 1] and len(test.current) == len(test.best) == 2 and test.rows == 15
    gain = np.mean(test.best) - np.mean(test.current)
    assert test.difference.value == pytest.approx(gain) and test.difference.low <= gain <= test.difference.high
    assert result.comparison.best[0] == result.best_trial.value


def test_a_finished_search_computes_nothing_again(searched, table, monkeypatch):
    out, result = searched

    def refuse(*args, **kwargs):
        raise AssertionError("tuned again")

    monkeypatch.setattr(search_job, "fit", refuse)
    again = ft.search_settings(table, "label", out=out, trials=3, seeds=2, **OPTIONS)
    assert again.to_json() == result.to_json()


def test_trials_never_see_test_rows(table, tmp_path, fits):
    ft.search_settings(table, "label", out=tmp_path, trials=4, seeds=0, **OPTIONS)
    assert len(fits.calls) == 4
    for call in fits.calls:
        rows = [set(call.train.rows.tolist()), set(call.val.rows.tolist())]
        assert call.test is call.val and (len(rows[0]), len(rows[1])) == (120, 15) and not rows[0] & rows[1]
        assert call.overrides["seed"] == 0


def test_a_stopped_trial_goes_on_in_its_folder(table, tmp_path, fits):
    def stop(number, options):
        if number == 2:
            raise KeyboardInterrupt

    fits.hook["before"] = stop
    with pytest.raises(KeyboardInterrupt):
        ft.search_settings(table, "label", out=tmp_path, trials=4, seeds=0, **OPTIONS)
    stopped = fits.calls[-1]
    fits.hook.clear()
    result = ft.search_settings(table, "label", out=tmp_path, trials=4, seeds=0, **OPTIONS)
    assert fits.calls[3].out == stopped.out and fits.calls[3].overrides == stopped.overrides
    assert len(result.trials) == 4 and len(fits.calls) == 5


def test_a_trial_stopped_by_the_time_goes_on_to_the_same_value(tiny, tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    words = rng.choice(WORDS, (90, 4))
    rows = pd.DataFrame(
        {"text": [" ".join(row) for row in words], "label": [str(row[0] in WORDS[:20]) for row in words]}
    )
    config = {"text": tiny("bert"), "data": {"cache": "none"}, "trainer": {"head_epochs": 1, "checkpoint_minutes": 0}}
    options = {"progress": False, "config": config, "space": {"trainer.epochs": [2, 3]}, "trials": 1, "seeds": 0}
    whole = ft.search_settings(rows, "label", out=tmp_path / "whole", **options)
    passed = iter([False] * 5)
    with monkeypatch.context() as patch:
        patch.setattr(
            "fusetune.training.deadline.Deadline.passed", lambda self: self.minutes is not None and next(passed, True)
        )
        with pytest.raises(ConfigError, match="time was up"):
            ft.search_settings(rows, "label", out=tmp_path / "cut", minutes=1, **options)
    assert any((tmp_path / "cut" / "trials" / "0000" / "checkpoints").glob("tune/*"))
    result = ft.search_settings(rows, "label", out=tmp_path / "cut", **options)
    assert result.trials[0].value == whole.trials[0].value and result.trials[0].curve == whole.trials[0].curve


def test_a_search_of_something_else_is_refused(table, tmp_path, fits):
    ft.search_settings(table, "label", out=tmp_path, trials=1, seeds=0, **OPTIONS)
    other = {**OPTIONS, "space": {"trainer.lr": SPACE["trainer.lr"]}}
    with pytest.raises(ConfigError, match="other space"):
        ft.search_settings(table, "label", out=tmp_path, trials=1, seeds=0, **other)
    with pytest.raises(ConfigError, match=r"other settings \(trainer\)"):
        ft.search_settings(table, "label", out=tmp_path, trials=1, overrides=["trainer.warmup=0.2"], **OPTIONS)
    fewer = pd.read_csv(table)[:100]
    with pytest.raises(ConfigError, match="rows"):
        ft.search_settings(fewer, "label", out=tmp_path, trials=1, seeds=0, **OPTIONS)


def test_trials_that_fail_are_recorded_and_the_search_goes_on(table, tmp_path, fits):
    def fail(number, options):
        if number in (1, 2):
            raise [NonFiniteLoss("the loss is NaN"), MemoryError()][number - 1]

    fits.hook["before"] = fail
    result = ft.search_settings(table, "label", out=tmp_path, trials=4, seeds=0, **OPTIONS)
    assert [trial.reason for trial in result.trials] == ["", "the loss is NaN", "MemoryError", ""]
    assert "the loss is NaN" in (tmp_path / "search.html").read_text()


def test_a_search_without_a_finished_trial_says_why(table, tmp_path, fits):
    def fail(number, options):
        raise NonFiniteLoss("the loss is NaN")

    fits.hook["before"] = fail
    with pytest.raises(RunError, match="the loss is NaN"):
        ft.search_settings(table, "label", out=tmp_path, trials=2, seeds=0, **OPTIONS)


def test_mistakes_in_the_settings_end_the_search(table, tmp_path):
    wrong = {**OPTIONS, "config": {**SETTINGS, "trainer": {"metric": "f2"}}}
    with pytest.raises(ConfigError, match="f2"):
        ft.search_settings(table, "label", out=tmp_path / "a", trials=2, seeds=0, **wrong)
    with pytest.raises(ConfigError, match="out of range"):
        ft.search_settings(table, "label", out=tmp_path / "b", trials=0, **OPTIONS)
    with pytest.raises(ConfigError, match="validation rows"):
        split = {**OPTIONS, "config": {"data": {"split": [1, 0, 0]}}}
        ft.search_settings(table, "label", out=tmp_path / "c", **split)


def test_equal_parameters_are_not_tuned_twice(table, tmp_path, fits):
    options = {**OPTIONS, "space": {"trainer.batch_size": [8, 32]}}
    result = ft.search_settings(table, "label", out=tmp_path, trials=8, seeds=0, **options)
    assert len(result.trials) == 8 and len(fits.calls) == 2


def make_result(best, current, tests=()):
    trials = [
        TrialRecord(0, "complete", {"trainer.lr": 1e-3}, 0.7),
        TrialRecord(1, "complete", {"trainer.lr": 1e-2}, 0.8),
    ]
    comparison = Comparison({"trainer.lr": 1e-2}, [0, 1], current, best, list(tests))
    return Searched("t.csv", "accuracy", trials, 0, 1, {}, {}, comparison)


def measured(low, high):
    return Measured("label", "accuracy", True, 100, [0.7, 0.7], [0.75, 0.75], Interval((low + high) / 2, low, high))


def test_the_headline_says_whether_it_helped():
    assert "did not help" in make_result([0.7, 0.6], [0.7, 0.7]).headline
    assert not make_result([0.7, 0.6], [0.7, 0.7]).found_better
    for low, high, words in (
        (0.01, 0.09, "helped"),
        (-0.01, 0.09, "chance"),
        (-0.09, -0.01, "fitted the validation rows"),
    ):
        result = make_result([0.8, 0.8], [0.7, 0.7], [measured(low, high)])
        assert words in result.headline and result.found_better
    result = make_result([0.8, 0.8], [0.7, 0.7])
    result.best, result.comparison = 0, None
    assert "did not help" in result.headline and not result.found_better


def test_the_verb_prints_the_result(searched, table, tmp_path):
    out, result = searched
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**SETTINGS, "train": str(table), "target": "label"}))
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    given = ["search-settings", str(tmp_path / "config.yaml"), "--space", str(tmp_path / "space.yaml"), "--trials", "3"]
    done = CliRunner().invoke(app, [*given, "--sampler", "random", "--seeds", "2", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["best"] == result.best
    done = CliRunner().invoke(app, [*given, "--sampler", "random", "--seeds", "2", "--out", str(out)])
    assert done.exit_code == 0 and result.headline.split(":")[0] in done.stdout


@pytest.mark.parametrize(("greater", "gain"), [(True, -1.25), (False, 1.25)])
def test_a_difference_without_rows_is_above_0_where_the_best_trial_is_better(greater, gain):
    """As of models that write or compare pairs: a metric by seed, of which less may be better."""
    current, best = ([{"y": ("m", greater, 10, value)} for value in side] for side in ((2.0, 3.0), (1.0, 1.5)))
    (found,) = _measured(current, best)
    assert found.difference.value == gain and (found.current, found.best) == ([2.0, 3.0], [1.0, 1.5])
