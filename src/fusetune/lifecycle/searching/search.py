"""Search the settings of a fit: trials on train and validation rows, the winner against the settings as they are."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusetune.config.config import Config
from fusetune.config.space import Choice
from fusetune.data.table import Source
from fusetune.deploy.bundle import write_text
from fusetune.errors import ConfigError, FusetuneError, RunError, UserError
from fusetune.lifecycle.searching.compare import compare_settings
from fusetune.lifecycle.searching.job import Job, check_folder, metric_of, read_job, score
from fusetune.lifecycle.searching.report import Searched, shown
from fusetune.lifecycle.searching.trials import Claim, Pruned, Pruner, Sampler, Trials
from fusetune.training.callbacks import Callback, Check
from fusetune.training.deadline import Deadline
from fusetune.training.progress import print_line


class OutOfTime(Exception):
    """The time of the search was up within a trial, which goes on when the search is run again."""


@dataclass
class TrialWatch(Callback):
    """Reports a trial's validation curve, and ends the trial if it is to be pruned or the time is up.

    Attributes:
        claim: the trial.
        evals: evaluations an epoch.
        deadline: of the search.
    """

    claim: Claim
    evals: int
    deadline: Deadline

    def on_update(self, step: int, losses: dict[str, float], lr: float, figures: dict[str, float]) -> None:
        """End the trial if the time is up."""
        if self.deadline.passed():
            raise OutOfTime

    def on_check(self, check: Check) -> None:
        """Report the score, once the encoders move too: the stage before is short, and differs in length."""
        if check.stage == "tune":
            self.claim.report(check.score, round(check.epoch * self.evals))


def search_settings(
    train: Source | list[Source] | None = None,
    target: str | Sequence[str] | None = None,
    *,
    out: str | Path,
    space: str | Path | Mapping[str, Any] | None = None,
    val: Source | None = None,
    test: Source | None = None,
    config: Config | Mapping[str, Any] | str | Path | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    trials: int = 50,
    minutes: float | None = None,
    sampler: Sampler = "tpe",
    pruner: Pruner = "median",
    storage: str | None = None,
    seeds: int = 3,
    progress: bool = True,
) -> Searched:
    """Search the settings of a fit by the main metric on validation rows.

    The first trial has the settings as they are. The best trial is tuned again with several seeds, beside the settings
    as they are with the same seeds; the settings with the better mean on validation rows are the result, and test rows
    measure both once. Trials of several processes with the same folder are shared. A search that was stopped goes on.

    Args:
        train, target, val, test, config, overrides: as for `fit`. Rows are split once, for all trials.
        out: the folder for search.html, search.json, best.yaml and the trials.
        space: a YAML file or a mapping, see `read_space`; None searches learning rates, epochs, batch size, freezing,
            adapters, fusion, dropout and the weights of objectives, but no setting that is given.
        trials: how many, those of earlier calls and other processes included; at least 1.
        minutes: time for the trials of this call; a trial that is under way then goes on in the next call. Tuning the
            winner again takes time besides. None: no limit.
        sampler: "tpe", "random" or "grid".
        pruner: "median" ends a trial whose best score so far is below the median of others at the same epoch;
            "hyperband"; "none".
        storage: a database's URL, or the file of a journal, that machines share; None: a journal in the folder.
        seeds: of the comparison at the end; 0 leaves it out.
        progress: whether to print a line a trial on standard error.

    Raises:
        MissingExtra: Optuna is not installed (the extra `search`).
        ConfigError: settings, space or storage are wrong, or the folder has a search of other settings or rows.
        RunError: no trial was finished.

    Example:
        >>> searched = search_settings("train.csv", "rating", out="searched", trials=20)  # doctest: +SKIP
        >>> print(searched.headline)  # doctest: +SKIP

    Reference:
        Bergstra et al. 2011, Algorithms for hyper-parameter optimization (TPE); Akiba et al. 2019, Optuna, arXiv
        1907.10902.
    """
    if trials < 1 or seeds < 0 or (minutes is not None and minutes <= 0):
        raise ConfigError(
            "an argument is out of range",
            expected="trials of 1 or more, seeds of 0 or more, minutes above 0",
            came=f"{trials=}, {seeds=}, {minutes=}",
        )
    folder, deadline = Path(out), Deadline(minutes)
    given = {"train": train, "val": val, "test": test, "catalogue": None, "users": None}
    job = read_job(given, target, config, overrides, space)
    name = check_folder(folder, job, sampler)
    warmup = max(1, job.settings.trainer.evals_per_epoch)
    options: dict[str, Any] = {"sampler": sampler, "pruner": pruner, "storage": storage}
    shared = Trials(folder, name, job.space, seed=job.settings.seed, warmup=warmup, **options)
    shared.begin(job.current)
    in_time = _run(shared, job, trials, deadline, progress)
    result = _result(job, shared)
    if not in_time:
        result.notes.append(f"The time was up after {minutes:g} minutes; the next call goes on with the search.")
    running = sum(trial.state == "running" for trial in result.trials)
    if running:
        result.notes.append(f"Other processes run {running} of the trials.")
    if result.best is not None and not (running and storage is None) and seeds:
        result.comparison = compare_settings(folder, job, result.best_trial.params, seeds, progress)
    if result.best is not None:
        chosen = result.best_trial.params if result.found_better else None
        result.settings = job.best_settings(chosen).to_yaml()
    result.save(folder)
    if result.best is None and not running:
        _refuse(result, in_time)
    return result


def _run(shared: Trials, job: Job, limit: int, deadline: Deadline, progress: bool) -> bool:
    """Run trials until there are enough; return False if the time was up before."""
    while not deadline.passed():
        claim = shared.claim(limit)
        if claim is None:
            return True
        try:
            _run_trial(shared, claim, job, deadline, progress)
        except OutOfTime:
            return False
        finally:
            claim.lock.release()
    return False


def _run_trial(shared: Trials, claim: Claim, job: Job, deadline: Deadline, progress: bool) -> None:
    """Tune with a trial's parameters and record how it ended.

    Raises:
        UserError: the settings as they are cannot be tuned with.
        OutOfTime, Interrupted: it was stopped; it goes on when the search is run again.
    """
    start, number = time.monotonic(), claim.trial.number
    value, how, reason = shared.same(claim.params), "", ""
    if value is not None:
        how = "as an earlier trial"
    else:
        watch = TrialWatch(claim, job.settings.trainer.evals_per_epoch, deadline)
        try:
            tuned = job.fit(claim.folder, claim.params, seed=job.settings.seed, callbacks=[watch])
            value = score(tuned)
            shared.set_metric(metric_of(tuned))
            reason = "" if math.isfinite(value) else "the metric on validation rows is not defined"
        except Pruned:
            how = "pruned"
        except (FusetuneError, RuntimeError, MemoryError) as error:
            if claim.is_current and isinstance(error, UserError):
                shared.tell(claim, None, seconds=time.monotonic() - start, reason=str(error))
                raise
            reason = str(error) or type(error).__name__
    _keep_record(claim, shared, job)
    shared.tell(claim, value if not reason else None, seconds=time.monotonic() - start, reason=reason)
    if progress:
        came = f"failed: {reason.splitlines()[0]}" if reason else how if value is None else f"{value:.4f} {how}"
        params = ", ".join(f"{key}={shown(part)}" for key, part in claim.params.items())
        print_line(f"trial {number}: {came.strip()} in {time.monotonic() - start:.0f} s ({params})")


def _keep_record(claim: Claim, shared: Trials, job: Job) -> None:
    """Delete a trial's model, which is large, and leave its settings and its validation curve."""
    shutil.rmtree(claim.folder, ignore_errors=True)
    claim.folder.mkdir(parents=True)
    write_text(claim.folder / "settings.yaml", job.best_settings(claim.params).to_yaml())
    (record,) = [record for record in shared.records() if record.number == claim.trial.number]
    write_text(claim.folder / "history.json", json.dumps(record.curve))


def _result(job: Job, shared: Trials) -> Searched:
    """Return what the trials have come to."""
    trials = shared.records()
    complete = [trial for trial in trials if trial.state == "complete" and trial.value is not None]
    best = max(complete, key=lambda trial: trial.value or 0.0).number if complete else None
    current = next((trial.number for trial in complete if trial.params == job.current), None)
    labels = {key: part.labels for key, part in job.space.items() if isinstance(part, Choice)}
    source = job.rows["train"].source
    return Searched(source, shared.metric, trials, current, best, shared.importance(), labels, notes=[*job.notes])


def _refuse(result: Searched, in_time: bool) -> None:
    """Say why no trial was finished.

    Raises:
        ConfigError: the time was up.
        RunError: all trials failed.
    """
    failed = next((trial.reason for trial in result.trials if trial.reason), None)
    if failed is not None:
        raise RunError(f"none of {len(result.trials)} trials was finished; the first failed: {failed}")
    if not in_time:
        raise ConfigError(
            "the time was up before a trial was finished",
            do="run the search again, which goes on with the trial, or give more --minutes",
        )
