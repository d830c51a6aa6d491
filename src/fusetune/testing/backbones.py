"""The contract suite of backbones, with one test for each rule; it applies to any pretrained encoder.

class TestMyModel(BackboneContract):
    @pytest.fixture(scope="class")
    def backbone(self):
        return load_backbone("../models/mine", "text")
"""

from __future__ import annotations

import unittest
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
from fusetune.testing.rules import Contract, check

TEXTS = ["w1", "w2 w3 w4 w5 w6 w7", "", "w8 w9 w10 w11"]


def example_cells(backbone: Backbone, seed: int = 0) -> list[np.ndarray]:
    """Return four examples of the encoder's kind, of different sizes."""
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
    """Collate examples to the encoder's tensors."""
    names = {"text": backbone.collate_text, "image": backbone.collate_images, "audio": backbone.collate_audio}
    return names[backbone.kind](cells)


def check_backbone(backbone: Backbone, folder: Path) -> None:
    """Check a backbone by all rules of `BackboneContract`.

    Args:
        backbone: as loaded; its weights are not changed, and all of them are trainable afterwards.
        folder: empty or missing; the encoder is saved into it.

    Raises:
        AssertionError: rules are broken; the message lists all of them.
    """
    check(BackboneContract, backbone=backbone, tmp_path=folder)


