"""Encoder outputs computed before: every distinct cell goes through its encoder once."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch

from fusetune.data.column import Progress
from fusetune.data.examples import Examples
from fusetune.data.store import Cache
from fusetune.data.views import View
from fusetune.models.understand import Understand
from fusetune.training.inference import encode_cells
from fusetune.training.keeper import Keeper
from fusetune.training.stored import open_store
from fusetune.types import Tokens


def fill_features(
    model: Understand,
    examples: Examples,
    *,
    cache: Cache | None = None,
    keeper: Keeper | None = None,
    progress: Progress | None = None,
) -> dict[str, Tokens]:
    """Encoder outputs of every distinct cell, per column whose encoder is of use before any training.

    Args:
        model: with its encoders as they are now.
        examples: prepared rows.
        cache: keeps the outputs for other runs; only for a model whose encoders are as they were loaded.
        keeper: knows which cells were computed together, where the run goes on.
        progress: wraps iterators.
    """
    return {
        column: encode_cells(
            model,
            examples,
            column,
            store=open_store(cache, model.encoders[key], "output", torch.float32),
            together=partial(keeper.places, f"features-{zlib.crc32(column.encode())}") if keeper is not None else None,
            progress=progress,
        )
        for column, key in model.routes.items()
        if model.encoders[key].pretrained and column in examples.columns
    }


def set_features(examples: Examples, features: Mapping[str, Tokens]) -> None:
    """Give columns their encoder outputs; the others go through their encoders, augmented ones without views."""
    examples.views = {}
    for name, column in examples.columns.items():
        column.features, column.trunk = features.get(name), None


def fill_views(
    model: Understand,
    examples: Examples,
    columns: Collection[str],
    *,
    cache: Cache | None = None,
    keeper: Keeper | None = None,
    progress: Progress | None = None,
) -> None:
    """Give augmented columns of frozen encoders their views, each encoded once; see `fill_features` for the arguments.

    Args:
        columns: their names.
    """
    for name in columns:
        store = open_store(cache, model.encoders[model.routes[name]], "output", torch.float32)
        views = [View(examples, name, number) for number in range(examples.num_views)]
        for number, view in enumerate(views):
            seen = copy.copy(examples)
            seen.columns = {name: view}
            together = partial((keeper or Keeper()).places, f"view-{number}-{zlib.crc32(name.encode())}")
            view.features = encode_cells(model, seen, name, store=store, together=together, progress=progress)
        examples.views = {**examples.views, name: views}


@contextmanager
def encoded(
    model: Understand,
    examples: Examples,
    known: Mapping[str, Tokens] | None = None,
    *,
    progress: Progress | None = None,
) -> Iterator[None]:
    """Every cell goes through the model's encoders once, however often its rows are predicted inside.

    Args:
        model: as it is now.
        examples: prepared rows.
        known: encoder outputs of some columns that are right for this model already.
    """
    known = known or {}
    set_features(examples, {})
    others = {
        column: encode_cells(model, examples, column)
        for column in model.routes
        if column in examples.columns and column not in known
    }
    set_features(examples, {**known, **others})
    try:
        yield
    finally:
        set_features(examples, {})
