"""Number columns: standardised values and their piecewise-linear encoding over quantile bins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusetune.modalities.base import Augmenter, Detection, Modality
from fusetune.modalities.features.number import NumberFeatures
from fusetune.modalities.fixed import FixedFeatures
from fusetune.modalities.naming import module_name
from fusetune.modalities.profile import profile_cells


class NumberModality(NumberFeatures, Modality):
    """A column of quantities.

    The first feature is the standardised value, clipped to ±8. It is followed by the piecewise-linear encoding: feature
    t is 0 below bin t, 1 above it, and linear inside it. The bins hold equal shares of the train rows, which spreads
    out heavy tails. Outside the outermost bins the encoding stays 0 or 1 (the paper extrapolates), as the first feature
    covers these values.

    Reference: Gorishniy et al., On Embeddings for Numerical Features in Tabular Deep Learning, 2022, arXiv:2203.05556.
    """

    kind = "number"

    def __init__(self, column: str, *, bins: int = 16) -> None:
        """
        Args:
            column: the column's name.
            bins: maximum number of bins of the piecewise-linear encoding; 0 uses only the standardised value.
        """
        Modality.__init__(self, column)
        NumberFeatures.__init__(self, column, bins=bins)

    @classmethod
    def detect(cls, values: Sequence[Any], *, base_dir: Path) -> Detection:
        """Rate the cells: nearly all are numbers, and none has a leading zero, as codes have."""
        seen = profile_cells(values)
        share = f"{seen.numbers:.0%} of {seen.num} cells are numbers"
        if not seen.numbers:
            return Detection(0.0, "no cell is a number")
        if seen.booleans >= 0.5:
            return Detection(0.4, "the cells are true or false")
        if seen.codes:
            return Detection(0.2, f"{share}, but {seen.codes:.0%} have a zero in front, as codes do")
        if seen.num_inexact > 0.5 * seen.num:
            return Detection(0.3, f"{share}, but {seen.num_inexact} are integers beyond 2^53, as identifiers are")
        if seen.numbers == 1:
            return Detection(0.95, f"all {seen.num} cells are numbers")
        return Detection(0.9 * seen.numbers if seen.numeric else 0.45 * seen.numbers, share)

    def augmenter(self, **options: Any) -> Augmenter:
        """Return a `CellAugmenter`."""
        from fusetune.modalities.augment.tabular import CellAugmenter

        return CellAugmenter("number", options, std=lambda: self.std)

    def collate(self, examples: Sequence[float]) -> dict[str, Tensor]:
        """Return `values`, (examples, 1 + bins used) float32: standardised value, then piecewise-linear encoding."""
        return {"values": torch.from_numpy(self.features(examples))}

    @property
    def encoder_key(self) -> str:
        """Each number column has its own encoder."""
        return module_name(self.kind, self.column)

    def build_encoder(self) -> FixedFeatures:
        """Return `FixedFeatures` of the fitted dimension; call it after `fit`."""
        return FixedFeatures(self.dim)

    @property
    def part_of(self) -> str:
        """ "tabular"."""
        return "tabular"
