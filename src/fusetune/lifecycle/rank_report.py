"""The list of pretrained models by what their frozen features are worth for a target, and its page."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusetune.evaluation.report.svg import figure
from fusetune.evaluation.report.write import render_page, replace_file
from fusetune.evaluation.results import Interval, plain
from fusetune.tasks.panels.kinds import Cell, Head, TablePanel


@dataclass
class RankedBackbone:
    """A pretrained model as a reader of a table's columns of one kind.

    Attributes:
        name: its folder or hub id.
        probe: the target's main metric of a cross-validated linear probe on its frozen features.
        behind: the best candidate's metric minus this one's on the same rows, positive where this one is worse.
        log_me: in nats a row; NaN where the target has no numbers.
        h_score: on the mean over its layers; NaN for a target that is no class.
        layers: the number of layers in that mean; 1 for an encoder without equal layers.
        parameters: of the encoder.
        megabytes: of the files of its weights; NaN for an encoder without files.
        rows_per_second: that it encodes on this machine, without the cache.
        dim: features of a cell.
        as_good: whether the interval of `behind` covers 0.
    """

    name: str
    probe: Interval
    behind: Interval
    log_me: float
    h_score: float
    layers: int
    parameters: int
    megabytes: float
    rows_per_second: float
    dim: int
    as_good: bool = False


@dataclass
class RankedKind:
    """The candidates for the columns of one kind and one target, the best probe first.

    Attributes:
        kind: "text", "image" or "audio".
        columns: what they read, side by side.
        target, metric: what is predicted, and its main metric.
        greater_is_better: of the metric.
        rows: the labelled train rows.
        guess: the metric of a constant guess.
        backbones: the candidates.
    """

    kind: str
    columns: list[str]
    target: str
    metric: str
    greater_is_better: bool
    rows: int
    guess: float
    backbones: list[RankedBackbone]

    @property
    def best(self) -> RankedBackbone:
        """The candidate with the best probe."""
        return self.backbones[0]

    @property
    def cheaper(self) -> list[RankedBackbone]:
        """The candidates that are as good as the best on these rows and faster, the fastest first."""
        faster = [
            candidate
            for candidate in self.backbones[1:]
            if candidate.as_good and candidate.rows_per_second > self.best.rows_per_second
        ]
        return sorted(faster, key=lambda candidate: -candidate.rows_per_second)

    @property
    def headline(self) -> str:
        """What to take, in one or two sentences."""
        best, near = self.best, [candidate.name for candidate in self.backbones[1:] if candidate.as_good]
        text = (
            f"{self.kind} for {self.target}: {best.name} is likely best ({self.metric} "
            f"{figure(best.probe.value)} of a linear probe, {figure(self.guess)} of a constant guess)"
        )
        if len(self.backbones) == 1:
            return f"{text}; it is the only candidate."
        if not near:
            return f"{text}; each other candidate is worse beyond chance."
        if self.cheaper:
            first = self.cheaper[0]
            return (
                f"{text}. {first.name} is as good on {self.rows:,} rows (behind by {figure(first.behind.value)}, the "
                f"interval covers 0) and {first.rows_per_second / best.rows_per_second:.1f} times as fast."
            )
        return f"{text}. As good on {self.rows:,} rows, but not faster: {', '.join(near)}."


@dataclass
class Ranking:
    """What came of it.

    Attributes:
        source: the table.
        kinds: by kind of column and target.
        notes: sentences for the user.
    """

    source: str
    kinds: list[RankedKind]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the ranking as plain data; NaN becomes None."""
        content: dict[str, Any] = plain(self)
        for group, ranked in zip(content["kinds"], self.kinds, strict=True):
            group["headline"], group["cheaper"] = ranked.headline, [candidate.name for candidate in ranked.cheaper]
        return content

    def save(self, folder: str | Path) -> Path:
        """Write rank.json and rank.html into a folder.

        Raises:
            StorageError: they cannot be written.
        """
        folder = Path(folder)
        replace_file(folder / "rank.json", json.dumps(self.to_json(), ensure_ascii=False, indent=1, allow_nan=False))
        groups = [(ranked, _panel(ranked)) for ranked in self.kinds]
        replace_file(folder / "rank.html", render_page("rank.html.j2", ranking=self, groups=groups))
        return folder


def _panel(ranked: RankedKind) -> TablePanel:
    heads = [Head("backbone"), Head(f"probe's {ranked.metric}", "number"), Head("95 % interval")]
    heads += [Head("behind the best"), Head("LogME", "number"), Head("H-score", "number"), Head("parameters", "count")]
    heads += [Head("MB", "count"), Head("rows/s", "number"), Head("")]
    return TablePanel(heads, [cells_of(ranked, candidate) for candidate in ranked.backbones])


def cells_of(ranked: RankedKind, candidate: RankedBackbone) -> list[Cell]:
    """Return a candidate's row of the list."""
    if candidate is ranked.best:
        verdict = "likely best"
    else:
        verdict = "worse" if not candidate.as_good else "as good, faster" if candidate in ranked.cheaper else "as good"
    behind = "" if candidate is ranked.best else f"{figure(candidate.behind.value)} {_ends(candidate.behind)}"
    cells: list[Cell] = [
        candidate.name,
        candidate.probe.value,
        _ends(candidate.probe),
        behind,
        candidate.log_me,
        candidate.h_score,
    ]
    return [*cells, candidate.parameters, candidate.megabytes, candidate.rows_per_second, verdict]


def _ends(interval: Interval) -> str:
    return f"[{figure(interval.low)}, {figure(interval.high)}]" if math.isfinite(interval.low) else ""
