"""Precomputed encoder outputs: every distinct cell passes its encoder once."""

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
"""Maps a step's name and the cells that it lacks, (cells,) int64, to the cells that it computes, in order."""


def fill_features(
    model: Family,
    examples: Examples,
    *,
    cache: FeatureCache | None = None,
    groups: CellGroups | None = None,
    progress: Progress | None = None,
) -> dict[str, Tokens]:
    """Encode every distinct cell of the columns with pretrained encoders.

    Args:
        model: holds the encoders.
        examples: prepared rows.
        cache: stores the outputs for other runs; only for encoders that were not trained since they were loaded.
        groups: determines which cells are computed together; see `CheckpointManager.step_cells`.
        progress: wraps iterators.

    Returns:
        By column, (cells, tokens, dim).
    """
    return {
        column: encode_cells(
            model,
            column,
            examples.columns[column],
            store=open_store(cache, model.encoders[key], _boundary(examples.columns[column]), torch.float32),
            together=partial(groups, f"features-{zlib.crc32(column.encode())}") if groups else None,
            progress=progress,
        )
        for column, key in model.routes.items()
        if model.encoders[key].pretrained and column in examples.columns
    }


def _boundary(column: Column) -> str:
    """Return the name of an encoder's outputs in the cache, by how a text is read: outputs differ in width."""
    read = getattr(column.modality, "read", "vector")
    return "output" if read == "vector" else f"output, {read}"


def augmented_views(
    model: Family,
    examples: Examples,
    columns: Collection[str],
    *,
    cache: FeatureCache | None = None,
    groups: CellGroups | None = None,
    progress: Progress | None = None,
) -> dict[str, list[Column]]:
    """Encode the views of augmented columns with frozen encoders; see `fill_features` for the other arguments.

    Args:
        columns: names of the columns.

    Returns:
        By column, its views with their features.
    """
    views: dict[str, list[Column]] = {}
    for name in columns:
        store = open_store(cache, model.encoders[model.routes[name]], "output", torch.float32)
        views[name] = []
        for number in range(examples.augmentation.num_views):
            view = View(examples, name, number)
            together = partial(groups, f"view-{number}-{zlib.crc32(name.encode())}") if groups else None
            features = encode_cells(model, name, view, store=store, together=together, progress=progress)
            views[name].append(view.given(features=features))
    return views


def encoded(model: Family, examples: Examples, known: Mapping[str, Tokens] | None = None) -> Examples:
    """Return rows with precomputed encoder outputs, so that predicting them repeatedly runs no encoder.

    Args:
        model: holds the encoders.
        examples: prepared rows.
        known: encoder outputs of this model that were computed before, by column.
    """
    known = known or {}
    others = {
        column: encode_cells(model, column, examples.columns[column].given())
        for column in model.routes
        if column in examples.columns and column not in known
    }
    return examples.given(features={**known, **others})
