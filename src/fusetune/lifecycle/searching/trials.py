"""The trials of a search in Optuna's storage: claimed by one process each, gone on with after a kill."""

from __future__ import annotations

import math
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout

from fusetune._optional import optional_import
from fusetune.config.space import Choice, Parameter, Space
from fusetune.errors import ConfigError

Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["median", "hyperband", "none"]
JOURNAL = "journal.log"
MAX_GRID = 10_000
STARTUP = 10
"""Trials that TPE draws at random, and that are finished before the median prunes half as many later ones."""


class Pruned(Exception):
    """A trial's validation curve is worse than those of others, so it is ended."""


@dataclass
class Claim:
    """A trial that this process runs.

    Attributes:
        trial: Optuna's.
        params: by key, a number or the label of a choice.
        folder: of its fit; a trial that was stopped goes on in the folder that it had.
        lock: held as long as this process runs the trial.
        is_current: whether these are the settings as they are, which are never pruned.
        steps: the evaluations that were reported.
    """

    trial: Any
    params: dict[str, Any]
    folder: Path
    lock: FileLock
    is_current: bool = False
    steps: set[int] = field(default_factory=set, repr=False)

    def report(self, score: float, step: int) -> None:
        """Report a score on validation rows; the first one of an evaluation counts.

        Args:
            score: higher is better.
            step: the number of the evaluation.

        Raises:
            Pruned: the trial is to be ended.
        """
        if math.isfinite(score) and step not in self.steps:
            self.steps.add(step)
            self.trial.report(score, step)
            if not self.is_current and self.trial.should_prune():
                raise Pruned


@dataclass
class TrialRecord:
    """What became of a trial.

    Attributes:
        number: from 0.
        state: "complete", "pruned", "failed", "stopped" (it goes on when the search is run again) or "running".
        params: by key, a number or the label of a choice.
        value: the main metric on validation rows, of several targets the mean, with the sign changed where lower is
            better; None unless it is complete.
        curve: the score on validation rows by the number of the evaluation.
        seconds: of the fit, the time of a run before a stop not included; None if it did not end.
        reason: why it failed.
    """

    number: int
    state: str
    params: dict[str, Any]
    value: float | None = None
    curve: dict[int, float] = field(default_factory=dict)
    seconds: float | None = None
    reason: str = ""


