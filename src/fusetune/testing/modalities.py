"""The contract suite of modalities: what every kind of column must keep to.

A plug-in's author calls `check_modality` in a test; `sample_cells` has cells of every sort to call it with, and
`TinyBackbone` stands in for a pretrained encoder.
"""

from __future__ import annotations

import io
import json
import re
import struct
import wave
import zlib
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fusetune.errors import BadCell
from fusetune.modalities.base import Detection, Modality
from fusetune.types import Tokens

TOLERANCE = 1e-5
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
            kind: "text", "image" or "audio"; any other is taken for text.
            dim: features of a token.
            max_tokens: longer texts are cut.
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
        """What has `max_seconds`: itself."""
        return self

    def tokenize(self, text: str) -> np.ndarray:
        """(tokens,) int32: one for each word, between a first and a last one."""
        words = [3 + zlib.crc32(word.encode()) % 97 for word in text.split()]
        return np.array([1, *words[: self.max_tokens - 2], 2], dtype=np.int32)

    def collate_text(self, cells: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, (cells, longest)."""
        longest = max(map(len, cells))
        ids = torch.tensor([[*cell, *[0] * (longest - len(cell))] for cell in cells])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    def prepare_image(self, image: Image.Image) -> np.ndarray:
        """(3, 8, 8) uint8."""
        return np.asarray(image.resize(self.image_size)).transpose(2, 0, 1)

    def collate_images(self, pictures: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """`pixel_values`, (pictures, 3, 8, 8) from 0 to 1."""
        return {"pixel_values": torch.from_numpy(np.stack(pictures)).float() / 255}

    def prepare_audio(self, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
        """(patches, 16) float32, the size of 16 frequencies in each 50 ms."""
        assert sampling_rate == self.sampling_rate
        padded = np.pad(waveform, (0, -len(waveform) % self._patch))
        sizes = np.abs(np.fft.rfft(padded.reshape(-1, self._patch)))[:, 1:193]
        patches: np.ndarray = sizes.reshape(len(sizes), 16, 12).mean(2).astype(np.float32)
        return patches

    def collate_audio(self, cells: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """`patches` (patches, 16) and `owner` (patches,)."""
        owner = np.repeat(np.arange(len(cells)), [len(cell) for cell in cells])
        return {"patches": torch.from_numpy(np.concatenate(cells)), "owner": torch.from_numpy(owner)}

    def forward(self, *, owner: Tensor | None = None, **inputs: Tensor) -> Tokens:
        """One token a cell, the mean over its parts or words: (cells, 1, dim)."""
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
    """A picture of one colour as PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def wav_bytes(samples: np.ndarray, rate: int = 8000) -> bytes:
    """A sound as WAV with 16 bits.

    Args:
        samples: (samples,) or (samples, channels) floats from -1 to 1.
        rate: Hz.
    """
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(samples.shape[1] if samples.ndim == 2 else 1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.rint(samples * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def tone(frequency: float, *, seconds: float = 0.2, rate: int = 8000) -> np.ndarray:
    """A sine of half the full scale: (samples,) float32."""
    times = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * times)).astype(np.float32)


def sample_cells(folder: Path) -> list[Any]:
    """Cells of every sort that a table may hold, good for some kinds and bad for others.

    Args:
        folder: an existing folder that the files are written to; it is the cells' `base_dir`.
    """
    (folder / "red.png").write_bytes(png_bytes((255, 0, 0)))
    (folder / "blue.png").write_bytes(png_bytes((0, 0, 255), (30, 20)))
    (folder / "low.wav").write_bytes(wav_bytes(tone(300)))
    (folder / "high.wav").write_bytes(wav_bytes(tone(1200, rate=16000), 16000))
    (folder / "broken.png").write_bytes(png_bytes((9, 9, 9))[:40])
    (folder / "empty.wav").write_bytes(b"")
    return [
        *("3", "-2.5", "1e3", "00501", " 4 ", "1,234", "12 %", "nan", "9007199254740993"),
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
        *([1.0, 2.0], [], {}, ["red.png", "blue.png"], date(2024, 2, 29), np.float32(1.5), np.int64(3)),
    ]


def sort_cells(modality: Modality, cells: Sequence[Any], base_dir: Path) -> tuple[list[Any], list[Any]]:
    """Those of the cells that the modality reads, and those that it refuses; any other error passes through."""
    good, bad = [], []
    for cell in cells:
        try:
            modality.decode(cell, row=ROW, base_dir=base_dir)
            good.append(cell)
        except BadCell:
            bad.append(cell)
    return good, bad


def check_modality(
    make: Callable[[], Modality],
    cells: Sequence[Any],
    bad_cells: Sequence[Any],
    *,
    base_dir: Path,
    backbone: Any = None,
) -> None:
    """Hold a modality to its contract.

    Args:
        make: a new modality that learned nothing yet; the same each time.
        cells: two cells or more that it reads, of different values.
        bad_cells: cells that it refuses.
        base_dir: where relative paths in the cells start.
        backbone: what `make` gives its modalities, where they need one.

    Raises:
        AssertionError: naming what is not kept to.
    """
    assert len(cells) >= 2, "two cells are needed to compare batches"
    check_detects(type(make()), cells, bad_cells, base_dir)
    check_refuses(make(), bad_cells, base_dir)
    modality = make()
    before = [modality.decode(cell, row=ROW, base_dir=base_dir) for cell in cells]
    modality.fit(before)
    after = [modality.decode(cell, row=ROW, base_dir=base_dir) for cell in cells]
    _assert_same(modality.collate(before), modality.collate(after), "decode depends on fit")
    check_encodes(modality, after)
    check_restores(modality, after, backbone)


def check_detects(kind: type[Modality], cells: Sequence[Any], bad_cells: Sequence[Any], base_dir: Path) -> None:
    """`detect` judges any cells, refused ones and none included, and gives a reason."""
    for values in (cells, bad_cells, []):
        found = kind.detect(list(values), base_dir=base_dir)
        assert isinstance(found, Detection), "detect does not return a Detection"
        assert 0 <= found.confidence <= 1, f"the confidence {found.confidence} is not from 0 to 1"
        assert found.reason.strip(), "detect gives no reason"


def check_refuses(modality: Modality, bad_cells: Sequence[Any], base_dir: Path) -> None:
    """Every bad cell raises BadCell with its row, its column and why."""
    for cell in bad_cells:
        try:
            modality.decode(cell, row=ROW, base_dir=base_dir)
        except BadCell as error:
            assert (error.row, error.column) == (ROW, modality.column), f"BadCell names another place: {error}"
            assert error.why.strip(), f"BadCell does not say why for {cell!r}"
            str(error).encode("utf-8", "surrogatepass")
        else:
            raise AssertionError(f"{cell!r} was read; it is to be refused")


def check_encodes(modality: Modality, examples: Sequence[Any]) -> None:
    """Tensors and tokens have their shapes, each cell's tokens do not depend on the batch, each weight learns."""
    assert re.fullmatch(r"\w+", modality.encoder_key, re.ASCII), f"encoder_key {modality.encoder_key!r} names no module"
    assert modality.part_of, "part_of is empty"
    assert all(modality.size(example) >= 1 for example in examples), "size is below 1"
    encoder: Any = modality.build_encoder()
    assert isinstance(encoder.pretrained, bool) and encoder.dim >= 1, "the encoder has no dim or pretrained"
    encoder.eval()
    with torch.no_grad():
        together = _encode(modality, encoder, examples)
        backwards = _encode(modality, encoder, list(reversed(examples)))
        for number, example in enumerate(examples):
            alone = _encode(modality, encoder, [example])
            _assert_near(_row(alone, 0), _row(together, number), f"example {number} differs alone and in a batch")
            mirrored = _row(backwards, len(examples) - 1 - number)
            _assert_near(mirrored, _row(together, number), f"example {number} depends on its place in the batch")
    encoder.train()
    encoder.zero_grad()
    values = _encode(modality, encoder, examples).values
    if not any(weight.requires_grad for weight in encoder.parameters()):
        return
    (values * torch.linspace(0.5, 1.5, values.numel()).view_as(values)).sum().backward()  # type: ignore[no-untyped-call]
    idle = [name for name, weight in encoder.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not idle, f"weights without a gradient: {idle}"
    encoder.zero_grad()


def check_restores(modality: Modality, examples: Sequence[Any], backbone: Any = None) -> None:
    """`state` is JSON from which the same modality comes back, whose encoder takes the same weights."""
    state = json.loads(json.dumps(modality.state(), allow_nan=False))
    restored = type(modality).from_state(modality.column, state, backbone=backbone)
    _assert_same(modality.collate(examples), restored.collate(examples), "the restored modality collates differently")
    assert restored.encoder_key == modality.encoder_key, "the restored modality has another encoder_key"
    assert restored.state() == modality.state(), "the restored modality has another state"
    encoder = modality.build_encoder().eval()
    again = restored.build_encoder()
    again.load_state_dict(encoder.state_dict())
    again.eval()
    with torch.no_grad():
        first, second = _encode(modality, encoder, examples), _encode(restored, again, examples)
    _assert_near(first.values, second.values, "the restored encoder gives other tokens")


def _encode(modality: Modality, encoder: nn.Module, examples: Sequence[Any]) -> Tokens:
    tensors = modality.collate(examples)
    assert tensors and all(isinstance(tensor, Tensor) for tensor in tensors.values()), "collate gives no tensors"
    tokens = encoder(**tensors)
    assert isinstance(tokens, Tokens), "the encoder does not return Tokens"
    shape = (len(examples), tokens.values.shape[1], encoder.dim)
    assert tokens.values.shape == shape, f"tokens have the shape {tuple(tokens.values.shape)}, not {shape}"
    assert tokens.mask.shape == shape[:2] and tokens.mask.dtype == torch.bool, "the mask is not (cells, tokens) bool"
    assert tokens.mask.any(1).all(), "a cell has no real token"
    assert tokens.values[tokens.mask].isfinite().all(), "tokens are not finite"
    return tokens


def _row(tokens: Tokens, number: int) -> Tensor:
    return tokens.values[number][tokens.mask[number]]  # (real tokens, dim)


def _assert_near(first: Tensor, second: Tensor, what: str) -> None:
    assert first.shape == second.shape, what
    assert torch.allclose(first, second, rtol=TOLERANCE, atol=TOLERANCE), what


def _assert_same(first: dict[str, Tensor], second: dict[str, Tensor], what: str) -> None:
    assert first.keys() == second.keys(), what
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items()), what
