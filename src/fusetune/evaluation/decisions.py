"""What a fit decided by itself, and why: the fusion, and what trees count."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fusetune.tasks.panels.kinds import Number


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
