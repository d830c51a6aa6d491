"""A batch in several passes: texts in groups of like length, where that saves more than a pass costs; many pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune.types import Tokens

PASS_TOKENS = 64
"""Tokens that may be computed in the time that one more pass takes beside its arithmetic."""
PICTURES = 64
"""Pictures of a pass without gradients on a processor, where cells have several."""


@contextmanager
def whole(encoder: Any) -> Iterator[None]:
    """Inside, all cells of a batch go through the encoder in one pass, for who changes what happens in it."""
    before = getattr(encoder, "together", False)
    encoder.together = True
    try:
        yield
    finally:
        encoder.together = before


def length_cuts(lengths: np.ndarray) -> list[int]:
    """Where to cut texts, sorted by length, into groups that are padded each by itself.

    Args:
        lengths: (texts,) tokens, rising.

    Returns:
        Places between 0 and the number of texts, rising; each cut saves `PASS_TOKENS` or more.
    """
    num = len(lengths)
    if num < 2:
        return []
    saved = np.arange(1, num) * (lengths[-1] - lengths[:-1])
    best = int(saved.argmax())
    if saved[best] < PASS_TOKENS:
        return []
    place = best + 1
    return [*length_cuts(lengths[:place]), place, *(place + cut for cut in length_cuts(lengths[place:]))]


def picture_pieces(inputs: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return a batch's pictures in pieces of `PICTURES`, each as a pass takes them; none where one pass is right.

    On a processor, without gradients, a larger pass takes more memory and is no faster.

    Args:
        inputs: (pictures, ...) each.
    """
    count, device = len(next(iter(inputs.values()))), next(iter(inputs.values())).device.type
    if count <= PICTURES or device != "cpu" or torch.is_grad_enabled():
        return []
    return [{name: part[at : at + PICTURES] for name, part in inputs.items()} for at in range(0, count, PICTURES)]


def concatenated(parts: Sequence[Tokens]) -> Tokens:
    """Return the cells of several passes, each (cells, tokens, dim) with as many tokens, as those of one."""
    values, mask = torch.cat([part.values for part in parts]), torch.cat([part.mask for part in parts])
    return Tokens(values, mask, parts[0].grid)
