"""Records of what a fit decided and did besides tuning: fusion, texts read together, trees, self-supervised tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fusetune.tasks.panels.kinds import Number


@dataclass
class FusionTried:
    """A candidate of `fusion: auto`.

    Attributes:
        name: the fusion's name in the registry.
        parameters: the number of the fusion's parameters.
        score: the main metric on validation rows, averaged over tasks; nan if the candidate was not tried.
        seconds: how long training and scoring took; nan if the candidate was not tried.
        tried: whether the candidate was trained within the time budget.
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
        chosen: the chosen fusion's name in the registry.
        metric: a description of the scores.
        margin: the difference of scores that is still within chance.
        minutes: the time budget.
        candidates: the candidates, in the order in which they were tried.
        said: the reason for the choice, one sentence.
    """

    chosen: str
    metric: str
    margin: Number
    minutes: Number
    candidates: list[FusionTried]
    said: str

    @property
    def cut(self) -> bool:
        """Whether the time budget ran out before all candidates were tried."""
        return not all(candidate.tried for candidate in self.candidates)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return each candidate's name, validation score, seconds and outcome, as text."""
        return [
            (
                candidate.name,
                f"{candidate.score:.4f}" if candidate.tried and math.isfinite(candidate.score) else "–",
                f"{candidate.seconds:.1f}" if candidate.tried else "–",
                "chosen" if candidate.name == self.chosen else "tried" if candidate.tried else "not tried: out of time",
            )
            for candidate in self.candidates
        ]


@dataclass
class ReadingTried:
    """A way to read a pair of texts that was tuned, to choose one.

    Attributes:
        name: "apart" or "together".
        score: the main metric on validation rows at the best step, averaged over tasks; nan if it was not tuned.
        seconds: how long tuning took; nan if it was not tuned.
    """

    name: str
    score: Number = math.nan
    seconds: Number = math.nan


@dataclass
class ReadingChoice:
    """How two text columns are read, apart or together, and how that was chosen.

    Attributes:
        chosen: "apart" or "together".
        columns: the two columns.
        metric: a description of the scores.
        margin: the difference of scores that is still within chance.
        num_rows: the number of train rows that each was tuned on; 0 if none was tuned.
        tried: apart, and together.
        said: the reason for the choice.
    """

    chosen: str
    columns: list[str]
    metric: str
    margin: Number
    num_rows: int
    tried: list[ReadingTried]
    said: str

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return each reading's name, validation score, seconds and outcome, as text."""
        return [
            (
                item.name,
                f"{item.score:.4f}" if math.isfinite(item.score) else "–",
                f"{item.seconds:.1f}" if math.isfinite(item.seconds) else "–",
                "chosen" if item.name == self.chosen else "",
            )
            for item in self.tried
        ]


@dataclass
class StackUsed:
    """The weight of the boosted trees in a task's predictions, and the validation scores it was chosen by.

    Attributes:
        weight: the weight of the trees' predictions, 0 to 1.
        metric: the main metric's name.
        network: the metric of the network alone on validation rows.
        alone: the metric of the trees alone.
        together: the metric of both, blended with `weight`.
        trees: the number of trees.
        said: a summary, one sentence.
    """

    weight: Number
    metric: str
    network: Number = math.nan
    alone: Number = math.nan
    together: Number = math.nan
    trees: int = 0
    said: str = ""


@dataclass
class PretrainingStep:
    """A measurement of the self-supervised tuning.

    Attributes:
        stage: "head" while a new head learned alone, "tune" once the encoders moved.
        step, epoch: the number of updates so far, and of epochs in this stage.
        train_loss: the mean over the updates since the last measurement; nan before the first update.
        val_loss: on the validation rows, always with the same random draws.
        figures: further measures on the validation rows, such as perplexity.
    """

    stage: str
    step: int
    epoch: Number
    train_loss: Number
    val_loss: Number
    figures: dict[str, Number] = field(default_factory=dict)


@dataclass
class PretrainingUsed:
    """What the self-supervised tuning before the task did.

    Attributes:
        name: the method.
        columns: that were read.
        rows, unlabelled, val_rows: the train rows, those of them without a target, and the validation rows.
        before, after: the measurement of the encoders as loaded, and that of the kept step.
        steps: all measurements.
        changed: the number of parameters that it changed.
        seconds: of the updates.
        said: a summary, in sentences.
    """

    name: str
    columns: list[str]
    rows: int
    unlabelled: int
    val_rows: int
    before: PretrainingStep
    after: PretrainingStep
    steps: list[PretrainingStep]
    changed: int
    seconds: Number
    said: str

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and the rows of a table: the encoders as loaded, and the kept step."""
        names = list(self.after.figures)
        rows = [
            [
                what,
                f"{step.step:,}",
                f"{step.val_loss:.4g}",
                *(f"{step.figures.get(name, math.nan):.4g}" for name in names),
            ]
            for what, step in (("as loaded", self.before), ("kept", self.after))
        ]
        return ["encoders", "step", "loss on validation rows", *names], rows
