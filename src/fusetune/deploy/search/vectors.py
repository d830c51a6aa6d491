"""`VectorIndex`: vectors of unit length, and the nearest of them to queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch

from fusetune.deploy.search.graph import SAMPLE, Graph

EXACT = 100_000
"""Up to this number of vectors a search compares with each; above, it follows a graph."""
PER_BLOCK = 65_536
"""Vectors that queries are compared with at once."""
PER_CONVERSION = 2048
"""Stored vectors that are converted to float32 at once, few enough for the processor's cache."""
QUERIES = 256
"""Queries that are compared at once."""
REBUILT = 0.3
"""The share of removed vectors from which on the graph is built again."""
GROWN = 1.1
"""How many times the vectors have to grow until `settle` chooses the graph's effort again."""

DType = Literal["float32", "float16", "int8"]


class VectorIndex:
    """Vectors of unit length, the nearest of which to a query, by dot product, are found.

    Up to `EXACT` vectors every one is compared. More are linked to a graph (HNSW), which finds nearly the same ones in
    a fraction of the time; so are those that a filter allows, where they are more than `EXACT`. Scores are always those
    of the stored vectors.

    Args:
        dim: numbers a vector.
        dtype: how vectors are stored. float16 takes half of float32's memory, int8 (a scale a vector) a quarter.
        graph: whether there is a graph; None decides by the number of vectors and needs faiss only above `EXACT`.

    Attributes:
        recall: the share of the exact top 10 that the graph finds, see `settle`; 1.0 without a graph.

    Example:
        >>> index = VectorIndex(2)
        >>> index.add(np.eye(2, dtype=np.float32))
        >>> positions, scores = index.search(np.array([[0.6, 0.8]], dtype=np.float32), 1)
        >>> int(positions[0, 0]), round(float(scores[0, 0]), 3)
        (1, 0.8)
    """

    def __init__(self, dim: int, *, dtype: DType = "float32", graph: bool | None = None) -> None:
        self.dim, self.dtype, self.wants_graph = dim, dtype, graph
        self._buffer = np.zeros((0, dim), dtype=dtype)
        self._num = self._num_tuned = 0
        self.scales = np.ones(0, dtype=np.float32)
        self.alive = np.zeros(0, dtype=bool)
        self.graph: Graph | None = None
        self.recall = 1.0

    def __len__(self) -> int:
        """Number of vectors that were not removed."""
        return int(self.alive.sum())

    @property
    def values(self) -> np.ndarray:
        """The stored vectors, (positions, dim), removed ones included."""
        return self._buffer[: self._num]

    def add(self, vectors: np.ndarray) -> np.ndarray:
        """Add vectors, (count, dim) of unit length; return their positions, (count,) int64.

        Call `settle` after the last of several parts.
        """
        values, scales = _stored(vectors, self.dtype)
        first = self._num
        self._num += len(values)
        if self._num > len(self._buffer):  # twice the space, so that parts are not copied again for each other
            grown = np.empty((max(self._num, 2 * len(self._buffer)), self.dim), dtype=self.dtype)
            grown[:first] = self._buffer[:first]
            self._buffer = grown
        self._buffer[first : self._num] = values
        self.scales = np.concatenate([self.scales, scales])
        self.alive = np.concatenate([self.alive, np.ones(len(values), dtype=bool)])
        if self.graph is not None:
            self.graph.add(self._floats(np.arange(first, len(self.values))))
        elif self.wants_graph or (self.wants_graph is None and len(self) > EXACT):
            self._build_graph()
        return np.arange(first, len(self.values))

    def settle(self) -> None:
        """Choose the graph's effort and measure its recall again, if there are many more vectors than the last time."""
        if self.graph is not None and self._num > GROWN * self._num_tuned:
            self._tune()

    def remove(self, positions: np.ndarray) -> None:
        """Leave out the vectors at these positions; the positions of the others stay."""
        self.alive[positions] = False
        if self.graph is not None and self.alive.any() and self.alive.mean() < 1 - REBUILT:
            self._build_graph()

    def search(
        self, queries: np.ndarray, k: int, *, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest vectors, the nearest first.

        Args:
            queries: (queries, dim) float32 of unit length.
            k: how many, at least 1.
            allowed: (positions,) bool, which are searched; None searches all.

        Returns:
            Positions, (queries, k) int64, -1 where there are fewer than k; and dot products, (queries, k) float32, NaN
            there.
        """
        searched = self.alive if allowed is None else self.alive & allowed
        if self.graph is None or searched.sum() <= EXACT:
            return self._exact(queries, k, np.flatnonzero(searched))
        near = self.graph.search(queries, k, None if searched.all() else searched)
        return self._ranked(queries, near)

    def _exact(self, queries: np.ndarray, k: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        near, scores = _nothing(len(queries), k)
        every = len(positions) == len(self.values)
        for first in range(0, len(queries), QUERIES):
            some = slice(first, first + QUERIES)
            best, where = scores[some], near[some]
            for start in range(0, len(positions), PER_BLOCK):
                block = positions[start : start + PER_BLOCK]
                products = self._products(queries[some], slice(start, start + PER_BLOCK) if every else block)
                best, where = _merged(best, where, products, block, k)
            scores[some], near[some] = best, where
        return near, scores

    def _products(self, queries: np.ndarray, positions: np.ndarray | slice) -> np.ndarray:
        """Return the dot products of queries with stored vectors, (queries, positions) float32."""
        stored = self.values[positions]
        if self.dtype == "float32":
            return np.asarray(queries @ stored.T)
        result = np.empty((len(queries), len(stored)), dtype=np.float32)
        floats = torch.empty((min(PER_CONVERSION, len(stored)), self.dim))
        for start in range(0, len(stored), PER_CONVERSION):
            some = torch.from_numpy(stored[start : start + PER_CONVERSION])
            block = floats[: len(some)].copy_(some).numpy()  # numpy converts float16 five times slower
            np.matmul(queries, block.T, out=result[:, start : start + len(some)])
        return result * self.scales[positions] if self.dtype == "int8" else result

    def _ranked(self, queries: np.ndarray, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sort what the graph found by the stored vectors' scores."""
        scores = np.full(near.shape, np.nan, dtype=np.float32)
        for row, positions in enumerate(near):
            real = positions >= 0
            scores[row, real] = self._floats(positions[real]) @ queries[row]
        order = np.argsort(np.where(np.isnan(scores), np.inf, -scores), axis=1, kind="stable")
        return np.take_along_axis(near, order, 1), np.take_along_axis(scores, order, 1)

    def _floats(self, positions: np.ndarray | slice) -> np.ndarray:
        """Return stored vectors as float32."""
        values = self.values[positions].astype(np.float32, copy=False)
        return values * self.scales[positions, None] if self.dtype == "int8" else values

    def _build_graph(self) -> None:
        """Link all vectors, removed ones included: positions stay. Choose the effort and measure the recall."""
        self.graph = Graph(self.dim, self.dtype)
        self.graph.add(self._floats(slice(None)))
        self._tune()

    def _tune(self) -> None:
        assert self.graph is not None
        self._num_tuned = self._num
        alive = np.flatnonzero(self.alive)
        sample = np.random.default_rng(0).choice(alive, min(SAMPLE, len(alive)), replace=False)
        # Between a vector and another: queries are near to the catalogue, but not of it.
        mixed = self._floats(sample) + self._floats(np.roll(sample, 1))
        queries = (mixed / np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), 1e-12)).astype(np.float32)
        exact, _ = self._exact(queries, min(10, len(alive)), alive)
        self.recall = self.graph.tune(queries, exact)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return everything as arrays, for `restore`."""
        links = {f"graph.{name}": values for name, values in self.graph.arrays().items()} if self.graph else {}
        return {"vectors": self.values, "scales": self.scales, "alive": self.alive.astype(np.uint8), **links}

    def state(self) -> dict[str, Any]:
        """Return what `arrays` lacks, for `restore`."""
        effort = self.graph.effort if self.graph is not None else None
        return {
            "dim": self.dim,
            "dtype": self.dtype,
            "graph": self.wants_graph,
            "effort": effort,
            "recall": self.recall,
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> VectorIndex:
        """Return an index from `state` and `arrays`.

        Raises:
            ValueError: they contradict each other.
        """
        index = cls(int(state["dim"]), dtype=state["dtype"], graph=state["graph"])
        values, scales, alive = arrays["vectors"], arrays["scales"], arrays["alive"].astype(bool)
        if values.dtype != index.dtype or values.shape != (len(alive), index.dim) or scales.shape != alive.shape:
            raise ValueError("the index's vectors are of another form than its description")
        index._buffer, index.scales, index.alive, index.recall = values, scales, alive, float(state["recall"])
        index._num = index._num_tuned = len(values)
        if state["effort"] is not None:
            index.graph = Graph(index.dim, index.dtype, effort=int(state["effort"]))
            links = {name.removeprefix("graph."): part for name, part in arrays.items() if name.startswith("graph.")}
            index.graph.restore(index._floats(slice(None)), links)
        return index


def _stored(vectors: np.ndarray, dtype: DType) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors as they are stored, and their scales."""
    ones = np.ones(len(vectors), dtype=np.float32)
    if dtype != "int8":
        return vectors.astype(dtype), ones
    scales = np.maximum(np.abs(vectors).max(1, initial=0), 1e-12).astype(np.float32) / 127
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales


def _nothing(rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((rows, k), -1, dtype=np.int64), np.full((rows, k), np.nan, dtype=np.float32)


def _merged(
    best: np.ndarray, where: np.ndarray, products: np.ndarray, block: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Merge the best so far with a block's products: the k greatest, equal ones in the order of their positions."""
    positions = np.broadcast_to(block, products.shape)
    if products.shape[1] > k:
        top = np.argpartition(-products, k - 1, axis=1)[:, :k]
        products, positions = np.take_along_axis(products, top, 1), np.take_along_axis(positions, top, 1)
    scores, positions = np.concatenate([best, products], axis=1), np.concatenate([where, positions], axis=1)
    order = np.lexsort((positions, np.where(np.isnan(scores), np.inf, -scores)), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1).astype(np.float32), np.take_along_axis(positions, order, 1)
