"""Strategies that split a batch into several passes: texts by length, rows that may not share a pass, many images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fusetune.backbones.inputs import ImageInputs
from fusetune.backbones.passes.base import Encoder, EncoderPass, PlainPass
from fusetune.types import Tokens

PASS_TOKENS = 64
"""The overhead of a pass in evaluation mode, in tokens that could be computed in that time."""
TRAINING_TOKENS = 512
"""The overhead of a pass in training mode: its graph is kept, and its shape needs kernels for both directions."""
MULTIPLE = 8
"""In training mode on a CPU, texts are padded to a multiple of so many tokens."""
PICTURES = 64
"""Images of a pass without gradients on a CPU."""


class GroupedPass(EncoderPass):
    """Encode texts in groups of similar length, each padded to its longest one."""

    def __init__(self, groups: Sequence[Tensor]) -> None:
        """
        Args:
            groups: (rows of the group,) int64 each, as `length_groups` returns them.
        """
        self.groups = groups

    def __call__(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> Tokens:
        """See `EncoderPass`."""
        width = inputs["attention_mask"].shape[1]
        parts = []
        for rows in self.groups:
            longest = int(inputs["attention_mask"][rows].sum(1).max())
            own = _cut(inputs, rows, width, longest)
            parts.append(one_pass(encoder, own)(encoder, own))
        back = torch.cat(list(self.groups)).argsort()
        if any(part.values.shape[1] > 1 for part in parts):  # every token is wanted
            parts = [_padded(part, width) for part in parts]
        tokens = concatenated(parts)
        return Tokens(tokens.values[back], tokens.mask[back])


class RoundedPass(PlainPass):
    """Encode all texts at once, padded to a multiple of `MULTIPLE` tokens.

    A CPU compiles kernels for each shape of a batch and direction, which takes time and memory; so there are fewer.
    """

    @staticmethod
    def padding(encoder: Encoder, inputs: Mapping[str, Tensor]) -> int:
        """Return how many tokens are added to each text, up to the encoder's maximum."""
        width = inputs["attention_mask"].shape[1]
        return max(0, min(-(-width // MULTIPLE) * MULTIPLE, encoder.max_tokens) - width)

    def __call__(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> Tokens:
        """See `EncoderPass`."""
        width, more = inputs["attention_mask"].shape[1], self.padding(encoder, inputs)
        wide = {}
        for name, tensor in inputs.items():
            filler = encoder.inputs.filler if name == "input_ids" else 0
            wide[name] = F.pad(tensor, (0, more), value=filler) if tensor.shape[1:] == (width,) else tensor
        values, mask, own = encoder.hidden_states(**wide)
        return encoder.as_tokens(values[:, :width], mask[:, :width], own)


class ExactPass(EncoderPass):
    """Encode rows of equal length together, or each row alone, without padding.

    For models whose vectors depend on the padding or on other rows. It takes as many passes as a batch has lengths, or
    rows.
    """

    def __call__(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> Tokens:
        """See `EncoderPass`."""
        num = max(len(tensor) for tensor in inputs.values())
        mask, lengths = inputs.get("attention_mask"), inputs.get("lengths")
        sizes = mask.sum(1) if mask is not None else lengths if lengths is not None else torch.zeros(num)
        width = mask.shape[1] if mask is not None else max((int(size) for size in sizes), default=0)
        if encoder.separate == "cells":
            groups = [torch.tensor([row]) for row in range(num)]
        else:
            groups = [(sizes == size).nonzero().squeeze(1) for size in sorted(set(sizes.tolist()))]
        parts = [encoder.hidden_states(**_cut(inputs, rows, width, int(sizes[rows[0]]) or width)) for rows in groups]
        most = max(values.shape[1] for values, _, _ in parts)
        back = torch.cat(groups).argsort()
        values = torch.cat([F.pad(part, (0, 0, 0, most - part.shape[1])) for part, _, _ in parts])[back]
        real = torch.cat([F.pad(part, (0, most - part.shape[1])) for _, part, _ in parts])[back]
        own = [part for _, _, part in parts if part is not None]
        return encoder.as_tokens(values, real, torch.cat(own)[back] if own else None)


class PicturesPass(EncoderPass):
    """Encode images in chunks of `PICTURES`; on a CPU larger passes take more memory and are not faster."""

    def __call__(self, encoder: Encoder, inputs: Mapping[str, Tensor]) -> Tokens:
        """See `EncoderPass`."""
        starts = range(0, max(len(tensor) for tensor in inputs.values()), PICTURES)
        pieces = [{name: tensor[at : at + PICTURES] for name, tensor in inputs.items()} for at in starts]
        return concatenated([PlainPass()(encoder, piece) for piece in pieces])


def _cut(inputs: Mapping[str, Tensor], rows: Tensor, width: int, longest: int) -> dict[str, Tensor]:
    """Return some rows, with tensors of length `width` truncated to `longest`."""
    some = {name: tensor[rows.to(tensor.device)] for name, tensor in inputs.items()}
    return {name: part[:, :longest] if part.shape[1:2] == (width,) else part for name, part in some.items()}


def _padded(tokens: Tokens, width: int) -> Tokens:
    """Return rows' tokens padded to a width."""
    more = width - tokens.values.shape[1]
    return Tokens(F.pad(tokens.values, (0, 0, 0, more)), F.pad(tokens.mask, (0, more)))


def one_pass(encoder: Encoder, inputs: Mapping[str, Tensor]) -> EncoderPass:
    """Return the strategy for rows that are encoded at once: padded to few widths for texts on a CPU in training.

    It depends on the mode and not on gradients: passes with and without them draw the same dropout.
    """
    mask = inputs.get("attention_mask")
    if not encoder.max_tokens or mask is None or mask.device.type != "cpu" or not encoder.model.training:
        return PlainPass()
    return RoundedPass()


def length_groups(encoder: Encoder, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the rows of texts in groups of similar length, or an empty list if one pass is faster.

    On a GPU another pass costs more than padding, and reading the lengths would synchronise.
    """
    mask = inputs.get("attention_mask")
    if mask is None or mask.device.type != "cpu":
        return []
    lengths, order = mask.sum(1).sort()
    cuts = length_cuts(lengths.numpy(), TRAINING_TOKENS if encoder.model.training else PASS_TOKENS)
    return list(order.tensor_split(torch.tensor(cuts))) if cuts else []


def length_cuts(lengths: np.ndarray, overhead: int) -> list[int]:
    """Return the positions at which to split texts, sorted by length, into groups that are padded separately.

    Args:
        lengths: (texts,) numbers of tokens, ascending.
        overhead: of a pass, in tokens.

    Returns:
        Ascending positions between 0 and the number of texts; each split saves at least the overhead.
    """
    num = len(lengths)
    if num < 2:
        return []
    saved = np.arange(1, num) * (lengths[-1] - lengths[:-1])
    best = int(saved.argmax())
    if saved[best] < overhead:
        return []
    cut = best + 1
    later = length_cuts(lengths[cut:], overhead)
    return [*length_cuts(lengths[:cut], overhead), cut, *(cut + position for position in later)]


def is_many_pictures(encoder: Encoder, inputs: Mapping[str, Tensor]) -> bool:
    """Return whether a batch has more than `PICTURES` images, on a CPU and without gradients."""
    pixels = next(iter(inputs.values()))
    return (
        isinstance(encoder.inputs, ImageInputs)
        and len(pixels) > PICTURES
        and pixels.device.type == "cpu"
        and not torch.is_grad_enabled()
    )


def concatenated(parts: Sequence[Tokens]) -> Tokens:
    """Concatenate the cells of several passes, each (cells, tokens, dim) with equal numbers of tokens."""
    values, mask = torch.cat([part.values for part in parts]), torch.cat([part.mask for part in parts])
    return Tokens(values, mask, parts[0].grid)