class BackboneContract(Contract):
    """The rules of backbones. They take `backbone`, as loaded, and pytest's `tmp_path`."""

    tolerance = 1e-5
    """Largest difference of a cell's vectors alone and in a batch, relative to max(1, the largest value)."""

    @torch.no_grad()
    def test_vectors_have_their_shape(self, backbone: Backbone) -> None:
        """Every cell, however short, has finite vectors of `dim` features, one of them real."""
        tokens = backbone.eval()(**collate(backbone, example_cells(backbone)))
        assert tokens.values.shape[0] == len(TEXTS), f"{tokens.values.shape[0]} rows for {len(TEXTS)} cells"
        assert tokens.values.shape[2] == backbone.dim, f"vectors of {tokens.values.shape[2]}, but dim={backbone.dim}"
        assert torch.isfinite(tokens.values).all(), "vectors are not finite"
        assert tokens.mask.any(1).all(), "a cell has no real token"

    @torch.no_grad()
    def test_two_passes_agree(self, backbone: Backbone) -> None:
        """In evaluation a cell's vectors are the same in every pass."""
        cells = collate(backbone.eval(), example_cells(backbone))
        first, second = backbone(**cells), backbone(**cells)
        assert torch.equal(first.mask, second.mask), "two passes give other tokens"
        assert torch.equal(first.values[first.mask], second.values[first.mask]), "two passes give other vectors"

    @torch.no_grad()
    def test_a_cell_is_encoded_by_itself(self, backbone: Backbone) -> None:
        """A cell's vectors are the same alone as in a batch: neither padding nor other cells reach them."""
        cells = example_cells(backbone.eval())
        together = backbone(**collate(backbone, cells))
        for number, cell in enumerate(cells):
            alone = backbone(**collate(backbone, [cell]))
            real, single = together.values[number][together.mask[number]], alone.values[0][alone.mask[0]]
            assert real.shape == single.shape, f"cell {number}: {real.shape} in a batch, {single.shape} alone"
            gap = float((real - single).abs().max())
            assert gap <= self.tolerance * max(1.0, float(single.abs().max())), f"cell {number} differs by {gap}"

    @torch.no_grad()
    def test_different_cells_differ(self, backbone: Backbone) -> None:
        """Vectors depend on the cell: they are not the same for all cells."""
        tokens = backbone.eval()(**collate(backbone, example_cells(backbone)))
        means = tokens.mean()
        gap, size = (means - means[:1]).abs().max(), means.abs().max()
        assert gap > 1e-4 * size, "all cells give the same vector"

    def test_every_parameter_receives_a_gradient(self, backbone: Backbone) -> None:
        """Every parameter gets a gradient that is finite."""
        freeze(backbone, "none")
        backbone.train()
        backbone.zero_grad()
        values = backbone(**collate(backbone, example_cells(backbone))).values
        weight = torch.linspace(-1, 1, values.numel()).view(values.shape)  # a plain sum is constant after normalisation
        torch.autograd.backward((values * weight).sum())
        missing = [name for name, parameter in backbone.named_parameters() if parameter.grad is None]
        broken = [name for name, p in backbone.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        backbone.zero_grad()
        backbone.eval()
        assert not missing, f"no gradient: {missing}"
        assert not broken, f"gradient not finite: {broken}"

    def test_blocks_hold_every_parameter_once(self, backbone: Backbone) -> None:
        """The blocks partition the parameters and have different names."""
        everything = sorted(id(parameter) for parameter in backbone.parameters())
        blocks = backbone.blocks()
        inside = sorted(id(parameter) for _, block in blocks for parameter in block.parameters())
        assert inside == everything, "the blocks do not hold every parameter exactly once"
        assert len({name for name, _ in blocks}) == len(blocks), "two blocks have one name"

    def test_learning_rates_rise_with_depth(self, backbone: Backbone) -> None:
        """Layer-wise rates hold every parameter once, by its name, and the last block has the full rate."""
        names = dict(backbone.named_parameters())
        scales = lr_scales(backbone, 0.5)
        assert scales[-1][0] == 1.0, f"the last block's rate is {scales[-1][0]} of the full one"
        assert [scale for scale, _ in scales] == sorted(scale for scale, _ in scales), "rates fall with depth"
        given = [(name, parameter) for _, group in scales for name, parameter in group]
        assert len(given) == len(names), f"rates for {len(given)} of {len(names)} parameters"
        assert all(names[name] is parameter for name, parameter in given), "a rate is under another name"

    def test_frozen_blocks_do_not_train(self, backbone: Backbone) -> None:
        """The frozen bottom has no gradient and stays in evaluation mode in training; the blocks above train."""
        if not backbone.pretrained:
            raise unittest.SkipTest("an encoder from scratch is not frozen")
        blocks = backbone.blocks()
        try:
            freeze(backbone, "bottom:1")
            backbone.train()
            frozen = [module for part in blocks[0][1].children() for module in part.children()]
            assert not any(parameter.requires_grad for parameter in blocks[0][1].parameters()), "it gets gradients"
            assert not any(module.training for module in frozen), "a frozen block is in training mode"
            above = [parameter for _, block in blocks[1:] for parameter in block.parameters()]
            assert all(parameter.requires_grad for parameter in above), "a block above is frozen too"
        finally:
            freeze(backbone, "none")
            backbone.eval()

    def test_a_frozen_encoder_does_not_train(self, backbone: Backbone) -> None:
        """A frozen encoder has no trainable weights and stays in evaluation mode; unfrozen, all weights train."""
        try:
            assert freeze(backbone, "all").trainable == 0, "a frozen encoder has trainable parameters"
            backbone.train()
            assert not any(module.training for module in backbone.model.modules()), "it is in training mode"
            counted = freeze(backbone, "none")
            total = sum(parameter.numel() for parameter in backbone.parameters())
            assert counted.trainable == counted.total == total, f"{counted} where there are {total} parameters"
        finally:
            freeze(backbone, "none")
            backbone.eval()

    @torch.no_grad()
    def test_it_is_restored_without_its_source(self, backbone: Backbone, tmp_path: Path) -> None:
        """Saved without weights, restored and loaded with the weights, it gives the same vectors."""
        backbone.eval()
        backbone.save(tmp_path)
        weights = [path.name for path in tmp_path.iterdir() if path.suffix in (".safetensors", ".bin")]
        assert not weights, f"weights are saved: {weights}"
        restored = restore_backbone(tmp_path)
        restored.load_state_dict(backbone.state_dict())
        description: dict[str, Any] = restored.describe()
        assert description == backbone.describe(), f"restored as {description}, not {backbone.describe()}"
        cells, again = example_cells(backbone), example_cells(restored)
        assert all(np.array_equal(one, two) for one, two in zip(cells, again, strict=True)), (
            "cells are prepared otherwise"
        )
        before, after = backbone(**collate(backbone, cells)), restored(**collate(restored, again))
        assert torch.equal(before.mask, after.mask), "the restored encoder gives other tokens"
        assert torch.equal(before.values, after.values), "the restored encoder gives other vectors"
