"""The choice of an encoder's pass."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fusetune.backbones.passes.base import BOUNDARY, Encoder, EncoderPass, PlainPass, single_pass
from fusetune.backbones.passes.grouping import ExactPass, GroupedPass, PicturesPass, is_many_pictures, length_groups


def choose(encoder: Encoder, inputs: Mapping[str, Tensor]) -> EncoderPass:
    """Return the way to encode a batch.

    The way that `using` asks for comes first, then what the result depends on (the boundary, rows that may not share a
    pass), then what saves time or memory.

    Args:
        encoder: will compute.
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
    return PicturesPass() if is_many_pictures(encoder, inputs) else PlainPass()
