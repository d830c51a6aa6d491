"""Category columns: one-hot vectors over a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusetune.modalities.base import Augmenter, Detection, Modality
from fusetune.modalities.features.category import CategoryFeatures
from fusetune.modalities.fixed import FixedFeatures
from fusetune.modalities.naming import module_name
from fusetune.modalities.profile import profile_cells


class CategoryModality(CategoryFeatures, Modality):
    """A column of categories.

    The vocabulary holds the train rows' values, most frequent first. Rare and unseen values share one feature, which is
    trained on the rare ones. Surrounding white space is ignored. Equal values in different forms are one category: 3,
    3.0, "3" and "3.0"; True and "true"; and also 0 and false if the values are only 0 and 1.
    """

    kind = "category"

    def __init__(self, column: str, *, max_size: int = 1000, min_count: int = 2) -> None:
        """
        Args:
            column: the column's name.
            max_size: maximum size of the vocabulary, 1 or more.
            min_count: minimum number of train rows of a value in the vocabulary, 1 or more. If no value reaches it,
                all values are in the vocabulary.
        """
        Modality.__init__(self, column)
        CategoryFeatures.__init__(self, column, max_size=max_size, min_count=min_count)

    @classmethod
    def detect(cls, values: Sequence[Any], *, base_dir: Path) -> Detection:
        """Rate the cells: few distinct short values that repeat."""
        seen = profile_cells(values)
        counted = f"{seen.num_distinct} distinct values in {seen.num} cells"
        if seen.scalars < 0.95:
            return Detection(0.0, "the cells are not names")
        if seen.booleans >= 0.5:
            return Detection(0.95, "the cells are true or false")
        if seen.codes and seen.numbers >= 0.95:
            return Detection(0.7 if seen.distinct <= 0.8 else 0.3, f"codes with a zero in front, {counted}")
        if seen.numeric:
            return Detection(0.3 if seen.num_distinct <= 20 else 0.05, f"numbers, {counted}")
        if seen.repeats:
            return Detection(0.85, f"{counted}, {seen.words:.1f} words each")
        return Detection(0.2 if seen.words < 3 else 0.1, f"{counted}: they hardly repeat")

    def augmenter(self, **options: Any) -> Augmenter:
        """Return a `CellAugmenter`."""
        from fusetune.modalities.augment.tabular import CellAugmenter

        return CellAugmenter("category", options)

    def collate(self, examples: Sequence[str]) -> dict[str, Tensor]:
        """Return `values`, (examples, 1 + vocabulary) float32, one-hot; the first feature is `OTHER`."""
        return {"values": torch.from_numpy(self.features(examples))}

    @property
    def encoder_key(self) -> str:
        """Each category column has its own encoder."""
        return module_name(self.kind, self.column)

    def build_encoder(self) -> FixedFeatures:
        """Return `FixedFeatures` of the fitted dimension; call it after `fit`."""
        return FixedFeatures(self.dim)

    @property
    def part_of(self) -> str:
        """ "tabular"."""
        return "tabular"
