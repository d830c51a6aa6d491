"""Trials in Optuna's storage: shared, gone on with, pruned, counted."""

import numpy as np
import pytest

from fusetune.config.space import Choice, Range
from fusetune.errors import ConfigError
from fusetune.lifecycle.searching.trials import Pruned, Trials, grid_points

SPACE = {"trainer.lr": Range(low=1e-4, high=1e-2, log=True), "fusion": Choice(("gated", "concat"))}
CURRENT = {"trainer.lr": 1e-3, "fusion": "gated"}


def make_trials(folder, **options):
    given = {"storage": None, "sampler": "random", "pruner": "median", "seed": 0, "warmup": 1, **options}
    trials = Trials(folder, "study", given.pop("space", SPACE), **given)
    trials.begin(CURRENT)
    return trials


def test_the_settings_as_they_are_come_first(tmp_path):
    claim = make_trials(tmp_path).claim(5)
    assert claim.params == CURRENT and claim.is_current


def test_two_processes_share_the_trials(tmp_path):
    first, second = make_trials(tmp_path), make_trials(tmp_path)
    one, other = first.claim(3), second.claim(3)
    assert (one.trial.number, other.trial.number) == (0, 1) and one.params != other.params
    assert [record.state for record in second.records()] == ["running", "running"]
    second.tell(other, 0.5, seconds=1.0)
    assert [record.state for record in first.records()] == ["running", "complete"]
    last = first.claim(3)
    assert last.trial.number == 2
    assert second.claim(3) is None


def test_a_trial_of_a_dead_process_is_gone_on_with(tmp_path):
    first, second = make_trials(tmp_path), make_trials(tmp_path)
    claim = first.claim(2)
    claim.report(0.4, 1)
    claim.lock.release()  # as the system does when a process ends
    assert [record.state for record in second.records()] == ["stopped"]
    again = second.claim(2)
    assert (again.params, again.folder, again.is_current) == (claim.params, claim.folder, True)
    again.report(0.9, 1)  # the evaluation from before counts
    again.report(0.6, 2)
    second.tell(again, 0.6, seconds=1.0)
    (record,) = second.records()
    assert (record.state, record.value, record.curve) == ("complete", 0.6, {1: 0.4, 2: 0.6})


def test_a_trial_of_another_machine_is_left_to_it(tmp_path):
    storage = f"sqlite:///{tmp_path / 'trials.db'}"
    first, second = (make_trials(tmp_path / name, storage=storage) for name in ("a", "b"))
    claim = first.claim(5)
    claim.lock.release()
    assert second.records()[0].state == "running"
    other = second.claim(5)
    assert other.params != claim.params
    assert first.claim(5).folder == claim.folder


def test_draws_do_not_depend_on_the_process(tmp_path):
    params = []
    for name in ("a", "b"):
        trials = make_trials(tmp_path / name, sampler="tpe")
        for _ in range(12):
            trials = trials if name == "a" else make_trials(tmp_path / name, sampler="tpe")
            claim = trials.claim(12)
            params.append(claim.params)
            trials.tell(claim, -abs(np.log10(claim.params["trainer.lr"]) + 3), seconds=0.0)
    assert params[:12] == params[12:]
    assert len({str(one) for one in params}) == 12


def test_a_poor_curve_is_pruned_but_never_that_of_the_settings_as_they_are(tmp_path):
    trials = make_trials(tmp_path)
    current = trials.claim(20)
    for value in range(5):
        claim = trials.claim(20)
        claim.report(0.8 + value / 100, 3)
        trials.tell(claim, 0.8, seconds=0.0)
    current.report(0.1, 3)
    trials.tell(current, 0.1, seconds=0.0)
    poor, good = trials.claim(20), trials.claim(20)
    with pytest.raises(Pruned):
        poor.report(0.2, 3)
    good.report(0.9, 3)
    trials.tell(poor, None, seconds=0.0)
    assert [record.state for record in trials.records()][-2:] == ["pruned", "running"]


def test_hyperband_prunes_poor_curves(tmp_path):
    trials = make_trials(tmp_path, pruner="hyperband")
    for number in range(20):
        claim = trials.claim(20)
        value = 0.5 + (number % 5) / 10
        try:
            for step in range(1, 10):
                claim.report(value, step)
            trials.tell(claim, value, seconds=0.0)
        except Pruned:
            trials.tell(claim, None, seconds=0.0)
    states = [record.state for record in trials.records()]
    assert states[0] == "complete" and "pruned" in states
    assert all(record.state == "complete" for record in trials.records() if max(record.curve.values()) > 0.85)


def test_failed_trials_count_and_keep_their_reason(tmp_path):
    trials = make_trials(tmp_path)
    trials.tell(trials.claim(2), None, seconds=1.0, reason="out of memory")
    record = trials.records()[0]
    assert (record.state, record.reason, record.seconds) == ("failed", "out of memory", 1.0)
    assert trials.claim(1) is None and trials.claim(2) is not None


def test_a_grid_has_every_point_once(tmp_path):
    trials = make_trials(tmp_path, sampler="grid")
    seen = []
    while (claim := trials.claim(100)) is not None:
        seen.append(claim.params)
        trials.tell(claim, 0.0, seconds=0.0)
    assert len(seen) == 6
    assert sorted(map(str, seen)) == sorted(map(str, grid_points(SPACE)))
    with pytest.raises(ConfigError, match="points"):
        grid_points({str(index): Range(low=0.0, high=1.0, num=10) for index in range(5)})


def test_importance_names_the_setting_that_decides(tmp_path):
    trials = make_trials(tmp_path)
    for _ in range(20):
        claim = trials.claim(20)
        trials.tell(claim, float(claim.params["fusion"] == "concat"), seconds=0.0)
    importance = trials.importance()
    assert importance["fusion"] > 0.9 and sum(importance.values()) == pytest.approx(1)


def test_a_storage_that_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="storage"):
        make_trials(tmp_path, storage="nosuch://place")
