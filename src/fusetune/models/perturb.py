"""Perturbations of a column's inputs in a forward pass: where they are added, and how their size is measured.

A perturbation is a tensor per column, with one value for each number that enters the encoder: the word embeddings of a
text, the pixels of an image, the samples or the spectrogram of a sound. Columns with precomputed features (`FEATURES`),
numbers and categories are perturbed at their standardised features. The size is relative:

    rms(δ) = sqrt(Σ δ² / n)    over the n numbers of one distinct cell, without padding
    encoder input = x + δ · unit

where the column's unit is the root mean square of x over its cells (1 for standardised features). A perturbation of
size 0.1 is therefore a tenth of x, whatever the column, the model's width or the length of the text: ‖δ·unit‖₂ is a
tenth of the mean ‖x‖₂ of cells of that length.

Legend: parts = rows of a column's tensors; a cell may have several (its images).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.backbones.inputs import AudioInputs, TextInputs
from fusetune.backbones.word_embeddings import PERTURBATION, word_embeddings
from fusetune.errors import ConfigError, nearest
from fusetune.modalities.fixed import FixedFeatures
from fusetune.models.reader import FEATURES, REAL, Projection
from fusetune.types import Batch

if TYPE_CHECKING:
    from fusetune.models.family import Family

Deltas = dict[str, Tensor]
"""By column, (parts, ...): the perturbation, in the column's unit."""


@dataclass
class Site:
    """Where one column's cells are perturbed in one batch.

    Attributes:
        name: of the perturbed input tensor; `PERTURBATION` for the output of the word embeddings.
        values: (parts, ...), the unperturbed values, on the scale on which sizes are measured.
        real: bool, broadcastable to `values`; False at padding.
        owner: (parts,) int64, the cell of each part.
        per: broadcastable to `values`: converts from that scale to the input tensor's; 0 where it must not change.
        standard: whether the values are standardised, so that their unit is 1.
    """

    name: str
    values: Tensor
    real: Tensor
    owner: Tensor
    per: Tensor
    standard: bool = False

    def mean_square(self, values: Tensor) -> Tensor:
        """Return each cell's mean square over (parts, ...) values, (cells,); 0 for a cell that is all padding."""
        real = self.real.expand(values.shape)
        cells = int(self.owner.max()) + 1
        sums, counts = (
            values.new_zeros(cells).index_add(0, self.owner, part.flatten(1).sum(1))
            for part in (values.square() * real, real.to(values.dtype))
        )
        return sums / counts.clamp(min=1)


def find_site(model: Family, column: str, tensors: Mapping[str, Tensor]) -> Site:
    """Find where a column's cells are perturbed.

    Args:
        model: not wrapped; it is not changed.
        column: one of its columns.
        tensors: the column's inputs in the batch, with at least one cell.

    Raises:
        BackboneError: the column's encoder reads token ids, but has no embedding table for them.
    """
    encoder = model.encoders[model.routes[column]]
    floating = [name for name, tensor in tensors.items() if tensor.is_floating_point() and name != PERTURBATION]
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
    return Site(PERTURBATION, values, real.unsqueeze(-1), _owner(values, tensors), values.new_ones(()))


