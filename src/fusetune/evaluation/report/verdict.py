"""The verdict: sentences at the top of the report that sum up the figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fusetune.evaluation.report.comparison import with_interval
from fusetune.evaluation.report.svg import figure, signed
from fusetune.evaluation.results import Interval, RunResults, SystemResult, TaskResult

FEW_ROWS = 100
"""With fewer rows, the report warns that they may be too few."""

MUCH_SHARED = 0.2
"""With this share of rows or more that are also train rows, the figures are not reliable."""

ROUNDING = 1e-6
"""Smaller differences are rounding."""

Tone = Literal["good", "unsure", "bad"]


@dataclass
class Verdict:
    """The verdict on one task.

    Attributes:
        headline: the main sentence: whether tuning helped.
        notes: further sentences: modalities, hidden columns, trees, attacks, number of rows.
        tone: whether the result is good, unsure or bad.
        use: whether to use the model, one sentence.
        next_step: what to do next, one sentence.
    """

    headline: str
    notes: list[str]
    tone: Tone
    use: str = ""
    next_step: str = ""


def verdict(task: TaskResult) -> Verdict:
    """Return a task's verdict: whether tuning helped, which modality matters most, whether the rows suffice."""
    after = task.first("after")
    if after is None or task.rows == 0 or not _finite(task.main(after)):
        headline = f"There is no verdict: {task.metric} is undefined on the {_rows(task)}."
        next_step = "Measure it on rows with a target: fusetune evaluate RUN TABLE."
        return Verdict(headline, [], "unsure", "These rows cannot tell whether to use it.", next_step)
    before = task.first("before") or task.first("baseline")
    if before is None:
        headline = f"The tuned model reaches {task.metric} {with_interval(task.main(after))} on {_rows(task)}."
        return Verdict(headline + _shared(task), [], "unsure")
    advice = _advice(task, before)
    notes = [
        *_against_baseline(task),
        *_modalities(task),
        *_hidden(task),
        *([task.stack.said] if task.stack is not None else []),
        *_single(task),
        *_attacked(task),
        *_certainty(task),
    ]
    headline = _headline(task, before, after) + _shared(task)
    return Verdict(headline, notes, advice.tone, advice.use, advice.next_step)


@dataclass(frozen=True)
class _Advice:
    """Whether to use the model, and what to do next, one sentence each. No other sentence of a verdict says either."""

    use: str
    next_step: str
    tone: Tone


MORE_ROWS = "Measure it on more rows: fusetune evaluate RUN TABLE."


def _advice(task: TaskResult, before: SystemResult) -> _Advice:
    """Decide whether to use the model, and the next step."""
    if _much_shared(task):
        return _Advice(
            "Do not rely on these figures: too many of the rows are also train rows.",
            "Measure it on rows that are not among the train rows: fusetune evaluate RUN TABLE.",
            "unsure",
        )
    baseline = task.first("baseline")
    against_guess = gain(task, baseline) if baseline is not None else "better"
    if against_guess == "unknown" or (against_guess == "same" and task.rows < FEW_ROWS):
        use = f"These rows cannot tell whether to use it: {_rows(task)} are too few to tell it from a guess."
        return _Advice(use, MORE_ROWS, "unsure")
    if against_guess in ("same", "worse"):
        return _Advice(
            "Do not use it: it is no better than a guess that ignores all columns.",
            "Check whether the columns can predict the target, and add train rows or other columns.",
            "bad",
        )
    if (rule := _better_rule(task)) is not None:
        step = "Add train rows, tune for longer, or take another backbone."
        return _Advice(f"Do not use it: {rule.name}, which needs no model, is better.", step, "bad")
    better = gain(task, before) if before.kind == "before" else "better"
    if better == "worse":
        return _Advice(
            f"Do not use it: the {before.name} is better.",
            "Keep the probe: fit again with trainer.epochs=0 trainer.head_epochs=0; or add train rows.",
            "bad",
        )
    if (alone := _better_alone(task)) is not None:
        step = f"Fit again with {_quoted(alone.columns)} only." if alone.columns else "Fit again with its columns only."
        return _Advice(f"Do not use it: “{alone.name}” is better than all modalities together.", step, "bad")
    step = _next_step(task)
    if better == "better":
        than = f" and than the {before.name}" if before.kind == "before" else ""
        return _Advice(f"Use it: it is better than a guess{than}.", step, "good")
    which = (
        f"{_rows(task)} are too few to tell which is better"
        if task.rows < FEW_ROWS or better == "unknown"
        else "these rows show no clear difference"
    )
    return _Advice(f"The model can be used, but so can the simpler {before.name}: {which}.", step, "unsure")


