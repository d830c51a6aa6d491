"""Augmentation of numbers and categories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusetune.modalities.augment.options import Option, Transform, transforms
from fusetune.modalities.base import Augmenter


class CellAugmenter(Augmenter):
    """Augmentation of numbers and categories.

    noise   adds Gaussian noise with this share of the column's standard deviation; numbers only.
    swap    replaces the cell with this probability by that of a random train row (swap noise: Yoon et al. 2020, VIME).
    """

    def __init__(self, kind: str, options: Mapping[str, Any], *, std: Callable[[], float] | None = None) -> None:
        """
        Args:
            kind: "number" or "category".
            options: values of the transforms by name.
            std: returns the fitted standard deviation; None for categories.

        Raises:
            ConfigError: an option is unknown or out of range.
        """
        self.pool: Sequence[Any] = ()
        known = {"swap": Option(self._swap, 0.1, 0, 1)}
        if std is not None:
            known = {"noise": Option(lambda size: _noise(size, std), 0.1, 0, 10), **known}
        self.transforms = transforms(kind, options, known)

    def prepare(
        self, cells: Sequence[Any], codes: np.ndarray, example: Callable[[int], Any], *, progress: Any = None
    ) -> None:
        """Collect the train rows' examples for `swap`."""
        self.pool = [example(int(code)) for code in codes[codes >= 0]]

    def __call__(self, cell: Any, example: Any, rng: np.random.Generator, base_dir: Path) -> Any:
        """See `Augmenter`."""
        for transform in self.transforms:
            example = transform(example, rng)
        return example

    def _swap(self, rate: float) -> Transform:
        def swap(example: Any, rng: np.random.Generator) -> Any:
            chosen, index = rng.random() < rate, rng.integers(0, max(len(self.pool), 1))
            return self.pool[int(index)] if chosen and len(self.pool) else example

        return swap


def _noise(size: float, std: Callable[[], float]) -> Transform:
    return lambda example, rng: float(example) + size * std() * float(rng.standard_normal())
