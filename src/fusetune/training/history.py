"""The training history: every evaluation of a fit, for the report and for checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fusetune.training.callbacks import Check


@dataclass
class TrainingHistory:
    """Every check of a fit, and what was trained.

    Attributes:
        checks: in order.
        best: the check whose weights the model has after the fit.
        trained: number of parameters that were trainable in the last stage, per encoder key; the total under "".
        moved: keys of the pretrained encoders that were trained.
        warnings: the objectives' warnings about their settings.
        precision: "no" for float32, "bf16" or "fp16".
        changed: number of parameters whose values differ between the start and the final weights, per encoder key; the
            total under "". Empty if they were not counted.
        error: standard error of the score on the validation rows, at the first check; nan where unknown.
        seconds: of all updates, without the evaluations between them.
        waited: share of `seconds` spent waiting for batches, 0 to 1.
        num_frozen: number of first blocks that a trial kept frozen, per encoder key; empty without a trial.
        out_of_time: whether training stopped, or skipped a stage, because its time was up.
    """

    checks: list[Check]
    best: Check
    trained: dict[str, int]
    moved: set[str]
    warnings: list[str]
    precision: str = "no"
    seconds: float = math.nan
    waited: float = 0.0
    changed: dict[str, int] = field(default_factory=dict)
    out_of_time: bool = False
    error: float = math.nan
    num_frozen: dict[str, int] = field(default_factory=dict)

    @property
    def encoders_unchanged(self) -> bool:
        """Whether pretrained encoders were trained, but none has changed in the final weights."""
        return bool(self.moved) and bool(self.changed) and not any(self.changed.get(key) for key in self.moved)

    def to_state(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores."""
        return asdict(self) | {"moved": sorted(self.moved)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> TrainingHistory:
        """Restore the history from `to_state`'s result."""
        checks, best = [Check(**check) for check in state["checks"]], Check(**state["best"])
        return cls(**{**state, "checks": checks, "best": best, "moved": set(state["moved"])})
