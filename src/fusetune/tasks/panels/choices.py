"""Panels about answers that are one of a row's own choices."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fusetune.tasks.choice.cells import letter
from fusetune.tasks.choice.scores import HIT, LOSS, aligned, measure
from fusetune.tasks.panels.calibration import calibration_section
from fusetune.tasks.panels.kinds import (
    Cell,
    Evidence,
    Head,
    Panel,
    Section,
    TablePanel,
    WorstRows,
    WrongRow,
    ranked,
)

SHOWN_ROWS = 12
"""Rows of the table of errors."""
SHOWN_CHOICES = 6
"""Choices of a row that the table of errors shows."""
MAX_TEXT = 240
"""Characters of a context or a choice that are shown."""


def positions_panel(truths: Mapping[str, np.ndarray], why: str) -> TablePanel:
    """Return a table of the rows whose right choice has each position, by split; `why` says how answers are read."""
    most = max([2, *(right.position + 1 for truth in truths.values() for right in truth)])
    heads = [Head("split"), *(Head(letter(position), "count") for position in range(most))]
    rows: list[list[Cell]] = [
        [split, *np.bincount([right.position for right in truth], minlength=most).tolist()]
        for split, truth in truths.items()
    ]
    return TablePanel(heads, rows, "rows by the position of the right choice" + (f"; {why}" if why else ""))


def choices_section(evidence: Evidence) -> Section:
    """Return the accuracy by the right choice's position and by the number of choices."""
    answers, truth = evidence.answers, evidence.truth
    hits = measure(answers, truth)[:, HIT]
    chosen = np.array([int(aligned(answer, right).argmax()) for answer, right in zip(answers, truth, strict=True)])
    positions = np.array([right.position for right in truth])
    nums = np.array([len(right.real) for right in truth])
    rows: list[list[Cell]] = [
        [letter(place), int((positions == place).sum()), int((chosen == place).sum()), _mean(hits[positions == place])]
        for place in range(int(max(positions.max(), chosen.max())) + 1)
    ]
    heads = [Head("position"), Head("right", "count"), Head("chosen", "count"), Head("accuracy where right", "bar")]
    panels: list[Panel] = [TablePanel(heads, rows, "by position")]
    if len(set(nums.tolist())) > 1:
        by_num: list[list[Cell]] = [
            [int(num), int((nums == num).sum()), 1 / int(num), _mean(hits[nums == num])] for num in np.unique(nums)
        ]
        heads = [Head("choices", "count"), Head("rows", "count"), Head("chance", "share"), Head("accuracy", "bar")]
        panels.append(TablePanel(heads, by_num, "by the number of choices"))
    longest = np.array([right.longest for right in truth])
    figures = {"longest_right": _mean(longest == positions), "longest_chosen": _mean(longest == chosen)}
    note = (
        f"The longest choice is right in {figures['longest_right']:.0%} of the rows, and chosen in "
        f"{figures['longest_chosen']:.0%}."
    )
    return Section("choices", "Choices", panels, [note], figures)


def errors_section(evidence: Evidence, num_before: int) -> list[Section]:
    """Return the surest wrong answers with their choices side by side; nothing if all are right.

    Args:
        evidence: the task's answers and truth.
        num_before: the number of a row's texts before its choices.
    """
    measured = measure(evidence.answers, evidence.truth)
    positions = np.array([right.position for right in evidence.truth])
    wrong = ranked(measured[:, LOSS], positions, SHOWN_ROWS, among=measured[:, HIT] == 0)
    if not wrong:
        return []
    most = min(max(len(evidence.truth[row].choices) for row in wrong), SHOWN_CHOICES)
    texts = evidence.texts if num_before else None
    rows: list[list[Cell]] = []
    for row in wrong:
        right, shares = evidence.truth[row], aligned(evidence.answers[row], evidence.truth[row])
        cells = [
            f"{_cut(text)} ({share:.0%})" if place in right.real else None
            for place, (text, share) in enumerate(zip(right.choices, shares, strict=True))
        ]
        named = [letter(right.position), letter(int(shares.argmax()))]
        before = [_cut(" ".join(texts(row)[:num_before]))] if texts is not None else []
        rows.append([*before, *named, *cells[:most], *[None] * (most - len(cells))])
    heads = [Head("right"), Head("chosen"), *(Head(letter(place)) for place in range(most))]
    heads[:0] = [Head("context")] if texts is not None else []
    hidden = max(len(right.choices) for right in evidence.truth) > most == SHOWN_CHOICES
    notes = [f"Of rows with more choices, the first {most} are shown."] if hidden else []
    return [Section("errors", "Wrong choices", [TablePanel(heads, rows, "surest wrong answers")], notes)]


def calibration(evidence: Evidence) -> Section:
    """Return the calibration of the probabilities; see `fusetune.tasks.panels.calibration`."""
    validation = None
    if evidence.validation is not None:
        validation = _matrix(*evidence.validation)
    probabilities, truth = _matrix(evidence.answers, evidence.truth)
    labels = [letter(place) for place in range(probabilities.shape[1])]
    return calibration_section(
        probabilities, truth, labels, validation=validation, measures="probability of the chosen answer"
    )


def _matrix(answers: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities, (rows, most choices), 0 where a row has fewer, three at least, and positions, (rows,)."""
    most = max([3, *(len(right.choices) for right in truth)])
    shares = np.zeros((len(truth), most))
    for row, (answer, right) in enumerate(zip(answers, truth, strict=True)):
        shares[row, : len(right.choices)] = aligned(answer, right)
    return shares, np.array([right.position for right in truth], dtype=np.int64)


def worst_choices(answers: np.ndarray, truth: np.ndarray, num: int) -> WorstRows:
    """Return the wrong rows with the highest log loss, in turn from the positions of the right choice."""
    measured = measure(answers, truth)
    positions = np.array([right.position for right in truth])
    rows = []
    for at in ranked(measured[:, LOSS], positions, num, among=measured[:, HIT] == 0):
        right, shares = truth[at], aligned(answers[at], truth[at])
        place = int(shares.argmax())
        rows.append(
            WrongRow(
                at,
                _named(right.choices, right.position),
                _named(right.choices, place),
                float(shares[place]),
                float(measured[at, LOSS]),
            )
        )
    return WorstRows("wrong choices with the highest loss, spread over the positions of the right one", rows)


def _named(choices: tuple[str, ...], place: int) -> str:
    return f"{letter(place)}: {_cut(choices[place])}"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1].rstrip() + "…"


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else math.nan
