"""Small encoders without pretraining, the defaults for images and audio."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.inputs import MAX_SECONDS, ImageInputs, SpectrogramInputs
from fusetune.backbones.spectrogram import Spectrogram

KEYS = {"image": "image_small", "audio": "audio_small"}
IMAGE_SIDE = 80
SPECTROGRAM = Spectrogram(
    sampling_rate=16_000,
    window_length=400,
    hop_length=160,
    fft_length=512,
    num_mel_filters=64,
    min_frequency=60.0,
    max_frequency=7600.0,
    log_offset=1e-2,  # a high floor, so that the edge of padded silence does not dominate the sound
    patch_frames=96,
    patch_hop_frames=72,
)


class Encoded:
    """The output of the small encoders, with the names of transformers' model outputs."""

    def __init__(self, last_hidden_state: Tensor, pooler_output: Tensor) -> None:
        """
        Args:
            last_hidden_state: (rows, channels, height, width).
            pooler_output: (rows, dim).
        """
        self.last_hidden_state, self.pooler_output = last_hidden_state, pooler_output


class ResidualBlock(nn.Module):
    """Two 3 by 3 convolutions with a residual connection; halves height and width.

    It uses group normalisation, whose statistics do not depend on the other rows of a batch.
    Reference: He et al., arXiv:1603.05027; Wu and He, arXiv:1803.08494.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(channels_out // 8, channels_out)
        self.second = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(channels_out // 8, channels_out)
        self.short = nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        """Return (rows, channels_in, height, width) to (rows, channels_out, height / 2, width / 2)."""
        inner = functional.relu(self.first_norm(self.first(values)))
        inner = self.second_norm(self.second(inner))
        return functional.relu(inner + self.short(functional.avg_pool2d(values, 2, ceil_mode=True)))


class _Convolutions(nn.Module):
    """A stem and three residual blocks, which divide height and width by 16, with pixel coordinates as two channels."""

    def __init__(self, channels_in: int, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        # CoordConv (arXiv 1807.03247): without coordinates, averaged features lose all positions.
        self.stem = nn.Conv2d(channels_in + 2, widths[0], 3, stride=2, padding=1, bias=False)
        self.norm = nn.GroupNorm(widths[0] // 8, widths[0])
        self.layers = nn.ModuleList(ResidualBlock(*pair) for pair in pairwise(widths))

    def forward(self, values: Tensor) -> Tensor:
        rows, _, height, width = values.shape
        down = torch.linspace(-1, 1, height, device=values.device, dtype=values.dtype).view(1, 1, height, 1)
        across = torch.linspace(-1, 1, width, device=values.device, dtype=values.dtype).view(1, 1, 1, width)
        indices = [down.expand(rows, 1, height, width), across.expand(rows, 1, height, width)]
        values = functional.relu(self.norm(self.stem(torch.cat([values, *indices], 1))))
        for layer in self.layers:
            values = layer(values)
        return values


class SmallImageEncoder(nn.Module):
    """A convolutional encoder of 80 by 80 images with 0.3 million weights, pooled by mean and maximum."""

    main_input_name = "pixel_values"

    def __init__(self) -> None:
        super().__init__()
        self.body = _Convolutions(3, (16, 32, 64, 128))

    def forward(self, pixel_values: Tensor) -> Encoded:
        """Return (rows, 3, height, width) in -1 to 1, to 128 channels and 256 pooled features."""
        values = self.body(pixel_values)
        return Encoded(values, torch.cat([values.mean((2, 3)), values.amax((2, 3))], 1))


class SmallAudioEncoder(nn.Module):
    """A convolutional encoder of log-mel patches, pooled over time, but not over frequency, by mean and maximum."""

    main_input_name = "pixel_values"

    def __init__(self) -> None:
        super().__init__()
        self.body = _Convolutions(1, (16, 32, 64, 64))

    def forward(self, pixel_values: Tensor) -> Encoded:
        """Return (rows, 1, frames, 64) natural logarithms of mel energies, to 256 channels over time and 512 pooled."""
        values = self.body((pixel_values + 3.0) / 3.0)  # (rows, 64, frames / 16, 4)
        values = values.transpose(2, 3).flatten(1, 2).unsqueeze(3)  # (rows, 64 * 4, frames / 16, 1)
        return Encoded(values, torch.cat([values.mean((2, 3)), values.amax((2, 3))], 1))


def build(kind: str, *, pool: str = "auto", max_seconds: float = MAX_SECONDS) -> Backbone:
    """Build the small encoder of a kind, with weights drawn from torch's global generator.

    Args:
        kind: "image" or "audio".
        pool: "auto" or "own" for mean and maximum, "mean" or "none" (see `Backbone`).
        max_seconds: maximum duration of a sound, in seconds.
    """
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    if kind == "image":
        half = [0.5, 0.5, 0.5]
        side = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
        processor = ViTImageProcessorPil(size=side, image_mean=half, image_std=half, do_resize=True)
        return _wrap(kind, ImageInputs(processor), "own" if pool == "auto" else pool)
    return _wrap(kind, SpectrogramInputs(SPECTROGRAM, max_seconds), "own" if pool == "auto" else pool)


def restore(saved: dict[str, Any], folder: Path) -> Backbone:
    """Restore the small encoder that `backbone.json` describes, with random weights."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    if saved["kind"] == "image":
        processor = ViTImageProcessorPil.from_pretrained(str(folder), local_files_only=True)
        return _wrap("image", ImageInputs(processor), str(saved["pool"]))
    return _wrap("audio", SpectrogramInputs(Spectrogram.read(folder), float(saved["max_seconds"])), str(saved["pool"]))


def _wrap(kind: str, inputs: ImageInputs | SpectrogramInputs, pool: str) -> Backbone:
    model: nn.Module = SmallImageEncoder() if kind == "image" else SmallAudioEncoder()
    channels = 128 if kind == "image" else 256
    backbone = Backbone(
        model,
        inputs=inputs,
        kind=kind,
        pool=pool,
        source=KEYS[kind],
        key=KEYS[kind] if pool == "own" else f"{KEYS[kind]}_{pool}",
        fingerprint=hashlib.sha256(str(model).encode()).hexdigest(),
        pretrained=False,
    )
    backbone.dim = 2 * channels if pool == "own" else channels
    if pool == "none":
        side = IMAGE_SIDE // 16
        backbone.grid = (0, side, side) if kind == "image" else (0, SPECTROGRAM.patch_frames // 16, 1)
    return backbone.eval()