class Trials:
    """The trials of a search.

    Args:
        folder: of the search.
        name: of the study; processes that share it share the trials.
        space: what is searched.
        storage: a database's URL, or the file of a journal; None is a journal in the folder.
        sampler: "tpe", "random" or "grid".
        pruner: "median", "hyperband" or "none".
        seed: of the sampler.
        warmup: evaluations before which no trial is pruned.

    Raises:
        MissingExtra: Optuna is not installed.
        ConfigError: the storage cannot be used, or the grid has too many points.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        space: Space,
        *,
        storage: str | None,
        sampler: Sampler,
        pruner: Pruner,
        seed: int,
        warmup: int,
    ) -> None:
        self.optuna = optional_import("optuna", "to search settings")
        self.optuna.logging.set_verbosity(self.optuna.logging.ERROR)
        self.folder, self.space, self.sampler, self.seed = folder, space, sampler, seed
        self.current: dict[str, Any] | None = None
        self.locks = folder / "locks"
        self.locks.mkdir(parents=True, exist_ok=True)
        with self._claiming():
            self.home = _home(self.locks / "home")
            try:
                self.study = self.optuna.create_study(
                    study_name=name,
                    storage=self._storage(storage),
                    pruner=self._pruner(pruner, warmup),
                    direction="maximize",
                    load_if_exists=True,
                )
            except Exception as error:  # of one of many databases' drivers
                if storage is None:
                    raise
                raise ConfigError(
                    "the storage of the trials cannot be used",
                    expected="a database's URL, as sqlite:///trials.db, or the file of a journal",
                    came=f"{storage}: {str(error).splitlines()[0]}",
                ) from error

    def _storage(self, storage: str | None) -> Any:
        if storage is not None and "://" in storage:
            return storage
        path = self.folder / JOURNAL if storage is None else Path(storage)
        path.parent.mkdir(parents=True, exist_ok=True)
        journal = self.optuna.storages.journal
        return self.optuna.storages.JournalStorage(journal.JournalFileBackend(str(path)))

    def _pruner(self, pruner: Pruner, warmup: int) -> Any:
        pruners = self.optuna.pruners
        if pruner == "median":
            return pruners.MedianPruner(n_startup_trials=STARTUP // 2, n_warmup_steps=warmup)
        return pruners.HyperbandPruner(min_resource=warmup) if pruner == "hyperband" else pruners.NopPruner()

    def begin(self, current: Mapping[str, Any] | None) -> None:
        """Enqueue the settings as they are, and the points of a grid, unless that was done before."""
        self.current = None if current is None else dict(current)
        with self._claiming():
            if "begun" in self.study.user_attrs:
                return
            if current is not None:
                self.study.enqueue_trial(dict(current), user_attrs={"home": self.home})
            points = grid_points(self.space) if self.sampler == "grid" else []
            for index in np.random.default_rng(self.seed).permutation(len(points)):
                if points[index] != current:
                    self.study.enqueue_trial(points[index], user_attrs={"home": self.home})
            self.study.set_user_attr("begun", True)

    def claim(self, limit: int) -> Claim | None:
        """Return a trial for this process, a stopped one before a new one; None if there are `limit` trials already.

        A grid ends with its last point.
        """
        states = self.optuna.trial.TrialState
        with self._claiming():
            self._enqueue_stopped()
            trials = self.study.get_trials(deepcopy=False)
            counted = [t for t in trials if t.state != states.WAITING and not _is_superseded(t, states)]
            waiting = any(t.state == states.WAITING for t in trials)
            if len(counted) >= limit or (self.sampler == "grid" and not waiting):
                return None
            if not waiting:
                self.study.enqueue_trial({}, user_attrs={"home": self.home})
            self.study.sampler = self._next_sampler(len(trials))
            trial = self.study.ask()
            lock = FileLock(self.locks / f"{trial.number}.lock", timeout=0)
            lock.acquire()
            trial.set_user_attr("home", self.home)
            name = trial.user_attrs.get("folder", f"{trial.number:04}")
            trial.set_user_attr("folder", name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a value that was added to the space since
            params = {key: _suggest(trial, key, parameter) for key, parameter in self.space.items()}
        curve = {int(step): score for step, score in trial.user_attrs.get("curve", {}).items()}
        for step, score in sorted(curve.items()):
            trial.report(score, step)
        return Claim(trial, params, self.folder / "trials" / name, lock, params == self.current, set(curve))

    def _next_sampler(self, number: int) -> Any:
        """Return a sampler whose draws depend on the seed and the number of trials, not on the process."""
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        samplers = self.optuna.samplers
        if self.sampler != "tpe":
            return samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)
            return samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True, constant_liar=True)

    def _enqueue_stopped(self) -> None:
        """Enqueue the trials again whose process ended before they did, with the folder of their fit."""
        running = self.study.get_trials(deepcopy=False, states=[self.optuna.trial.TrialState.RUNNING])
        for trial in running:
            if trial.user_attrs.get("home") != self.home or not self._is_free(trial.number):
                continue
            attrs = {"home": self.home, "folder": trial.user_attrs.get("folder", f"{trial.number:04}")}
            attrs["curve"] = {str(step): value for step, value in trial.intermediate_values.items()}
            params = {key: value for key, value in trial.params.items() if key in self.space}
            self.study.enqueue_trial(params, user_attrs=attrs)
            self.study.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)

    def _is_free(self, number: int) -> bool:
        """Return whether no process holds a trial's lock."""
        with suppress(Timeout), FileLock(self.locks / f"{number}.lock", timeout=0):
            return True
        return False

    @property
    def metric(self) -> str:
        """The name of the trials' value."""
        return str(self.study.user_attrs.get("metric", "score"))

    def set_metric(self, name: str) -> None:
        """Record the name of the trials' value."""
        if self.metric != name:
            self.study.set_user_attr("metric", name)

    def same(self, params: Mapping[str, Any]) -> float | None:
        """Return the value of a finished trial with the same parameters, which are as good as its result; or None."""
        complete = self.study.get_trials(deepcopy=False, states=[self.optuna.trial.TrialState.COMPLETE])
        return next((trial.value for trial in complete if trial.params == params), None)

    def tell(self, claim: Claim, value: float | None, *, seconds: float, reason: str = "") -> None:
        """Record how a trial ended, and release it.

        Args:
            claim: the trial.
            value: the score on validation rows; None if the trial was pruned, or failed.
            seconds: of the fit.
            reason: why it failed; "" if it did not.
        """
        states = self.optuna.trial.TrialState
        claim.trial.set_user_attr("seconds", round(seconds, 2))
        if reason:
            claim.trial.set_user_attr("reason", reason)
        state = states.FAIL if reason else states.PRUNED if value is None else states.COMPLETE
        self.study.tell(claim.trial.number, value, state=state)
        claim.lock.release()

    def records(self) -> list[TrialRecord]:
        """Return the trials that were begun, in order, each that was stopped and gone on with once."""
        states = self.optuna.trial.TrialState
        names = {states.COMPLETE: "complete", states.PRUNED: "pruned", states.FAIL: "failed"}
        result = []
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state == states.WAITING or _is_superseded(trial, states):
                continue
            attrs = trial.user_attrs
            stopped = attrs.get("home") == self.home and trial.state == states.RUNNING and self._is_free(trial.number)
            state = "stopped" if stopped else names.get(trial.state, "running")
            value = trial.value if state == "complete" else None
            curve = {step: float(score) for step, score in trial.intermediate_values.items()}
            record = TrialRecord(trial.number, state, dict(trial.params), value, curve)
            record.seconds, record.reason = attrs.get("seconds"), attrs.get("reason", "")
            result.append(record)
        return result

    def importance(self) -> dict[str, float]:
        """Return each parameter's share of the variance of the value, by fANOVA; nothing below 4 finished trials.

        Reference:
            Hutter, Hoos and Leyton-Brown 2014, An efficient approach for assessing hyperparameter importance.
        """
        complete = [record for record in self.records() if record.state == "complete"]
        if len(complete) < 4 or len({record.value for record in complete}) < 2:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = self.optuna.importance.FanovaImportanceEvaluator(seed=0)
            found = self.optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        return {key: float(share) for key, share in found.items() if math.isfinite(share)}

    @contextmanager
    def _claiming(self) -> Iterator[None]:
        """Keep other processes of this folder from claiming trials meanwhile."""
        with FileLock(self.locks / "claim.lock"):
            yield


