"""What the figures come to, in plain English: the sentences on top of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fusetune.evaluation.report.comparison import with_interval
from fusetune.evaluation.report.svg import figure, signed
from fusetune.evaluation.results import Interval, RunResults, SystemResult, TaskResult

FEW_ROWS = 100
"""Below, the report says that the rows may be too few."""

MUCH_SHARED = 0.2
"""From this share of rows on that are train rows too, the figures say little."""

NOTHING = 1e-6
"""Differences below, and intervals of them, are rounding."""

Tone = Literal["good", "unsure", "bad"]


@dataclass
class Verdict:
    """One task's verdict.

    Attributes:
        headline: the sentence that matters most.
        notes: what else should be known.
        tone: how it went.
        use: whether to use the model, in a sentence.
        next_step: what to do next, in a sentence.
    """

    headline: str
    notes: list[str]
    tone: Tone
    use: str = ""
    next_step: str = ""


def verdict(task: TaskResult) -> Verdict:
    """Whether tuning helped, which modality carries the result, and how far the rows can be trusted."""
    after = task.first("after")
    if after is None or task.rows == 0 or not _finite(task.main(after)):
        headline = f"There is no verdict: {task.metric} is undefined on the {_rows(task)}."
        next_step = "Measure it on rows with a target: fusetune evaluate RUN TABLE."
        return Verdict(headline, [], "unsure", "It cannot be told whether to use it.", next_step)
    before = task.first("before") or task.first("baseline")
    if before is None:
        headline = f"The tuned model reaches {task.metric} {with_interval(task.main(after))} on {_rows(task)}."
        return Verdict(headline + _shared(task), [], "unsure")
    headline, tone = _headline(task, before, after)
    notes = [
        *_against_baseline(task),
        *_modalities(task),
        *_hidden(task),
        *([task.stack.said] if task.stack is not None else []),
        *_single(task),
        *_attacked(task),
        *_certainty(task),
    ]
    baseline = task.first("baseline")
    if tone == "good" and ((baseline is not None and gain(task, baseline) != "better") or _much_shared(task)):
        tone = "unsure"
    return Verdict(headline + _shared(task), notes, tone, *_advice(task, before))


def _advice(task: TaskResult, before: SystemResult) -> tuple[str, str]:
    """Whether to use the model, and what next: a sentence each."""
    baseline = task.first("baseline")
    against_guess = gain(task, baseline) if baseline is not None else "better"
    more_rows = "Measure it on more rows: fusetune evaluate RUN TABLE."
    if _much_shared(task):
        return (
            "Do not rely on these figures: too many of the rows were learned from.",
            "Measure it on rows that share nothing with the train rows: fusetune evaluate RUN TABLE.",
        )
    if against_guess == "unknown" or (against_guess == "same" and task.rows < FEW_ROWS):
        return f"It cannot be told whether to use it: {_rows(task)} are too few.", more_rows
    if against_guess in ("same", "worse"):
        return (
            "Do not use it: it is no better than a guess that looks at no column.",
            "Ask whether the columns say anything about the target, and give more train rows or other columns.",
        )
    better = gain(task, before) if before.kind == "before" else "better"
    if better == "worse":
        return (
            f"Do not use it: the {before.name} is better.",
            "Keep the probe: fit again with trainer.epochs=0 trainer.head_epochs=0; or give more train rows.",
        )
    harmful = _harmful(task)
    if harmful:
        step = f"Leave out {_quoted(harmful)}, which the model does better without, and fit again."
    elif task.rows < FEW_ROWS:
        step = more_rows
    else:
        step = "Look at the worst errors and the weakest classes or slices below, and give more rows like them."
    if better == "better":
        return "Use it: it is better than a guess" + (
            f" and than the {before.name}." if before.kind == "before" else "."
        ), step
    return f"It can be used, and so can the {before.name}, which is simpler: these rows cannot tell them apart.", step


def _much_shared(task: TaskResult) -> bool:
    return task.shared >= MUCH_SHARED * task.rows > 0


def _shared(task: TaskResult) -> str:
    """What the headline adds where evaluated rows are train rows too."""
    if not task.shared:
        return ""
    few = "" if _much_shared(task) else "; how it does on the others is among the slices"
    share = task.shared / task.rows
    return f" But {task.shared:,} of these rows ({share:.0%}) have the same inputs as a train row{few}."


def _harmful(task: TaskResult) -> list[str]:
    """Columns whose hiding makes the tuned model clearly better."""
    return [
        column
        for system in task.systems
        if system.kind == "without" and gain(task, system) == "worse"
        for column in system.columns
    ]


def _quoted(columns: Sequence[str]) -> str:
    return ", ".join(f"“{column}”" for column in columns)


def gain(task: TaskResult, other: SystemResult) -> Literal["better", "worse", "same", "unknown"]:
    """How the tuned model compares with another system: "same" where the difference's interval holds 0."""
    difference = other.difference.get(task.metric, Interval(math.nan))
    if not difference.known:
        return "unknown"
    if difference.low <= 0 <= difference.high:
        return "same"
    return "better" if (difference.low > 0) == task.greater_is_better else "worse"


