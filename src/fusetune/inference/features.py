"""Encoder outputs computed before: every distinct cell goes through its encoder once."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping
from functools import partial

import numpy as np
import torch

from fusetune.data.column import Column, Progress
from fusetune.data.examples import Examples
from fusetune.data.storage.feature_cache import FeatureCache
from fusetune.data.views import View
from fusetune.inference.predict import encode_cells
from fusetune.inference.stored import open_store
from fusetune.models.family import Family
from fusetune.types import Tokens

CellGroups = Callable[[str, np.ndarray], np.ndarray]
"""From a step's name and the cells that it lacks, (cells,), to the cells that it computes, in order."""


def fill_features(
    model: Family,
    examples: Examples,
    *,
    cache: FeatureCache | None = None,
    groups: CellGroups | None = None,
    progress: Progress | None = None,
) -> dict[str, Tokens]:
    """Encoder outputs of every distinct cell, per column whose encoder is of use before any training.

    Args:
        model: with its encoders as they are now.
        examples: prepared rows.
        cache: keeps the outputs for other runs; only for a model whose encoders are as they were loaded.
        groups: of a step by name, which cells are computed together; see `CheckpointManager.step_cells`.
        progress: wraps iterators.
    """
    return {
        column: encode_cells(
            model,
            column,
            examples.columns[column],
            store=open_store(cache, model.encoders[key], "output", torch.float32),
            together=partial(groups, f"features-{zlib.crc32(column.encode())}") if groups else None,
            progress=progress,
        )
        for column, key in model.routes.items()
        if model.encoders[key].pretrained and column in examples.columns
    }


def augmented_views(
    model: Family,
    examples: Examples,
    columns: Collection[str],
    *,
    cache: FeatureCache | None = None,
    groups: CellGroups | None = None,
    progress: Progress | None = None,
) -> dict[str, list[Column]]:
    """Return the views of augmented columns of frozen encoders, encoded; see `fill_features` for the other arguments.

    Args:
        columns: their names.
    """
    made: dict[str, list[Column]] = {}
    for name in columns:
        store = open_store(cache, model.encoders[model.routes[name]], "output", torch.float32)
        made[name] = []
        for number in range(examples.augmentation.num_views):
            view = View(examples, name, number)
            together = partial(groups, f"view-{number}-{zlib.crc32(name.encode())}") if groups else None
            features = encode_cells(model, name, view, store=store, together=together, progress=progress)
            made[name].append(view.given(features=features))
    return made


def encoded(model: Family, examples: Examples, known: Mapping[str, Tokens] | None = None) -> Examples:
    """Return rows whose every cell has gone through the model's encoders once, however often they are predicted.

    Args:
        model: as it is now.
        examples: prepared rows.
        known: encoder outputs of some columns that are right for this model already.
    """
    known = known or {}
    others = {
        column: encode_cells(model, column, examples.columns[column].given())
        for column in model.routes
        if column in examples.columns and column not in known
    }
    return examples.given(features={**known, **others})