def _next_step(task: TaskResult) -> str:
    """Return what to do with a model that can be used."""
    if harmful := _harmful(task):
        return f"Leave out {_quoted(harmful)}, without which the model is better, and fit again."
    if task.rows < FEW_ROWS:
        return MORE_ROWS
    return "Look at the worst errors and the weakest classes or slices, and add train rows like them."


def _better_alone(task: TaskResult) -> SystemResult | None:
    """Return the best model of one modality if it is clearly better than the tuned model."""
    best = next((system for system in task.all("alone") if _finite(task.main(system))), None)
    return best if best is not None and gain(task, best) == "worse" else None


def _better_rule(task: TaskResult) -> SystemResult | None:
    """Return the best baseline if it is clearly better than the tuned model."""
    best = next((system for system in task.all("baseline") if _finite(task.main(system))), None)
    return best if best is not None and gain(task, best) == "worse" else None


def _much_shared(task: TaskResult) -> bool:
    return task.shared >= MUCH_SHARED * task.rows > 0


def _shared(task: TaskResult) -> str:
    """Return what the headline adds if evaluated rows are also train rows."""
    if not task.shared:
        return ""
    few = "" if _much_shared(task) else "; the slices show the other rows separately"
    share = task.shared / task.rows
    return f" But {task.shared:,} of these rows ({share:.0%}) have the same inputs as a train row{few}."


def _harmful(task: TaskResult) -> list[str]:
    """Return the columns without which the tuned model is clearly better."""
    return [
        column
        for system in task.systems
        if system.kind == "without" and gain(task, system) == "worse"
        for column in system.columns
    ]


def _quoted(columns: Sequence[str]) -> str:
    return ", ".join(f"“{column}”" for column in columns)


def gain(task: TaskResult, other: SystemResult) -> Literal["better", "worse", "same", "unknown"]:
    """Return how the tuned model compares with another system: "same" if the difference's interval contains 0."""
    difference = other.difference.get(task.metric, Interval(math.nan))
    if not difference.known:
        return "unknown"
    if difference.low <= 0 <= difference.high:
        return "same"
    return "better" if (difference.low > 0) == task.greater_is_better else "worse"


def warnings_of(results: RunResults) -> list[str]:
    """Return the run's warnings: encoders trained from scratch, rejected rows, answers, others."""
    warnings = []
    for backbone in results.backbones:
        if not backbone.pretrained:
            columns = _quoted(backbone.columns)
            warnings.append(
                f"The {backbone.kind} encoder of {columns} was trained from scratch: no pretrained weights were given"
                f" or found. With a pretrained {backbone.kind} backbone it often does better."
            )
    if results.num_rejected:
        rows = sum(table.rows_in for table in results.tables)
        share = f" of {rows:,} ({results.num_rejected / rows:.1%})" if rows else ""
        warnings.append(
            f"{results.num_rejected:,}{share} rows were rejected and not used; the reasons are in rejected.jsonl."
        )
    return [*warnings, *(warning for task in results.tasks for warning in task.warnings), *results.warnings]


def _is_rounding(difference: Interval) -> bool:
    """Return whether a difference and its interval are only rounding."""
    return max(abs(difference.value), abs(difference.low), abs(difference.high)) < ROUNDING


def _finite(value: Interval) -> bool:
    return math.isfinite(value.value)


def _rows(task: TaskResult) -> str:
    return f"{task.rows:,} {task.split} row{'' if task.rows == 1 else 's'}"


