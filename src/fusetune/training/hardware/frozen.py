"""Frozen weights in bf16 while an adapter is trained: autocast would convert them anew in every pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from fusetune.backbones.language import LanguageModel
from fusetune.data.storage.mapped import mapped_zeros

ADAPTERS = ("lora", "rslora")
"""Adapters that add to a layer's output, and compute nothing from its frozen weight, as DoRA does."""
LAYERS = ("Linear", "Conv1D")
"""Module classes whose weight autocast converts; `Conv1D` is GPT-2's linear layer."""


@contextmanager
def frozen_in_bf16(model: nn.Module, *, enabled: bool = True) -> Iterator[int]:
    """Hold the frozen matrices of language models with an adapter in bf16 within the context; yield their number.

    Trained weights, biases and norms stay float32. A weight that bf16 holds exactly, as those of most checkpoints, is
    held once; the float32 values of others are in a memory-mapped file meanwhile. Afterwards all weights are bit by bit
    what they were.

    Args:
        model: with its parameters frozen or trainable as they are trained.
        enabled: whether passes are in bf16; otherwise nothing is done.
    """
    languages = [part for part in model.modules() if isinstance(part, LanguageModel)] if enabled else []
    languages = [part for part in languages if part.adapter is not None and part.adapter.name in ADAPTERS]
    held: list[tuple[nn.Parameter, np.ndarray | None]] = []
    try:
        for language in languages:
            for weight in _frozen(language):
                held.append((weight, _lower(weight)))
            language.autocasts = True
        yield len(held)
    finally:
        for weight, values in held:
            exact = weight.data if values is None else torch.from_numpy(values)
            weight.data = exact.to(weight.device, torch.float32, copy=True)
        for language in languages:
            language.autocasts = False


def _frozen(language: LanguageModel) -> list[nn.Parameter]:
    """Return the frozen float32 matrices of a language model, each once."""
    embedding = language.model.get_input_embeddings().weight  # type: ignore[operator]
    matrices = [module.weight for module in language.model.modules() if type(module).__name__ in LAYERS]
    if language.seq2seq:  # which embeds its answers itself, and adds to these vectors in their precision
        matrices = [weight for weight in matrices if weight is not embedding]
    else:
        matrices.append(embedding)
    distinct = {id(weight): weight for weight in matrices if isinstance(weight, nn.Parameter)}
    return [weight for weight in distinct.values() if not weight.requires_grad and weight.dtype == torch.float32]


@torch.no_grad()
def _lower(weight: nn.Parameter) -> np.ndarray | None:
    """Convert a weight to bf16; return its float32 values, None if bf16 holds them exactly."""
    low, values = weight.data.to(torch.bfloat16), None
    if not torch.equal(low.float(), weight.data):
        values = mapped_zeros(tuple(weight.shape), np.float32)
        torch.from_numpy(values).copy_(weight.data)
    weight.data = low
    return values
