"""What becomes of each kind of column's cells: decoded, then padded tensors of one cell a row.

Legend: rows = a batch, tokens = token ids of a text, parts = pictures of a cell or patches of its sound.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fusetune.backbones.pixels import PixelSteps
from fusetune.backbones.token_ids import token_ids
from fusetune.errors import FolderError
from fusetune.modalities.features.category import CategoryFeatures
from fusetune.modalities.features.date import DateFeatures
from fusetune.modalities.features.number import NumberFeatures
from fusetune.modalities.media import audio_files, image_files
from fusetune.modalities.media.cells import CellLocation
from fusetune.modalities.ngrams import Ngrams, keys_by_part
from fusetune.modalities.profile import plain
from fusetune.modalities.words import read_text, tokenize_start
from fusetune.runtime.files import TOKENIZERS

Tensors = dict[str, np.ndarray]


class ColumnReader(abc.ABC):
    """Decodes a column's cells and makes the tensors of a batch; see `fusetune.models.flat` for the tensors.

    Attributes:
        column: its name.
    """

    def __init__(self, column: str) -> None:
        self.column = column

    @abc.abstractmethod
    def decode(self, cell: Any, *, row: int, base_dir: Path) -> Any:
        """Return the cell's example.

        Args:
            cell: not missing.
            row: the row's id, for errors.
            base_dir: folder that relative media paths start from.

        Raises:
            BadCell: the cell cannot be read.
        """

    @abc.abstractmethod
    def tensors(self, examples: Sequence[Any]) -> Tensors:
        """Return the tensors of a batch by name; an example is None in a row without the column."""

    def size(self, example: Any) -> int:
        """Return the cost of encoding an example: tokens, pictures or patches."""
        return 1


class TextReader(ColumnReader):
    """Texts as token ids, with their n-grams."""

    def __init__(self, column: str, spec: Mapping[str, Any], folder: Path) -> None:
        """
        Args:
            column: its name.
            spec: `tokenizer`, `max_tokens`, `direction`, `filler`, `whole_length`, `types`, `ngrams`.
            folder: of the exported model.
        """
        super().__init__(column)
        from tokenizers import Tokenizer

        self.max_tokens, self.filler = int(spec["max_tokens"]), int(spec["filler"])
        self.whole_length, self.types = bool(spec["whole_length"]), bool(spec["types"])
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZERS / spec["tokenizer"] / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_tokens, strategy="longest_first", direction=spec["direction"])
        self._tokenize: Callable[[str], np.ndarray] = partial(token_ids, tokenizer, filler=self.filler)
        keys_of = keys_by_part(lambda ids: str(tokenizer.decode(ids.tolist(), skip_special_tokens=True)))
        self.ngrams = {part: Ngrams.from_state(state, keys_of[part]) for part, state in spec["ngrams"].items()}

    def decode(self, cell: Any, *, row: int, base_dir: Path) -> np.ndarray:
        """See `ColumnReader.decode`: (tokens,) int32."""
        text = read_text(plain(cell), row=row, column=self.column)
        return tokenize_start(text, self._tokenize, self.max_tokens)[0]

    def tensors(self, examples: Sequence[np.ndarray | None]) -> Tensors:
        """See `ColumnReader.tensors`."""
        longest = self.max_tokens if self.whole_length else max([1, *(len(ids) for ids in examples if ids is not None)])
        ids = np.full((len(examples), longest), self.filler, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, example in enumerate(examples):
            if example is not None:
                ids[row, : len(example)] = example
                mask[row, : longest if self.whole_length else len(example)] = 1
        named: Tensors = {"input_ids": ids, "attention_mask": mask}
        if self.types:
            named["token_type_ids"] = np.zeros_like(ids)
        for part, vocabulary in self.ngrams.items():
            vectors = [vocabulary.vector(example) if example is not None else None for example in examples]
            most = max([1, *(len(vector[0]) for vector in vectors if vector is not None)])
            places, values = np.zeros((len(examples), most), np.int64), np.zeros((len(examples), most), np.float32)
            for row, vector in enumerate(vectors):
                if vector is not None:
                    places[row, : len(vector[0])], values[row, : len(vector[0])] = vector
            named |= {f"{part}_ids": places, f"{part}_values": values}
        return named

    def size(self, example: np.ndarray) -> int:
        """See `ColumnReader.size`."""
        return len(example)


class PartsReader(ColumnReader):
    """Cells of one or more parts of equal shapes."""

    shape: tuple[int, int, int]

    @abc.abstractmethod
    def collate(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Return parts as (parts, channels, height, width) float32."""

    def tensors(self, examples: Sequence[Sequence[np.ndarray] | None]) -> Tensors:
        """See `ColumnReader.tensors`."""
        most = max([1, *(len(parts) for parts in examples if parts is not None)])
        pixels = np.zeros((len(examples), most, *self.shape), dtype=np.float32)
        mask = np.zeros((len(examples), most), dtype=bool)
        for row, parts in enumerate(examples):
            if parts is not None:
                pixels[row, : len(parts)], mask[row, : len(parts)] = self.collate(parts), True
        return {"pixel_values": pixels, "mask": mask}

    def size(self, example: Sequence[np.ndarray]) -> int:
        """See `ColumnReader.size`."""
        return len(example)