def _is_superseded(trial: Any, states: Any) -> bool:
    """Return whether a trial was stopped and its fit went on as another trial."""
    return bool(trial.state == states.FAIL and not trial.user_attrs.get("reason"))


def _home(path: Path) -> str:
    """Return the identity of a search's folder, by which other machines' trials are told from its own."""
    if not path.is_file():
        path.write_text(uuid.uuid4().hex)
    return path.read_text()


def _suggest(trial: Any, key: str, parameter: Parameter) -> Any:
    if isinstance(parameter, Choice):
        return trial.suggest_categorical(key, parameter.labels)
    if parameter.whole:
        step = 1 if parameter.step is None else int(parameter.step)
        return trial.suggest_int(key, parameter.low, parameter.high, log=parameter.log, step=step)
    return trial.suggest_float(key, parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def grid_points(space: Space) -> list[dict[str, Any]]:
    """Return every combination of the choices' labels and the ranges' `num` values.

    Raises:
        ConfigError: there are more than `MAX_GRID`.
    """
    values: list[Sequence[Any]] = [
        parameter.labels if isinstance(parameter, Choice) else parameter.grid() for parameter in space.values()
    ]
    if (num := math.prod(map(len, values))) > MAX_GRID:
        raise ConfigError(
            f"the grid has {num:,} points",
            expected=f"{MAX_GRID:,} at most",
            do="search fewer settings with --space, give ranges a smaller num, or take --sampler tpe or random",
        )
    return [dict(zip(space, point, strict=True)) for point in product(*values)]
