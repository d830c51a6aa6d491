"""What a stage of a training is: what is trained, how fast, how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fusetune.training.deadline import Deadline
from fusetune.training.updates.update import Gradients, plain


@dataclass
class Stage:
    """Settings of one stage, and what its run measured.

    Attributes:
        name: for logs and progress.
        epochs: passes over the train rows; may be a fraction.
        groups: the optimiser's parameter groups, each with its peak `lr` and its `weight_decay`.
        warmup: share of the updates over which the learning rate rises, 0 to 1.
        batch_size: rows an update, over all processes, in `accumulate` micro-batches.
        evals_per_epoch: checks (evaluations on the validation rows) an epoch.
        patience: checks without an improvement before the stage stops; None never stops early.
        gradients: computes an update's gradients.
        ema: decay of the weights' moving average, in (0, 1), which is evaluated and saved in their place; or None.
        autocast: whether the accelerator's mixed precision is used.
        seconds: set by the run: duration of the updates, without checks.
        waited: set by the run: the part of `seconds` spent waiting for batches.
        skip: updates with a non-finite loss or gradient that may be skipped; None stops at the first.
        deadline: when the stage stops, though updates are left.
        out_of_time: set by the run: whether it stopped for that.
        notes: set by the run: sentences on where it departed from the settings.
        fits_memory: whether micro-batches may be made smaller than `accumulate` says, to fit into memory.
    """

    name: str
    epochs: float
    groups: list[dict[str, Any]]
    optimizer: str = "adamw"
    schedule: str = "cosine"
    warmup: float = 0.1
    clip: float | None = 1.0
    batch_size: int = 32
    accumulate: int = 1
    evals_per_epoch: int = 1
    patience: int | None = None
    workers: int = 0
    seed: int = 0
    gradients: Gradients = plain
    ema: float | None = None
    autocast: bool = True
    seconds: float = 0.0
    waited: float = 0.0
    skip: int | None = None
    deadline: Deadline = field(default_factory=Deadline)
    out_of_time: bool = False
    notes: list[str] = field(default_factory=list)
    fits_memory: bool = False
