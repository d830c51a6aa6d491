"""Preparation and collation of a backbone's inputs, by the model's own processor.

Each class has `prepare` (a cell, once), `collate` (a batch) and `save`. Legend: cells = examples of a batch, parts =
chunks or patches of a sound, height and width in pixels, samples = values of a waveform.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fusetune.backbones.hub.source import quiet
from fusetune.backbones.pixels import centred
from fusetune.backbones.spectrogram import Spectrogram
from fusetune.backbones.token_ids import token_ids
from fusetune.errors import BackboneError

MAX_SECONDS = 30.0
_UNBOUNDED = 1_000_000


class TextInputs:
    """Token ids by a fast tokenizer, padded at the right."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        """
        Args:
            tokenizer: a fast tokenizer of transformers.
            max_tokens: maximum number of tokens, special ones included; longer texts are truncated.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise BackboneError(
                "the model's tokenizer does not say which characters a token stands for",
                expected="a fast tokenizer: tokenizer.json",
                came=type(tokenizer).__name__,
                do="take a model that has one, as sentence-transformers/all-MiniLM-L6-v2, or save this model's "
                "tokenizer as a fast one beside it",
            )
        specials = tokenizer.num_special_tokens_to_add()
        if max_tokens <= specials:
            raise BackboneError(
                "max_tokens leaves no room for text",
                expected=f"more than the {specials} special tokens",
                came=str(max_tokens),
            )
        self.processor, self.max_tokens = tokenizer, max_tokens
        self.max_seconds = 0.0
        self.whole_length = False
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, 0)
        self.filler = next(token for token in known if token is not None)
        self._copies: dict[Hashable, Any] = {}

    def tokenizer(self, settings: Hashable) -> Any:
        """Return a copy of the tokenizer for one way of truncating.

        A fast tokenizer keeps the truncation that it was called with last, and threads decode cells at the same time:
        calls with different truncation need tokenizers of their own.

        Args:
            settings: what the calls have in common.
        """
        if settings not in self._copies:
            self._copies[settings] = copy.deepcopy(self.processor)
        return self._copies[settings]

    def prepare(self, text: str) -> np.ndarray:
        """Return the token ids, special ones included, (tokens,) int32 with 1 to `max_tokens` tokens."""
        return token_ids(self._backend(), text, self.filler)

    def _backend(self) -> Any:
        """Return the tokenizer of the library `tokenizers`, which gives the same ids in half the time."""
        backend = self.processor.backend_tokenizer
        truncation = backend.truncation
        if (
            truncation is None
            or truncation["max_length"] != self.max_tokens
            or truncation["stride"]
            or backend.padding is not None
        ):
            self.processor("", truncation=True, max_length=self.max_tokens, padding=False, verbose=False)
        return backend

    def collate(self, cells: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask`, (cells, longest) int64.

        With `whole_length` every text is padded to `max_tokens` and the padding is unmasked, for models that were
        trained on it.
        """
        longest = self.max_tokens if self.whole_length else max(len(ids) for ids in cells)
        ids = torch.full((len(cells), longest), self.filler, dtype=torch.int64)
        mask = torch.zeros((len(cells), longest), dtype=torch.int64)
        for row, cell in enumerate(cells):
            ids[row, : len(cell)] = torch.from_numpy(np.asarray(cell, dtype=np.int64))
            mask[row, : len(cell)] = 1
        if self.whole_length:
            mask.fill_(1)
        return {"input_ids": ids, "attention_mask": mask}

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self.processor.save_pretrained(str(folder))


class ImageInputs:
    """Pixels by a Pil image processor: resized and cropped as uint8 once, rescaled and normalised in the batch.

    The affine map after the crop is inferred from the processor's outputs for black and for white images, which works
    for all processors alike; a random image verifies it.
    """

    def __init__(self, processor: Any) -> None:
        """
        Args:
            processor: an image processor of transformers with the Pil backend.
        """
        self.processor = processor
        self.max_seconds = 0.0
        steps = ("do_rescale", "do_normalize", "include_top")  # the last: EfficientNet's second division
        self.no_arithmetic = {name: False for name in steps if hasattr(processor, name) or name != "include_top"}
        self.fixed = bool(getattr(processor, "do_center_crop", False)) or not _keeps_aspect(processor)
        side = 64
        black, white = (self._full(Image.new("RGB", (side, side), (level,) * 3)) for level in (0, 255))
        self.image_size = (int(black.shape[-2]), int(black.shape[-1]))
        offset = black.reshape(3, -1).astype(np.float64).mean(1)
        scale = (white.reshape(3, -1).astype(np.float64).mean(1) - offset) / 255.0
        self.offset = torch.tensor(offset, dtype=torch.float32).view(1, 3, 1, 1)
        self.scale = torch.tensor(scale, dtype=torch.float32).view(1, 3, 1, 1)
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))
        ours, theirs = self.collate([self.prepare(noise)])["pixel_values"][0].numpy(), self._full(noise)
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, atol=1e-4):
            raise BackboneError(
                "the image processor does more than resize, crop, rescale and normalise",
                came=type(processor).__name__,
                do="choose another image backbone",
            )

    @property
    def part_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image's tensor."""
        return (3, *self.image_size)

    def _full(self, image: Image.Image) -> np.ndarray:
        return np.asarray(self.processor(image, return_tensors="np")["pixel_values"][0])

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Resize and crop an image by the model's processor, to (3, height, width) uint8.

        Args:
            image: in mode RGB, at least 1 by 1.
        """
        processed = self.processor(image, return_tensors="np", **self.no_arithmetic)
        pixels: np.ndarray = np.asarray(processed["pixel_values"][0])
        if not self.fixed:
            pixels = centred(pixels, *self.image_size)
        if pixels.dtype != np.uint8:
            pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        return pixels

    def collate(self, images: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Return `pixel_values`, (images, 3, height, width) float32, in memory channels last: convolutions are faster
        so."""
        pixels = torch.from_numpy(np.stack(images)).to(torch.float32, memory_format=torch.channels_last)
        return {"pixel_values": pixels * self.scale + self.offset}

    def save(self, folder: Path) -> None:
        """Write preprocessor_config.json."""
        self.processor.save_pretrained(str(folder))


def _keeps_aspect(processor: Any) -> bool:
    """Return whether the size of the processor's output depends on the image's aspect ratio."""
    size = getattr(processor, "size", None)
    names = {name for name, value in dict(size or {}).items() if value is not None}
    return bool(getattr(processor, "do_resize", False)) and not {"height", "width"} <= names


class SpectrogramInputs:
    """Patches of a log-mel spectrogram, as one-channel images."""

    def __init__(self, spectrogram: Spectrogram, max_seconds: float = MAX_SECONDS) -> None:
        """
        Args:
            spectrogram: its settings.
            max_seconds: maximum duration in seconds; longer sounds are truncated.
        """
        self.processor = spectrogram
        self.sampling_rate = spectrogram.sampling_rate
        self.max_seconds = max_seconds

    @property
    def part_shape(self) -> tuple[int, int, int]:
        """(channels, frames, filters) of a patch's tensor."""
        return (1, self.processor.patch_frames, self.processor.num_mel_filters)

    def prepare(self, waveform: np.ndarray) -> np.ndarray:
        """Return (patches, frames, filters) float32 of a sound, (samples,) float at `sampling_rate`."""
        return self.processor.patches(waveform[: round(self.max_seconds * self.sampling_rate)])

    def collate(self, cells: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Return `pixel_values`, (parts, 1, frames, filters) float32, and `owner`, (parts,) int64: each part's cell."""
        owner = np.repeat(np.arange(len(cells)), [len(cell) for cell in cells])
        pixels = torch.from_numpy(np.concatenate(cells)).unsqueeze(1).to(memory_format=torch.channels_last)
        return {"pixel_values": pixels, "owner": torch.from_numpy(owner)}

    def save(self, folder: Path) -> None:
        """Write spectrogram.json."""
        self.processor.save(folder)


class AudioInputs:
    """Waveforms or features by a model's feature extractor; a long sound is split into chunks.

    `prepare` returns the waveform, normalised by the extractor. Spectral features are computed in the batch, as they
    take more memory than the waveform.
    """

    def __init__(self, extractor: Any, max_seconds: float = MAX_SECONDS) -> None:
        """
        Args:
            extractor: a feature extractor of transformers with a `sampling_rate`.
            max_seconds: maximum duration in seconds; longer sounds are truncated.
        """
        self.processor = extractor
        self.sampling_rate = int(extractor.sampling_rate)
        self.max_seconds = max_seconds
        noise = np.random.default_rng(0).normal(0, 0.01, self.sampling_rate).astype(np.float32)
        probe = self._extract(noise)
        self.name = "input_values" if "input_values" in probe else "input_features"
        self.makes_features = np.asarray(probe[self.name][0]).ndim > 1
        self.chunk = self._chunk_samples()
        shape = np.asarray(probe[self.name][0]).shape
        half = self._extract(noise[: self.sampling_rate // 2]) if self.makes_features else probe
        self.own_length = np.asarray(half[self.name][0]).shape != shape  # the extractor does not pad to a fixed length

    def _extract(self, waveform: np.ndarray) -> Any:
        with quiet():
            return self.processor(waveform, sampling_rate=self.sampling_rate, return_tensors="np")

    def _chunk_samples(self) -> int:
        """Return the number of samples that the extractor accepts at a time."""
        for name in ("n_samples", "nb_max_samples"):
            if getattr(self.processor, name, None):
                return int(getattr(self.processor, name))
        if self.makes_features and getattr(self.processor, "max_length", None):
            return int(self.processor.max_length) * self.sampling_rate // 100  # frames of 10 ms
        return round(MAX_SECONDS * self.sampling_rate)

    @property
    def minimum(self) -> int:
        """Minimum number of samples, 0.1 s, to which shorter sounds are padded for the encoder's convolutions."""
        return self.sampling_rate // 10

    def prepare(self, waveform: np.ndarray) -> np.ndarray:
        """Return (samples,) float32 of a sound, (samples,) float at `sampling_rate`; may be empty."""
        wave = np.asarray(waveform[: round(self.max_seconds * self.sampling_rate)], dtype=np.float32)
        if len(wave) < self.minimum:
            wave = np.pad(wave, (0, self.minimum - len(wave)))
        if self.makes_features:
            return wave
        return np.asarray(self._extract(wave)[self.name][0], dtype=np.float32)

    def collate(self, cells: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Return the encoder's tensors; `lengths`, (parts,) int64 samples; and `owner`, (parts,) int64: each part's
        cell."""
        parts: list[np.ndarray] = []
        owner: list[int] = []
        for number, cell in enumerate(cells):
            pieces = [cell[start : start + self.chunk] for start in range(0, len(cell), self.chunk)]
            pieces = [piece for piece in pieces if len(piece) >= self.minimum]
            parts += pieces
            owner += [number] * len(pieces)
        inputs = self._features(parts) if self.makes_features else self._padded(parts)
        inputs["lengths"] = torch.tensor([len(part) for part in parts])
        inputs["owner"] = torch.tensor(owner)
        return inputs

    def _features(self, parts: list[np.ndarray]) -> dict[str, Tensor]:
        made = [np.asarray(self._extract(part)[self.name][0], dtype=np.float32) for part in parts]
        frames = [len(features) for features in made]
        if min(frames) == max(frames) and not self.own_length:
            return {self.name: torch.from_numpy(np.stack(made))}
        values = np.zeros((len(made), max(frames), *made[0].shape[1:]), dtype=np.float32)
        for row, features in enumerate(made):
            values[row, : len(features)] = features
        mask = np.arange(max(frames)) < np.array(frames)[:, None]
        return {self.name: torch.from_numpy(values), "attention_mask": torch.from_numpy(mask).long()}

    def _padded(self, parts: list[np.ndarray]) -> dict[str, Tensor]:
        values = torch.zeros(len(parts), max(len(part) for part in parts))
        for row, part in enumerate(parts):
            values[row, : len(part)] = torch.from_numpy(part)
        return {self.name: values}

    def save(self, folder: Path) -> None:
        """Write preprocessor_config.json."""
        self.processor.save_pretrained(str(folder))


Inputs = TextInputs | ImageInputs | SpectrogramInputs | AudioInputs


def token_limit(tokenizer: Any, positions: int | None, wanted: int | None, usual: int) -> int:
    """Return the maximum number of tokens of a text.

    Args:
        tokenizer: its `model_max_length` is a limit, if it is set.
        positions: number of the model's positions, None for no limit.
        wanted: the user's setting, None for the default.
        usual: the default, if the model allows it.

    Raises:
        BackboneError: the model has fewer positions than `wanted`.
    """
    limits = [limit for limit in (tokenizer.model_max_length, positions) if limit and limit < _UNBOUNDED]
    limit = min(limits) if limits else _UNBOUNDED
    if positions and wanted and wanted > positions:
        raise BackboneError(
            "max_tokens is more than the model has positions", expected=f"at most {positions}", came=str(wanted)
        )
    return wanted or min(limit, usual)
