"""Completion of a loaded encoder by running it: pooling, unused parts, output dimension, grid of tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.convolutions import fold_batch_norms
from fusetune.backbones.hub.sentence import stated_pooling
from fusetune.backbones.inputs import AudioInputs, ImageInputs, SpectrogramInputs, TextInputs
from fusetune.backbones.inspection import structure
from fusetune.errors import BackboneError

MOST_EXTRA = 16
"""Maximum number of class and register tokens before an image's patches; more mean that the grid is wrong."""


def finalize(backbone: Backbone, pool: str, folder: Path) -> None:
    """Choose the pooling, remove the parts that the pooled output does not depend on, and set `dim` and `grid`.

    Args:
        backbone: changed in place.
        pool: see `Backbone`, or "auto".
        folder: of the model, which may state a pooling.

    Raises:
        BackboneError: the model has no vector of its own, or states a pooling that is not supported.
    """
    backbone.eval()
    inputs = _small_input(backbone)
    inputs.pop("owner", None)
    with torch.no_grad():
        values, _, own = backbone.hidden_states(**inputs)
    if pool == "auto":
        backbone.pool = _auto_pool(backbone, own, folder)
    if backbone.pool == "none" and backbone.kind != "text":
        backbone.grid = _grid(backbone, values.shape[1])
    if backbone.pool == "own" and own is None:
        raise BackboneError(
            "this model makes no vector of its own", expected="pool: mean, cls, last or none", came="own"
        )
    if isinstance(backbone.inputs, TextInputs) and backbone.pool == "own":
        backbone.inputs.whole_length = _reads_padding(backbone)

    def probe() -> Tensor:
        return backbone(**inputs).values  # type: ignore[no-any-return]

    backbone.removed = structure.prune(backbone.model, probe)
    backbone.dim = int(own.shape[-1]) if backbone.pool == "own" and own is not None else int(values.shape[-1])
    backbone.eval()


def _small_input(backbone: Backbone) -> dict[str, Tensor]:
    inputs = backbone.inputs
    if isinstance(inputs, TextInputs):
        return inputs.collate([inputs.prepare("a small text")])
    if isinstance(inputs, ImageInputs):
        return inputs.collate([np.random.default_rng(0).integers(0, 256, (3, *inputs.image_size), dtype=np.uint8)])
    noise = np.random.default_rng(0).normal(0, 0.1, inputs.sampling_rate)
    return inputs.collate([inputs.prepare(noise.astype(np.float32))])


def fold_norms(backbone: Backbone) -> None:
    """Fold the frozen batch norms of an image or spectrogram encoder into its convolutions."""
    if isinstance(backbone.inputs, ImageInputs | SpectrogramInputs):
        inputs = _small_input(backbone)
        inputs.pop("owner", None)
        fold_batch_norms(backbone, inputs)


def _auto_pool(backbone: Backbone, own: Tensor | None, folder: Path) -> str:
    """Return the pooling that a model was trained with."""
    if backbone.method != "forward":
        return "own"
    if backbone.kind == "text":
        stated = stated_pooling(folder)
        if stated is not None:
            backbone.normalised = stated.normalised
            return stated.pool
        return "last" if _is_causal(backbone) else "mean"
    if isinstance(backbone.inputs, AudioInputs) and not backbone.inputs.makes_features:
        return "mean"
    if (
        own is not None
        and any(isinstance(module, nn.Conv2d) for module in backbone.model.modules())
        and _map_size(backbone) is not None
    ):
        return "own"
    return "cls" if structure.has_class_token(backbone.model) else "mean"


def _map_size(backbone: Backbone) -> tuple[int, int] | None:
    """Return the (height, width) of a convolutional model's feature map; None for other models."""
    inputs = _small_input(backbone)
    inputs.pop("owner", None)
    inputs.pop("lengths", None)
    with torch.no_grad():
        out = getattr(backbone.model, backbone.method)(**inputs)
    shape = out.last_hidden_state.shape
    return (int(shape[2]), int(shape[3])) if len(shape) == 4 else None


def _grid(backbone: Backbone, num_tokens: int) -> tuple[int, int, int] | None:
    """Return the grid of an image's tokens (see `Tokens`): a convolutional feature map, or a transformer's patches."""
    size = _map_size(backbone)
    if size is None and backbone.kind == "image":
        size = structure.patch_grid(backbone.model, backbone.image_size)
    extra = -1 if size is None else num_tokens - size[0] * size[1]
    return (extra, *size) if size is not None and 0 <= extra <= MOST_EXTRA else None


@torch.no_grad()
def _is_causal(backbone: Backbone) -> bool:
    """Return whether attention is causal: changing the last token does not change the first one's output."""
    tokens = torch.arange(8).unsqueeze(0) + 1
    other = tokens.clone()
    other[0, -1] += 1
    mask = torch.ones_like(tokens)
    first, second = (backbone.hidden_states(input_ids=ids, attention_mask=mask)[0][0, 0] for ids in (tokens, other))
    return torch.equal(first, second)


@torch.no_grad()
def _reads_padding(backbone: Backbone) -> bool:
    """Return whether padding changes the model's own vector of a text despite the mask."""
    inputs = backbone.inputs
    assert isinstance(inputs, TextInputs)
    ids = inputs.prepare("a small text")
    short = inputs.collate([ids])
    padded = {name: nn.functional.pad(values, (0, 2)) for name, values in short.items()}
    padded["input_ids"][:, len(ids) :] = inputs.filler
    if padded["input_ids"].shape[1] > inputs.max_tokens:
        return False
    first, second = backbone.hidden_states(**short)[2], backbone.hidden_states(**padded)[2]
    assert first is not None and second is not None
    return not torch.allclose(first, second, atol=1e-3)


def check_weights(backbone: Backbone, folder: Path) -> None:
    """Refuse a model whose weight matrices are all zero, and note single ones that are: signs of an incomplete file."""
    matrices = {name: weight for name, weight in backbone.model.named_parameters() if weight.ndim > 1}
    zero = sorted(name for name, weight in matrices.items() if not bool(weight.any()))
    if matrices and len(zero) == len(matrices):
        raise BackboneError(
            "all weights of the encoder are zero",
            do="copy the file again from where the model comes from",
            file=str(folder),
        )
    if zero:
        num = f"{len(zero)} of {len(matrices)} weight matrices of {backbone.source}"
        backbone.notes.append(f"{num} are all zero: {', '.join(zero[:3])}.")
