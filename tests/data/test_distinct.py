"""Arrow cells told apart as Python tells them apart."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusetune.data import distinct as module
from fusetune.data.distinct import cell_key, is_missing, keys_in, missing_in, numbered
from fusetune.data.table import Table

SPACES = [
    "",
    " ",
    "\t\n",
    "\x1c",
    "\x1f",
    "\x85",
    "\u00a0",
    "\u2003 ",
    "\u200b",
    "\ufeff",
    " x",
    "\x7f",
    "é",
    "none",
    "0",
]
COLUMNS = {
    "text": st.sampled_from([None, *SPACES, "a", "b", "ab"]),
    "whole": st.sampled_from([None, 0, 1, -1, 2**62, -(2**63)]),
    "float": st.sampled_from([None, 0.0, -0.0, 1.5, float("nan"), float("inf"), 5e-324]),
    "truth": st.sampled_from([None, True, False]),
    "bytes": st.sampled_from([None, b"", b" ", b"x", b"\x00"]),
    "mixed": st.sampled_from([None, 1, 1.0, True, "1", " ", 0.0, -0.0, "true", 2**80]),
    "lists": st.sampled_from([None, [], ["a"], ["a", "b"], ["b", "a"]]),
    "media": st.sampled_from(
        [None, {"bytes": b"1", "path": None}, {"bytes": None, "path": None}, {"bytes": b"1", "path": "x"}]
    ),
}


def plain(cells):
    """The rule in Python: each distinct cell's number in the order of first rows, and these rows."""
    places, firsts, codes = {}, [], []
    for row, cell in enumerate(cells):
        if is_missing(cell):
            codes.append(-1)
            continue
        code = places.setdefault(cell_key(cell), len(places))
        firsts += [row] if code == len(firsts) else []
        codes.append(code)
    return codes, firsts


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_every_sort_of_column_is_told_apart_as_python_does(data):
    sort = data.draw(st.sampled_from(sorted(COLUMNS)))
    cells = data.draw(st.lists(COLUMNS[sort], min_size=1, max_size=40))
    table = Table.from_records([{"x": cell, "row": row} for row, cell in enumerate(cells)])
    if data.draw(st.booleans()):
        chosen = data.draw(st.lists(st.integers(0, len(cells) - 1), min_size=1, max_size=40))
        table = table.select(chosen)
    seen = table.cells("x")
    codes, firsts = table.distinct("x")
    assert (codes.tolist(), firsts.tolist()) == plain(seen)
    assert table.missing("x").tolist() == [is_missing(cell) for cell in seen]
    lazy = table.lazy("x", firsts)
    assert repr(list(lazy)) == repr([seen[row] for row in firsts]) and len(lazy) == len(firsts)


def test_chunks_and_slices_do_not_matter():
    cells = [f"w{place % 7}" if place % 5 else None for place in range(200)]
    chunked = pa.chunked_array(
        [pa.array(cells[:3]), pa.array([], pa.string()), pa.array(cells)[3:150], pa.array(cells[150:])]
    )
    table = Table.read(pa.table({"x": chunked}))
    table_codes, firsts = table.distinct("x")
    assert (table_codes.tolist(), firsts.tolist()) == plain(cells)
    backwards = np.arange(199, -1, -1)
    assert table.select(backwards).distinct("x")[0].tolist() == plain(cells[::-1])[0]
    assert table.lazy("x").take([150, 2, 1, 150]) == [cells[150], cells[2], cells[1], cells[150]]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_wide_offsets_and_empty_arrays(kind):
    array = pa.array(["a", "b", "a", None], pa.string()).cast(kind)
    numbers, _ = numbered(keys_in(array.slice(0, 3), False))
    assert numbers.tolist() == [0, 1, 0]
    assert missing_in(array.slice(2), False).tolist() == [False, True]
    assert keys_in(array.slice(4), False).shape == (0, 2) and missing_in(array.slice(4), False).shape == (0,)


def test_more_rows_than_a_piece_are_numbered_alike(monkeypatch):
    monkeypatch.setattr("fusetune.data.storage.mapped.PIECE_ROWS", 7)
    keys = np.random.default_rng(0).integers(0, 9, (100, 2)).astype(np.uint64)
    numbers, firsts = numbered(keys)
    places = {}
    assert numbers.tolist() == [places.setdefault(tuple(key), len(places)) for key in keys.tolist()]
    assert [tuple(key) for key in keys[firsts].tolist()] == list(places)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_keys_whose_mixtures_are_equal_are_told_apart(monkeypatch, kept):
    mixed = module._mixed
    monkeypatch.setattr(module, "_mixed", lambda keys, bits: mixed(keys, bits) & kept)
    monkeypatch.setattr("fusetune.data.storage.mapped.PIECE_ROWS", 7)
    keys = np.random.default_rng(0).integers(0, 6, (100, 2)).astype(np.uint64)
    numbers, firsts = numbered(keys)
    places = {}
    assert numbers.tolist() == [places.setdefault(tuple(key), len(places)) for key in keys.tolist()]
    assert [tuple(key) for key in keys[firsts].tolist()] == list(places)
