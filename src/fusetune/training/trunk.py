"""Trunks: an encoder's frozen lower layers are run once for each distinct cell, and their outputs are cached."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.inputs import TextInputs
from fusetune.backbones.passes.base import BOUNDARY
from fusetune.backbones.passes.boundary import boundary_pass, frozen_layers, placeholder_inputs, run_to
from fusetune.data.column import Column, Progress
from fusetune.data.examples import Examples
from fusetune.data.storage.feature_cache import FeatureCache, FeatureStore
from fusetune.data.views import View
from fusetune.inference.features import CellGroups
from fusetune.inference.memory import retain_freed_memory, trim_memory
from fusetune.inference.predict import evaluating, model_device
from fusetune.inference.stored import missing, open_store
from fusetune.models.family import Family

BATCH = 64
GIB = 2**30


def batches(cells: np.ndarray, what: str, progress: Progress | None) -> Iterator[np.ndarray]:
    """Split cells into batches of `BATCH`, with a progress bar if there is one."""
    steps: Iterator[np.ndarray] = iter([cells[start : start + BATCH] for start in range(0, len(cells), BATCH)])
    return steps if progress is None else progress(steps, what, -(-len(cells) // BATCH))


class Trunk:
    """Makes the inputs of an encoder that starts at its first trained layer, from the cache."""

    def __init__(self, column: Column, store: FeatureStore, digests: np.ndarray, backbone: Backbone) -> None:
        self.column, self.store, self.digests, self.backbone = column, store, digests, backbone
        self._placeholders: dict[str, Tensor] = {}

    def __call__(self, cells: np.ndarray) -> dict[str, Tensor]:
        """Return the encoder's input tensors for cells.

        Args:
            cells: (cells,) indices of distinct cells of the column.
        """
        parts = [self.store.rows(self.digests[cell].tobytes()) for cell in cells]
        column = self.column
        if isinstance(self.backbone.inputs, TextInputs):
            tensors = column.modality.collate(column.examples(cells))
            lengths = tensors["attention_mask"].sum(1).tolist()  # of windows, of which a cell may have several
            windows = torch.cat(parts).split(lengths)  # type: ignore[no-untyped-call]
            return {**tensors, BOUNDARY: torch.nn.utils.rnn.pad_sequence(windows, batch_first=True)}
        if not self._placeholders:
            self._placeholders = placeholder_inputs(
                self.backbone, column.modality.collate([column.example(int(cells[0]))])
            )
        tensors = {**self._placeholders, BOUNDARY: torch.cat(parts)}
        if len(tensors[BOUNDARY]) > len(parts):
            counts = torch.tensor([len(part) for part in parts])
            tensors["owner"] = torch.arange(len(parts)).repeat_interleave(counts)
        return tensors


@dataclass
class Trunks:
    """Rows with trunks.

    Attributes:
        rows: the rows given to `attach_trunks`, in order, with trunks where possible.
        notes: sentences on what could not be done.
    """

    rows: list[Examples]
    notes: list[str]


def attach_trunks(
    model: Family,
    rows: Sequence[Examples],
    cache: FeatureCache | None,
    *,
    low: bool,
    groups: CellGroups | None = None,
    progress: Progress | None = None,
) -> Trunks:
    """Let partly frozen encoders start at their first trained layer, wherever the results are the same.

    Args:
        model: with its parameters already frozen.
        rows: train and validation rows. Columns with features are left unchanged. An augmented column gets trunks of
            its views; without views it is left unchanged.
        cache: stores the outputs of the frozen layers; None leaves all rows unchanged.
        low: store bfloat16, for a model that computes in it, instead of float32.
        groups: maps a step's name and its cells to the order in which they are computed.
        progress: wraps iterators.
    """
    result = Trunks(list(rows), [])
    for name, key in model.routes.items():
        encoder = model.encoders[key]
        layers = frozen_layers(encoder) if isinstance(encoder, Backbone) and cache is not None else 0
        if not layers or not isinstance(encoder, Backbone):
            continue
        store = open_store(cache, encoder, layers, torch.bfloat16 if low else torch.float32)
        for position, examples in enumerate(result.rows):
            if store is None or name not in examples.columns or examples.columns[name].features is not None:
                continue
            columns, trunks = _columns_by_step(examples, name), dict[str, Trunk | None]()
            try:
                for ending, column in columns.items():
                    step = f"trunk-{position}-{zlib.crc32(name.encode())}{ending}"
                    together = partial(groups, step) if groups else None
                    trunks[ending] = _compute_trunk(model, encoder, layers, column, store, together, progress)
            except OSError as error:
                result.notes.append(
                    f"the frozen layers of {name} run in every epoch: the cache cannot be written ({error})"
                )
                continue
            made = {ending: trunk for ending, trunk in trunks.items() if trunk is not None}
            if name not in examples.augmentation.augmenters:
                result.rows[position] = examples.given(trunks={name: made[""]} if made else {})
            elif columns and len(made) == len(columns):
                views = [columns[ending].given(trunk=trunk) for ending, trunk in made.items()]
                result.rows[position] = examples.given(views={name: views})
    return result


def _columns_by_step(examples: Examples, name: str) -> dict[str, Column]:
    """Return the column, or its views if it is augmented, by the ending of the step's name."""
    if name not in examples.augmentation.augmenters:
        return {"": examples.columns[name]}
    return {f"-{number}": View(examples, name, number) for number in range(examples.augmentation.num_views)}