def _change(task: TaskResult, before: SystemResult, after: SystemResult) -> str:
    a, b = task.main(before), task.main(after)
    ends = [value for value in (b.value, b.low, b.high) if math.isfinite(value)]
    unseen = [column for column in after.columns if column not in before.columns]
    lacks = f", without {_quoted(unseen)}" if before.kind == "before" and before.columns and unseen else ""
    start = f"{figure(a.value, max(map(abs, ends)))} ({before.name}{lacks})"
    return f"from {start} to {with_interval(b)} on {_rows(task)}"


def difference(value: Interval | None) -> str:
    """Format a difference with its interval and signs: `+0.070 [+0.050, +0.090]`; "" for None."""
    if value is None:
        return ""
    if not value.known:
        return signed([value.value])[0]
    return "{} [{}, {}]".format(*signed([value.value, value.low, value.high]))


def _difference(task: TaskResult, other: SystemResult) -> str:
    return difference(other.difference.get(task.metric, Interval(math.nan)))


def _headline(task: TaskResult, before: SystemResult, after: SystemResult) -> str:
    """Return whether tuning helped, one sentence with the figures."""
    how, size = gain(task, before), _difference(task, before)
    subject = "Training new parts on the encoders as pretrained" if task.encoders_unchanged else "Tuning"
    if how == "better":
        verb = "raised" if task.greater_is_better else "lowered"
        hint = "" if task.greater_is_better else " (lower is better)"
        return f"{subject} {verb} {task.metric}{hint} {_change(task, before, after)}; difference {size}."
    if how == "worse":
        return f"{subject} made the model worse: {task.metric} went {_change(task, before, after)}; difference {size}."
    if how == "same" and _is_rounding(before.difference[task.metric]):
        stays = f"{task.metric} is {with_interval(task.main(after))} on {_rows(task)}, as with the {before.name}"
        return f"{subject} changed nothing: {stays}."
    if how == "same" and task.rows >= FEW_ROWS:
        return (
            f"{subject} did not clearly help: {task.metric} went {_change(task, before, after)}; the difference of"
            f" {size} may be chance."
        )
    few = (
        "and there are too few rows or groups for an interval"
        if how == "unknown"
        else f"but on so few rows the difference of {size} may be chance"
    )
    verb = "training new parts" if task.encoders_unchanged else "tuning"
    return f"These rows cannot tell whether {verb} helped: {task.metric} went {_change(task, before, after)}, {few}."


def _against_baseline(task: TaskResult) -> list[str]:
    """Return a note if the tuned model is not clearly better than the constant guess."""
    baseline, after = task.first("baseline"), task.first("after")
    if baseline is None or after is None or task.first("before") is None:
        return []
    how = gain(task, baseline)
    if how not in ("same", "worse"):
        return []
    comparison = "not clearly better" if how == "same" else "worse"
    value = figure(task.main(baseline).value, abs(task.main(after).value))
    return [f"It is {comparison} than the baseline ({baseline.name}, {value}), which ignores all columns."]


def _modalities(task: TaskResult) -> list[str]:
    alone = [system for system in task.all("alone") if _finite(task.main(system))]
    useless = [system for system in alone if _useless(task, system)]
    if not alone:
        return []
    if len(useless) == len(alone):
        few = f" on {_rows(task)}, which are few" if task.rows < FEW_ROWS else ""
        return [f"No modality alone is clearly better than the baseline{few}."]
    best = alone[0]
    name, value = f"“{best.name}”", figure(task.main(best).value)
    how, size = gain(task, best), _difference(task, best)
    if len(alone) == 1:
        notes = [f"There is one modality: {name} reaches {value}."]
    elif how == "better":
        notes = [f"{name} reaches {value}, the best of single modalities. All modalities together differ by {size}."]
    elif how == "worse":
        notes = [f"{name} is better ({value}) than all together, which differ by {size}."]
    elif how == "unknown" or task.rows < FEW_ROWS:
        notes = [f"{name} reaches {value}; {_rows(task)} are too few to tell whether all together are better ({size})."]
    else:
        notes = [
            f"{name} is nearly as good: it reaches {value}. All modalities together are not clearly better ({size})."
        ]
    if useless:
        names = ", ".join(f"“{system.name}”" for system in useless)
        notes.append(f"Not clearly better than the baseline: {names}.")
    return notes


