"""Predictions as a table: columns, order, errors, and the files they are written to."""

from __future__ import annotations

import csv
import json
import tracemalloc
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fusetune import api
from fusetune.data.quarantine import Rejected
from fusetune.data.table import Table
from fusetune.deploy import tuned
from fusetune.deploy.predictions import Predictions, write
from fusetune.deploy.tuned import predict, predict_parts, read_examples
from fusetune.errors import ConfigError, StorageError, TableError

ROW = {"note": "w1 w2", "photo": None, "voice": None, "price": 3.0, "plan": "pro"}


def test_columns_are_row_prediction_probabilities_and_error(fitted):
    found = fitted.predict(Table.from_records([ROW, {**ROW, "price": "x"}]))
    assert found.table.column_names == ["row", "label", "label_probability", "label:no", "label:yes", "error"]
    assert found["row"] == [0, 1] and found["error"][0] is None
    assert found.num_errors == 1 and "1 with an error" in repr(found)
    for place in range(2):
        no, yes = found["label:no"][place], found["label:yes"][place]
        assert no + yes == pytest.approx(1)
        assert found["label"][place] == ("yes" if yes > no else "no")
        assert found["label_probability"][place] == pytest.approx(max(no, yes))


def test_rejected_rows_stand_where_they_came(fitted):
    rows = Table.from_records([ROW] * 3)
    table = Table(
        rows.arrow, source="t", base_dir=rows.base_dir, rows=pa.array([0, 2, 4]).to_numpy(),
        rejected=[Rejected(3, None, "a,b", "too many fields"), Rejected(1, None, "x", "too few fields")],
    )  # fmt: skip
    found = predict(fitted.bundle, table)
    assert found["row"] == [0, 1, 2, 3, 4]
    assert found["error"] == [None, "too few fields", None, "too many fields", None]
    assert [label is None for label in found["label"]] == [False, True, False, True, False]


def test_several_bad_cells_are_all_told_once(fitted):
    table = Table.from_records([{**ROW, "price": "x", "photo": "nowhere.png"}] * 2).select([0, 1, 1])
    found = fitted.predict(table)
    assert found["row"] == [0, 1, 1]
    assert len(set(found["error"][1:])) == 1
    note = found["error"][1]
    assert note.count("'price'") == note.count("'photo'") == 1 and note.count("predicted without it") == 2


def test_progress_is_passed_on(fitted):
    told = []

    def progress(steps, what, total):
        told.append(what)
        yield from steps

    predict(fitted.bundle, Table.from_records([ROW]), progress=progress)
    assert "predicting" in told and "reading note" in told


def test_parts_are_the_whole_in_order(fitted, tmp_path):
    rng = np.random.default_rng(0)
    records = [{**ROW, "price": int(price), "plan": rng.choice(["basic", "team"])} for price in rng.integers(0, 90, 25)]
    records[11] = dict.fromkeys(ROW)  # nothing to predict from
    rejected = [Rejected(row, None, "a,b", "too many fields") for row in (0, 13, 27)]
    ids = np.asarray([row for row in range(28) if row not in (0, 13, 27)])
    rows = Table.from_records(records)
    table = Table(rows.arrow, source="t", base_dir=rows.base_dir, rows=ids, rejected=rejected)
    whole = predict(fitted.bundle, table)
    parts = list(predict_parts(fitted.bundle, table, rows=4))
    assert [len(part) for part in parts] == [5, 4, 5, 4, 4, 4, 2] and sum(map(len, parts)) == len(whole) == 28
    assert whole["row"] == list(range(28)) and whole.num_errors == 4
    for ending in (".csv", ".jsonl", ".parquet"):
        assert write(predict_parts(fitted.bundle, table, rows=4), tmp_path / f"o{ending}", ending) == (28, 4)
    written = pq.read_table(tmp_path / "o.parquet")
    assert written.schema == whole.table.schema
    for name in whole.table.column_names:
        cells = zip(whole[name], written.column(name).to_pylist(), strict=True)
        assert all(a == b or a == pytest.approx(b, abs=1e-5) for a, b in cells), name
    lines = (tmp_path / "o.jsonl").read_text().splitlines()
    assert [json.loads(line)["label"] for line in lines] == whole["label"]
    with (tmp_path / "o.csv").open(newline="") as file:
        assert [line["label"] or None for line in csv.DictReader(file)] == whole["label"]


def test_a_table_without_a_row_to_predict_has_all_columns(fitted):
    found = predict(fitted.bundle, Table.from_records([dict.fromkeys(ROW)]))
    assert found.table.schema == predict(fitted.bundle, Table.from_records([ROW])).table.schema
    assert found["label"] == [None] and found.num_errors == 1


def test_an_interrupted_file_is_not_there(found, tmp_path):
    (tmp_path / "o.csv").write_text("what was there")

    def parts():
        yield found
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(parts(), tmp_path / "o.csv", ".csv")
    assert (tmp_path / "o.csv").read_text() == "what was there" and len(list(tmp_path.iterdir())) == 1


def test_bf16_is_near(fitted):
    table = Table.from_records([ROW, {**ROW, "price": 80}])
    exact, near = fitted.predict(table)["label:yes"], fitted.predict(table, precision="bf16")["label:yes"]
    assert exact != near and exact == pytest.approx(near, abs=0.05)


