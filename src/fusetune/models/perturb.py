"""Perturbations of what columns bring into a forward pass: where they are added, and how large they are.

A perturbation is a tensor a column, one value for each number that enters the column's encoder: the word embeddings of
a text, the pixels of a picture, the samples or the spectrogram of a sound. A column whose encoder's output was computed
before (`FEATURES`), and one of numbers or categories, is perturbed at its standardised features. Its size is relative:

    rms(δ) = sqrt(Σ δ² / n)    over the n numbers of one distinct cell, padding left out
    what enters the encoder = x + δ · unit

where the column's unit is the root mean square of x over its cells (1 for standardised features). So a perturbation of
size 0.1 is a tenth of what it is added to, whatever the column, the model's width or the length of the text: in norms,
‖δ·unit‖₂ is a tenth of the mean ‖x‖₂ of cells of that length.

Legend: parts = rows of a column's tensors, of which a cell may have several (the pictures of a cell).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.backbones.inputs import AudioInputs, TextInputs
from fusetune.backbones.shift import SHIFT, word_embeddings
from fusetune.errors import ConfigError, nearest
from fusetune.modalities.fixed import FixedFeatures
from fusetune.models.reader import FEATURES, REAL, Projection
from fusetune.types import Batch

if TYPE_CHECKING:
    from fusetune.models.family import Family

Deltas = dict[str, Tensor]
"""By column, (parts, ...): what is added, in the column's unit."""


@dataclass
class Site:
    """Where one column's cells in one batch are perturbed.

    Attributes:
        name: the input tensor that is changed; `SHIFT` for the output of the word embeddings.
        values: (parts, ...) what is added to, on the scale that the perturbation is measured on.
        real: bool, broadcastable to `values`: False at padding.
        owner: (parts,) int64, the cell of each part.
        per: broadcastable to `values`: one on that scale in the tensor's own numbers; 0 where nothing can be changed.
        standard: whether that scale has the unit 1 already.
    """

    name: str
    values: Tensor
    real: Tensor
    owner: Tensor
    per: Tensor
    standard: bool = False

    def mean_square(self, values: Tensor) -> Tensor:
        """(cells,) the mean square of a cell's numbers, of (parts, ...); 0 for a cell of nothing but padding."""
        real = self.real.expand(values.shape)
        cells = int(self.owner.max()) + 1
        sums, counts = (
            values.new_zeros(cells).index_add(0, self.owner, part.flatten(1).sum(1))
            for part in (values.square() * real, real.to(values.dtype))
        )
        return sums / counts.clamp(min=1)


def find_site(model: Family, column: str, tensors: Mapping[str, Tensor]) -> Site:
    """Where a column's cells are perturbed.

    Args:
        model: not wrapped; its weights are looked at only.
        column: one of its columns.
        tensors: the batch's for the column, at least one cell.

    Raises:
        BackboneError: the column's encoder reads token ids and looks up no embeddings for them.
    """
    encoder = model.encoders[model.routes[column]]
    floating = [name for name, tensor in tensors.items() if tensor.is_floating_point() and name != SHIFT]
    if FEATURES in tensors or isinstance(encoder, FixedFeatures):
        name = FEATURES if FEATURES in tensors else floating[0]
        projection = model.projection(column)
        assert isinstance(projection, Projection)
        values = projection.standardise(tensors[name])
        per = torch.where(projection.scale > 0, 1 / projection.scale.clamp(min=torch.finfo(values.dtype).tiny), 0.0)
        real = (projection.scale > 0).expand_as(values)
        if REAL in tensors:
            real = real & tensors[REAL].unsqueeze(-1)
        return Site(name, values, real, _owner(values, tensors), per, True)
    if floating:
        values = tensors[floating[0]]
        return Site(floating[0], values, _real(encoder, tensors, values), _owner(values, tensors), values.new_ones(()))
    table, ids = word_embeddings(encoder), next(iter(tensors.values()))
    with torch.no_grad():
        values = table(ids).float()  # (cells, tokens, features)
    real = _real_tokens(encoder, ids, tensors.get("attention_mask"))
    return Site(SHIFT, values, real.unsqueeze(-1), _owner(values, tensors), values.new_ones(()))


