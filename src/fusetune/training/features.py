"""Encoder outputs computed before: every distinct cell goes through its encoder once."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch

from fusetune.data.examples import Examples, Progress
from fusetune.data.store import Cache
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
    """Give columns their encoder outputs; the others go through their encoders."""
    for name, column in examples.columns.items():
        column.features, column.trunk = features.get(name), None


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
