"""How a fit went, as the report and a checkpoint know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fusetune.training.callbacks import Check


@dataclass
class TrainingHistory:
    """How a fit went: every check, and the best one, whose weights the model has now.

    Attributes:
        trained: how many parameters took part in the last stage, per encoder key and in all under "".
        moved: the keys of the pretrained encoders that were trained.
        warnings: what the objectives have to say about their settings.
        precision: "no" for float32, "bf16" or "fp16".
        changed: how many parameters have other values in the kept weights than at the start, per encoder key and in
            all under ""; empty where that was not counted.
        waited: the share of the updates' time that went by in waiting for batches.
    """

    checks: list[Check]
    best: Check
    trained: dict[str, int]
    moved: set[str]
    warnings: list[str]
    precision: str = "no"
    waited: float = 0.0
    changed: dict[str, int] = field(default_factory=dict)

    @property
    def encoders_unchanged(self) -> bool:
        """Whether pretrained encoders were tuned, and yet the kept weights have them as they were."""
        return bool(self.moved) and bool(self.changed) and not any(self.changed.get(key) for key in self.moved)

    def to_state(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        return asdict(self) | {"moved": sorted(self.moved)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> TrainingHistory:
        """The course that a checkpoint kept."""
        checks, best = [Check(**check) for check in state["checks"]], Check(**state["best"])
        return cls(**{**state, "checks": checks, "best": best, "moved": set(state["moved"])})
