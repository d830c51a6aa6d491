"""What a search of settings came to, and its page."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fusetune.evaluation.report.svg import figure, figures
from fusetune.evaluation.report.write import render_page, replace_file
from fusetune.evaluation.results import plain
from fusetune.lifecycle.searching.compare import Comparison, Measured, mean_and_spread
from fusetune.lifecycle.searching.plots import history_plot, importance_plot, parallel_plot
from fusetune.lifecycle.searching.trials import TrialRecord
from fusetune.tasks.panels.kinds import Cell, Head, TablePanel

RECORD, PAGE, BEST = "search.json", "search.html", "best.yaml"


@dataclass
class Searched:
    """What came of it.

    Attributes:
        source: the table.
        metric: the main metric, or "mean of the main metrics" of several targets; "−rmse" where lower is better.
        trials: in order.
        current: the number of the trial with the settings as they are; None if there is none that ended.
        best: the number of the best trial; None if none was finished.
        importance: by setting, its share of the variance of the score.
        labels: by setting that has choices, these in order.
        comparison: of the best trial with the settings as they are; None before it is made, or if they are the same.
        settings: the recommended settings as YAML, as `fit` takes them.
        notes: sentences for the user.
    """

    source: str
    metric: str
    trials: list[TrialRecord]
    current: int | None
    best: int | None
    importance: dict[str, float]
    labels: dict[str, list[str]]
    comparison: Comparison | None = None
    settings: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def best_trial(self) -> TrialRecord:
        """The best trial."""
        return next(trial for trial in self.trials if trial.number == self.best)

    @property
    def found_better(self) -> bool:
        """Whether other settings than those that were given are recommended: validation rows say so, over all seeds."""
        if self.best is None or self.best == self.current:
            return False
        return self.comparison is None or self.comparison.confirmed

    @property
    def headline(self) -> str:
        """What came of it, in one or two sentences."""
        if self.best is None:
            return "No trial was finished."
        num = sum(trial.state == "complete" for trial in self.trials)
        if self.best == self.current:
            return f"The search did not help: of {_count(num, 'finished trial')} none beats the settings as they are."
        best, current = self.best_trial.value, self._value_of(self.current)
        found = f"Trial {self.best} of {_count(len(self.trials), 'trial')} is best: {self.metric} {figure(best or 0.0)}"
        found += "" if current is None else f" against {figure(current)} with the settings as they are"
        if self.comparison is None:
            return f"{found}, on validation rows, which chose it."
        with_best, with_current = (mean_and_spread(side)[0] for side in (self.comparison.best, self.comparison.current))
        seeds = _count(len(self.comparison.seeds), "seed")
        over = f"Over {seeds} it has {figure(with_best)} and they {figure(with_current)}"
        if not self.comparison.confirmed:
            return f"The search did not help: {found[0].lower()}{found[1:]}. {over}: the settings as they are stay."
        tests = " ".join(_of_test(test) for test in self.comparison.tests)
        return f"{found}. {over} on validation rows. {tests or 'There are no test rows.'}"

    def _value_of(self, number: int | None) -> float | None:
        return next((trial.value for trial in self.trials if trial.number == number), None)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data; NaN becomes None."""
        content: dict[str, Any] = plain(self)
        return content | {"headline": self.headline, "found_better": self.found_better}

    def save(self, folder: str | Path) -> Path:
        """Write search.json, search.html and best.yaml into a folder.

        Raises:
            StorageError: they cannot be written.
        """
        folder = Path(folder)
        replace_file(folder / RECORD, json.dumps(self.to_json(), ensure_ascii=False, indent=1, allow_nan=False))
        if self.settings:
            replace_file(folder / BEST, f"# {self.headline}\n{self.settings}")
        plots = [
            plot
            for plot in (
                history_plot(self.trials, self.metric, self._value_of(self.current)),
                importance_plot(self.importance),
                parallel_plot(self.trials, self.labels, self.metric),
            )
            if plot is not None
        ]
        values = {"plots": plots, "trials": _trials_panel(self), "tests": _tests_panel(self)}
        replace_file(folder / PAGE, render_page("search.html.j2", result=self, **values))
        return folder


def _count(num: int, what: str) -> str:
    return f"{num} {what}{'' if num == 1 else 's'}"


def _of_test(test: Measured) -> str:
    """Return a sentence on a target's test rows."""
    gain, (best, _), (current, _) = test.difference, mean_and_spread(test.best), mean_and_spread(test.current)
    text = f"On {test.rows:,} test rows {test.metric} of {test.target} is {figure(best)} against {figure(current)}"
    if not gain.known:
        return f"{text}."
    value, low, high = figures([gain.value, gain.low, gain.high])
    ends = f"difference {value} [{low}, {high}]"
    if gain.low > 0:
        return f"{text}, {ends}: the search helped."
    if gain.high < 0:
        return f"{text}, {ends}: the search fitted the validation rows, keep the settings as they are."
    return f"{text}, {ends}: no more than chance."


def best_first(trials: list[TrialRecord]) -> list[TrialRecord]:
    """Return the trials with the best value first, those without one last."""
    return sorted(trials, key=lambda trial: math.inf if trial.value is None else -trial.value)


def shown(value: Any) -> str:
    """Return a parameter's value as short text."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _trials_panel(result: Searched) -> TablePanel:
    keys = list(dict.fromkeys(key for trial in result.trials for key in trial.params))
    heads = [Head("trial", "count"), Head("", "text"), Head(result.metric, "number"), Head("seconds", "number")]
    rows: list[list[Cell]] = []
    for trial in best_first(result.trials):
        state = trial.state if not trial.reason else f"failed: {trial.reason.splitlines()[0][:80]}"
        state = "as they are" if trial.number == result.current and trial.state == "complete" else state
        row: list[Cell] = [trial.number, state, trial.value, trial.seconds]
        rows.append([*row, *(shown(trial.params[key]) if key in trial.params else "" for key in keys)])
    return TablePanel([*heads, *(Head(key) for key in keys)], rows)


def _tests_panel(result: Searched) -> TablePanel | None:
    """Return the comparison by seed, with means and standard deviations."""
    found = result.comparison
    if found is None:
        return None
    heads = [Head(""), *(Head(f"seed {seed}", "number") for seed in found.seeds), Head("mean", "number")]
    lines = [("as they are, validation", found.current), (f"trial {result.best}, validation", found.best)]
    for test in found.tests:
        lines.append((f"as they are, test {test.target}", test.current))
        lines.append((f"trial {result.best}, test {test.target}", test.best))
    rows: list[list[Cell]] = [
        [name, *values, float(np.mean(values)), mean_and_spread(values)[1]] for name, values in lines
    ]
    return TablePanel([*heads, Head("standard deviation", "number")], rows)
