"""Encoders' outputs, and what their first trained layer reads, computed once a distinct cell and kept between runs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.boundary import BOUNDARY, bears, frozen_layers, run_to, stand_in
from fusetune.backbones.inputs import TextInputs
from fusetune.data.column import Column, Progress
from fusetune.data.examples import Examples
from fusetune.data.storage.feature_cache import FeatureCache, FeatureStore
from fusetune.data.views import View
from fusetune.inference.features import CellGroups
from fusetune.inference.memory import kept_memory, settle
from fusetune.inference.predict import evaluating, model_device
from fusetune.inference.stored import missing, open_store
from fusetune.models.family import Family

BATCH = 64


def batches(places: np.ndarray, what: str, progress: Progress | None) -> Iterator[np.ndarray]:
    """Some places at a time."""
    steps: Iterator[np.ndarray] = iter([places[start : start + BATCH] for start in range(0, len(places), BATCH)])
    return steps if progress is None else progress(steps, what, -(-len(places) // BATCH))


class Trunk:
    """A column whose encoder starts at its first trained layer: makes the encoder's inputs of its distinct cells."""

    def __init__(self, column: Column, store: FeatureStore, digests: np.ndarray, backbone: Backbone) -> None:
        self.column, self.store, self.digests, self.backbone = column, store, digests, backbone
        self._one: dict[str, Tensor] = {}

    def __call__(self, places: np.ndarray) -> dict[str, Tensor]:
        """The tensors of some cells."""
        parts = [self.store.rows(self.digests[place].tobytes()) for place in places]
        column = self.column
        if isinstance(self.backbone.inputs, TextInputs):
            tensors = column.modality.collate(column.examples(places))
            return {**tensors, BOUNDARY: torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)}
        if not self._one:
            self._one = stand_in(self.backbone, column.modality.collate([column.example(int(places[0]))]))
        tensors = {**self._one, BOUNDARY: torch.cat(parts)}
        if len(tensors[BOUNDARY]) > len(parts):
            counts = torch.tensor([len(part) for part in parts])
            tensors["owner"] = torch.arange(len(parts)).repeat_interleave(counts)
        return tensors


@dataclass
class Later:
    """Rows whose partly frozen encoders start at the first trained layer.

    Attributes:
        rows: train and validation rows, as `start_later` took them.
        said: what could not be done, in sentences.
    """

    rows: list[Examples]
    said: list[str]


def start_later(
    model: Family,
    rows: Sequence[Examples],
    cache: FeatureCache | None,
    *,
    low: bool,
    groups: CellGroups | None = None,
    progress: Progress | None = None,
) -> Later:
    """Have the cells of partly frozen encoders start at the first trained layer, wherever that gives the same.

    Args:
        model: with its parameters frozen as they will be.
        rows: train and validation rows. Columns with features stay as they are; augmented ones are given their views,
            or stay as they are where there are to be none.
        cache: where what the layer reads is kept; None does nothing.
        low: store in bfloat16, where the model computes in it; else in float32.
        groups: of a step by name, which cells are computed together.
        progress: wraps iterators.
    """
    later = Later(list(rows), [])
    for name, key in model.routes.items():
        encoder = model.encoders[key]
        layers = frozen_layers(encoder) if isinstance(encoder, Backbone) and cache is not None else 0
        if not layers or not isinstance(encoder, Backbone):
            continue
        store = open_store(cache, encoder, layers, torch.bfloat16 if low else torch.float32)
        for place, examples in enumerate(later.rows):
            if store is None or name not in examples.columns or examples.columns[name].features is not None:
                continue
            tried, trunks = _starting(examples, name), dict[str, Trunk | None]()
            try:
                for ending, column in tried.items():
                    step = f"trunk-{place}-{zlib.crc32(name.encode())}{ending}"
                    together = partial(groups, step) if groups else None
                    trunks[ending] = _filled(model, encoder, layers, column, store, together, progress)
            except OSError as error:
                later.said.append(
                    f"the frozen layers of {name} run in every epoch: the cache cannot be written ({error})"
                )
                continue
            made = {ending: trunk for ending, trunk in trunks.items() if trunk is not None}
            if name not in examples.augmentation.augmenters:
                later.rows[place] = examples.given(trunks={name: made[""]} if made else {})
            elif tried and len(made) == len(tried):
                views = [tried[ending].given(trunk=trunk) for ending, trunk in made.items()]
                later.rows[place] = examples.given(views={name: views})
    return later


def _starting(examples: Examples, name: str) -> dict[str, Column]:
    """What has cells that may start later, by the ending of a step's name: the column, or its views if augmented."""
    if name not in examples.augmentation.augmenters:
        return {"": examples.columns[name]}
    return {f"-{number}": View(examples, name, number) for number in range(examples.augmentation.num_views)}


def _filled(
    model: Family,
    encoder: Backbone,
    number: int,
    column: Column,
    store: FeatureStore,
    together: Callable[[np.ndarray], np.ndarray] | None,
    progress: Progress | None,
) -> Trunk | None:
    """The column's trunk, every cell of it computed; None where the encoder does not bear it."""
    device = model_device(model)
    digests, places = missing(store, column)
    good = np.sort(column.good())[:4]
    with evaluating(encoder), kept_memory():
        if not len(good) or not bears(encoder, number, _tensors(column, good, device)):
            return None
        wanted = places if together is None else together(places)
        for some in batches(wanted, f"running the frozen layers on {column.modality.column}", progress):
            if store.has(digests[some]).all():
                continue
            tensors = _tensors(column, some, device)
            hidden = run_to(encoder, number, tensors)
            for place, part in zip(some, _split(hidden, tensors), strict=True):
                store.add(digests[place].tobytes(), part)
            settle()
        store.flush()
    return Trunk(column, store, digests, encoder)


def _tensors(column: Column, places: np.ndarray, device: torch.device) -> dict[str, Tensor]:
    made = column.modality.collate(column.examples(places))
    return {name: tensor.to(device) for name, tensor in made.items()}


def _split(hidden: Tensor, tensors: dict[str, Tensor]) -> list[Tensor]:
    """Each cell's part: its real tokens, or its pictures."""
    if "attention_mask" in tensors:
        return [row[:count] for row, count in zip(hidden, tensors["attention_mask"].sum(1).tolist(), strict=True)]
    if "owner" in tensors:
        return list(hidden.split(torch.bincount(tensors["owner"]).tolist()))  # type: ignore[no-untyped-call]
    return [hidden[place : place + 1] for place in range(len(hidden))]
