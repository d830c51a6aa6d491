"""Date and time columns: elapsed time and periodic parts of the calendar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusetune.modalities.base import Detection, Modality
from fusetune.modalities.features.date import DateFeatures, seconds_of
from fusetune.modalities.fixed import FixedFeatures
from fusetune.modalities.naming import module_name
from fusetune.modalities.profile import plain


class DateModality(DateFeatures, Modality):
    """A column of dates, times or both.

    The elapsed days are encoded like a number. The parts of the calendar that vary between train rows follow: the month
    (12 features, one-hot), the weekday (7, one-hot), and the day of the month and the hour of the day as points on a
    circle (sine and cosine, for the hour also of twice the angle), so that 23:00 is near 1:00. The encoding of dates
    outside the train rows' range stays at the outermost bins of the number.
    """

    kind = "date"

    def __init__(self, column: str, *, bins: int = 16) -> None:
        """
        Args:
            column: the column's name.
            bins: maximum number of bins for the elapsed days; see `NumberModality`.
        """
        Modality.__init__(self, column)
        DateFeatures.__init__(self, column, bins=bins)

    @classmethod
    def detect(cls, values: Sequence[Any], *, base_dir: Path) -> Detection:
        """Rate the cells: nearly all are dates or times in ISO format."""
        count = sum(seconds_of(plain(value)) is not None for value in values)
        share = count / max(len(values), 1)
        if not count:
            return Detection(0.0, "no cell is a date or time")
        return Detection(
            0.95 * share if share >= 0.95 else 0.3 * share, f"{count} of {len(values)} cells are dates or times"
        )

    def collate(self, examples: Sequence[float]) -> dict[str, Tensor]:
        """Return `values`, (examples, features) float32: features of the elapsed days, then of the parts."""
        return {"values": torch.from_numpy(self.features(examples))}

    @property
    def encoder_key(self) -> str:
        """Each date column has its own encoder."""
        return module_name(self.kind, self.column)

    def build_encoder(self) -> FixedFeatures:
        """Return the features unchanged; call it after `fit`."""
        return FixedFeatures(self.dim)

    @property
    def part_of(self) -> str:
        """ "tabular"."""
        return "tabular"
