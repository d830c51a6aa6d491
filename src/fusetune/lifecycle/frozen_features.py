"""What a linear model makes of an encoder's frozen features: layers' means and cross-validated probes."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.passes.layer_mean import LayerMean
from fusetune.data.column import Column, Progress
from fusetune.data.folds import fold_of
from fusetune.data.storage.feature_cache import FeatureCache
from fusetune.inference.predict import encode_cells, evaluating
from fusetune.inference.stored import open_store
from fusetune.tasks.abilities import Probed
from fusetune.training.probes.probe import SplitRows, block, column_scales, vectors
from fusetune.types import Tokens

TIMED = 64
"""The most cells by which the speed is measured."""


class _LayerMeanReader(nn.Module):
    """What `encode_cells` asks of a model, with the mean over layers in place of an encoder's output."""

    def __init__(self, encoder: Backbone) -> None:
        super().__init__()
        self.encoder, self.mean = encoder, LayerMean(encoder)

    def encoder_dim(self, column: str) -> int:
        """Return the width of a cell's vector."""
        return self.encoder.dim

    def encode(self, column: str, tensors: dict[str, Tensor]) -> Tokens:
        """Return a vector for each cell, (cells, 1, dim)."""
        return self.mean(**tensors)


def layer_means(
    encoder: Backbone, name: str, column: Column, *, cache: FeatureCache | None, progress: Progress | None
) -> tuple[Tokens, int]:
    """Return the mean over an encoder's layers for every distinct cell, (cells, 1, dim), and the number of layers.

    Args:
        encoder: as pretrained.
        name: of the column.
        column: its cells.
        cache: stores the vectors for other runs.
        progress: wraps iterators.
    """
    model: Any = _LayerMeanReader(encoder)
    store = open_store(cache, encoder, "mean of layers", torch.float32)
    some = column.some_cell()
    if len(some):
        with evaluating(model):
            model.encode(name, column.tensors(some))  # counts the layers, also where the store has all cells
    return encode_cells(model, name, column, store=store, progress=progress), model.mean.num_layers


def cells_per_second(encoder: Backbone, column: Column, *, seed: int) -> float:
    """Return the number of cells that an encoder reads in a second, decoded cells in, vectors out; NaN without cells.

    Args:
        encoder: in any mode.
        column: its cells, of which up to `TIMED` drawn at random are read.
        seed: of the draw.
    """
    good = column.good()
    if not len(good):
        return float("nan")
    chosen = np.random.default_rng(seed).permutation(good)[:TIMED]
    with evaluating(encoder):
        encoder(**column.tensors(chosen[:8]))  # warms up
        start = time.perf_counter()
        encoder(**column.tensors(chosen))
    return len(chosen) / max(time.perf_counter() - start, 1e-9)


def probe_answers(task: Probed, rows: SplitRows, *, folds: int, seed: int) -> np.ndarray:
    """Return each row's answers by a linear probe that did not learn on it, (rows, ...).

    Each fold is predicted by a model of the others; its penalty is chosen on the next fold, on which that model does
    not learn either.

    Args:
        task: fitted.
        rows: labelled, with features of all columns.
        folds: 3 or more.
        seed: of the folds; rows of a group are in one fold.
    """
    scales = column_scales(rows.examples, rows.features)
    matrix = np.concatenate([block(rows, name, scale) for name, scale in scales.items()], 1)
    weights = rows.examples.weights[rows.indices]
    fold = fold_of(np.asarray(rows.examples.groups[rows.indices], dtype=np.int64), folds, seed=seed)
    result: np.ndarray | None = None
    num = int(fold.max()) + 1
    for held in range(num):
        held_out, choosing = fold == held, fold == (held + 1) % num
        learned = ~held_out & ~choosing
        linear = task.linear(
            matrix[learned], rows.truth[learned], matrix[choosing], rows.truth[choosing], weights[learned]
        )
        scores = linear.scores(matrix[held_out])
        if result is None:
            result = np.zeros((len(matrix), *scores.shape[1:]), dtype=scores.dtype)
        result[held_out] = scores
    assert result is not None, "there is a fold"
    return result


def row_matrix(rows: SplitRows, features: dict[str, Tokens]) -> np.ndarray:
    """Return the columns' vectors side by side, (rows, features); a missing cell has the mean of the others.

    Args:
        rows: the labelled rows.
        features: by column, (cells, tokens, dim).
    """
    parts = []
    for name, table in features.items():
        codes = rows.examples.columns[name].codes[rows.indices]
        present = codes >= 0
        matrix = np.zeros((len(codes), table.values.shape[2]))
        if present.any():
            known = vectors(table, codes[present]).numpy()
            matrix[:] = known.mean(0)
            matrix[present] = known
        parts.append(matrix)
    return np.concatenate(parts, 1)
