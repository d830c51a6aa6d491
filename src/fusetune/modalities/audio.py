"""Audio columns, with one sound a cell, for waveform or spectrogram encoders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fusetune.errors import ConfigError
from fusetune.modalities.base import Augmenter, Detection
from fusetune.modalities.media import audio_files, cells
from fusetune.modalities.on_backbone import BackboneModality

if TYPE_CHECKING:
    from fusetune.backbones.load import Backbone


class AudioModality(BackboneModality):
    """A column of sounds.

    A cell is a path (absolute, or relative to the table's file), bytes, base64, `{"bytes", "path"}`, or a decoded
    sound `{"array", "sampling_rate"}`. Channels are averaged, and the sound is resampled to the backbone's rate and
    truncated to `max_seconds`.

    Attributes:
        max_seconds: maximum duration of a sound, in seconds.
        num_truncated: number of sounds that this object truncated.
    """

    kind = "audio"

    def __init__(self, column: str, *, backbone: Backbone, max_seconds: float | None = None) -> None:
        """
        Args:
            column: the column's name.
            backbone: the encoder, of kind "audio".
            max_seconds: maximum duration in seconds, above 0 and at most the backbone's, which is the default.
        """
        super().__init__(column, backbone=backbone)
        limit = float(backbone.inputs.max_seconds)
        if max_seconds is not None and not 0 < max_seconds <= limit:
            raise ConfigError(
                "max_seconds is out of range",
                column=column,
                expected=f"above 0, at most the {limit:g} s that the backbone reads",
                came=str(max_seconds),
                do="shorten it, or load the backbone with a larger max_seconds",
            )
        self.backbone, self.max_seconds = backbone, limit if max_seconds is None else float(max_seconds)
        self.num_truncated = 0

    @classmethod
    def detect(cls, values: Sequence[Any], *, base_dir: Path) -> Detection:
        """Rate the cells by file extensions and magic numbers of sounds."""
        decoded = sum(isinstance(cell, dict) and cell.get("array") is not None for cell in values)
        if decoded:
            return Detection(0.99 * decoded / len(values), f"{decoded} of {len(values)} cells hold decoded sounds")
        return cells.detect_files(
            values, base_dir=base_dir, kind="sound", endings=audio_files.ENDINGS, starts=audio_files.STARTS
        )

    def decode(self, cell: Any, *, row: int, base_dir: Path) -> np.ndarray:
        """Return the sound as the backbone's input, float32: a waveform or patches of its spectrogram.

        Raises:
            BadCell: it does not exist, cannot be decoded, is empty, or has values that are not finite.
            MissingExtra: the extra `audio` is not installed.
        """
        samples, truncated = self._samples(cell, cells.CellLocation(row, self.column, base_dir))
        self.num_truncated += truncated
        return self.backbone.prepare_audio(samples, self.backbone.sampling_rate)

    def _samples(self, cell: Any, location: cells.CellLocation) -> tuple[np.ndarray, bool]:
        """Return the samples at the backbone's rate, (samples,) float32, and whether the sound was truncated."""
        return audio_files.read_sound(cell, location, self.backbone.sampling_rate, max_seconds=self.max_seconds)

    def augmenter(self, **options: Any) -> Augmenter:
        """Return an `AudioAugmenter`."""
        from fusetune.backbones.inputs import SpectrogramInputs
        from fusetune.modalities.augment.audio import AudioAugmenter

        rate = self.backbone.sampling_rate
        return AudioAugmenter(
            options,
            samples=lambda cell, base_dir: self._samples(cell, cells.CellLocation(0, self.column, base_dir))[0],
            prepare=lambda wave: self.backbone.prepare_audio(wave, rate),
            rate=rate,
            spectrogram=isinstance(self.backbone.inputs, SpectrogramInputs),
        )

    def size(self, example: np.ndarray) -> int:
        """Return the length of the example's first dimension: samples or patches."""
        return len(example)

    def collate(self, examples: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Return the backbone's tensors, with `owner` where a sound has several parts."""
        return self.backbone.collate_audio(list(examples))

    def state(self) -> dict[str, Any]:
        """Return the options."""
        return {"max_seconds": self.max_seconds}
