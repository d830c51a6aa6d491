"""Rows as batches: each distinct cell once, bad cells set apart or masked, nothing lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusetune.data.distinct import cell_key
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.modalities.category import CategoryModality
from fusetune.modalities.number import NumberModality
from fusetune.tasks.classes.classification import BinaryTask
from fusetune.tasks.regression import RegressionTask
from fusetune.types import Tokens

RECORDS = [
    {"price": "1", "plan": "a", "weight": "1", "label": "yes", "rating": "1.5"},
    {"price": "2", "plan": "b", "weight": "2", "label": "no", "rating": ""},
    {"price": "1", "plan": "", "weight": "", "label": "yes", "rating": "2.5"},
    {"price": "oops", "plan": "a", "weight": "1", "label": "no", "rating": "0"},
    {"price": "", "plan": "", "weight": "1", "label": "no", "rating": "0"},
    {"price": "3", "plan": "a", "weight": "-1", "label": "yes", "rating": "0"},
    {"price": "1", "plan": "b", "weight": "0", "label": "", "rating": "7"},
]


def make(records=RECORDS, *, on_bad_cell="reject", weight="weight", memory=1.0, progress=None) -> Examples:
    table = Table.from_records(records)
    modalities = {"price": NumberModality("price", bins=0), "plan": CategoryModality("plan", min_count=1)}
    tasks = {"label": BinaryTask("label"), "rating": RegressionTask("rating")}
    examples = Examples(table, modalities, tasks, weight=weight)
    examples.prepare(on_bad_cell=on_bad_cell, memory=memory, progress=progress)
    if len(examples) > 1:
        examples.fit()
    return examples


def test_every_row_is_used_or_rejected_with_its_reason():
    examples = make()
    assert examples.used.tolist() == [0, 1, 2, 6]
    rejected = {item.row: item for item in examples.rejected}
    assert rejected.keys() == {3, 4, 5} and len(examples.rejected) == 3
    assert (rejected[3].column, rejected[3].value) == ("price", "oops")
    assert (rejected[4].column, rejected[4].why) == (None, "no input column has a value")
    assert (rejected[5].column, rejected[5].value) == ("weight", "-1")


def test_masking_takes_a_bad_cell_as_missing_and_notes_it():
    examples = make(on_bad_cell="mask")
    assert examples.used.tolist() == [0, 1, 2, 3, 6]
    assert [(item.row, item.column) for item in examples.masked] == [(3, "price")]
    assert examples.batch([3]).present["price"].tolist() == [False]
    assert examples.batch([3]).present["plan"].tolist() == [True]


def test_a_row_whose_only_cells_are_bad_is_rejected_when_masking_too():
    examples = make([{"price": "x", "plan": None, "label": "a", "rating": 1}, RECORDS[0]], on_bad_cell="mask")
    assert examples.used.tolist() == [1]
    assert [item.row for item in examples.rejected] == [0]


def test_row_ids_are_the_sources_not_the_places():
    table = Table.from_records(RECORDS).select([3, 5, 1])
    examples = Examples(table, {"price": NumberModality("price")}, {}, weight="weight")
    examples.prepare(on_bad_cell="reject")
    assert [item.row for item in examples.rejected] == [3, 5]
    assert examples.batch(examples.used).rows.tolist() == [1]


def test_weights_are_1_where_missing():
    assert make().batch([0, 1, 2, 6]).weights.tolist() == [1, 2, 1, 0]
    assert make(weight=None).batch([0, 1, 5]).weights.tolist() == [1, 1, 1]


def test_equal_cells_are_encoded_once_and_absent_ones_not_at_all():
    examples = make()
    batch = examples.batch([6, 2, 1, 0])
    assert batch.inputs["price"]["values"].shape == (2, 1)
    assert batch.cells["price"].tolist() == [0, 0, 1, 0]
    assert batch.cells["plan"].tolist() == [1, -1, 1, 0]
    assert batch.inputs["plan"]["values"].shape[0] == 2
    assert examples.batch([2]).inputs["plan"] == {}
    assert batch.targets["label"].labelled.tolist() == [False, True, True, True]
    assert batch.targets["rating"].labelled.tolist() == [True, True, False, True]


def test_features_stand_in_for_tensors_in_the_cells_order():
    examples = make()
    column = examples.columns["price"]
    values = torch.arange(len(column.cells) * 6.0).view(-1, 3, 2)
    real = torch.arange(3) <= torch.arange(len(column.cells)).unsqueeze(1)  # cell 0 has one token, cell 1 has two, ...
    batch = examples.given(features={"price": Tokens(values, real)}).batch([1, 0, 2])
    codes = torch.from_numpy(column.codes[[1, 0, 2]])
    assert codes.tolist() == [1, 0, 0]
    given = batch.inputs["price"]
    assert torch.equal(given["features"][batch.cells["price"]], values[codes, :2])  # no longer than these cells need
    assert torch.equal(given["real"][batch.cells["price"]], real[codes, :2])


def test_fitting_sees_used_rows_only():
    examples = make()
    assert examples.columns["price"].modality.mean == pytest.approx(np.mean([1, 2, 1, 1]))
    assert examples.tasks["label"].counts == [1, 2]


def test_a_target_that_cannot_be_encoded_rejects_its_row():
    train = make(RECORDS[:3], weight=None)
    table = Table.from_records([{**RECORDS[0], "label": "maybe"}, RECORDS[0], {**RECORDS[0], "label": ""}])
    examples = Examples(table, {name: c.modality for name, c in train.columns.items()}, train.tasks)
    examples.prepare(on_bad_cell="mask")
    examples.check_targets()
    assert examples.used.tolist() == [1, 2]
    assert [(item.row, item.column, item.value) for item in examples.rejected] == [(0, "label", "maybe")]
    assert examples.labelled("label").tolist() == [1]


def test_restricted_rows_share_cells_and_leave_out_rows_without_them():
    examples = make()
    view = examples.restrict(["plan"])
    assert view.used.tolist() == [0, 1, 6] and examples.used.tolist() == [0, 1, 2, 6]
    assert view.columns["plan"] is examples.columns["plan"] and list(view.columns) == ["plan"]


def test_no_memory_for_cells_gives_the_same_batches():
    kept, read_again = make(), make(memory=0.0)
    assert len(read_again.columns["price"]._cache) == 0 < len(kept.columns["price"]._cache)
    for name, tensors in kept.batch([0, 1, 2]).inputs.items():
        assert torch.equal(tensors["values"], read_again.batch([0, 1, 2]).inputs[name]["values"])


def test_progress_sees_every_distinct_cell():
    told = []

    def progress(steps, what, total):
        count = 0
        for step in steps:
            count += 1
            yield step
        told.append((what, total, count))

    make(progress=progress)
    assert told == [("reading price", 4, 4), ("reading plan", 2, 2)]


def test_keys_tell_types_apart_and_match_equal_cells():
    cells = [1, 1.0, True, "1", b"1", ["1"], {"bytes": b"1", "path": None}]
    assert len({cell_key(cell) for cell in cells}) == len(cells)
    assert cell_key({"path": None, "bytes": b"1"}) == cell_key(cells[-1])
    assert cell_key(["a", "b"]) == cell_key(["a", "b"]) != cell_key(["b", "a"])


def test_sizes_add_up_over_columns():
    assert make().sizes(np.asarray([0, 2])).tolist() == [2, 1]


def test_modalities_learn_some_rows_at_a_time(monkeypatch):
    whole = make()
    whole.fit()
    monkeypatch.setattr("fusetune.data.column.ROWS_A_CHUNK", 1)
    monkeypatch.setattr("fusetune.data.storage.mapped.PIECE_ROWS", 2)
    again = make(memory=0.0)
    again.fit()
    for name, column in whole.columns.items():
        assert again.columns[name].modality.state() == column.modality.state()
    assert again.used.tolist() == whole.used.tolist()
    assert [item.record() for item in again.rejected] == [item.record() for item in whole.rejected]
