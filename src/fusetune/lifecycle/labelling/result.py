"""What a call of `label` came to, as data and as a page."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fusetune.evaluation.report.svg import Panel, padded
from fusetune.evaluation.report.write import render_page, replace_file
from fusetune.evaluation.results import Interval, plain
from fusetune.evaluation.shown import Shown
from fusetune.lifecycle.labelling.measure import Gain, RoundFigures

PAGE, RECORD = "label.html", "label.json"
SHOWN = 60
"""The most rows of a round that the page shows."""


@dataclass
class AskedRow:
    """A row that a person is asked to label.

    Attributes:
        row: its id.
        why: why it is asked for.
        cells: its cells.
    """

    row: str
    why: str
    cells: list[Shown] = field(default_factory=list)


@dataclass
class Labelling:
    """The state of a labelling after a call of `label`.

    Attributes:
        folder: with its files.
        target: the column of labels.
        round: the number of the last round; 0 before the first.
        strategy: of the last round.
        missing: how many rows of it have no label yet.
        labels: by label, the rows that have it: of this labelling and before.
        num_random: the labelled random rows, which are for measuring.
        rounds: the figures after each round.
        gain: over random labelling; None while there are too few labels.
        stop: why labelling can stop; None if it should go on.
        asked: the rows of the last round without a label, in the order of its file.
        new: whether this call chose that round.
        files: what there is to fill in and to read, by what it is.
        notes: sentences for the user.
    """

    folder: str
    target: str
    round: int
    strategy: str
    missing: int
    labels: dict[str, int]
    num_random: int
    rounds: list[RoundFigures]
    gain: Gain | None
    stop: str | None
    asked: list[AskedRow]
    new: bool
    files: dict[str, str]
    notes: list[str]

    @property
    def accuracy(self) -> Interval:
        """The last probe's, on the random rows; NaN before there are any."""
        return self.rounds[-1].accuracy if self.rounds else Interval(math.nan)

    @property
    def headline(self) -> str:
        """The state in one or two sentences."""
        if self.stop is not None and not self.new:
            text = f"Labelling can stop: {self.stop}."
        elif self.new:
            text = f"Label the {self.missing:,} rows of round {self.round}, then run the same command again."
        else:
            text = f"{self.missing:,} rows of round {self.round} have no label yet."
        if self.accuracy.known:
            low, high = self.accuracy.low, self.accuracy.high
            text += (
                f" A probe of {self.rounds[-1].labels:,} labels is right on {self.accuracy.value:.1%} of the pool "
                f"[{low:.1%}, {high:.1%}], by {self.num_random:,} random rows."
            )
        return text

    def to_json(self) -> dict[str, Any]:
        """Return the state as plain data; NaN becomes None."""
        content: dict[str, Any] = plain(self)
        for row in content["asked"]:
            del row["cells"]
        if self.gain is not None:
            content["gain"] |= {"verdict": self.gain.verdict, "sentence": self.gain.sentence}
        return {"headline": self.headline} | content

    def save(self) -> None:
        """Write label.json and label.html into the folder.

        Raises:
            StorageError: they cannot be written.
        """
        folder = Path(self.folder)
        replace_file(folder / RECORD, json.dumps(self.to_json(), ensure_ascii=False, indent=1))
        page = render_page("label.html.j2", result=self, rows=self.asked[:SHOWN], curve=self._curve())
        replace_file(folder / PAGE, page)

    def _curve(self) -> Markup | None:
        """Return a drawing of the accuracy over the number of labels; None with fewer than two rounds."""
        known = [one for one in self.rounds if one.accuracy.known]
        if len(known) < 2:
            return None
        x = [float(one.labels) for one in known]
        ends = [end for one in known for end in (one.accuracy.low, one.accuracy.high)]
        panel = Panel(
            "Accuracy on random rows, which no probe has learned from",
            padded(x),
            padded(ends),
            x_label="labels",
            y_label="accuracy",
        )
        panel.curve(x, [one.accuracy.low for one in known], "s-muted", dash="4 4")
        panel.curve(x, [one.accuracy.high for one in known], "s-muted", dash="4 4")
        panel.curve(x, [one.accuracy.value for one in known], "s-tuned")
        return panel.draw()
