"""The choice of a strategy for an encoder's forward pass."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fusetune.backbones.passes.base import BOUNDARY, Encoder, EncoderPass, single_pass
from fusetune.backbones.passes.grouping import (
    ExactPass,
    GroupedPass,
    PicturesPass,
    is_many_pictures,
    length_groups,
    one_pass,
)


def choose(encoder: Encoder, inputs: Mapping[str, Tensor]) -> EncoderPass:
    """Return the strategy for encoding a batch.

    The strategy that `using` set takes precedence, then those that correctness requires (the boundary, rows that may
    not share a pass), then those that save time or memory.

    Args:
        encoder: to run.
        inputs: see `EncoderPass`.
    """
    if encoder.wanted is not None and encoder.wanted.takes(encoder, inputs):
        return encoder.wanted
    if BOUNDARY in inputs:
        return single_pass(encoder, inputs)
    if encoder.separate:
        return ExactPass()
    if groups := length_groups(encoder, inputs):
        return GroupedPass(groups)
    return PicturesPass() if is_many_pictures(encoder, inputs) else one_pass(encoder, inputs)
