"""Save and load the train rows' interactions of a recommendation, which tell what a known user has seen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy import sparse

from fusetune.data.interactions import Interactions

INTERACTIONS = "interactions.safetensors"
"""Users' items, the earliest first, as a sparse matrix; the keys of users and items as JSON in UTF-8."""


def save_interactions(interactions: Interactions, folder: Path) -> Path:
    """Write the interactions into a model's folder; return the file."""
    arrays = {
        "indptr": interactions.matrix.indptr.astype(np.int64),
        "indices": interactions.matrix.indices.astype(np.int64),
        "liked": interactions.liked.astype(np.uint8),
        "users": _as_bytes(interactions.users),
        "items": _as_bytes(interactions.items),
    }
    if interactions.times is not None:
        arrays["times"] = interactions.times.astype(np.float64)
    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, folder / INTERACTIONS)
    return folder / INTERACTIONS


def load_interactions(folder: Path) -> Interactions:
    """Load the interactions of a model's folder, whose hash was checked.

    Raises:
        ValueError: the arrays do not belong together.
    """
    arrays: Mapping[str, np.ndarray] = load_file(folder / INTERACTIONS)
    users, items = (json.loads(arrays[name].tobytes().decode("utf-8")) for name in ("users", "items"))
    indptr, indices, liked = arrays["indptr"], arrays["indices"], arrays["liked"].astype(bool)
    times = arrays.get("times")
    fits = len(indptr) == len(users) + 1 and indptr[0] == 0 and indptr[-1] == len(indices) == len(liked)
    if not fits or (np.diff(indptr) < 0).any() or (times is not None and len(times) != len(indices)):
        raise ValueError(f"{INTERACTIONS} holds arrays that do not belong together")
    if len(indices) and not 0 <= indices.min() <= indices.max() < len(items):
        raise ValueError(f"{INTERACTIONS} names items that it does not have")
    ones = np.ones(len(indices), np.float32)
    matrix = sparse.csr_array((ones, indices, indptr), shape=(len(users), len(items)))
    return Interactions(users, items, matrix, liked, times)


def _as_bytes(keys: Sequence[str | None]) -> np.ndarray:
    return np.frombuffer(json.dumps(list(keys), ensure_ascii=False).encode("utf-8"), dtype=np.uint8)
