"""`Backbone`: an encoder with its processor, from cells to `Tokens`."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fusetune import _private
from fusetune.backbones.convolutions import channels_last, is_convolutional
from fusetune.backbones.inputs import AudioInputs, ImageInputs, Inputs, SpectrogramInputs, TextInputs
from fusetune.backbones.inspection import structure
from fusetune.backbones.passes.base import EncoderPass, EveryToken
from fusetune.backbones.passes.choice import choose
from fusetune.config.adapter import AdapterConfig
from fusetune.errors import BackboneError
from fusetune.types import Tokens

FILE = "backbone.json"
KINDS = ("text", "image", "audio")
POOLS = ("mean", "cls", "last", "own", "none")


class Backbone(nn.Module):
    """An encoder for one kind of cell.

    Attributes:
        kind: "text", "image" or "audio".
        source: the user's name for it: "minilm", a folder or a hub id; "image_small" or "audio_small" for the small
            encoders.
        fingerprint: SHA-256 of the weights as loaded.
        key: its name among a model's encoders; letters, digits and `_`.
        pretrained: whether the weights come from pretraining.
        pool: "mean" over the real tokens, "cls" (the first token), "last" (the last real token), "own" (the model's own
            vector of a cell, such as a projection into a space shared with another modality) or "none" (all tokens).
        dim: features of a token.
        processor: the tokenizer, image processor, feature extractor or `Spectrogram`.
        max_tokens: maximum number of tokens of a text; 0 for other kinds.
        sampling_rate: required sampling rate of sounds, in Hz; 0 for other kinds.
        image_size: (height, width) of the input images, in pixels; (0, 0) for other kinds.
        norm_eval: keep the running statistics of batch normalisation in training, as small batches would distort them.
        grid: with pool "none", the grid of an image's tokens, if they form one (see `Tokens`).
        adapter: the adapter's settings, None without one (see `fusetune.backbones.adapters`).
        adapted: paths in `model` of the modules that have the adapter.
        adapter_tensors: names in `model.state_dict()` of the adapter's tensors.
        normalised: whether pooled vectors are scaled to unit length, as a sentence encoder's modules state.
        separate: which cells may share a pass: "" all, "lengths" only those of equal length, "cells" none; for models
            whose vectors depend on the padding or on other cells (see `fusetune.backbones.inspection.trial`).
        channels_last: whether images are encoded in the memory format channels-last on a CPU, where convolutions are
            faster with it.
        pretrained_on_rows: SHA-256 of the weights that self-supervised tuning on a fit's rows changed; "" without it.
        start: the pass that starts at the first trained layer, if there is one that was verified.
        wanted: the pass that `fusetune.backbones.passes.base.using` set.
        notes: remarks for the user, in sentences.
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
            model: the encoder; its `method` returns `last_hidden_state` and possibly `pooler_output`.
            inputs: prepares and collates its inputs.
            method: name of the method that encodes.
            config: the transformers config of the model, None for the small encoders.

        For the other arguments see the attributes.
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
        self.adapter_tensors: set[str] = set()
        self.start: EncoderPass | None = None
        self.wanted: EncoderPass | None = None
        self.normalised = False
        self.pretrained_on_rows = ""
        self.channels_last = is_convolutional(model)
        self.notes: list[str] = []
        # Models that mask random patches (ViT-MAE) take the order of the patches as an argument.
        self._orders_patches = "noise" in inspect.signature(getattr(model, method)).parameters
        # Group normalisation over time includes the padding, and such encoders were trained without a mask.
        self._normalises_time = isinstance(inputs, AudioInputs) and any(
            isinstance(module, nn.GroupNorm) for module in model.modules()
        )
        self.separate = "lengths" if self._normalises_time else ""

    # ---- from cells to tensors

    def prepare_image(self, image: Image.Image) -> np.ndarray:
        """Resize and crop an RGB image by the model's processor, to (3, height, width) uint8."""
        assert isinstance(self.inputs, ImageInputs)
        return self.inputs.prepare(image)

    def collate_images(self, images: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Return `pixel_values`, (images, 3, height, width) float32, rescaled and normalised."""
        assert isinstance(self.inputs, ImageInputs)
        return self.inputs.collate(images)

    def prepare_audio(self, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
        """Return the example of a sound, (length, ...) float: a waveform, or patches of its spectrogram.

        Args:
            waveform: (samples,) float, from -1 to 1; may be empty.
            sampling_rate: in Hz, must equal `self.sampling_rate`.

        Raises:
            BackboneError: the sampling rate is wrong.
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
        """Return the encoder's tensors, one row a part, and `owner`, (parts,) int64: which of the cells a part belongs
        to."""
        assert isinstance(self.inputs, AudioInputs | SpectrogramInputs)
        return self.inputs.collate(cells)

    def tokenize(self, text: str) -> np.ndarray:
        """Return a text's token ids, (tokens,) int32, special tokens included, from 1 to `max_tokens`."""
        assert isinstance(self.inputs, TextInputs)
        return self.inputs.prepare(text)

    def detokenize(self, tokens: np.ndarray) -> str:
        """Return the text of token ids, without special tokens."""
        assert isinstance(self.inputs, TextInputs)
        return str(self.inputs.processor.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def collate_text(self, cells: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask`, (cells, tokens) int64, padded at the right."""
        assert isinstance(self.inputs, TextInputs)
        return self.inputs.collate(cells)

    # ---- from tensors to tokens

    def forward(
        self,
        *,
        owner: Tensor | None = None,
        slot: Tensor | None = None,
        select: Tensor | None = None,
        **inputs: Tensor,
    ) -> Tokens:
        """Encode, by the pass that `fusetune.backbones.passes.choice.choose` returns.

        Args:
            owner: (parts,) int64 from 0 without gaps, the cell of each part, if cells may have several parts. Vectors
                of parts are averaged; with pool "none" their tokens are concatenated.
            slot: (parts,) int64, each part's number in its cell; the parts' vectors are then the cell's tokens.
            select: (cells, tokens) int64, positions of a cell's tokens among those of its parts, which follow one
                another, -1 for none; then nothing is pooled.
            inputs: tensors of a collate method; possibly with `boundary`, the input of the first trained layer for
                these cells (see `fusetune.backbones.passes.boundary`).

        Returns:
            (cells, 1, dim), or (cells, tokens, dim) with pool "none", `slot` or `select`.
        """
        if select is not None:
            every: Any = EveryToken(self)
            tokens = choose(every, inputs)(every, inputs)
            if tokens.values.shape[1] != inputs["attention_mask"].shape[1]:
                raise BackboneError(
                    "the encoder does not give a vector for each token of a text",
                    came=f"{tokens.values.shape[1]} vectors for {inputs['attention_mask'].shape[1]} tokens",
                    do="choose another text backbone for a task that reads token by token",
                )
            return _selected(tokens, select, owner)
        tokens = choose(self, inputs)(self, inputs)
        if slot is not None and owner is not None:
            return _in_slots(tokens, owner, slot)
        return tokens if owner is None else _join(tokens, owner)

    def hidden_states(self, *, lengths: Tensor | None = None, **inputs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the model once.

        Returns:
            The tokens, (rows, tokens, dim); their mask, (rows, tokens) bool; and the model's own vector, (rows, dim) or
            None.
        """
        if lengths is not None and not cast(AudioInputs, self.inputs).makes_features:
            return self._encode_waveforms(next(iter(inputs.values())), lengths, next(iter(inputs)))
        values, own = self._call(inputs)
        if "attention_mask" in inputs:
            mask = inputs["attention_mask"].bool()
            if mask.shape[1] != values.shape[1]:  # the model downsamples frames
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
        if self._normalises_time:  # all of one length, see `separate`
            values, own = self._call({name: waves})
            return values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device), own
        values, own = self._call({name: waves, "attention_mask": real.long()})
        return values, _private.waveform_mask(self.model, values.shape[1], real.long()), own

    def _call(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        if self._orders_patches:
            pixels = inputs["pixel_values"]
            size = structure.patch_grid(self.model, (pixels.shape[-2], pixels.shape[-1]))
            assert size is not None, "a model that hides patches cuts some"
            order = torch.arange(size[0] * size[1], device=pixels.device, dtype=pixels.dtype)
            inputs = {**inputs, "noise": order.expand(pixels.shape[0], -1)}
        if self.channels_last:
            inputs = {name: channels_last(tensor) for name, tensor in inputs.items()}
        out = getattr(self.model, self.method)(**inputs)
        values: Tensor = out.last_hidden_state
        if values.ndim == 4:  # (rows, dim, height, width)
            values = values.flatten(2).transpose(1, 2)
        own = getattr(out, "pooler_output", None)
        return values, None if own is None else own.flatten(1)

    def as_tokens(self, values: Tensor, mask: Tensor, own: Tensor | None) -> Tokens:
        """Pool the results of `hidden_states` to (rows, 1, dim), or (rows, tokens, dim) with pool "none"."""
        if self.pool == "none":
            return Tokens(values, mask, self.grid)
        if self.pool == "own":
            assert own is not None
            vector = own
        elif self.pool == "mean":
            vector = Tokens(values, mask).mean()
        elif self.pool == "cls":
            vector = values[:, 0]
        else:
            vector = values[torch.arange(values.shape[0], device=values.device), mask.sum(1) - 1]
        if self.normalised:
            vector = nn.functional.normalize(vector, dim=1)
        return Tokens(vector.unsqueeze(1), torch.ones(vector.shape[0], 1, dtype=torch.bool, device=vector.device))

    # ---- training

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """Return the blocks from input to output by name; they partition the parameters."""
        return structure.blocks(self.model)

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode; frozen blocks and, with `norm_eval`, batch normalisation stay in evaluation mode."""
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
        """Enable activation checkpointing; return False if the model does not support it."""
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
        """Return the source of the pretrained weights; a folder's absolute path if an adapter needs it later."""
        folder = Path(self.source).expanduser()
        return os.path.abspath(folder) if self.adapter is not None and folder.is_dir() else self.source

    def save(self, folder: Path) -> None:
        """Write config, processor and `backbone.json` into a folder; the weights are saved with the model."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.config is not None:
            self.config.save_pretrained(str(folder))
        self.inputs.save(folder)
        (folder / FILE).write_text(json.dumps(self.describe(), indent=2) + "\n", encoding="utf-8")

    def describe(self) -> dict[str, Any]:
        """Return the attributes that `restore_backbone` needs besides config and processor, as JSON."""
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
            **({"pretrained_on_rows": self.pretrained_on_rows} if self.pretrained_on_rows else {}),
        }


def _selected(tokens: Tokens, select: Tensor, owner: Tensor | None) -> Tokens:
    """Gather cells' tokens, (cells, tokens, dim), from those of their parts, (parts, tokens, dim)."""
    real = select >= 0
    counts = torch.ones_like(select[:, 0]) if owner is None else torch.bincount(owner, minlength=len(select))
    starts = (counts.cumsum(0) - counts) * tokens.values.shape[1]  # each cell's first token
    values = tokens.values.flatten(0, 1)[select.clamp(min=0) + starts.unsqueeze(1)]
    return Tokens(values.masked_fill(~real.unsqueeze(-1), 0), real)


def _in_slots(tokens: Tokens, owner: Tensor, slot: Tensor) -> Tokens:
    """Parts' vectors, (parts, 1, dim), as their cells' tokens, (cells, slots, dim)."""
    shape = (int(owner.max()) + 1, int(slot.max()) + 1)
    values, mask = tokens.values.new_zeros(*shape, tokens.values.shape[2]), tokens.mask.new_zeros(shape)
    values[owner, slot], mask[owner, slot] = tokens.values[:, 0], tokens.mask[:, 0]
    return Tokens(values, mask)


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
    index = torch.arange(len(owner), device=owner.device) - starts[owner[order]]  # a part's number in its cell
    shape = (cells, int(counts.max()), values.shape[1])
    joined = values.new_zeros(*shape, values.shape[2])
    real = mask.new_zeros(shape)
    joined[owner[order], index] = values[order]
    real[owner[order], index] = mask[order]
    return Tokens(joined.flatten(1, 2), real.flatten(1, 2), tokens.grid)
