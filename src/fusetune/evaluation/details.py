"""The parts of a task's result behind its figures: by class, confusion, curves, regression fit, calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float where null stands for nan."""


@dataclass
class ClassRow:
    """One class of the tuned model's predictions. `average_precision` is nan where the class has no row."""

    label: str
    support: int
    precision: Number
    recall: Number
    f1: Number
    average_precision: Number = math.nan


@dataclass
class Confusion:
    """Counts of (truth, prediction): only those above 0, as `[true index, predicted index, rows]`."""

    cells: list[list[int]]


@dataclass
class Curve:
    """One class's ROC or precision-recall curve, thinned out. `area` is that of the full curve (AP for PR)."""

    label: str
    x: list[Number]
    y: list[Number]
    area: Number
    rate: Number = math.nan
    """The share of rows that have this class: what PR's precision is for a random order."""


@dataclass
class DecileSpread:
    """Rows of like prediction: mean prediction, and the 10th, 50th and 90th percentile of (prediction - truth)."""

    predicted: Number
    low: Number
    middle: Number
    high: Number
    rows: int


@dataclass
class NumberFit:
    """How a regression's predictions lie to the truth.

    Attributes:
        truth, predicted: some of the rows (all where there are few), drawn by seed.
        edges, counts: the histogram of prediction - truth over all rows; one more edge than counts.
        spread: by tenths of the prediction, lowest first.
    """

    truth: list[Number]
    predicted: list[Number]
    edges: list[Number]
    counts: list[int]
    spread: list[DecileSpread]


@dataclass
class ReliabilityBin:
    """Rows whose confidence lies in [low, high): their mean confidence, and how often they were right."""

    low: Number
    high: Number
    rows: int
    confidence: Number
    accuracy: Number


@dataclass
class Calibration:
    """Whether probabilities mean what they say.

    Attributes:
        bins: equal-width bins of the confidence (top-label; for multi-label, every label's probability).
        ece: expected calibration error over those bins, 0 to 1 (Naeini et al. 2015).
        adaptive_ece: the same over bins of equal rows (Nixon et al. 2019, arXiv:1904.01685).
        brier: mean squared distance of the probabilities from the truth; for classes summed over classes, 0 to 2;
            for binary of the positive class alone, 0 to 1; for multi-label the mean over labels.
        measures: what `confidence` is, for people.
        temperature: the one number by which the validation rows' log-probabilities are best divided; above 1, the
            model is too sure of itself. nan where it was not fitted.
        ece_scaled: `ece` after dividing by it.
    """

    bins: list[ReliabilityBin]
    ece: Number
    adaptive_ece: Number
    brier: Number
    measures: str
    temperature: Number = math.nan
    ece_scaled: Number = math.nan


@dataclass
class FusionTried:
    """A candidate of `fusion: auto`.

    Attributes:
        name: as in the registry.
        parameters: of the fusion.
        score: its main metric on validation rows, the mean over tasks; nan where there was no time to try it.
        seconds: it took.
        tried: whether there was time.
    """

    name: str
    parameters: int
    score: Number = math.nan
    seconds: Number = math.nan
    tried: bool = False


@dataclass
class FusionChoice:
    """How a fusion was chosen.

    Attributes:
        chosen: its name.
        metric: what the scores are, in words.
        margin: the difference of scores that counts as chance.
        minutes: the budget.
        candidates: in the order they were tried.
        said: why it was chosen, in a sentence.
    """

    chosen: str
    metric: str
    margin: Number
    minutes: Number
    candidates: list[FusionTried]
    said: str

    @property
    def cut(self) -> bool:
        """Whether the budget was spent before all candidates were tried."""
        return not all(one.tried for one in self.candidates)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Per candidate: its name, validation score, seconds, and what became of it."""
        return [
            (
                one.name,
                f"{one.score:.4f}" if one.tried and math.isfinite(one.score) else "–",
                f"{one.seconds:.1f}" if one.tried else "–",
                "chosen" if one.name == self.chosen else "tried" if one.tried else "not tried: the time was spent",
            )
            for one in self.candidates
        ]


@dataclass
class StackUsed:
    """What trees beside the network count for a task, and the validation rows' main metric that says so.

    Attributes:
        weight: of the trees' predictions, 0 to 1.
        metric: the main metric's name.
        network, alone, together: its value by the network, by the trees, by both with this weight.
        trees: how many were grown.
        said: the same in a sentence.
    """

    weight: Number
    metric: str
    network: Number = math.nan
    alone: Number = math.nan
    together: Number = math.nan
    trees: int = 0
    said: str = ""
