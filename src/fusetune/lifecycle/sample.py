"""A sample of a table's rows as drift tests compare them: vectors, columns' values, predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from fusetune.data.column import Column, Progress
from fusetune.data.examples import Examples
from fusetune.data.resolved import raw_targets
from fusetune.data.table import Table
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.tuned import read_examples
from fusetune.errors import BadCell, TableError
from fusetune.inference.features import encoded
from fusetune.inference.predict import pooled_vectors, row_vectors
from fusetune.inference.scores import predict_scores
from fusetune.models.match import Match
from fusetune.models.understand import Understand
from fusetune.tasks.abilities import Labelled
from fusetune.tasks.base import TargetTask

WORD_DIM = 32
"""Width of the vectors of texts that no encoder reads: latent semantic analysis of both samples' words."""


@dataclass(frozen=True)
class Sample:
    """Rows with what is compared of them.

    Attributes:
        examples: the rows, decoded, without their targets: a row with a label that the model does not know counts too.
        vectors: (rows, dim), what the model's heads read, or the sides of pairs beside each other; None for a model
            that writes.
        scores: the answers of each target, (rows, ...); empty for a model that writes.
        correct: by target with one class a row, whether each row's decision is right, (rows,) float64: 1, 0, or NaN
            without a label. A label that the model does not know makes its decision wrong.
    """

    examples: Examples
    vectors: np.ndarray | None
    scores: dict[str, np.ndarray]
    correct: dict[str, np.ndarray]

    @property
    def table(self) -> Table:
        """The rows."""
        return self.examples.table


def read_sample(bundle: Bundle, table: Table, *, rows: int, seed: int, progress: Progress | None) -> Sample:
    """Draw rows from a table and compute what is compared of them.

    Args:
        bundle: the tuned model.
        table: with the model's input columns, and its targets or not.
        rows: the most rows, drawn at random.
        seed: of the draw.
        progress: wraps iterators.

    Raises:
        TableError: the table lacks a column, or no row can be read.
    """
    if len(table) > rows:
        table = table.select(np.sort(np.random.default_rng(seed).choice(len(table), rows, replace=False)))
    targets = bundle.targets
    examples = read_examples(bundle, table, targets=False, progress=progress)
    if not len(examples):
        raise TableError("no row can be read", file=table.source)
    model = bundle.model
    examples = encoded(model, examples)
    vectors, scores = None, {}
    if isinstance(model, Understand):
        vectors = pooled_vectors(model, examples, examples.used).numpy()
    elif isinstance(model, Match):
        sides = row_vectors(model, examples, examples.used).values()
        vectors = np.concatenate([side.numpy() for side in sides], 1)
    if isinstance(model, Understand) and targets:
        scores = predict_scores(model, targets, examples, stack=bundle.stack, progress=progress)
    correct = {name: _correct(targets[name], examples, answers) for name, answers in scores.items()}
    return Sample(examples, vectors, scores, {name: rows for name, rows in correct.items() if rows is not None})


def _correct(task: TargetTask, examples: Examples, scores: np.ndarray) -> np.ndarray | None:
    """Return whether each used row's decision is right, NaN without a label; None where that is not asked."""
    if not isinstance(task, Labelled) or task.reads is not None or task.target not in examples.table:
        return None
    decided = task.decide(scores)
    if scores.ndim != 2 or decided.ndim != 1:
        return None
    cells = raw_targets(examples.table, task, examples.used)
    correct = np.full(len(cells), np.nan)
    for at, (cell, decision) in enumerate(zip(cells, decided, strict=True)):
        if cell is None:
            continue
        try:
            task.check(cell, row=int(examples.rows[examples.used[at]]))
            correct[at] = task.truth([cell])[0] == decision
        except BadCell:
            correct[at] = 0.0
    return correct


def column_values(sample: Sample, name: str) -> tuple[list[Any], int, int]:
    """Return a column's decoded cells, one per row that has one, the rows that lack it, and all rows."""
    column = sample.examples.columns[name]
    codes = column.codes[sample.examples.used]
    readable = codes[(codes >= 0) & ~np.isin(codes, list(column.bad))]
    return column.examples(readable), len(codes) - len(readable), len(codes)


def column_vectors(sample: Sample, name: str) -> np.ndarray | None:
    """Return the means of a column's encoded tokens, (rows that have it, dim); None if no encoder reads it."""
    column: Column = sample.examples.columns[name]
    if column.features is None:
        return None
    codes = column.codes[sample.examples.used]
    values = column.features.mean().float().numpy()
    return np.asarray(values[codes[(codes >= 0) & ~np.isin(codes, list(column.bad))]])


def word_vectors(first: Sequence[str], second: Sequence[str], *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors of texts by latent semantic analysis of both samples together, (texts, dim) each."""
    weights = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\w+").fit_transform([*first, *second])
    dim = min(WORD_DIM, weights.shape[1] - 1, weights.shape[0] - 1)
    vectors = TruncatedSVD(dim, random_state=seed).fit_transform(weights) if dim > 0 else weights.toarray()
    return vectors[: len(first)], vectors[len(first) :]