def _compute_trunk(
    model: Family,
    encoder: Backbone,
    number: int,
    column: Column,
    store: FeatureStore,
    together: Callable[[np.ndarray], np.ndarray] | None,
    progress: Progress | None,
) -> Trunk | None:
    """Compute a column's trunk; None if the encoder gives other results when it starts at a later layer.

    Raises:
        OSError: the cache cannot be written, or is too small.
    """
    device = model_device(model)
    digests, cells = missing(store, column)
    good = np.sort(column.good())[:4]
    with evaluating(encoder), retain_freed_memory():
        start = boundary_pass(encoder, number, _tensors(column, good, device)) if len(good) else None
        if start is None:
            return None
        encoder.start = start
        if len(cells):
            middling = run_to(encoder, number, _tensors(column, cells[len(cells) // 2 :][:1], device))
            if (size := middling.numel() * store.dtype.itemsize * len(cells)) > store.cache.limit:
                raise OSError(f"it would take {size / GIB:.1f} GiB, and data.cache_gib={store.cache.limit / GIB:g}")
        pending = cells if together is None else together(cells)
        for batch in batches(pending, f"running the frozen layers on {column.modality.column}", progress):
            if store.has(digests[batch]).all():
                continue
            tensors = _tensors(column, batch, device)
            hidden = run_to(encoder, number, tensors)
            for cell, part in zip(batch, _split(hidden, tensors), strict=True):
                store.add(digests[cell].tobytes(), part)
            trim_memory()
        store.flush()
    return Trunk(column, store, digests, encoder)


def _tensors(column: Column, cells: np.ndarray, device: torch.device) -> dict[str, Tensor]:
    made = column.modality.collate(column.examples(cells))
    return {name: tensor.to(device) for name, tensor in made.items()}


def _split(hidden: Tensor, tensors: dict[str, Tensor]) -> list[Tensor]:
    """Split hidden states by cell: a text's real tokens, or a cell's images."""
    if "attention_mask" in tensors:
        windows = [row[:count] for row, count in zip(hidden, tensors["attention_mask"].sum(1).tolist(), strict=True)]
        owner = tensors.get("owner")
        if owner is None:
            return windows
        return [torch.cat([windows[row] for row in (owner == cell).nonzero()]) for cell in range(int(owner.max()) + 1)]
    if "owner" in tensors:
        return list(hidden.split(torch.bincount(tensors["owner"]).tolist()))  # type: ignore[no-untyped-call]
    return [hidden[cell : cell + 1] for cell in range(len(hidden))]
