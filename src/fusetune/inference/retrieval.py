"""Vectors of rows and their columns, and the searches among them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from fusetune.data.examples import Examples
from fusetune.inference.predict import row_vectors
from fusetune.models.family import Family
from fusetune.tasks.base import Task
from fusetune.tasks.match import MatchTask, Search

CHUNK, AT_ONCE = 1024, 2**24
"""Queries, and their similarities with documents, that are compared at once, at most; a query's are always together."""


def searches(
    tasks: Mapping[str, Task],
    examples: Examples,
    related: sparse.csr_array | None = None,
    seen: sparse.csr_array | None = None,
) -> dict[str, tuple[MatchTask, Search]]:
    """Return each match task with its search among the used rows; tasks that fewer than two rows have are left out.

    The ids are row numbers in the rows' files.

    Args:
        tasks: by name.
        examples: prepared rows.
        related, seen: (rows, rows) of the table; see `MatchTask.search`.
    """
    used = examples.used
    codes = {name: column.codes[used] for name, column in examples.columns.items()}
    ids, groups = examples.rows[used], examples.groups[used]
    related, seen = (None if pairs is None else sparse.csr_array(pairs[used][:, used]) for pairs in (related, seen))
    if len(examples.table.files) > 1:
        ids = ids - np.array([first for _, first in examples.table.files])[examples.table.parts()[used]]
    by_task: dict[str, tuple[MatchTask, Search]] = {}
    for name, task in tasks.items():
        if isinstance(task, MatchTask):
            search = task.search(codes, ids=ids, groups=groups, related=related, seen=seen)
            if search is not None:
                by_task[name] = (task, search)
    return by_task


def used_vectors(model: Family, examples: Examples) -> dict[str, np.ndarray]:
    """Return by column the used rows' vectors, (rows, dim) of unit length; zeros for a row without the column."""
    return {name: values.numpy() for name, values in row_vectors(model, examples, examples.used).items()}


def cut_vectors(vectors: Mapping[str, np.ndarray], dim: int) -> dict[str, np.ndarray]:
    """Return by name the vectors' first `dim` numbers, scaled to unit length; vectors of zeros stay so."""
    parts = {name: values[:, :dim] for name, values in vectors.items()}
    return {name: part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for name, part in parts.items()}


def hard_negatives(
    queries: Tensor, documents: Tensor, own: Tensor, right: sparse.csr_array, *, num: int, margin: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the documents nearest to each query that are no right answers to it.

    With a margin, documents that are more similar to the query than this share of its own document's similarity are
    left out, as they may be right answers that nobody named. Where that similarity s is negative, those above
    s − (1 − margin)·|s| are.

    Args:
        queries: (queries, dim) of unit length.
        documents: (documents, dim) of unit length.
        own: (queries,) the index of each query's own document.
        right: (queries, documents), sparse bool: the right answers.
        num: how many documents of each query.
        margin: above 0 and at most 1; None leaves out nothing.

    Returns:
        (queries, num) int64 indices of documents, the nearest first, -1 where there are no more; (queries,) int64, how
        many documents were left out as too near.

    Reference: Moreira et al. 2024, "NV-Retriever" (arXiv 2407.15831), positive-aware mining by a share.
    """
    nearest = np.full((len(queries), num), -1, dtype=np.int64)
    too_near = np.zeros(len(queries), dtype=np.int64)
    step = min(CHUNK, max(1, AT_ONCE // max(len(documents), 1)))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        similar = queries[part] @ documents.T  # (chunk, documents)
        is_right = torch.from_numpy(right[part].toarray()).to(similar.device)
        left_out = is_right
        if margin is not None:
            positive = similar.gather(1, own[part].unsqueeze(1))  # (chunk, 1)
            near = (similar > positive - (1 - margin) * positive.abs()) & ~is_right
            too_near[part], left_out = near.sum(1).cpu().numpy(), is_right | near
        values, indices = similar.masked_fill(left_out, -torch.inf).topk(min(num, len(documents)), dim=1)
        nearest[part, : indices.shape[1]] = indices.masked_fill(values.isinf(), -1).cpu().numpy()
    return nearest, too_near
