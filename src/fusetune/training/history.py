"""How a fit went, as the report and a checkpoint know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fusetune.training.callbacks import Check


@dataclass
class TrainingHistory:
    """How a fit went: every check, and the best one, whose weights the model has now.

    Attributes:
        trained: how many parameters were trained, per encoder key and in all under "".
        moved: the keys of the pretrained encoders that were trained.
        warnings: what the objectives have to say about their settings.
        precision: "no" for float32, "bf16" or "fp16".
        waited: the share of the updates' time that went by in waiting for batches.
    """

    checks: list[Check]
    best: Check
    trained: dict[str, int]
    moved: set[str]
    warnings: list[str]
    precision: str = "no"
    waited: float = 0.0

    def to_state(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        return asdict(self) | {"moved": sorted(self.moved)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> TrainingHistory:
        """The course that a checkpoint kept."""
        checks, best = [Check(**check) for check in state["checks"]], Check(**state["best"])
        return cls(**{**state, "checks": checks, "best": best, "moved": set(state["moved"])})
