"""`FlatModel`: a tuned model as one module of named tensors, for exports.

A flat model has no batch objects and no distinct cells: each column has its tensors in every batch, one cell a row, and
an absent cell is masked.

| column | tensors | absent if |
| --- | --- | --- |
| text | `input_ids`, `attention_mask` [, `token_type_ids`], (rows, tokens) int64 | `attention_mask` is 0 |
| image, spectrogram | `pixel_values`, (rows, parts, channels, height, width); `mask`, (rows, parts) | not `mask` |
| number, category, date | `values`, (rows, features) float32; `mask`, (rows,) bool | not `mask` |
| n-grams of a text | `PART_ids`, (rows, ngrams) int64; `PART_values`, the same float32 | the values are 0 |

Their names are `COLUMN.TENSOR`. Rows, tokens, parts and n-grams are dynamic, 1 or more. An output is a task's answers,
(rows, classes) probabilities or (rows,) numbers, under the target's name; or, for a model that compares columns, each
side's vector of unit length, (rows, dim), as `SIDE_vector`.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusetune.backbones.adapters import merge
from fusetune.backbones.backbone import Backbone
from fusetune.errors import ConfigError
from fusetune.modalities.base import Modality
from fusetune.modalities.fixed import FixedFeatures
from fusetune.modalities.text import TextModality
from fusetune.models.family import Family
from fusetune.models.match import Match
from fusetune.models.reader import FEATURES, REAL
from fusetune.models.understand import Understand
from fusetune.tasks.abilities import Exported
from fusetune.tasks.base import TargetTask
from fusetune.types import Batch, Tokens

ROWS = "rows"
"""Name of the first axis of all inputs and outputs."""
EXAMPLE = {ROWS: 3, "tokens": 5, "parts": 2, "ngrams": 4}
"""Sizes of dynamic axes in example inputs; none is 1, which would be taken for a constant."""


@dataclass(frozen=True)
class FlatInput:
    """An input of a flat model.

    Attributes:
        name: `COLUMN.TENSOR`.
        dtype: of the tensor.
        shape: sizes, and names of dynamic axes.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]

    def example(self) -> Tensor:
        """Return a valid tensor with every cell present."""
        sizes = [EXAMPLE[size.rpartition(".")[2]] if isinstance(size, str) else size for size in self.shape]
        return torch.ones(sizes, dtype=self.dtype)


