"""What the figures come to, in plain English: the sentences on top of the report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fusetune.evaluation.report.comparison import with_interval
from fusetune.evaluation.report.svg import figure, signed
from fusetune.evaluation.results import Interval, RunResults, SystemResult, TaskResult

FEW_ROWS = 100
"""Below, the report says that the rows may be too few."""

NOTHING = 1e-6
"""Differences below, and intervals of them, are rounding."""

Tone = Literal["good", "unsure", "bad"]


@dataclass
class Verdict:
    """One task's verdict: the sentence that matters most, what else should be known, and how it went."""

    headline: str
    notes: list[str]
    tone: Tone


def verdict(task: TaskResult) -> Verdict:
    """Whether tuning helped, which modality carries the result, and how far the rows can be trusted."""
    after = task.first("after")
    if after is None or task.rows == 0 or not _finite(task.main(after)):
        return Verdict(f"There is no verdict: {task.metric} is undefined on the {_rows(task)}.", [], "unsure")
    before = task.first("before") or task.first("baseline")
    if before is None:
        return Verdict(
            f"The tuned model reaches {task.metric} {with_interval(task.main(after))} on {_rows(task)}.", [], "unsure"
        )
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
    if tone == "good" and baseline is not None and gain(task, baseline) != "better":
        tone = "unsure"
    return Verdict(headline, notes, tone)


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
    return f"from {figure(a.value, max(map(abs, ends)))} ({before.name}) to {with_interval(b)} on {_rows(task)}"


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
    if how == "better":
        verb = "raised" if task.greater_is_better else "lowered"
        hint = "" if task.greater_is_better else " (lower is better)"
        return f"Tuning {verb} {task.metric}{hint} {_moved(task, before, after)}; difference {size}.", "good"
    if how == "worse":
        advice = f" The {before.name} is the better model here." if before.kind == "before" else ""
        return (
            f"Tuning made it worse: {task.metric} went {_moved(task, before, after)}; difference {size}.{advice}",
            "bad",
        )
    if how == "same" and _is_nothing(before.difference[task.metric]):
        stays = f"{task.metric} is {with_interval(task.main(after))} on {_rows(task)}, as with the {before.name}"
        return f"Tuning changed nothing: {stays}.", "unsure"
    if how == "same":
        return (
            f"Tuning did not clearly help: {task.metric} went {_moved(task, before, after)}; the difference of {size}"
            " may be chance.",
            "unsure",
        )
    return (
        f"It cannot be told whether tuning helped: {task.metric} went {_moved(task, before, after)}, too few"
        " rows or groups for an interval.",
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
    ignored = [one for one in task.systems if one.kind == "without" and one.columns and gain(task, one) == "same"]
    if not ignored:
        return []
    names = ", ".join(f"“{column}”" for one in ignored for column in one.columns)
    return [f"The tuned model makes little use of {names}: hiding it does not clearly change {task.metric}."]


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