def warnings_of(results: RunResults) -> list[str]:
    """What the reader must know whatever the figures say; encoders trained from scratch come first."""
    found = []
    for one in results.backbones:
        if not one.pretrained:
            columns = ", ".join(f"“{column}”" for column in one.columns)
            found.append(
                f"The {one.kind} encoder of {columns} was trained from scratch: no pretrained weights were given or"
                f" found. With a pretrained {one.kind} backbone it often does better."
            )
    if results.num_rejected:
        rows = sum(table.rows_in for table in results.tables)
        share = f" of {rows:,} ({results.num_rejected / rows:.1%})" if rows else ""
        found.append(
            f"{results.num_rejected:,}{share} rows were rejected and not used; the reasons are in rejected.jsonl."
        )
    return [*found, *results.warnings]


def _is_nothing(found: Interval) -> bool:
    """Whether a difference is of rounding only, with its interval."""
    return max(abs(found.value), abs(found.low), abs(found.high)) < NOTHING


def _finite(value: Interval) -> bool:
    return math.isfinite(value.value)


def _rows(task: TaskResult) -> str:
    return f"{task.rows:,} {task.split} row{'' if task.rows == 1 else 's'}"


def _moved(task: TaskResult, before: SystemResult, after: SystemResult) -> str:
    a, b = task.main(before), task.main(after)
    ends = [value for value in (b.value, b.low, b.high) if math.isfinite(value)]
    unseen = [column for column in after.columns if column not in before.columns]
    lacks = f", without {_quoted(unseen)}" if before.kind == "before" and before.columns and unseen else ""
    start = f"{figure(a.value, max(map(abs, ends)))} ({before.name}{lacks})"
    return f"from {start} to {with_interval(b)} on {_rows(task)}"


def difference(found: Interval | None) -> str:
    """A difference with its interval, signs shown: `+0.070 [+0.050, +0.090]`; empty where there is none."""
    if found is None:
        return ""
    if not found.known:
        return signed([found.value])[0]
    return "{} [{}, {}]".format(*signed([found.value, found.low, found.high]))


def _difference(task: TaskResult, other: SystemResult) -> str:
    return difference(other.difference.get(task.metric, Interval(math.nan)))


def _headline(task: TaskResult, before: SystemResult, after: SystemResult) -> tuple[str, Tone]:
    how, size = gain(task, before), _difference(task, before)
    did = "Training new parts on the encoders as pretrained" if task.encoders_unchanged else "Tuning"
    if how == "better":
        verb = "raised" if task.greater_is_better else "lowered"
        hint = "" if task.greater_is_better else " (lower is better)"
        return f"{did} {verb} {task.metric}{hint} {_moved(task, before, after)}; difference {size}.", "good"
    if how == "worse":
        advice = f" The {before.name} is the better model here." if before.kind == "before" else ""
        return (
            f"{did} made it worse: {task.metric} went {_moved(task, before, after)}; difference {size}.{advice}",
            "bad",
        )
    if how == "same" and _is_nothing(before.difference[task.metric]):
        stays = f"{task.metric} is {with_interval(task.main(after))} on {_rows(task)}, as with the {before.name}"
        return f"{did} changed nothing: {stays}.", "unsure"
    if how == "same" and task.rows >= FEW_ROWS:
        return (
            f"{did} did not clearly help: {task.metric} went {_moved(task, before, after)}; the difference of {size}"
            " may be chance.",
            "unsure",
        )
    few = (
        "too few rows or groups for an interval"
        if how == "unknown"
        else f"on so few rows the difference of {size} may be chance"
    )
    return (
        f"It cannot be told whether tuning helped: {task.metric} went {_moved(task, before, after)}, {few}.",
        "unsure",
    )


