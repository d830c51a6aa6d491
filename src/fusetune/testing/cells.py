"""Cells of every type, columns of every kind, and a tiny encoder, for tests of modalities."""

from __future__ import annotations

import io
import struct
import wave
import zlib
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fusetune.errors import BadCell
from fusetune.modalities.base import Modality
from fusetune.types import Tokens

ROW = 7


class TinyBackbone(nn.Module):
    """A random encoder of a few weights with the interface of `fusetune.backbones.load.Backbone`.

    Attributes:
        kind: "text", "image" or "audio".
        dim: features of a token.
    """

    pretrained = False
    sampling_rate = 8000
    max_seconds = 30.0
    image_size = (8, 8)
    _patch = 400

    def __init__(self, kind: str, *, dim: int = 6, max_tokens: int = 16, seed: int = 0) -> None:
        """
        Args:
            kind: "text", "image" or "audio"; any other kind is encoded as text.
            dim: features of a token.
            max_tokens: longer texts are truncated.
            seed: of the weights.
        """
        super().__init__()
        self.kind, self.dim, self.max_tokens = kind, dim, max_tokens
        self.key, self.source, self.fingerprint = f"{kind}_tiny_{seed}", "tiny", str(seed)
        features = {"image": 3 * 8 * 8, "audio": 16}.get(kind, 100)
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(features, dim, generator=generator) / features**0.5)

    @property
    def inputs(self) -> TinyBackbone:
        """The object with `max_seconds`, which is the encoder itself."""
        return self

    def tokenize(self, text: str) -> np.ndarray:
        """Return token ids, (tokens,) int32, one for each word between two special tokens."""
        words = [3 + zlib.crc32(word.encode()) % 97 for word in text.split()]
        return np.array([1, *words[: self.max_tokens - 2], 2], dtype=np.int32)

    def detokenize(self, tokens: np.ndarray) -> str:
        """Return one word a token id, without the special tokens."""
        return " ".join(f"w{token}" for token in tokens.tolist() if token > 2)

    def collate_text(self, cells: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask`, (cells, longest)."""
        longest = max(map(len, cells))
        ids = torch.tensor([[*cell, *[0] * (longest - len(cell))] for cell in cells])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    def prepare_image(self, image: Image.Image) -> np.ndarray:
        """Return a resized image, (3, 8, 8) uint8."""
        return np.asarray(image.resize(self.image_size)).transpose(2, 0, 1)

    def collate_images(self, pictures: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Return `pixel_values`, (pictures, 3, 8, 8) from 0 to 1."""
        return {"pixel_values": torch.from_numpy(np.stack(pictures)).float() / 255}

    def prepare_audio(self, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
        """Return (patches, 16) float32, the magnitudes of 16 frequency bands in each 50 ms."""
        assert sampling_rate == self.sampling_rate
        padded = np.pad(waveform, (0, -len(waveform) % self._patch))
        sizes = np.abs(np.fft.rfft(padded.reshape(-1, self._patch)))[:, 1:193]
        patches: np.ndarray = sizes.reshape(len(sizes), 16, 12).mean(2).astype(np.float32)
        return patches

    def collate_audio(self, cells: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Return `patches` (patches, 16) and `owner` (patches,)."""
        owner = np.repeat(np.arange(len(cells)), [len(cell) for cell in cells])
        return {"patches": torch.from_numpy(np.concatenate(cells)), "owner": torch.from_numpy(owner)}

    def forward(self, *, owner: Tensor | None = None, **inputs: Tensor) -> Tokens:
        """Return one token for each cell, the mean over its parts or words, (cells, 1, dim)."""
        if "input_ids" in inputs:
            mask = inputs["attention_mask"].unsqueeze(-1).float()
            vectors = (self.weight[inputs["input_ids"]] * mask).sum(1) / mask.sum(1)  # (cells, dim)
        else:
            parts = inputs["pixel_values"].flatten(1) if "pixel_values" in inputs else inputs["patches"]
            owner = torch.arange(len(parts)) if owner is None else owner
            num_cells = int(owner.max()) + 1
            share = nn.functional.one_hot(owner, num_cells).T.float()  # (cells, parts)
            vectors = share @ (parts @ self.weight) / share.sum(1, keepdim=True)
        return Tokens(vectors.unsqueeze(1), torch.ones(len(vectors), 1, dtype=torch.bool))


def png_bytes(colour: tuple[int, int, int], size: tuple[int, int] = (12, 10)) -> bytes:
    """Return an image of one colour as PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def wav_bytes(samples: np.ndarray, rate: int = 8000) -> bytes:
    """Return a sound as 16-bit WAV.

    Args:
        samples: (samples,) or (samples, channels) floats from -1 to 1.
        rate: sampling rate in Hz.
    """
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(samples.shape[1] if samples.ndim == 2 else 1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.rint(samples * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def tone(frequency: float, *, seconds: float = 0.2, rate: int = 8000) -> np.ndarray:
    """Return a sine wave of amplitude 0.5, (samples,) float32."""
    times = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * times)).astype(np.float32)


def sample_cells(folder: Path) -> list[Any]:
    """Return cells of every type that a table may hold, each valid for some kinds of columns only.

    Args:
        folder: an existing folder for the cells' files; it is their `base_dir`.
    """
    (folder / "red.png").write_bytes(png_bytes((255, 0, 0)))
    (folder / "blue.png").write_bytes(png_bytes((0, 0, 255), (30, 20)))
    (folder / "low.wav").write_bytes(wav_bytes(tone(300)))
    (folder / "high.wav").write_bytes(wav_bytes(tone(1200, rate=16000), 16000))
    (folder / "broken.png").write_bytes(png_bytes((9, 9, 9))[:40])
    (folder / "empty.wav").write_bytes(b"")
    return [
        *("3", "-2.5", "1e3", "00501", " 4 ", "1,234", "12 %", "nan", "9007199254740993"),
        *("2020-03-14", "1999-12-31 23:59:59"),
        *(5, 0.25, -17, True, float("inf"), 10**400),
        *("red", "green", "A longer piece of writing, with words.", "🙂 emoji", "שלום עולם", "a\x00b", "half \ud800"),
        *("red.png", "blue.png", "red.png;blue.png", "low.wav", "high.wav", "broken.png", "empty.wav", "missing.png"),
        *("https://example.org/red.png", "https://example.org/low.wav"),
        *(png_bytes((0, 255, 0)), wav_bytes(tone(700)), b"", struct.pack("<4d", 1, 2, 3, 4)),
        {"bytes": png_bytes((1, 2, 3)), "path": None},
        {"bytes": None, "path": "low.wav"},
        {"array": tone(500), "sampling_rate": 8000},
        {"role": "user", "content": "hello"},
        [{"role": "user", "content": "hello"}],
        *([1.0, 2.0], [0, 2], [1], [], {}, ["red.png", "blue.png"], date(2024, 2, 29), np.float32(1.5), np.int64(3)),
    ]


def sort_cells(modality: Modality, cells: Sequence[Any], base_dir: Path) -> tuple[list[Any], list[Any]]:
    """Split cells into those that a modality decodes and those that it refuses with `BadCell`."""
    good, bad = [], []
    for cell in cells:
        try:
            modality.decode(cell, row=ROW, base_dir=base_dir)
            good.append(cell)
        except BadCell:
            bad.append(cell)
    return good, bad


def typical_columns(folder: Path) -> dict[str, list[Any]]:
    """Return twelve typical cells for each built-in kind of column, by the kind's name.

    Args:
        folder: an existing folder for the cells' files; it is their `base_dir`.
    """
    pictures, sounds = [], []
    for place in range(12):
        (folder / f"picture{place}.png").write_bytes(png_bytes((20 * place, 255 - 20 * place, 90)))
        (folder / f"sound{place}.wav").write_bytes(wav_bytes(tone(200.0 + 50 * place, seconds=0.05)))
        pictures.append(f"picture{place}.png")
        sounds.append(f"sound{place}.wav")
    subjects = ("the parcel", "my second order", "this blue jacket", "your support team")
    endings = ("arrived late and was wet", "looks nothing like the picture", "was better than I had hoped")
    return {
        "number": [f"{1.7 * place - 8:.2f}" for place in range(12)],
        "category": ["red", "green", "blue"] * 4,
        "date": [f"2020-{place + 1:02d}-{2 * place + 1:02d}" for place in range(12)],
        "text": [f"I must say that {subject} {ending}." for subject in subjects for ending in endings],
        "image": pictures,
        "audio": sounds,
    }