def _owner(values: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    return tensors["owner"] if "owner" in tensors else torch.arange(len(values), device=values.device)


def _real_tokens(encoder: nn.Module, ids: Tensor, mask: Tensor | None) -> Tensor:
    """(cells, tokens) bool: the tokens of the text itself."""
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    inputs = getattr(encoder, "inputs", None)
    if isinstance(inputs, TextInputs) and inputs.whole_length:  # the mask calls padding real there
        real = real & (ids != inputs.filler).flip(1).cummax(1).values.flip(1)
    return real


def _real(encoder: nn.Module, tensors: Mapping[str, Tensor], values: Tensor) -> Tensor:
    """bool, broadcastable to `values`: the samples or frames of the sound itself; all of a picture."""
    if "lengths" not in tensors:
        return values.new_ones((), dtype=torch.bool)
    inputs = getattr(encoder, "inputs", None)
    # Waveforms are (parts, samples); features have the more frames than filters, whichever of the two comes first.
    time = 1 if values.ndim == 2 else max(range(1, values.ndim), key=lambda axis: values.shape[axis])
    length = values.shape[time]
    lengths = tensors["lengths"]
    if isinstance(inputs, AudioInputs) and inputs.makes_features:
        lengths = (lengths * length / inputs.chunk).ceil()
    shape = [length if axis == time else 1 for axis in range(values.ndim)]
    places = torch.arange(length, device=values.device).view(shape)
    return places < lengths.view(-1, *[1] * (values.ndim - 1))


class Ball:
    """The perturbations of a batch: one for each distinct cell of some columns, up to a size."""

    def __init__(
        self, model: Family, batch: Batch, columns: Collection[str], *, units: Mapping[str, float] | None = None
    ) -> None:
        """
        Args:
            model: not wrapped.
            batch: on the model's device; a column that it does not bring is not perturbed.
            columns: which of the model's columns.
            units: per column, its unit; measured on this batch where not given.
        """
        self.batch = batch
        brought = [column for column in model.columns if column in columns and batch.inputs.get(column)]
        self.sites = {column: find_site(model, column, batch.inputs[column]) for column in brought}
        units = units or {}
        self.units = {
            column: 1.0 if site.standard else units.get(column, 0.0) or unit_of([site])
            for column, site in self.sites.items()
        }

    def zeros(self) -> Deltas:
        """No perturbation; leaves that take gradients."""
        return {column: torch.zeros_like(site.values).requires_grad_() for column, site in self.sites.items()}

    def uniform(self, size: float) -> Deltas:
        """Each number drawn evenly from -size to size, so that a cell's size is at most `size`."""
        drawn = {column: torch.empty_like(site.values).uniform_(-size, size) for column, site in self.sites.items()}
        return self._leaves(drawn)

    def directions(self, deltas: Mapping[str, Tensor]) -> Deltas:
        """Each cell's perturbation at size 1; one that is zero or not finite becomes zero."""
        found = {}
        for column, delta in deltas.items():
            site = self.sites[column]
            delta = torch.where(site.real, delta, 0.0)
            # Divided by the largest first, as the squares of tiny gradients would vanish.
            peaks = delta.new_zeros(int(site.owner.max()) + 1)
            peaks = peaks.scatter_reduce(0, site.owner, delta.abs().flatten(1).amax(1), "amax")
            delta = delta / _of_parts(peaks.clamp(min=torch.finfo(delta.dtype).tiny), site, delta)
            size = site.mean_square(delta).sqrt()
            known = torch.where((size > 0) & size.isfinite() & peaks.isfinite(), size, torch.inf)
            found[column] = torch.nan_to_num(delta, 0.0, 0.0, 0.0) / _of_parts(known, site, delta)
        return self._leaves(found)

    def climb(self, deltas: Deltas, gradients: Mapping[str, Tensor], *, step: float, size: float) -> Deltas:
        """One step of the given size up the gradient, then back onto the ball where it led out of it."""
        found = {}
        for column, direction in self.directions(gradients).items():
            site = self.sites[column]
            delta = deltas[column].detach() + step * direction.detach()
            sizes = site.mean_square(torch.where(site.real, delta, 0.0)).sqrt()
            found[column] = delta * _of_parts((size / sizes.clamp(min=1e-30)).clamp(max=1), site, delta)
        return self._leaves(found)

    def sizes(self, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By column, the size of each cell's perturbation, (cells,)."""
        return {column: self.sites[column].mean_square(delta.detach()).sqrt() for column, delta in deltas.items()}

    def perturbed(self, deltas: Mapping[str, Tensor]) -> Batch:
        """The batch with the perturbations added, as a function of them."""
        inputs = dict(self.batch.inputs)
        for column, delta in deltas.items():
            site = self.sites[column]
            shift = torch.where(site.real, delta, 0.0) * self.units[column] * site.per
            tensors = inputs[column]
            before = tensors.get(site.name)  # none where word embeddings are not shifted yet
            moved = shift if before is None else before + shift.to(before.dtype)
            inputs[column] = {**tensors, site.name: moved}
        return replace(self.batch, inputs=inputs)

    def _leaves(self, deltas: Mapping[str, Tensor]) -> Deltas:
        """Detached, zero at padding, taking gradients."""
        return {
            column: torch.where(self.sites[column].real, delta.detach(), 0.0).requires_grad_()
            for column, delta in deltas.items()
        }


def unit_of(sites: Iterable[Site]) -> float:
    """A column's unit: the root mean square of what is perturbed; 1 where that is nothing but zeros."""
    squares, count = 0.0, 0.0
    for site in sites:
        real = site.real.expand(site.values.shape)
        squares += float(torch.where(real, site.values.detach(), 0.0).float().square().sum())
        count += float(real.sum())
    return (squares / count) ** 0.5 if squares > 0 else 1.0


def _of_parts(cells: Tensor, site: Site, like: Tensor) -> Tensor:
    """(cells,) as (parts, 1, ...)."""
    return cells[site.owner].view(-1, *[1] * (like.ndim - 1))


class RngState:
    """The generators that dropout, layer drop and masking draw from, so that a pass can be repeated with its draws."""

    def __init__(self, device: torch.device) -> None:
        """
        Args:
            device: where the model is.
        """
        self._torch = torch.get_rng_state()
        self._numpy = np.random.get_state()  # transformers' masks of sounds are drawn from it
        self._module: Any = None if device.type == "cpu" else torch.get_device_module(device)
        self._device = None if self._module is None else self._module.get_rng_state()

    def restore(self) -> None:
        """Back to where this object was made."""
        torch.set_rng_state(self._torch)
        np.random.set_state(self._numpy)
        if self._module is not None:
            self._module.set_rng_state(self._device)


def attacked_columns(model: Family, chosen: Collection[str], *, where: str) -> list[str]:
    """The columns that are perturbed: those chosen, else those that a network reads, else all.

    Args:
        model: not wrapped.
        chosen: names of columns; empty for the default.
        where: names the setting in an error: "trainer.adversarial".

    Raises:
        ConfigError: the model has no such column.
    """
    for column in chosen:
        if column not in model.columns:
            raise ConfigError(
                f"{where}.columns names {column!r}, which is no input column",
                expected=", ".join(model.columns),
                do=nearest(column, model.columns),
            )
    if chosen:
        return [column for column in model.columns if column in chosen]
    read = [column for column, key in model.routes.items() if any(True for _ in model.encoders[key].parameters())]
    return read or list(model.columns)