def _against_baseline(task: TaskResult) -> list[str]:
    baseline, after = task.first("baseline"), task.first("after")
    if baseline is None or after is None or task.first("before") is None:
        return []
    how = gain(task, baseline)
    if how not in ("same", "worse"):
        return []
    said = "not clearly better" if how == "same" else "worse"
    value = figure(task.main(baseline).value, abs(task.main(after).value))
    return [f"It is {said} than the baseline ({baseline.name}, {value}), which looks at no column: do not use it."]


def _modalities(task: TaskResult) -> list[str]:
    alone = [one for one in task.all("alone") if _finite(task.main(one))]
    useless = [one for one in alone if _useless(task, one)]
    if not alone:
        return []
    if len(useless) == len(alone):
        return ["No modality by itself is clearly better than the baseline."]
    best = alone[0]
    name, value = f"“{best.name}”", figure(task.main(best).value)
    how, size = gain(task, best), _difference(task, best)
    if len(alone) == 1:
        notes = [f"There is one modality: {name} reaches {value} by itself."]
    elif how == "better":
        notes = [f"{name} carries the most: {value} by itself. All modalities together differ by {size}."]
    elif how == "worse":
        notes = [f"{name} is better by itself ({value}): all together differ by {size}. Leave the rest out."]
    else:
        notes = [f"{name} gives nearly all of it: {value} by itself. All together are not clearly better ({size})."]
    if useless:
        names = ", ".join(f"“{one.name}”" for one in useless)
        notes.append(f"Not clearly better than the baseline by itself: {names}.")
    return notes


def _useless(task: TaskResult, one: SystemResult) -> bool:
    """Whether the system's interval reaches down to the baseline."""
    baseline = task.first("baseline")
    if baseline is None:
        return False
    found, floor = task.main(one), task.main(baseline).value
    if task.greater_is_better:
        return (found.low if found.known else found.value) < floor or found.value <= floor
    return (found.high if found.known else found.value) > floor or found.value >= floor


def _hidden(task: TaskResult) -> list[str]:
    """What hiding a modality from the tuned model says of it."""
    hidden = [system for system in task.systems if system.kind == "without" and system.columns]
    notes = []
    if harmful := _harmful(task):
        sizes = ", ".join(_difference(task, system) for system in hidden if gain(task, system) == "worse")
        notes.append(
            f"Hiding {_quoted(harmful)} makes the tuned model better (its own {task.metric} differs by {sizes})."
        )
    ignored = [system for system in hidden if gain(task, system) == "same"]
    if not ignored:
        return notes
    if task.rows < FEW_ROWS:
        return [*notes, f"{_rows(task)} are too few to tell which columns the tuned model makes use of."]
    if len(ignored) == len(hidden) > 1:
        note = "No modality is needed by itself: whichever is hidden, the others stand in for it, and"
        return [*notes, f"{note} {task.metric} does not clearly change."]
    best = next((set(system.columns) for system in task.all("alone") if _finite(task.main(system))), set())
    spare = [system for system in ignored if best & set(system.columns)]
    unused = [column for system in ignored if system not in spare for column in system.columns]
    if spare:
        columns = _quoted([column for system in spare for column in system.columns])
        notes.append(f"The other columns stand in for {columns}: hiding it does not clearly change {task.metric}.")
    if unused:
        those = "it" if len(unused) == 1 else "them"
        made = f"The tuned model makes little use of {_quoted(unused)}"
        notes.append(f"{made}: hiding {those} does not clearly change {task.metric}.")
    return notes


def _single(task: TaskResult) -> list[str]:
    """Whether learning this target together with the others paid."""
    one = task.first("single")
    if one is None or not _finite(task.main(one)):
        return []
    said = {
        "better": "Learning the targets together helps this one",
        "worse": "Learning the targets together harms this one",
    }.get(gain(task, one), "Learning the targets together changes nothing sure here")
    return [
        f"{said}: trained for it alone, the model reaches {figure(task.main(one).value)} ({_difference(task, one)})."
    ]


def _attacked(task: TaskResult) -> list[str]:
    """What an attack does to the tuned model, and whether tuning changed that."""
    used, systems, after = task.attack, [one for one in task.systems if one.kind == "attack"], task.first("after")
    if used is None or not systems or after is None or not _finite(task.main(systems[-1])):
        return []
    tuned = systems[-1]
    clean, under = task.main(after).value, with_interval(task.main(tuned))
    how = f"an attack with sight of the model ({used.name}, ε {used.epsilon:g} on {', '.join(used.columns)})"
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
        " cannot be seen. Evaluate on more rows before relying on them."
    ]
