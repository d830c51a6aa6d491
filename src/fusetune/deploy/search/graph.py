"""Approximate nearest neighbours in a graph: HNSW, by faiss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusetune._optional import optional_import

LINKS = 32
"""Links of a vector to others, in each layer but the lowest, which has twice as many."""
EFFORT = 80
"""Candidates that are looked at while a vector is added."""
RECALL = 0.97
"""The share of the exact top 10 that `tune` aims at."""
EFFORTS = (16, 32, 64, 128, 256, 512)
SAMPLE = 200
"""Vectors that recall is measured with."""
PER_BLOCK = 65_536
"""Vectors that are added at once."""


class Graph:
    """A graph of near neighbours over vectors of unit length.

    Args:
        dim: numbers a vector.
        dtype: "float32", "float16" or "int8": how the graph holds its copy of the vectors.
        effort: candidates that a search looks at.

    Raises:
        MissingExtra: faiss is not installed.

    Reference: Malkov and Yashunin 2018, arXiv 1603.09320.
    """

    def __init__(self, dim: int, dtype: str, *, effort: int = 64) -> None:
        faiss = optional_import("faiss", "to search a large catalogue fast")
        self.faiss, self.dtype, self.effort = faiss, dtype, effort
        metric = faiss.METRIC_INNER_PRODUCT
        if dtype == "float32":
            self.index = faiss.IndexHNSWFlat(dim, LINKS, metric)
        else:
            kind = faiss.ScalarQuantizer.QT_fp16 if dtype == "float16" else faiss.ScalarQuantizer.QT_8bit
            self.index = faiss.IndexHNSWSQ(dim, kind, LINKS, metric)
        self.index.hnsw.efConstruction = EFFORT

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def add(self, vectors: np.ndarray) -> None:
        """Add vectors, (count, dim) float32 of unit length."""
        if not self.index.is_trained:
            self.index.train(vectors)
        for start in range(0, len(vectors), PER_BLOCK):
            self.index.add(np.ascontiguousarray(vectors[start : start + PER_BLOCK], dtype=np.float32))

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> np.ndarray:
        """Return the positions of near vectors, (queries, k) int64, -1 where fewer were reached.

        Args:
            queries: (queries, dim) float32 of unit length.
            k: how many.
            allowed: (vectors,) bool; None allows all.
        """
        options: dict[str, Any] = {"efSearch": max(self.effort, k)}
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")
            options["sel"] = self.faiss.IDSelectorBitmap(bits)
        _, near = self.index.search(
            np.ascontiguousarray(queries, dtype=np.float32), k, params=self.faiss.SearchParametersHNSW(**options)
        )
        return np.asarray(near, dtype=np.int64)

    def tune(self, queries: np.ndarray, exact: np.ndarray) -> float:
        """Choose the least effort that finds `RECALL` of the exact answers; return the share that it finds.

        Args:
            queries: (queries, dim) float32.
            exact: (queries, k) int64, the positions of the exact answers.
        """
        recall = 0.0
        for effort in EFFORTS:
            self.effort = effort
            near = self.search(queries, exact.shape[1])
            recall = float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(near, exact, strict=True)]))
            recall /= exact.shape[1]
            if recall >= RECALL:
                break
        return recall

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the graph's links, from which `restore` makes the same graph."""
        hnsw = self.index.hnsw
        return {
            "levels": self.faiss.vector_to_array(hnsw.levels),
            "offsets": self.faiss.vector_to_array(hnsw.offsets).astype(np.int64),
            "neighbors": self.faiss.vector_to_array(hnsw.neighbors),
            "entry": np.array([hnsw.entry_point, hnsw.max_level], dtype=np.int64),
        }

    def restore(self, vectors: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over vectors and the links between them; see `arrays`.

        Raises:
            ValueError: the links are not a graph of so many vectors.
        """
        levels, offsets, neighbors = arrays["levels"], arrays["offsets"], arrays["neighbors"]
        count, (entry, highest) = len(vectors), arrays["entry"].tolist()
        hnsw = self.index.hnsw
        sound = (
            len(levels) == count
            and len(offsets) == count + 1
            and 0 <= entry < count
            and levels.min() >= 1
            and int(levels[entry]) == highest + 1 == int(levels.max())
            and int(highest) < hnsw.cum_nneighbor_per_level.size()
            and (np.diff(offsets) == [hnsw.cum_nb_neighbors(int(level)) for level in levels]).all()
            and int(offsets[0]) == 0
            and len(neighbors) == int(offsets[-1])
            and neighbors.min() >= -1
            and neighbors.max() < count
        )
        if not sound:
            raise ValueError("the links of the index are not those of its vectors")
        _check_layers(levels, offsets, neighbors, [hnsw.cum_nb_neighbors(level) for level in range(highest + 2)])
        storage = self.faiss.downcast_index(self.index.storage)
        if not storage.is_trained:
            storage.train(np.ascontiguousarray(vectors, dtype=np.float32))
        for start in range(0, count, PER_BLOCK):
            storage.add(np.ascontiguousarray(vectors[start : start + PER_BLOCK], dtype=np.float32))
        self.faiss.copy_array_to_vector(levels.astype(np.int32), hnsw.levels)
        self.faiss.copy_array_to_vector(offsets.astype(np.uint64), hnsw.offsets)
        self.faiss.copy_array_to_vector(neighbors.astype(np.int32), hnsw.neighbors)
        hnsw.entry_point, hnsw.max_level = int(entry), int(highest)
        self.index.ntotal, self.index.is_trained = count, True


def _check_layers(levels: np.ndarray, offsets: np.ndarray, neighbors: np.ndarray, widths: list[int]) -> None:
    """Refuse links in a layer to vectors that are not in it: a search that followed them would leave the array."""
    for layer in range(1, len(widths) - 1):
        members = np.flatnonzero(levels > layer)
        for member in members:
            linked = neighbors[offsets[member] + widths[layer] : offsets[member] + widths[layer + 1]]
            if (levels[linked[linked >= 0]] <= layer).any():
                raise ValueError("the links of the index lead to vectors that are not in their layer")