def _useless(task: TaskResult, system: SystemResult) -> bool:
    """Return whether the system is not clearly better than the baseline, by its interval."""
    baseline = task.first("baseline")
    if baseline is None:
        return False
    value, floor = task.main(system), task.main(baseline).value
    if task.greater_is_better:
        return (value.low if value.known else value.value) < floor or value.value <= floor
    return (value.high if value.known else value.value) > floor or value.value >= floor


def _hidden(task: TaskResult) -> list[str]:
    """Return notes on what changes if a modality is hidden from the tuned model."""
    hidden = [system for system in task.systems if system.kind == "without" and system.columns]
    notes = []
    if harmful := _harmful(task):
        sizes = ", ".join(_difference(task, system) for system in hidden if gain(task, system) == "worse")
        notes.append(
            f"Hiding {_quoted(harmful)} makes the tuned model better ({task.metric} with it differs by {sizes})."
        )
    ignored = [system for system in hidden if gain(task, system) == "same"]
    if not ignored:
        return notes
    if task.rows < FEW_ROWS:
        return [*notes, f"{_rows(task)} are too few to tell which columns the tuned model uses."]
    if len(ignored) == len(hidden) > 1:
        note = "No single modality is needed: the others can replace any one that is hidden, and"
        return [*notes, f"{note} {task.metric} does not clearly change."]
    best = next((set(system.columns) for system in task.all("alone") if _finite(task.main(system))), set())
    spare = [system for system in ignored if best & set(system.columns)]
    unused = [column for system in ignored if system not in spare for column in system.columns]
    if spare:
        columns = _quoted([column for system in spare for column in system.columns])
        notes.append(f"The other columns can replace {columns}: hiding it does not clearly change {task.metric}.")
    if unused:
        those = "it" if len(unused) == 1 else "them"
        note = f"The tuned model makes little use of {_quoted(unused)}"
        notes.append(f"{note}: hiding {those} does not clearly change {task.metric}.")
    return notes


def _single(task: TaskResult) -> list[str]:
    """Return a note on whether learning this target together with the others helped."""
    single = task.first("single")
    if single is None or not _finite(task.main(single)):
        return []
    effect = {
        "better": "Learning the targets together helps this one",
        "worse": "Learning the targets together harms this one",
    }.get(gain(task, single), "Learning the targets together makes no clear difference here")
    value = figure(task.main(single).value)
    return [f"{effect}: a model trained for it alone reaches {value} ({_difference(task, single)})."]


def _attacked(task: TaskResult) -> list[str]:
    """Return a note on the tuned model under attack, compared with the model before tuning."""
    used, systems, after = (
        task.attack,
        [system for system in task.systems if system.kind == "attack"],
        task.first("after"),
    )
    if used is None or not systems or after is None or not _finite(task.main(systems[-1])):
        return []
    tuned = systems[-1]
    clean, under = task.main(after).value, with_interval(task.main(tuned))
    how = f"a white-box attack ({used.name}, ε {used.epsilon:g} on {', '.join(used.columns)})"
    note = f"Under {how} {task.metric} goes from {figure(clean, abs(task.main(tuned).value))} to {under}"
    if len(systems) == 1:
        return [f"{note}."]
    before, size = systems[0], _difference(task, systems[0])
    value = figure(task.main(before).value, abs(clean))
    return [f"{note}; before tuning the attack takes it to {value}, a difference of {size}."]


def _certainty(task: TaskResult) -> list[str]:
    if task.rows >= FEW_ROWS:
        return []
    return [
        f"{_rows(task)} {'is' if task.rows == 1 else 'are'} few: every figure here is rough, and small differences"
        " do not show. Evaluate on more rows before relying on them."
    ]
