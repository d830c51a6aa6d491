"""Choose the precision of a fit: bf16 if the hardware supports it and the model is trained faster with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import AutocastKwargs
from torch import Tensor, nn

from fusetune import _private
from fusetune.inference.memory import retain_freed_memory
from fusetune.training.learner import Learner
from fusetune.types import Batch

CLOSE = 0.05
"""Maximum relative difference of the loss."""
WORTHWHILE = 50
"""Minimum number of updates of a stage for bf16."""
LARGE = 1_000_000
"""Minimum number of trained parameters; smaller models gain nothing."""
WIDE = 128
"""Minimum numbers of rows and columns of a weight matrix for bf16 to be faster."""
GROUPED = 1 / 8
"""Maximum share of grouped convolutions among the trained layers, which are no faster in bf16."""


class Autocast(AutocastKwargs):  # type: ignore[misc]  # accelerate has no types
    """Accelerate's settings of a pass in lower precision, without its copy of the whole environment at every pass."""

    def to_kwargs(self) -> dict[str, Any]:
        """Return the settings that differ from the defaults."""
        return {} if self.enabled else {"enabled": False}


def has_bf16() -> bool:
    """Return whether the CPU has instructions for bfloat16 (AVX512-BF16 or AMX)."""
    return _private.has_fast_bf16()


def choose_precision(
    setting: str, learner: Learner, batch: Callable[[], Batch], trained: Sequence[Tensor], updates: int
) -> str:
    """Return the precision of a stage, as accelerate calls it: "no", "bf16" or "fp16".

    For "auto" the choice depends on hardware, model and rows only, not on measured times, so that the same seed gives
    the same weights however busy the machine is. It is bf16 on a GPU that supports it. On a CPU with bf16 instructions
    it is bf16 if the stage is long enough, `suits_bf16` is true, and the loss of a batch is within `CLOSE` of
    float32's.

    Args:
        setting: `trainer.precision`.
        learner: on the CPU. Its weights, gradients and mode, and torch's RNG state, are unchanged afterwards.
        batch: returns the rows to compare the loss on.
        trained: the parameters that will be trained.
        updates: number of updates of the stage.
    """
    if setting != "auto":
        return setting
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    if not has_bf16() or updates < WORTHWHILE or not suits_bf16(learner, trained):
        return "no"
    rows, rng_state, was_training = batch(), torch.get_rng_state(), learner.training
    learner.eval()  # no dropout, no running statistics
    try:
        with retain_freed_memory():
            loss, low = (_loss(learner, rows, bf16=bf16) for bf16 in (False, True))
    finally:
        learner.train(was_training)
        torch.set_rng_state(rng_state)
    return "bf16" if abs(low - loss) <= CLOSE * max(abs(loss), 1e-3) else "no"


def suits_bf16(model: nn.Module, trained: Sequence[Tensor]) -> bool:
    """Return whether a CPU with bfloat16 instructions trains a model faster in bf16.

    It does if most weights are in wide matrices: with AMX, updates of BERT are 0.95 to 1.14 times as fast at 64
    features, 1.2 to 1.4 at 128, 2.1 at 384 and more, of ViT 1.5 at 192, of ResNet 1.9. Grouped (depthwise) convolutions
    gain nothing: ConvNeXt 0.93, MobileNetV2 1.06.

    Args:
        model: the model.
        trained: the parameters that will be trained; layers without any of them are ignored.
    """
    if sum(parameter.numel() for parameter in trained) < LARGE:
        return False
    known = {id(parameter) for parameter in trained}
    wide, narrow, layers, grouped = 0, 0, 0, 0
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim < 2 or id(weight) not in known:
            continue
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            continue
        layers += 1
        grouped += getattr(module, "groups", 1) > 1
        if min(len(weight), weight[0].numel()) >= WIDE:
            wide += weight.numel()
        else:
            narrow += weight.numel()
    return wide > narrow and grouped <= GROUPED * layers


@torch.no_grad()
def _loss(learner: nn.Module, batch: Batch, *, bf16: bool) -> float:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        total, _, _ = learner(batch)
    return float(total)
