"""Texts of a batch in groups of like length, each padded by itself, where that saves more than a pass costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

PASS_TOKENS = 64
"""Tokens that may be computed in the time that one more pass takes beside its arithmetic."""


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
