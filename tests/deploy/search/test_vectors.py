"""The vectors of an index: exact search against numpy, the graph against exact search, saving."""

from __future__ import annotations

import numpy as np
import pytest

from fusetune.deploy.search import vectors
from fusetune.deploy.search.vectors import VectorIndex

DTYPES = ["float32", "float16", "int8"]


def unit(rows, dim, seed):
    values = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(vectors, "PER_BLOCK", 50)
    monkeypatch.setattr(vectors, "QUERIES", 7)


def test_exact_search_is_a_full_sort_across_blocks(small_blocks):
    index, stored, queries = VectorIndex(8), unit(333, 8, 0), unit(20, 8, 1)
    index.add(stored[:100])
    index.add(stored[100:])
    positions, scores = index.search(queries, 7)
    np.testing.assert_array_equal(positions, np.argsort(-(queries @ stored.T), axis=1)[:, :7])
    np.testing.assert_allclose(scores, -np.sort(-(queries @ stored.T), axis=1)[:, :7], rtol=1e-5)


def test_equal_vectors_come_in_their_order_and_fewer_than_k_leave_gaps(small_blocks):
    index = VectorIndex(4)
    index.add(np.tile(unit(1, 4, 0), (3, 1)))
    positions, scores = index.search(unit(2, 4, 1), 5)
    assert positions.tolist() == [[0, 1, 2, -1, -1]] * 2
    assert np.isnan(scores[:, 3:]).all() and not np.isnan(scores[:, :3]).any()


@pytest.mark.parametrize(("dtype", "error"), [("float16", 1e-3), ("int8", 2e-2)])
def test_smaller_types_change_scores_little_and_memory_much(dtype, error):
    stored, queries = unit(400, 32, 0), unit(10, 32, 1)
    plain, small = VectorIndex(32), VectorIndex(32, dtype=dtype)
    plain.add(stored), small.add(stored)
    every = np.sort(plain.search(queries, 400)[1]), np.sort(small.search(queries, 400)[1])
    np.testing.assert_allclose(*every, atol=error)
    assert small.values.nbytes * {"float16": 2, "int8": 4}[dtype] == plain.values.nbytes


def test_removed_and_filtered_vectors_are_not_found():
    index, stored = VectorIndex(8), unit(60, 8, 0)
    index.add(stored)
    index.remove(np.array([3, 4]))
    assert len(index) == 58 and index.search(stored[3:5], 1)[0].ravel().tolist() != [3, 4]
    allowed = np.arange(60) < 10
    assert set(index.search(stored, 8, allowed=allowed)[0].ravel()) == {0, 1, 2, 5, 6, 7, 8, 9}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_graph_finds_nearly_what_exact_search_finds(dtype, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(vectors, "EXACT", 100)
    stored, queries = unit(2000, 16, 0), unit(100, 16, 1)
    exact, graph = VectorIndex(16, dtype=dtype, graph=False), VectorIndex(16, dtype=dtype)
    exact.add(stored), graph.add(stored)
    assert graph.graph is not None and graph.recall >= 0.95
    wanted, scores = exact.search(queries, 10)
    near, near_scores = graph.search(queries, 10)
    shared = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(wanted, near, strict=True)])
    assert shared > 0.85
    same = near[:, 0] == wanted[:, 0]
    np.testing.assert_allclose(near_scores[same, 0], scores[same, 0], rtol=1e-4)
    assert (np.diff(near_scores, axis=1) <= 0).all()
    allowed = np.arange(2000) % 3 == 0
    assert (graph.search(queries, 10, allowed=allowed)[0] % 3 == 0).all()
    graph.remove(np.arange(100))
    assert (graph.search(queries, 10)[0] >= 100).all() and len(graph) == 1900
    graph.add(unit(5, 16, 2))
    assert graph.search(unit(5, 16, 2), 1)[0].ravel().tolist() == list(range(2000, 2005))


def test_a_graph_is_rebuilt_when_many_vectors_are_gone(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(vectors, "EXACT", 100)
    index = VectorIndex(8)
    index.add(unit(600, 8, 0))
    before = index.graph
    index.remove(np.arange(100))
    assert index.graph is before
    index.remove(np.arange(100, 300))
    assert index.graph is not before and (index.search(unit(20, 8, 1), 5)[0] >= 300).all()


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_and_state_make_the_same_index(dtype, graph, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(vectors, "EXACT", 50)
    index, queries = VectorIndex(8, dtype=dtype, graph=graph), unit(30, 8, 1)
    index.add(unit(500, 8, 0))
    index.remove(np.arange(5))
    again = VectorIndex.restore(index.state(), {name: part.copy() for name, part in index.arrays().items()})
    np.testing.assert_array_equal(again.search(queries, 5)[0], index.search(queries, 5)[0])
    assert len(again) == 495 and again.recall == index.recall
    again.add(unit(3, 8, 3))
    assert again.search(unit(3, 8, 3), 1)[0].ravel().tolist() == [500, 501, 502]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("vectors", lambda a: a[:-1]),
        ("scales", lambda a: a[:-1]),
        ("graph.neighbors", lambda a: np.full_like(a, 10**6)),
        ("graph.neighbors", lambda a: a[:-1]),
        ("graph.neighbors", lambda a: np.where(a >= 0, len(a) % 300, a).astype(a.dtype)),
        ("graph.levels", lambda a: np.full_like(a, 90)),
        ("graph.offsets", lambda a: a[::-1].copy()),
        ("graph.entry", lambda a: np.array([10**7, 2])),
        ("graph.entry", lambda a: a + np.array([0, 40])),
    ],
)
def test_arrays_that_are_no_graph_are_refused(name, change, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(vectors, "EXACT", 50)
    index = VectorIndex(8)
    index.add(unit(3000, 8, 0))
    arrays = {key: part.copy() for key, part in index.arrays().items()}
    with pytest.raises(ValueError, match="index"):
        VectorIndex.restore(index.state(), arrays | {name: change(arrays[name])})


def test_vectors_that_come_in_parts_are_those_that_come_at_once(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(vectors, "EXACT", 300)
    every, parts = VectorIndex(8), VectorIndex(8)
    values = unit(2000, 8, 0)
    every.add(values)
    for start in range(0, 2000, 90):
        parts.add(values[start : start + 90])
    assert np.array_equal(parts.values, every.values) and len(parts) == 2000
    assert parts.arrays()["vectors"].shape == (2000, 8)
    positions, _ = parts.search(values[:5], 1)
    assert positions[:, 0].tolist() == list(range(5))


def test_the_recall_is_measured_again_when_the_index_has_grown(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(vectors, "EXACT", 300)
    index = VectorIndex(32)
    index.add(unit(400, 32, 0))
    sizes = []
    monkeypatch.setattr(type(index.graph), "tune", lambda self, queries, exact: sizes.append(len(self)) or 0.5)
    index.add(unit(30, 32, 1))
    index.settle()
    assert sizes == [] and index.recall > 0.5
    index.add(unit(100, 32, 2))
    index.settle()
    index.settle()
    assert sizes == [530] and index.recall == 0.5
