"""Which arithmetic a fit uses: bf16 where the processor has it, and where it is faster and close on this very model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import AutocastKwargs
from torch import Tensor, nn

from fusetune import _private
from fusetune.inference.memory import kept_memory
from fusetune.training.learner import Learner
from fusetune.types import Batch

GAIN = 1.15
"""So many times faster than float32 an update must be in bf16."""
CLOSE = 0.05
"""The most that the loss may differ, relative to it."""
WORTHWHILE = 50
"""Updates that a stage must have for a test of some updates' time to pay."""
LARGE = 1_000_000
"""Parameters that a model must train: smaller ones gain nothing."""
ROUNDS = 3


class Autocast(AutocastKwargs):  # type: ignore[misc]  # accelerate has no types
    """Accelerate's settings of a pass in lower precision, without its copy of the whole environment at every pass."""

    def to_kwargs(self) -> dict[str, Any]:
        """What differs from the defaults."""
        return {} if self.enabled else {"enabled": False}


def has_bf16() -> bool:
    """Whether the processor multiplies in bfloat16 itself (AVX512-BF16 or AMX)."""
    return _private.has_fast_bf16()


def chosen(asked: str, learner: Learner, batch: Callable[[], Batch], trained: Sequence[Tensor], updates: int) -> str:
    """The precision of a stage, as accelerate calls it: "no", "bf16" or "fp16".

    On a GPU that has it, bf16. On a processor that has it, bf16 if a trial of some updates on a batch, which changes
    nothing, finds it `GAIN` times faster with a loss within `CLOSE`.

    Args:
        asked: `trainer.precision`.
        learner: on the CPU.
        batch: gives rows to try it on.
        trained: the parameters that will be trained.
        updates: how many there will be.
    """
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    if not has_bf16() or updates < WORTHWHILE or sum(parameter.numel() for parameter in trained) < LARGE:
        return "no"
    rows, kept, was_training = batch(), torch.get_rng_state(), learner.training
    learner.eval()  # no draws of dropout, no running statistics
    try:
        with kept_memory():
            slow, loss = _trial(learner, rows, trained, bf16=False)
            fast, near = _trial(learner, rows, trained, bf16=True)
    finally:
        learner.train(was_training)
        torch.set_rng_state(kept)
    return "bf16" if slow > GAIN * fast and abs(near - loss) <= CLOSE * max(abs(loss), 1e-3) else "no"


def _trial(learner: nn.Module, batch: Batch, trained: Sequence[Tensor], *, bf16: bool) -> tuple[float, float]:
    """The least seconds of a forward and backward pass, and the loss."""
    seconds, value = [], 0.0
    for _ in range(ROUNDS):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            total, _, _ = learner(batch)
        torch.autograd.grad(total.float(), trained, allow_unused=True)
        seconds.append(time.perf_counter() - start)
        value = float(total.detach())
    return min(seconds), value
