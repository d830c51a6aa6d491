"""What a comparison of new rows with held-out rows found: tests, estimates, unusual rows, and their page."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusetune.evaluation.report.svg import figure
from fusetune.evaluation.report.write import render_page, replace_file
from fusetune.evaluation.results import plain
from fusetune.evaluation.shown import Shown
from fusetune.lifecycle.estimate import Estimate
from fusetune.tasks.panels.kinds import Cell, Head, TablePanel


@dataclass
class DriftTest:
    """One test.

    Attributes:
        name: what is compared: "rows", or a column, or a target.
        test: the test's name.
        effect_is: what the effect is.
        effect, low, high: the difference, with its 95 % interval if the test has one.
        p: the p-value; NaN if there are too few rows.
        adjusted: the p-value adjusted for all that were tested; see `DriftReport.alarm`.
        detail: both samples in figures, such as medians or the categories that changed most.
    """

    name: str
    test: str
    effect_is: str
    effect: float
    p: float
    low: float = math.nan
    high: float = math.nan
    adjusted: float = math.nan
    detail: str = ""


@dataclass
class UnusualRow:
    """A new row that differs from the held-out ones: its file and number there, and its odds to be new, 0 to 1."""

    file: str
    row: int
    probability: float
    cells: list[Shown] = field(default_factory=list)


@dataclass
class DriftReport:
    """What was found.

    Attributes:
        alarm: whether a test's adjusted p-value is at most `alpha`. The probability of an alarm without drift is at
            most `alpha`: p-values are multiplied by the number of groups of tests (rows by two tests, predictions of
            each target, columns); those of columns are adjusted among each other first, by Benjamini & Hochberg.
        alpha: the level.
        p: the smallest of the adjusted p-values; there is an alarm where it is at most `alpha`.
        reference, new: the sources of the held-out and the new rows.
        num_reference, num_new: the rows of each that were compared.
        tests: of whole rows and of predictions.
        columns: of columns, and of their missing cells; `adjusted` controls the false discovery rate.
        estimates: the accuracy on the new rows, without their labels.
        unusual: the new rows that differ most.
        detectable: the ROC AUC between both samples that the classifier's test finds in 8 of 10 cases.
        notes: sentences for the user.
    """

    alarm: bool
    alpha: float
    p: float
    reference: str
    new: str
    num_reference: int
    num_new: int
    tests: list[DriftTest]
    columns: list[DriftTest]
    estimates: list[Estimate]
    unusual: list[UnusualRow]
    detectable: float
    notes: list[str]

    @property
    def drifted(self) -> list[str]:
        """The names of the columns whose adjusted p-value is at most `alpha`, the surest first."""
        ranked = sorted((test for test in self.columns if test.adjusted <= self.alpha), key=lambda test: test.adjusted)
        return list(dict.fromkeys(test.name for test in ranked))

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        if not self.alarm:
            return (
                f"No drift was found in {self.num_new:,} new rows against {self.num_reference:,} held-out rows; a "
                f"classifier that tells them apart with an AUC of {self.detectable:.2f} is found in 8 of 10 cases."
            )
        sure = [test.name for test in self.tests if test.adjusted <= self.alpha]
        where = f"columns {', '.join(self.drifted[:6])}" if self.drifted else "no single column"
        return f"The new rows differ: {', '.join(dict.fromkeys(sure)) or 'columns'} ({where})."

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data; NaN becomes None."""
        content: dict[str, Any] = plain(self)
        return {"headline": self.headline, "drifted": self.drifted} | content

    def save(self, folder: str | Path) -> Path:
        """Write drift.json and drift.html into a folder.

        Raises:
            StorageError: they cannot be written.
        """
        folder = Path(folder)
        replace_file(folder / "drift.json", json.dumps(self.to_json(), ensure_ascii=False, indent=1, allow_nan=False))
        replace_file(folder / "drift.html", render_page("drift.html.j2", report=self, panels_of=_panels(self)))
        return folder


def _panels(report: DriftReport) -> dict[str, TablePanel]:
    """Return the tables of the page."""
    heads = [Head("compared"), Head("test"), Head("difference", "number"), Head("95 % interval"), Head("p", "number")]
    heads += [Head("adjusted p", "number"), Head("held-out → new"), Head("")]

    def rows(tests: list[DriftTest]) -> list[list[Cell]]:
        return [
            [
                test.name,
                test.test,
                test.effect,
                f"{figure(test.low)} to {figure(test.high)}" if math.isfinite(test.low) else "",
                test.p,
                test.adjusted,
                test.detail,
                "drift" if test.adjusted <= report.alpha else "",
            ]
            for test in tests
        ]

    ranked = sorted(report.columns, key=lambda test: (math.isnan(test.adjusted), test.adjusted))
    return {"rows": TablePanel(heads, rows(report.tests)), "columns": TablePanel(heads, rows(ranked))}
