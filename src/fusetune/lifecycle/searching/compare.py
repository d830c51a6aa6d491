"""The winner of a search against the settings as they are: the same seeds, the same test rows, measured once."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from fusetune.data.table import Table
from fusetune.deploy.fine_tuned import FineTuned
from fusetune.deploy.tuned import read_examples
from fusetune.errors import FolderError
from fusetune.evaluation.measure.compare import draw_all, interval
from fusetune.evaluation.report.write import replace_file
from fusetune.evaluation.results import Interval, plain
from fusetune.inference.scores import predict_scores
from fusetune.lifecycle.searching.job import Job, score
from fusetune.models.understand import Understand
from fusetune.security.untrusted import read_json
from fusetune.tasks.base import TargetTask
from fusetune.training.progress import print_line

DRAWS = 1000
SIDES = ("current", "best")


@dataclass
class Measured:
    """A target's main metric on the test rows.

    Attributes:
        target, metric: what is measured.
        greater_is_better: of the metric.
        rows: labelled test rows.
        current, best: by seed, with the settings as they are and with those of the best trial.
        difference: mean over seeds of best minus current, positive where the best trial's settings are better, with its
            95 % bootstrap interval over test rows; without ends for models that write or compare pairs.
    """

    target: str
    metric: str
    greater_is_better: bool
    rows: int
    current: list[float]
    best: list[float]
    difference: Interval


@dataclass
class Comparison:
    """The settings as they are and those of the best trial, tuned with the same seeds.

    Attributes:
        params: of the best trial.
        seeds: of the fits.
        current, best: by seed, the score on validation rows, higher is better.
        tests: by target; empty without test rows.
        looks: how many winners of this search were measured on the test rows, this one included.
    """

    params: dict[str, Any]
    seeds: list[int]
    current: list[float]
    best: list[float]
    tests: list[Measured] = field(default_factory=list)
    looks: int = 1

    @property
    def confirmed(self) -> bool:
        """Whether the best trial's settings are better on validation rows over all seeds."""
        return float(np.mean(self.best)) > float(np.mean(self.current))


@dataclass
class _Scored:
    """A fit on the test rows: (rows, k) as of `Task.measured`, and what it is compared by."""

    task: TargetTask
    measured: np.ndarray
    truth: np.ndarray
    weights: np.ndarray
    groups: np.ndarray | None


def compare_settings(
    folder: Path, job: Job, params: Mapping[str, Any], num_seeds: int, progress: bool
) -> Comparison | None:
    """Tune with the best trial's parameters and with the settings as they are; None if they are the same.

    What an earlier call came to is taken from the folder. A fit that was stopped goes on.

    Raises:
        UserError, RunError: a fit failed.
    """
    if params == job.current:
        return None
    seeds, home = [job.settings.seed + index for index in range(num_seeds)], folder / "comparison"
    home.mkdir(exist_ok=True)
    with FileLock(folder / "locks" / "comparison.lock"):
        before = _read(home)
        if before is not None and before.params == params and before.seeds == seeds:
            return before
        if before is not None:
            for path in home.iterdir():
                if path.is_dir() and not path.name.startswith(SIDES[0]):
                    shutil.rmtree(path)
        scores: dict[str, list[float]] = {side: [] for side in SIDES}
        tested: dict[str, list[Any]] = {side: [] for side in SIDES}
        for seed in seeds:
            for side, chosen in zip(SIDES, (job.current, params), strict=True):
                tuned = job.fit(home / f"{side}-{seed}", chosen, seed=seed)
                scores[side].append(score(tuned))
                if progress:
                    print_line(f"{side} settings, seed {seed}: {scores[side][-1]:.4f} on validation rows")
                if "test" in job.rows:
                    tested[side].append(_on_test(tuned, job.rows["test"]))
        result = Comparison(dict(params), seeds, scores["current"], scores["best"])
        result.tests = _measured(tested["current"], tested["best"]) if "test" in job.rows else []
        result.looks = 1 if before is None else before.looks + 1
        replace_file(home / "comparison.json", json.dumps(plain(result), ensure_ascii=False, indent=1))
        for side in SIDES:
            for seed in seeds:
                shutil.rmtree(home / f"{side}-{seed}", ignore_errors=True)
        return result


def _read(home: Path) -> Comparison | None:
    if not (home / "comparison.json").is_file():
        return None
    try:
        return TypeAdapter(Comparison).validate_python(read_json(home / "comparison.json"))
    except (OSError, ValueError, ValidationError) as error:
        raise FolderError("what the winner was compared by cannot be read", came=str(error), file=str(home)) from error


def _on_test(tuned: FineTuned, test: Table) -> dict[str, Any]:
    """Return, by target, how each test row was answered; or the metric, for families without such scores."""
    bundle = tuned.bundle
    if not isinstance(bundle.model, Understand):
        return {
            task.target: (task.metric, task.greater_is_better, task.rows, task.main(task.systems[0]).value)
            for task in tuned.evaluate(test).tasks
        }
    examples = read_examples(bundle, test, targets=True)
    examples.check_targets()
    scores = predict_scores(bundle.model, bundle.targets, examples, stack=bundle.stack)
    result = {}
    for key, task in bundle.targets.items():
        rows = examples.labelled(key)
        truth, codes = examples.truth(key, rows), np.asarray(examples.groups[rows], dtype=np.int64)
        groups = np.where(codes < 0, -1 - np.arange(len(codes)), codes) if (codes >= 0).any() else None
        measured = task.measured(scores[key][examples.positions(rows)], truth)
        result[task.target] = _Scored(task, measured, truth, examples.weights[rows], groups)
    return result


def _measured(current: list[dict[str, Any]], best: list[dict[str, Any]]) -> list[Measured]:
    """Return each target's metric by seed, and the difference of the means over seeds."""
    result = []
    for target, first in current[0].items():
        sides = [[seed[target] for seed in side] for side in (current, best)]
        if not isinstance(first, _Scored):
            metric, greater, rows, _ = first
            values = [[float(value) for *_, value in side] for side in sides]
            gain = (1 if greater else -1) * float(np.mean(values[1]) - np.mean(values[0]))
            result.append(Measured(target, metric, greater, rows, values[0], values[1], Interval(gain)))
            continue
        task, metric = first.task, first.task.main.name
        systems = {
            f"{side}{index}": part.measured for side, parts in enumerate(sides) for index, part in enumerate(parts)
        }
        options: dict[str, Any] = {"num": DRAWS, "weights": first.weights, "groups": first.groups}
        draws = draw_all(task.all_metrics, systems, first.truth, **options)
        values = [
            [float(draws[f"{side}{index}"].value[metric]) for index in range(len(sides[side]))] for side in (0, 1)
        ]
        drawn = [
            np.mean([draws[f"{side}{index}"].drawn[metric] for index in range(len(sides[side]))], axis=0)
            for side in (0, 1)
        ]
        sign = 1 if task.main.greater_is_better else -1
        known = interval(sign * float(np.mean(values[1]) - np.mean(values[0])), sign * (drawn[1] - drawn[0]))
        result.append(
            Measured(target, metric, task.main.greater_is_better, len(first.truth), values[0], values[1], known)
        )
    return result


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Return the mean over seeds and their standard deviation, NaN for a single one."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