@pytest.mark.skipif(not tuned.has_int8(), reason="the processor has no AVX512-VNNI")
def test_int8_is_near_in_a_batch_and_alone(fitted):
    rows = [{**ROW, "note": f"w{n} w{n + 1}", "price": 10 * n} for n in range(6)]
    exact, near = (fitted.predict(Table.from_records(rows), precision=p)["label:yes"] for p in ("float32", "int8"))
    assert exact != near and exact == pytest.approx(near, abs=0.05)
    alone = [fitted.predict(Table.from_records([row]), precision="int8")["label:yes"][0] for row in rows]
    assert alone == pytest.approx(near, abs=0.01)
    assert fitted.predict(Table.from_records(rows))["label:yes"] == pytest.approx(exact, abs=1e-6)


@pytest.mark.skipif(not tuned.has_int8(), reason="the processor has no AVX512-VNNI")
def test_layers_are_made_once_for_int8_until_the_weights_change(fitted, monkeypatch):
    table, made, make = Table.from_records([ROW]), [], tuned.in_int8
    monkeypatch.setattr(tuned, "in_int8", lambda encoder: made.append(1) or make(encoder))
    monkeypatch.setattr(tuned, "_low", WeakKeyDictionary())
    first = fitted.predict(table, precision="int8")["label:yes"]
    num = len(made)
    assert fitted.predict(table, precision="int8")["label:yes"] == first and len(made) == num > 0
    parameters = [one for encoder in fitted.bundle.model.encoders.values() for one in encoder.parameters()]
    before = [one.detach().clone() for one in parameters]
    with torch.no_grad():
        for one in parameters:
            one.mul_(1.5)
        changed = fitted.predict(table, precision="int8")["label:yes"]
        for one, value in zip(parameters, before, strict=True):
            one.copy_(value)
    assert len(made) == 2 * num and changed != first
    assert fitted.predict(table, precision="int8")["label:yes"] == first


def test_int8_is_refused_where_it_cannot_be(fitted, monkeypatch):
    table = Table.from_records([ROW])
    monkeypatch.setattr(tuned, "num_linear", lambda encoder: 0)
    monkeypatch.setattr(tuned, "has_int8", lambda: True)
    with pytest.raises(ConfigError, match="int8 would change nothing"):
        fitted.predict(table, precision="int8")
    monkeypatch.setattr(tuned, "has_int8", lambda: False)
    with pytest.raises(ConfigError, match="a processor without it"):
        fitted.predict(table, precision="int8")
    monkeypatch.setattr(tuned, "model_device", lambda model: torch.device("cuda"))
    with pytest.raises(ConfigError, match="a model on cuda"):
        fitted.evaluate(table, precision="int8")


def test_memory_does_not_grow_with_the_table(fitted, tmp_path):
    peaks = []
    for rows in (24, 96):
        table = Table.from_records([{**ROW, "note": f"w{n} " + "w1 " * 40_000} for n in range(rows)])
        tracemalloc.start()
        write(predict_parts(fitted.bundle, table, rows=8), tmp_path / "o.csv", ".csv")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] > 8 * 120_000 and peaks[1] < 1.5 * peaks[0]


@pytest.fixture
def found():
    return Predictions(
        pa.table(
            {"row": [0, 1], "tags": [["a", 'é,"'], None], "p": [0.5, None], "error": [None, "column 'x': no\nway"]}
        )
    )


def test_csv(found, tmp_path):
    found.to_csv(tmp_path / "o.csv")
    with (tmp_path / "o.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert json.loads(first["tags"]) == ["a", 'é,"'] and float(first["p"]) == 0.5
    assert second["error"] == "column 'x': no\nway" and second["p"] == ""


def test_missing_lists_are_empty_cells_in_csv(found, tmp_path):
    found.to_csv(tmp_path / "o.csv")
    with (tmp_path / "o.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file))[1]["tags"] == ""


def test_parquet_jsonl_and_pandas(found, tmp_path):
    found.to_parquet(tmp_path / "o.parquet")
    assert pq.read_table(tmp_path / "o.parquet").equals(found.table)
    found.to_jsonl(tmp_path / "o.jsonl")
    lines = (tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == found.table.to_pylist()
    assert found.to_pandas()["row"].tolist() == [0, 1]


def test_a_place_that_cannot_be_written(found, tmp_path):
    with pytest.raises(StorageError, match="nowhere"):
        found.to_csv(tmp_path / "nowhere" / "o.csv")


def test_missing_columns_and_targets(fitted):
    without = {name: value for name, value in ROW.items() if name != "voice"}
    with pytest.raises(TableError, match="'voice'"):
        read_examples(fitted.bundle, Table.from_records([without]), targets=False)
    with pytest.raises(TableError, match="'label'"):
        read_examples(fitted.bundle, Table.from_records([ROW]), targets=True)
    with pytest.raises(TableError, match="no row has a target"):
        fitted.evaluate(Table.from_records([{**ROW, "label": None}]))


@pytest.mark.parametrize("target", ["row", "error", 2, ("a", "b")])
def test_targets_of_any_name_keep_it_in_the_predictions(target, tmp_path):
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame({"x": rng.random(60), 7: rng.choice(["u", "v"], 60)})
    frame = pandas.concat([frame, pandas.Series(rng.choice(["yes", "no"], 60)).rename(target)], axis=1)
    frame.columns = pandas.Index(["x", 7, target], tupleize_cols=False)
    config = {"trainer": {"epochs": 0, "head_epochs": 2, "trackers": []}, "report": {"bootstrap": 0, "alone": "none"}}
    model = api.fit(frame, target=target, config=config, out=tmp_path / "m", progress=False)
    found = model.predict(frame[:5])
    assert set(found[str(target)]) <= {"yes", "no"}
    names = found.table.column_names
    assert found[names[0]] == [0, 1, 2, 3, 4] and found[names[-1]] == [None] * 5 and found.num_errors == 0