def _owner(values: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    return tensors["owner"] if "owner" in tensors else torch.arange(len(values), device=values.device)


def _real_tokens(encoder: nn.Module, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mask of the text's own tokens, (cells, tokens) bool, without padding."""
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    inputs = getattr(encoder, "inputs", None)
    if isinstance(inputs, TextInputs) and inputs.whole_length:  # its mask marks padding as real
        real = real & (ids != inputs.filler).flip(1).cummax(1).values.flip(1)
    return real


def _real(encoder: nn.Module, tensors: Mapping[str, Tensor], values: Tensor) -> Tensor:
    """Return the mask of a sound's own samples or frames, broadcastable to `values`; all True for an image."""
    if "lengths" not in tensors:
        return values.new_ones((), dtype=torch.bool)
    inputs = getattr(encoder, "inputs", None)
    # Waveforms are (parts, samples). Of features' two axes, frames and filters in either order, frames are more.
    time = 1 if values.ndim == 2 else max(range(1, values.ndim), key=lambda axis: values.shape[axis])
    length = values.shape[time]
    lengths = tensors["lengths"]
    if isinstance(inputs, AudioInputs) and inputs.makes_features:
        lengths = (lengths * length / inputs.chunk).ceil()
    shape = [length if axis == time else 1 for axis in range(values.ndim)]
    positions = torch.arange(length, device=values.device).view(shape)
    return positions < lengths.view(-1, *[1] * (values.ndim - 1))


class Ball:
    """The perturbations of a batch up to a size: one per distinct cell of the chosen columns."""

    def __init__(
        self, model: Family, batch: Batch, columns: Collection[str], *, units: Mapping[str, float] | None = None
    ) -> None:
        """
        Args:
            model: not wrapped.
            batch: on the model's device; columns without inputs in it are not perturbed.
            columns: names of the perturbed columns.
            units: by column; a missing unit is measured on this batch.
        """
        self.batch = batch
        available = [column for column in model.columns if column in columns and batch.inputs.get(column)]
        self.sites = {column: find_site(model, column, batch.inputs[column]) for column in available}
        units = units or {}
        self.units = {
            column: 1.0 if site.standard else units.get(column, 0.0) or unit_of([site])
            for column, site in self.sites.items()
        }

    def zeros(self) -> Deltas:
        """Return zero perturbations that require gradients."""
        return {column: torch.zeros_like(site.values).requires_grad_() for column, site in self.sites.items()}

    def uniform(self, size: float) -> Deltas:
        """Draw every number uniformly from [-size, size], so a cell's size is at most `size`."""
        drawn = {column: torch.empty_like(site.values).uniform_(-size, size) for column, site in self.sites.items()}
        return self._leaves(drawn)

    def directions(self, deltas: Mapping[str, Tensor]) -> Deltas:
        """Scale each cell's perturbation to size 1; a zero or non-finite one becomes zero."""
        scaled = {}
        for column, delta in deltas.items():
            site = self.sites[column]
            delta = torch.where(site.real, delta, 0.0)
            # Divide by the largest value first: the squares of tiny gradients would underflow.
            peaks = delta.new_zeros(int(site.owner.max()) + 1)
            peaks = peaks.scatter_reduce(0, site.owner, delta.abs().flatten(1).amax(1), "amax")
            delta = delta / _of_parts(peaks.clamp(min=torch.finfo(delta.dtype).tiny), site, delta)
            size = site.mean_square(delta).sqrt()
            divisor = torch.where((size > 0) & size.isfinite() & peaks.isfinite(), size, torch.inf)
            scaled[column] = torch.nan_to_num(delta, 0.0, 0.0, 0.0) / _of_parts(divisor, site, delta)
        return self._leaves(scaled)

    def climb(self, deltas: Deltas, gradients: Mapping[str, Tensor], *, step: float, size: float) -> Deltas:
        """Take one step of a given size up the gradient, then project onto the ball of radius `size`."""
        moved = {}
        for column, direction in self.directions(gradients).items():
            site = self.sites[column]
            delta = deltas[column].detach() + step * direction.detach()
            sizes = site.mean_square(torch.where(site.real, delta, 0.0)).sqrt()
            moved[column] = delta * _of_parts((size / sizes.clamp(min=1e-30)).clamp(max=1), site, delta)
        return self._leaves(moved)

    def sizes(self, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return by column the size of each cell's perturbation, (cells,)."""
        return {column: self.sites[column].mean_square(delta.detach()).sqrt() for column, delta in deltas.items()}

    def perturbed(self, deltas: Mapping[str, Tensor]) -> Batch:
        """Return the batch with the perturbations added, differentiable in them."""
        inputs = dict(self.batch.inputs)
        for column, delta in deltas.items():
            site = self.sites[column]
            shift = torch.where(site.real, delta, 0.0) * self.units[column] * site.per
            tensors = inputs[column]
            before = tensors.get(site.name)  # None for word embeddings that are not shifted yet
            moved = shift if before is None else before + shift.to(before.dtype)
            inputs[column] = {**tensors, site.name: moved}
        return replace(self.batch, inputs=inputs)

    def _leaves(self, deltas: Mapping[str, Tensor]) -> Deltas:
        """Detach perturbations, set them to zero at padding and let them require gradients."""
        return {
            column: torch.where(self.sites[column].real, delta.detach(), 0.0).requires_grad_()
            for column, delta in deltas.items()
        }


def unit_of(sites: Iterable[Site]) -> float:
    """Return a column's unit: the root mean square of the unperturbed values, or 1 if all are zero."""
    squares, count = 0.0, 0.0
    for site in sites:
        real = site.real.expand(site.values.shape)
        squares += float(torch.where(real, site.values.detach(), 0.0).float().square().sum())
        count += float(real.sum())
    return (squares / count) ** 0.5 if squares > 0 else 1.0


def _of_parts(cells: Tensor, site: Site, like: Tensor) -> Tensor:
    """Gather values per cell, (cells,), to (parts, 1, ...)."""
    return cells[site.owner].view(-1, *[1] * (like.ndim - 1))


class RngState:
    """The state of the generators that dropout, layer drop and masking use, to repeat a pass with the same masks."""

    def __init__(self, device: torch.device) -> None:
        """
        Args:
            device: where the model is.
        """
        self._torch = torch.get_rng_state()
        self._numpy = np.random.get_state()  # transformers draws SpecAugment masks from it
        self._module: Any = None if device.type == "cpu" else torch.get_device_module(device)
        self._device = None if self._module is None else self._module.get_rng_state()

    def restore(self) -> None:
        """Restore the state that the generators had when this object was made."""
        torch.set_rng_state(self._torch)
        np.random.set_state(self._numpy)
        if self._module is not None:
            self._module.set_rng_state(self._device)


def attacked_columns(model: Family, chosen: Collection[str], *, where: str) -> list[str]:
    """Return the columns to perturb: those chosen, by default those whose encoder has parameters, else all.

    Args:
        model: not wrapped.
        chosen: names of columns; empty for the default.
        where: the setting's name in an error: "trainer.adversarial".

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