class FlatColumn(abc.ABC):
    """A column of a flat model: its inputs, and how they become tokens."""

    def __init__(self, column: str, encoder: nn.Module) -> None:
        """
        Args:
            column: its name.
            encoder: of the column.
        """
        self.column, self.encoder = column, encoder

    @abc.abstractmethod
    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int | str, ...]]]:
        """Return dtype and shape of each tensor, without the axis of rows, by name."""

    @abc.abstractmethod
    def present(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return which rows have the column, (rows,) bool."""

    @abc.abstractmethod
    def encode(self, tensors: Mapping[str, Tensor]) -> Tokens:
        """Return each row's tokens, (rows, tokens, encoder dim); arbitrary for rows without the column."""

    @abc.abstractmethod
    def from_batch(self, tensors: Mapping[str, Tensor], cells: Tensor) -> dict[str, Tensor]:
        """Return the flat tensors of a batch.

        Args:
            tensors: `Batch.inputs` of the column.
            cells: `Batch.cells` of the column, (rows,).
        """


class TextColumn(FlatColumn):
    """Token ids, read by a pretrained encoder."""

    def __init__(self, column: str, encoder: nn.Module, *, types: bool) -> None:
        """
        Args:
            column, encoder: see `FlatColumn`.
            types: whether the encoder is given token types.
        """
        super().__init__(column, encoder)
        self.names = ("input_ids", "attention_mask", *(["token_type_ids"] if types else []))

    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int | str, ...]]]:
        """See `FlatColumn.tensors`."""
        return {name: (torch.int64, (f"{self.column}.tokens",)) for name in self.names}

    def present(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """See `FlatColumn.present`."""
        return tensors["attention_mask"].any(1)

    def encode(self, tensors: Mapping[str, Tensor]) -> Tokens:
        """See `FlatColumn.encode`. An absent text has its first token, as attention over nothing is undefined."""
        mask = tensors["attention_mask"]
        first = torch.zeros_like(mask)
        first[:, 0] = 1
        mask = torch.where(self.present(tensors).unsqueeze(1), mask, first)
        return _encode(self.encoder, {**tensors, "attention_mask": mask})

    def from_batch(self, tensors: Mapping[str, Tensor], cells: Tensor) -> dict[str, Tensor]:
        """See `FlatColumn.from_batch`."""
        absent = (cells < 0).unsqueeze(1)
        return {name: tensors[name][cells.clamp(min=0)].masked_fill(absent, 0) for name in self.names}


class PartsColumn(FlatColumn):
    """Images, or patches of spectrograms, several a cell; the vectors of a cell's parts are averaged."""

    def __init__(self, column: str, encoder: nn.Module, shape: tuple[int, int, int]) -> None:
        """
        Args:
            column, encoder: see `FlatColumn`.
            shape: of a part, (channels, height, width).
        """
        super().__init__(column, encoder)
        self.shape = shape

    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int | str, ...]]]:
        """See `FlatColumn.tensors`."""
        parts = f"{self.column}.parts"
        return {"pixel_values": (torch.float32, (parts, *self.shape)), "mask": (torch.bool, (parts,))}

    def present(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """See `FlatColumn.present`."""
        return tensors["mask"].any(1)

    def encode(self, tensors: Mapping[str, Tensor]) -> Tokens:
        """See `FlatColumn.encode`."""
        real = tensors["mask"]
        tokens = _encode(self.encoder, {"pixel_values": tensors["pixel_values"].flatten(0, 1)})
        values = tokens.values.view(*real.shape, *tokens.values.shape[1:])  # (rows, parts, tokens, dim)
        mask = tokens.mask.view(*real.shape, -1)
        mask = mask & real.unsqueeze(2)  # (rows, parts, tokens)
        if values.shape[2] > 1:
            return Tokens(values.flatten(1, 2), mask.flatten(1, 2), tokens.grid)
        vector = Tokens(values.squeeze(2), mask.squeeze(2)).mean()
        return Tokens(vector.unsqueeze(1), torch.ones_like(real[:, :1]))

    def from_batch(self, tensors: Mapping[str, Tensor], cells: Tensor) -> dict[str, Tensor]:
        """See `FlatColumn.from_batch`."""
        pixels = tensors["pixel_values"]
        owner = tensors.get("owner", torch.arange(len(pixels)))
        own = [pixels[owner == cell] for cell in cells]
        padded = nn.utils.rnn.pad_sequence([part if len(part) else pixels[:1] * 0 for part in own], batch_first=True)
        counts = torch.tensor([len(part) for part in own])
        return {"pixel_values": padded, "mask": torch.arange(padded.shape[1]) < counts.unsqueeze(1)}


class FeaturesColumn(FlatColumn):
    """Features of a number, category or date."""

    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int | str, ...]]]:
        """See `FlatColumn.tensors`."""
        return {"values": (torch.float32, (int(self.encoder.dim),)), "mask": (torch.bool, ())}  # type: ignore[arg-type]

    def present(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """See `FlatColumn.present`."""
        return tensors["mask"]

    def encode(self, tensors: Mapping[str, Tensor]) -> Tokens:
        """See `FlatColumn.encode`."""
        tokens: Tokens = self.encoder(values=tensors["values"])
        return tokens

    def from_batch(self, tensors: Mapping[str, Tensor], cells: Tensor) -> dict[str, Tensor]:
        """See `FlatColumn.from_batch`."""
        absent = cells < 0
        return {"values": tensors["values"][cells.clamp(min=0)].masked_fill(absent.unsqueeze(1), 0), "mask": ~absent}


class FlatModel(nn.Module):
    """A model of named tensors; see the module.

    The model is copied, and its adapters are merged into its weights.

    Attributes:
        columns: by name.
        inputs: in the order of `forward`.
        targets: names of the targets, which the first outputs answer.
        outputs: names, in the order of `forward`'s results.
        tasks: the tasks with answers, in the order of the first outputs.
    """

    def __init__(self, model: Family, modalities: Mapping[str, Modality], tasks: Mapping[str, TargetTask]) -> None:
        """
        Args:
            model: tuned.
            modalities: by column.
            tasks: that predict a target, by name.

        Raises:
            ConfigError: a column, a task or the family has no flat form; the message names all of them.
        """
        super().__init__()
        check_flat(model, modalities, tasks)
        self.model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        self.model.replays = None
        for encoder in self.model.encoders.values():
            if isinstance(encoder, Backbone) and encoder.adapter is not None:
                merge(encoder)
        self.columns = {
            name: _column(name, modalities[name], self.model.encoders[self.model.routes[name]])
            for name in self.model.columns
        }
        ngrams = getattr(self.model, "ngrams", None)
        self.ngrams: list[tuple[str, str]] = [] if ngrams is None else list(ngrams.sources)
        self.inputs = self._inputs()
        self.tasks = {name: task for name, task in tasks.items() if isinstance(task, Exported)}
        self.answers = nn.ModuleList(task.answer_module() for task in self.tasks.values())
        self.targets = [task.target for task in self.tasks.values()]
        self.outputs = list(self.targets)
        if isinstance(self.model, Match):
            self.outputs += [f"{name}_vector" for name in self.model.compared]

    def _inputs(self) -> list[FlatInput]:
        inputs = []
        for name, column in self.columns.items():
            inputs += [
                FlatInput(f"{name}.{key}", dtype, (ROWS, *shape)) for key, (dtype, shape) in column.tensors().items()
            ]
        for name, part in self.ngrams:
            shape = (ROWS, f"{name}.{part}.ngrams")
            inputs.append(FlatInput(f"{name}.{part}_ids", torch.int64, shape))
            inputs.append(FlatInput(f"{name}.{part}_values", torch.float32, shape))
        return inputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Compute the answers.

        Args:
            tensors: in the order of `inputs`.

        Returns:
            In the order of `outputs`.
        """
        named = {given.name: tensor for given, tensor in zip(self.inputs, tensors, strict=True)}
        inputs, cells = {}, {}
        rows = torch.arange(tensors[0].shape[0], device=tensors[0].device)
        for name, column in self.columns.items():
            own = {key: named[f"{name}.{key}"] for key in column.tensors()}
            tokens = column.encode(own)
            inputs[name] = {FEATURES: tokens.values, REAL: tokens.mask}
            cells[name] = torch.where(column.present(own), rows, -1)
        ngrams: dict[str, dict[str, Tensor]] = {}
        for name, part in self.ngrams:
            both = {f"{part}_{key}": named[f"{name}.{part}_{key}"] for key in ("ids", "values")}
            ngrams.setdefault(name, {}).update(both)
        batch = Batch(inputs, cells, weights=torch.ones_like(rows, dtype=torch.float32), rows=rows, ngrams=ngrams)
        outputs = self.model(batch)
        results = [answer(outputs.logits[name]) for name, answer in zip(self.tasks, self.answers, strict=True)]
        if isinstance(self.model, Match):
            results += [F.normalize(outputs.compared(name).mean(), dim=1) for name in self.model.compared]
        return tuple(results)

    def tensors_of(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the inputs for a batch of rows, in the order of `inputs`; columns without any cell are masked."""
        named: dict[str, Tensor] = {}
        for name, column in self.columns.items():
            if tensors := batch.inputs.get(name):
                own = column.from_batch(tensors, batch.cells[name])
                named |= {f"{name}.{key}": tensor for key, tensor in own.items()}
        for name, part in self.ngrams:
            if part_ids := batch.ngrams.get(name, {}):
                absent = (batch.cells[name] < 0).unsqueeze(1)
                named[f"{name}.{part}_ids"] = part_ids[f"{part}_ids"]
                named[f"{name}.{part}_values"] = part_ids[f"{part}_values"].masked_fill(absent, 0)
        empty = {given.name: _empty(given, len(batch)) for given in self.inputs if given.name not in named}
        return tuple((named | empty)[given.name] for given in self.inputs)

    def examples(self) -> tuple[Tensor, ...]:
        """Return valid inputs to trace the module with."""
        return tuple(given.example() for given in self.inputs)


def _empty(given: FlatInput, rows: int) -> Tensor:
    """Return an input of rows that lack the column."""
    sizes = [rows if size == ROWS else 1 if isinstance(size, str) else size for size in given.shape]
    return torch.zeros(sizes, dtype=given.dtype)


def _encode(encoder: nn.Module, tensors: Mapping[str, Tensor]) -> Tokens:
    """Encode rows in one pass."""
    backbone: Any = encoder
    tokens: Tokens = backbone.as_tokens(*backbone.hidden_states(**tensors))
    return tokens


def _column(name: str, modality: Modality, encoder: nn.Module) -> FlatColumn:
    """Return the flat form of a column that `why_not` accepts."""
    if isinstance(modality, TextModality):
        return TextColumn(name, encoder, types=modality.passages.takes_types if modality.by_passages else False)
    if isinstance(encoder, Backbone):
        return PartsColumn(name, encoder, encoder.inputs.part_shape)  # type: ignore[union-attr]
    return FeaturesColumn(name, encoder)


def why_not(modality: Modality, encoder: nn.Module) -> str | None:
    """Return why a column has no flat form, or None."""
    if isinstance(encoder, FixedFeatures):
        return None
    if not isinstance(encoder, Backbone):
        return f"columns of kind {modality.kind} have no flat form"
    if encoder.separate:
        return f"the vectors of its encoder {encoder.source} depend on the padding"
    if isinstance(modality, TextModality):
        return None if modality.read == "vector" else f"it is read by {modality.read}, not as one vector"
    if getattr(encoder.inputs, "part_shape", None) is None:
        return f"its encoder {encoder.source} reads sounds by a feature extractor, not as patches of a spectrogram"
    return None


def check_flat(model: Family, modalities: Mapping[str, Modality], tasks: Mapping[str, TargetTask]) -> None:
    """Check that a model has a flat form.

    Raises:
        ConfigError: it has none; the message names all columns and tasks that have none.
    """
    if not isinstance(model, Understand | Match):
        raise ConfigError(
            "a model that writes has no flat form",
            expected="a model that predicts or compares",
            do="fusetune export RUN --to transformers",
        )
    reasons = [
        f"column {name!r}: {why}"
        for name in model.columns
        if (why := why_not(modalities[name], model.encoders[model.routes[name]])) is not None
    ]
    reasons += [
        f"target {task.target!r}: the task {task.name} has no {Exported.ability}"
        for task in tasks.values()
        if not isinstance(task, Exported) or task.reads is not None
    ]
    if reasons:
        raise ConfigError("the model has no flat form", came="; ".join(reasons), do=_advice(reasons))


def _advice(reasons: Sequence[str]) -> str:
    """Return what to do about columns and tasks without a flat form."""
    columns = any(reason.startswith("column") for reason in reasons)
    return "tune it without these columns or with another encoder" if columns else "use the folder of fusetune fit"
