"""Check of a loaded encoder on fixed cells: its vectors must be finite, deterministic and independent of the batch.

Transformers without an attention mask (FNet) and convolutions over tokens (ConvBERT, Wav2Vec2-BERT) depend on the
padding. Such encoders encode cells of equal length together, or cell by cell if that does not help.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune.backbones.inputs import ImageInputs, TextInputs
from fusetune.errors import BackboneError

TOLERANCE = 1e-4
"""Largest difference, relative to the largest magnitude of a vector, that counts as rounding."""


@torch.no_grad()
def check_vectors(backbone: Any) -> None:
    """Encode fixed cells one by one, again, and in a batch; choose how batches are encoded.

    Sets `backbone.separate`, and appends to `backbone.notes` if batches cannot be encoded in one pass.

    Args:
        backbone: a `Backbone` in evaluation mode, on the CPU.

    Raises:
        BackboneError: vectors are not finite, differ between passes, or depend on other cells in all strategies.
    """
    cells = _cells(backbone)
    single = [_vectors(backbone, [cell]) for cell in cells]
    name = type(backbone.model).__name__
    if not all(bool(values.isfinite().all()) for values in single):
        raise BackboneError(f"{name} gives vectors that are not finite", do="check its weights, or name another model")
    again = [_vectors(backbone, [cell]) for cell in cells]
    if not _same(single, again):
        raise BackboneError(
            f"{name} gives another vector of the same cell in each pass, as it draws random numbers",
            expected="the same vector in every pass of evaluation",
            do="name another backbone",
        )
    ways = ("", "lengths", "cells")
    for separate in ways[ways.index(backbone.separate) :]:
        backbone.separate = separate
        if _same(single, [_vectors(backbone, cells)]):
            break
    else:
        raise BackboneError(
            f"{name} gives vectors that depend on the other cells of a batch",
            expected="the same vector alone and in a batch",
            do="name another backbone",
        )
    if backbone.separate:
        unit = "cells of one length" if backbone.separate == "lengths" else "one cell"
        backbone.notes.append(
            f"{backbone.source} ({name}) reads the padding of a batch, so it encodes {unit} at a time, which is slower."
        )


def _cells(backbone: Any) -> list[np.ndarray]:
    """Return three prepared cells; the second one has another length, for kinds with variable length."""
    inputs, random = backbone.inputs, np.random.default_rng(0)
    if isinstance(inputs, TextInputs):
        short, long = "a small text", "another one, which has more words than the first"
        first, second = inputs.prepare(short), inputs.prepare(long)
        return [first, second, second[: len(first)]]
    if isinstance(inputs, ImageInputs):
        return [random.integers(0, 256, (3, *inputs.image_size), dtype=np.uint8) for _ in range(3)]
    rate = inputs.sampling_rate
    return [
        inputs.prepare(random.normal(0, 0.1, samples).astype(np.float32)) for samples in (rate, 2 * rate // 5, rate)
    ]


def _vectors(backbone: Any, cells: list[np.ndarray]) -> Tensor:
    """Return the cells' vectors, (cells, dim): pooled, or the mean of the real tokens."""
    vectors: Tensor = backbone(**backbone.inputs.collate(cells)).mean()
    return vectors


def _same(wanted: list[Tensor], given: list[Tensor]) -> bool:
    first, second = torch.cat(wanted), torch.cat(given)
    scale = float(first.abs().max().clamp(min=1e-6))
    return bool((first - second).abs().max() <= TOLERANCE * scale)
