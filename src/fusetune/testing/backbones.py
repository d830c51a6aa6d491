"""What every encoder must do, as checks for tests: yours too, when you bring a model that fusetune has not met."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.freeze import freeze, lr_scales
from fusetune.backbones.load import restore_backbone

TEXTS = ["w1", "w2 w3 w4 w5 w6 w7", "", "w8 w9 w10 w11"]


def example_cells(backbone: Backbone, seed: int = 0) -> list[np.ndarray]:
    """Four prepared cells of the encoder's kind, of differing sizes."""
    generator = np.random.default_rng(seed)
    if backbone.kind == "text":
        return [backbone.tokenize(text) for text in TEXTS]
    if backbone.kind == "image":
        sizes = ((40, 60), (64, 64), (1, 7), (90, 33))
        pictures = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
        return [backbone.prepare_image(Image.fromarray(picture)) for picture in pictures]
    rate = backbone.sampling_rate
    sounds = [generator.normal(0, 0.1, int(seconds * rate)).astype(np.float32) for seconds in (0.5, 1.3, 0.0, 3.1)]
    return [backbone.prepare_audio(sound, rate) for sound in sounds]


def collate(backbone: Backbone, cells: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """Prepared cells as the encoder's tensors."""
    names = {"text": backbone.collate_text, "image": backbone.collate_images, "audio": backbone.collate_audio}
    return names[backbone.kind](cells)


def check_backbone(backbone: Backbone, folder: Path) -> None:
    """Run every check here.

    Args:
        backbone: as loaded; its trainable parameters are changed back, its weights are not touched.
        folder: empty; the encoder is saved into it.
    """
    check_padding(backbone)
    check_gradients(backbone)
    check_blocks(backbone)
    check_freezing(backbone)
    check_restored(backbone, folder)


@torch.no_grad()
def check_padding(backbone: Backbone, tolerance: float = 1e-5) -> None:
    """A cell's vector is the same alone as in a batch, and finite, however short the cell."""
    backbone.eval()
    cells = example_cells(backbone)
    together = backbone(**collate(backbone, cells))
    assert together.values.shape[0] == len(cells), "one row a cell"
    assert together.values.shape[2] == backbone.dim, "dim is the output's size"
    assert torch.isfinite(together.values).all(), "finite vectors"
    assert together.mask.any(1).all(), "a real token for every cell"
    for number, cell in enumerate(cells):
        alone = backbone(**collate(backbone, [cell]))
        real, single = together.values[number][together.mask[number]], alone.values[0][alone.mask[0]]
        assert real.shape == single.shape, f"cell {number}: {real.shape} in a batch, {single.shape} alone"
        gap = float((real - single).abs().max())
        assert gap <= tolerance * max(1.0, float(single.abs().max())), f"cell {number} differs by {gap}"


def check_gradients(backbone: Backbone) -> None:
    """Every parameter gets a gradient that is finite."""
    freeze(backbone, "none")
    backbone.train()
    backbone.zero_grad()
    values = backbone(**collate(backbone, example_cells(backbone))).values
    weight = torch.linspace(-1, 1, values.numel()).view(values.shape)  # a plain sum is constant after normalisation
    (values * weight).sum().backward()
    missing = [name for name, parameter in backbone.named_parameters() if parameter.grad is None]
    assert not missing, f"no gradient: {missing}"
    broken = [name for name, p in backbone.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert not broken, f"gradient not finite: {broken}"
    backbone.zero_grad()
    backbone.eval()


def check_blocks(backbone: Backbone) -> None:
    """The blocks hold every parameter exactly once; the learning rates by depth do too."""
    everything = sorted(id(parameter) for parameter in backbone.parameters())
    blocks = backbone.blocks()
    inside = sorted(id(parameter) for _, block in blocks for parameter in block.parameters())
    assert inside == everything, "blocks partition the parameters"
    assert len({name for name, _ in blocks}) == len(blocks), "names of blocks differ"
    names = dict(backbone.named_parameters())
    scales = lr_scales(backbone, 0.5)
    assert scales[-1][0] == 1.0 and [scale for scale, _ in scales] == sorted(scale for scale, _ in scales)
    given = [(name, parameter) for _, group in scales for name, parameter in group]
    assert len(given) == len(names) and all(names[name] is parameter for name, parameter in given)


def check_freezing(backbone: Backbone) -> None:
    """Frozen blocks have no gradient and stay in evaluation mode in training; the others train."""
    blocks = backbone.blocks()
    freeze(backbone, f"bottom:{1 if backbone.pretrained else 0}")
    backbone.train()
    if backbone.pretrained:
        assert not any(parameter.requires_grad for parameter in blocks[0][1].parameters())
        assert not any(module.training for part in blocks[0][1].children() for module in part.children())
        assert all(parameter.requires_grad for _, block in blocks[1:] for parameter in block.parameters())
    assert freeze(backbone, "all").trainable == 0
    backbone.train()
    assert not any(module.training for module in backbone.model.modules()), "a frozen encoder stays in evaluation mode"
    counted = freeze(backbone, "none")
    assert counted.trainable == counted.total == sum(parameter.numel() for parameter in backbone.parameters())
    backbone.eval()


@torch.no_grad()
def check_restored(backbone: Backbone, folder: Path) -> None:
    """Saved without weights, restored, given the weights: the same vectors from the same cells."""
    backbone.eval()
    backbone.save(folder)
    kept = [path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]
    assert not kept, f"no weights are saved, yet {kept}"
    restored = restore_backbone(folder)
    restored.load_state_dict(backbone.state_dict())
    told: dict[str, Any] = restored.describe()
    assert told == backbone.describe(), "attributes are restored"
    cells, again = example_cells(backbone), example_cells(restored)
    assert all(np.array_equal(one, two) for one, two in zip(cells, again, strict=True)), "cells are prepared alike"
    before, after = backbone(**collate(backbone, cells)), restored(**collate(restored, again))
    assert torch.equal(before.values, after.values) and torch.equal(before.mask, after.mask), "vectors are restored"