class ImageReader(PartsReader):
    """Images, several a cell."""

    def __init__(self, column: str, spec: Mapping[str, Any], folder: Path) -> None:
        """
        Args:
            column: its name.
            spec: `pixels`, see `PixelSteps`, and `max_pictures`.
            folder: of the exported model.
        """
        super().__init__(column)
        self.steps, self.max_pictures = PixelSteps.from_dict(spec["pixels"]), int(spec["max_pictures"])
        self.shape = (3, *self.steps.size)

    def decode(self, cell: Any, *, row: int, base_dir: Path) -> list[np.ndarray]:
        """See `ColumnReader.decode`: each image as (3, height, width) uint8."""
        location = CellLocation(row, self.column, base_dir)
        pictures = image_files.decode_images(cell, location, most=self.max_pictures, used_at=max(self.steps.size))
        return [self.steps.prepare(picture) for picture in pictures]

    def collate(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """See `PartsReader.collate`."""
        return self.steps.collate(parts)


class SpectrogramReader(PartsReader):
    """Sounds as patches of their spectrograms."""

    def __init__(self, column: str, spec: Mapping[str, Any], folder: Path) -> None:
        """
        Args:
            column: its name.
            spec: `spectrogram`, see `Spectrogram`; `max_seconds` of the column and `encoder_seconds` of its encoder.
            folder: of the exported model.
        """
        from fusetune.backbones.spectrogram import Spectrogram

        super().__init__(column)
        self.spectrogram = Spectrogram(**spec["spectrogram"])
        self.max_seconds, self.encoder_seconds = float(spec["max_seconds"]), float(spec["encoder_seconds"])
        self.shape = (1, self.spectrogram.patch_frames, self.spectrogram.num_mel_filters)

    def decode(self, cell: Any, *, row: int, base_dir: Path) -> np.ndarray:
        """See `ColumnReader.decode`: (patches, frames, filters) float32."""
        rate, location = self.spectrogram.sampling_rate, CellLocation(row, self.column, base_dir)
        samples, _ = audio_files.read_sound(cell, location, rate, max_seconds=self.max_seconds)
        return self.spectrogram.patches(samples[: round(self.encoder_seconds * rate)])

    def collate(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """See `PartsReader.collate`."""
        return np.asarray(parts, dtype=np.float32)[:, None]


FEATURES: dict[str, Any] = {"number": NumberFeatures, "category": CategoryFeatures, "date": DateFeatures}
"""By kind, what decodes its cells and computes their features."""


class FeaturesReader(ColumnReader):
    """Numbers, categories and dates as features."""

    def __init__(self, column: str, spec: Mapping[str, Any], folder: Path) -> None:
        """
        Args:
            column: its name.
            spec: `kind` and `state`, what was learned on train rows.
            folder: of the exported model.
        """
        super().__init__(column)
        self.kind: Any = FEATURES[spec["kind"]].from_state(column, spec["state"])

    def decode(self, cell: Any, *, row: int, base_dir: Path) -> Any:
        """See `ColumnReader.decode`: a float, or the category's name."""
        return self.kind.decode(cell, row=row, base_dir=base_dir)

    def tensors(self, examples: Sequence[Any]) -> Tensors:
        """See `ColumnReader.tensors`."""
        mask = np.array([example is not None for example in examples])
        values = np.zeros((len(examples), self.kind.dim), dtype=np.float32)
        if mask.any():
            values[mask] = self.kind.features([example for example in examples if example is not None])
        return {"values": values, "mask": mask}


READERS: dict[str, Callable[[str, Mapping[str, Any], Path], ColumnReader]] = {
    "text": TextReader,
    "image": ImageReader,
    "audio": SpectrogramReader,
    **dict.fromkeys(FEATURES, FeaturesReader),
}
"""By kind of column."""


def build_reader(column: str, spec: Mapping[str, Any], folder: Path) -> ColumnReader:
    """Return the reader of a column of an exported model.

    Raises:
        FolderError: its kind is unknown.
    """
    if spec["kind"] not in READERS:
        raise FolderError(
            f"columns of kind {spec['kind']!r} are unknown", expected=", ".join(READERS), file=str(folder)
        )
    return READERS[spec["kind"]](column, spec, folder)
