"""How train rows' cells are augmented, and the random numbers that it draws."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fusetune.modalities.base import Augmenter


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of train rows.

    Attributes:
        augmenters: by augmented column.
        seed: of the augmenters' random draws.
        num_views: views of a cell that a frozen encoder sees in turn; 0 makes a new one in every epoch.
    """

    augmenters: Mapping[str, Augmenter] = field(default_factory=dict)
    seed: int = 0
    num_views: int = 0


def cell_rng(seed: int, epoch: int, row: int, column: str) -> np.random.Generator:
    """Return the generator that augments one row's cell in an epoch."""
    return np.random.default_rng((seed, epoch, row, zlib.crc32(column.encode())))
