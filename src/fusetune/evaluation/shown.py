"""Cells, ranked answers and answers before and after tuning as a report shows them, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fusetune.tasks.panels.kinds import Number


@dataclass
class Shown:
    """A cell as the report shows it.

    Attributes:
        column: the column's name.
        kind: how the cell is displayed.
        text: the cell's shortened text, the number, "missing", an image's size or a sound's length.
        images: thumbnails as JPEG data URIs.
        sound: a WAV data URI of the sound's first seconds, or "".
        peaks: the largest amplitude, 0 to 1, in equal segments of the sound.
    """

    column: str
    kind: Literal["text", "image", "audio", "number", "category", "missing"]
    text: str = ""
    images: list[str] = field(default_factory=list)
    sound: str = ""
    peaks: list[Number] = field(default_factory=list)


@dataclass
class RankedAnswer:
    """An answer near the top: its row, its similarity to the query, its grade of relevance (0 if wrong), its cells."""

    row: int
    score: Number
    grade: Number
    cells: list[Shown] = field(default_factory=list)


@dataclass
class RankedQuery:
    """A query with the answers that the tuned model ranks first.

    Attributes:
        row: the query's row.
        outcome: "won" or "lost" for one whose first right answer tuning moved most, else "".
        rank, before: of the first right answer, by the tuned model and before tuning; nan if that is not known.
        cells: the query's.
        answers: the nearest first.
    """

    row: int
    outcome: str
    rank: Number
    before: Number
    cells: list[Shown] = field(default_factory=list)
    answers: list[RankedAnswer] = field(default_factory=list)


@dataclass
class ChangedAnswer:
    """A row's answers before and after tuning, beside the truth.

    Attributes:
        row: the row.
        outcome: "better", "worse" or "at random".
        truth, before, after: as text.
        before_score, after_score: of the answers.
        cells: the row's.
    """

    row: int
    outcome: str
    truth: str
    before: str
    after: str
    before_score: Number
    after_score: Number
    cells: list[Shown] = field(default_factory=list)
