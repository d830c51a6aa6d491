"""A pretrained encoder with its own processor: cells in, `Tokens` out."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fusetune import _private
from fusetune.backbones import structure
from fusetune.backbones.boundary import BOUNDARY, starting_at
from fusetune.backbones.compiled import bucketed, explained
from fusetune.backbones.grouping import concatenated, length_cuts, picture_pieces, whole
from fusetune.backbones.inputs import AudioInputs, ImageInputs, Inputs, SpectrogramInputs, TextInputs
from fusetune.config.sections import AdapterConfig
from fusetune.errors import BackboneError
from fusetune.types import Tokens

if TYPE_CHECKING:
    from fusetune.backbones.graphs import EncoderReplays

FILE = "backbone.json"
KINDS = ("text", "image", "audio")
POOLS = ("mean", "cls", "last", "own", "none")


class Backbone(nn.Module):
    """One encoder, for one kind of cell.

    Attributes:
        kind: "text", "image" or "audio".
        source: what the user named: "minilm", a folder or a hub id; "image_small" and "audio_small" for the small ones.
        fingerprint: SHA-256 of the weights as loaded.
        key: names it among a model's encoders; letters, digits and `_`.
        pretrained: whether the weights come from pretraining.
        pool: "mean" of the real tokens, "cls" (the first token), "last" (real token), "own" (the vector that the model
            makes of a cell itself, such as a projection shared with another kind) or "none" (every token).
        dim: features of a token.
        processor: the tokenizer, image processor, feature extractor or `Spectrogram`.
        max_tokens: tokens of a text that are read; 0 for other kinds.
        sampling_rate: samples a second that a sound must have; 0 for other kinds.
        image_size: (height, width) of the pictures that are read, in pixels; (0, 0) for other kinds.
        norm_eval: keep the running statistics of batch normalisation in training, as small batches would spoil them.
        grid: with pool "none", how a picture's tokens lie in it, where they do (see `Tokens`).
        adapter: the adapter's settings, where the encoder has one (`fusetune.backbones.adapters`): `adapted` has the
            paths of the modules in `model` that it sits on, `brought` the names of the tensors that it added.
        normalised: pooled vectors are scaled to length 1, as a sentence encoder's own modules say.
        separate: how a batch is encoded: "" in one pass; "lengths": cells of one length at a time, "cells": each by
            itself, for models whose vectors depend on the padding (see `fusetune.backbones.trial`).
        notes: what a user should know of this encoder, in sentences.
    """

    dim: int
    grid: tuple[int, int, int] | None = None

    def __init__(
        self,
        model: nn.Module,
        *,
        inputs: Inputs,
        kind: str,
        pool: str,
        source: str,
        key: str,
        fingerprint: str,
        pretrained: bool,
        method: str = "forward",
        config: Any = None,
        norm_eval: bool = True,
    ) -> None:
        """
        Args:
            model: the encoder; `method` of it returns `last_hidden_state` and perhaps `pooler_output`.
            inputs: what it reads.
            method: the method that encodes.
            config: the transformers config that the model is built from, None for the small encoders.

        The other arguments are described with the attributes.
        """
        super().__init__()
        self.model, self.inputs, self.method, self.config = model, inputs, method, config
        self.kind, self.pool, self.source, self.key = kind, pool, source, key
        self.fingerprint, self.pretrained, self.norm_eval = fingerprint, pretrained, norm_eval
        self.processor = inputs.processor
        self.max_tokens = inputs.max_tokens if isinstance(inputs, TextInputs) else 0
        self.sampling_rate = inputs.sampling_rate if isinstance(inputs, AudioInputs | SpectrogramInputs) else 0
        self.image_size = inputs.image_size if isinstance(inputs, ImageInputs) else (0, 0)
        self.removed: list[tuple[str, str]] = []
        self.adapter: AdapterConfig | None = None
        self.adapted: list[str] = []
        self.brought: set[str] = set()
        self.together = False  # all texts of a batch in one pass, see `whole`
        self.compiled = False  # see `fusetune.backbones.compiled`
        self.replays: EncoderReplays | None = None  # see `fusetune.backbones.graphs`
        self.starts_at, self.gives_tuples = 0, False  # of passes that bring what a layer reads, see `boundary`
        self.normalised, self.separate = False, ""
        self.notes: list[str] = []
        # Models that hide a random part of their input (ViT-MAE) take the order of the patches as an argument.
        self._orders_patches = "noise" in inspect.signature(getattr(model, method)).parameters
        # Group normalisation over time would see the padding, so such an encoder takes sounds of one length at a time.
        self._alone = isinstance(inputs, AudioInputs) and any(isinstance(m, nn.GroupNorm) for m in model.modules())

    # ---- from cells to tensors

    def prepare_image(self, image: Image.Image) -> np.ndarray:
        """(3, height, width) uint8 of an RGB picture, resized and cropped exactly as the model's processor does it."""
        assert isinstance(self.inputs, ImageInputs)
        return self.inputs.prepare(image)

    def collate_images(self, images: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """`pixel_values`, (images, 3, height, width) float32, rescaled and normalised."""
        assert isinstance(self.inputs, ImageInputs)
        return self.inputs.collate(images)

    def prepare_audio(self, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
        """What is kept of a sound, (samples,) float; its first dimension is its length.

        Args:
            waveform: (samples,) float, from -1 to 1; may be empty.
            sampling_rate: must be `self.sampling_rate`.

        Raises:
            BackboneError: the sound has another rate.
        """
        assert isinstance(self.inputs, AudioInputs | SpectrogramInputs)
        if sampling_rate != self.sampling_rate:
            raise BackboneError(
                "the sound has another sampling rate than the model",
                expected=f"{self.sampling_rate} Hz",
                came=f"{sampling_rate} Hz",
                do="resample it",
            )
        return self.inputs.prepare(waveform)

    def collate_audio(self, cells: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """The encoder's tensors, one row a part, and `owner`, (parts,) int64: which of the cells a part belongs to."""
        assert isinstance(self.inputs, AudioInputs | SpectrogramInputs)
        return self.inputs.collate(cells)

    def tokenize(self, text: str) -> np.ndarray:
        """(tokens,) int32, special tokens included, cut to `max_tokens`; at least one."""
        assert isinstance(self.inputs, TextInputs)
        return self.inputs.prepare(text)

    def collate_text(self, cells: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, (cells, tokens) int64, padded at the right."""
        assert isinstance(self.inputs, TextInputs)
        return self.inputs.collate(cells)

    # ---- from tensors to tokens

    def forward(self, *, owner: Tensor | None = None, boundary: Tensor | None = None, **inputs: Tensor) -> Tokens:
        """
        Args:
            owner: (parts,) int64 from 0 up without gaps, where a cell may have several parts: which cell each
                belongs to. Their vectors are averaged; with pool "none" their tokens follow one another.
            boundary: what the first trained layer reads, where that is known: see `fusetune.backbones.boundary`.
            inputs: what a collate method gave.

        Returns:
            (cells, 1, dim), or (cells, tokens, dim) with pool "none".
        """
        replays = self.replays if self.replays is not None and self.replays.takes(inputs) else None
        if not self.together and (self.compiled or replays is not None):
            known = inputs if boundary is None else {**inputs, BOUNDARY: boundary}
            return self._in_sizes(owner, known, replays)
        if boundary is not None:
            with starting_at(self, self.starts_at, boundary.to(next(self.model.parameters()).dtype)), whole(self):
                return self(owner=owner, **inputs)  # type: ignore[no-any-return]
        if "attention_mask" in inputs and not self.separate and (groups := self._groups(inputs["attention_mask"])):
            return self._in_groups(groups, inputs)
        if owner is not None and isinstance(self.inputs, ImageInputs) and (pieces := picture_pieces(inputs)):
            return _join(concatenated([self(**piece) for piece in pieces]), owner)
        values, mask, own = self._separately(inputs) if self.separate else self._encode(**inputs)
        tokens = Tokens(values, mask, self.grid) if self.pool == "none" else self._pooled(values, mask, own)
        return tokens if owner is None else _join(tokens, owner)

    def _in_sizes(self, owner: Tensor | None, inputs: dict[str, Tensor], replays: EncoderReplays | None) -> Tokens:
        """The same of a padded batch, what is padded cut off."""
        fine = replays is not None and replays.is_fine(inputs)
        padded, rows, num = bucketed(inputs, self.max_tokens, fine=fine)
        tokens = replays(padded) if replays is not None else None
        if tokens is None:
            with whole(self), explained():
                tokens = self(**padded)
        num = num if num and self.pool == "none" else tokens.values.shape[1]
        cut = Tokens(tokens.values[:rows, :num], tokens.mask[:rows, :num], tokens.grid)
        return cut if owner is None else _join(cut, owner)

    def _groups(self, mask: Tensor) -> list[Tensor]:
        """The rows of texts in groups of like length, where that saves computing; empty where it does not.

        On a GPU a pass more costs more than padding, and to look at lengths would make it wait.
        """
        if self.together or self.pool == "none" or mask.device.type != "cpu":
            return []
        lengths, order = mask.sum(1).sort()
        cuts = length_cuts(lengths.numpy())
        return list(order.tensor_split(torch.tensor(cuts))) if cuts else []

    def _in_groups(self, groups: list[Tensor], inputs: dict[str, Tensor]) -> Tokens:
        """(rows, 1, dim), each group of rows in a pass of its own, cut to its longest."""
        parts = []
        for rows in groups:
            some = {name: tensor[rows] for name, tensor in inputs.items()}
            longest = int(some["attention_mask"].sum(1).max())
            whole = some["attention_mask"].shape[1]
            cut = {name: part[:, :longest] if part.shape[1:2] == (whole,) else part for name, part in some.items()}
            parts.append(self._pooled(*self._encode(**cut)))
        back = torch.cat(groups).argsort()
        return Tokens(torch.cat([part.values for part in parts])[back], torch.cat([part.mask for part in parts])[back])

    def _separately(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """The same as `_encode`, of rows of one length at a time (or of each row), without padding."""
        rows = max(len(tensor) for tensor in inputs.values())
        mask, lengths = inputs.get("attention_mask"), inputs.get("lengths")
        sizes = mask.sum(1) if mask is not None else lengths if lengths is not None else torch.zeros(rows)
        if self.separate == "cells":
            groups = [torch.tensor([row]) for row in range(rows)]
        else:
            groups = [(sizes == size).nonzero().squeeze(1) for size in sorted(set(sizes.tolist()))]
        parts = []
        for some in groups:
            cut = {name: tensor[some.to(tensor.device)] for name, tensor in inputs.items()}
            longest = int(sizes[some[0]])
            for name, tensor in cut.items():
                width = mask.shape[1] if mask is not None else max((int(size) for size in sizes), default=0)
                if longest and tensor.ndim > 1 and tensor.shape[1] == width:
                    cut[name] = tensor[:, :longest]
            parts.append(self._encode(**cut))
        most = max(values.shape[1] for values, _, _ in parts)
        back = torch.cat(groups).argsort()
        values = torch.cat([nn.functional.pad(part, (0, 0, 0, most - part.shape[1])) for part, _, _ in parts])[back]
        real = torch.cat([nn.functional.pad(part, (0, most - part.shape[1])) for _, part, _ in parts])[back]
        own = [part for _, _, part in parts if part is not None]
        return values, real, torch.cat(own)[back] if own else None

    def _encode(self, *, lengths: Tensor | None = None, **inputs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(rows, tokens, dim), (rows, tokens) bool and, where the model gives one, its own (rows, dim)."""
        if lengths is not None and not cast(AudioInputs, self.inputs).makes_features:
            return self._encode_waveforms(next(iter(inputs.values())), lengths, next(iter(inputs)))
        values, own = self._call(inputs)
        if "attention_mask" in inputs:
            mask = inputs["attention_mask"].bool()
            if mask.shape[1] != values.shape[1]:  # frames that the model reads several of at a time
                real = (mask.sum(1) * values.shape[1] / mask.shape[1]).ceil().clamp(min=1)
                mask = torch.arange(values.shape[1], device=values.device) < real[:, None]
        elif lengths is not None and values.shape[1] > 1:
            real = (lengths * values.shape[1] / cast(AudioInputs, self.inputs).chunk).ceil().clamp(min=1)
            mask = torch.arange(values.shape[1], device=values.device) < real[:, None]
        else:
            mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        return values, mask, own

    def _encode_waveforms(self, waves: Tensor, lengths: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor | None]:
        real = torch.arange(waves.shape[1], device=waves.device) < lengths[:, None]  # (rows, samples)
        if not self._alone:
            values, own = self._call({name: waves, "attention_mask": real.long()})
            return values, _private.waveform_mask(self.model, values.shape[1], real.long()), own
        rows: list[Tensor] = []
        found: list[Tensor] = []
        for length in sorted(set(lengths.tolist())):
            same = (lengths == length).nonzero().squeeze(1)
            rows.append(same)
            found.append(self._call({name: waves[same, :length]})[0])
        most = max(values.shape[1] for values in found)
        padded = [nn.functional.pad(values, (0, 0, 0, most - values.shape[1])) for values in found]
        counts = torch.cat([torch.full((len(values),), values.shape[1], device=waves.device) for values in found])
        order = torch.cat(rows).argsort()
        mask = torch.arange(most, device=waves.device) < counts[order, None]
        return torch.cat(padded)[order], mask, None

    def _call(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        if self._orders_patches:
            pixels = inputs["pixel_values"]
            size = structure.patch_grid(self.model, (pixels.shape[-2], pixels.shape[-1]))
            assert size is not None, "a model that hides patches cuts some"
            order = torch.arange(size[0] * size[1], device=pixels.device, dtype=pixels.dtype)
            inputs = {**inputs, "noise": order.expand(len(pixels), -1)}
        out = getattr(self.model, self.method)(**inputs)
        values: Tensor = out.last_hidden_state
        if values.ndim == 4:  # (rows, dim, height, width)
            values = values.flatten(2).transpose(1, 2)
        own = getattr(out, "pooler_output", None)
        return values, None if own is None else own.flatten(1)

    def _pooled(self, values: Tensor, mask: Tensor, own: Tensor | None) -> Tokens:
        if self.pool == "own":
            assert own is not None
            vector = own
        elif self.pool == "mean":
            vector = Tokens(values, mask).mean()
        elif self.pool == "cls":
            vector = values[:, 0]
        else:
            vector = values[torch.arange(len(values), device=values.device), mask.sum(1) - 1]
        if self.normalised:
            vector = nn.functional.normalize(vector, dim=1)
        return Tokens(vector.unsqueeze(1), torch.ones(len(vector), 1, dtype=torch.bool, device=vector.device))

    # ---- training

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """The encoder cut from input to output; together the blocks hold every parameter once."""
        return structure.blocks(self.model)

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode: blocks without a trainable parameter, and batch normalisation, stay in evaluation mode."""
        super().train(mode)
        if not mode:
            return self
        if not any(parameter.requires_grad for parameter in self.parameters()):
            self.model.eval()
            return self
        for _, block in self.blocks():
            if not any(parameter.requires_grad for parameter in block.parameters()):
                block.eval()
        if self.norm_eval and self.pretrained:
            for module in self.modules():
                if isinstance(module, structure.BATCH_NORMS):
                    module.eval()
        return self

    def enable_checkpointing(self) -> bool:
        """Recompute activations in the backward pass instead of keeping them; False where the model cannot."""
        if not getattr(self.model, "supports_gradient_checkpointing", False):
            return False
        options = {"use_reentrant": False}
        model: Any = self.model
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        else:  # the name in older releases of transformers
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        return True

    # ---- files

    def _origin(self) -> str:
        """Where the pretrained weights come from; a folder's absolute path where the model needs it later."""
        folder = Path(self.source).expanduser()
        return os.path.abspath(folder) if self.adapter is not None and folder.is_dir() else self.source

    def save(self, folder: Path) -> None:
        """Write config, processor and `backbone.json` into a folder; the weights go with the whole model's."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.config is not None:
            self.config.save_pretrained(str(folder))
        self.inputs.save(folder)
        (folder / FILE).write_text(json.dumps(self.describe(), indent=2) + "\n", encoding="utf-8")

    def describe(self) -> dict[str, Any]:
        """What `restore_backbone` needs beside config and processor, as JSON."""
        return {
            "small": self.config is None,
            "kind": self.kind,
            "pool": self.pool,
            "key": self.key,
            "source": self._origin(),
            "fingerprint": self.fingerprint,
            "pretrained": self.pretrained,
            "dim": self.dim,
            "grid": None if self.grid is None else list(self.grid),
            "max_tokens": self.max_tokens,
            "whole_length": isinstance(self.inputs, TextInputs) and self.inputs.whole_length,
            "max_seconds": self.inputs.max_seconds,
            "norm_eval": self.norm_eval,
            "normalised": self.normalised,
            "separate": self.separate,
            "removed": [list(pair) for pair in self.removed],
            "adapter": None if self.adapter is None else self.adapter.model_dump(),
        }


def _join(tokens: Tokens, owner: Tensor) -> Tokens:
    """Parts' tokens as cells' tokens: (parts, tokens, dim) to (cells, ...)."""
    cells = int(owner.max()) + 1
    values, mask = tokens.values, tokens.mask
    if values.shape[1] == 1:
        weight = mask.to(values.dtype)  # (parts, 1)
        total = values.new_zeros(cells, values.shape[2]).index_add(0, owner, values[:, 0] * weight)
        count = values.new_zeros(cells, 1).index_add(0, owner, weight)
        return Tokens((total / count.clamp(min=1)).unsqueeze(1), count > 0, tokens.grid)
    order = owner.argsort(stable=True)
    counts = torch.bincount(owner, minlength=cells)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(owner), device=owner.device) - starts[owner[order]]  # a part's number in its cell
    shape = (cells, int(counts.max()), values.shape[1])
    joined = values.new_zeros(*shape, values.shape[2])
    real = mask.new_zeros(shape)
    joined[owner[order], place] = values[order]
    real[owner[order], place] = mask[order]
    return Tokens(joined.flatten(1, 2), real.flatten(1, 2), tokens.grid)
