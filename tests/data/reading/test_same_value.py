"""The same cells in other formats and resolutions are read as the same values."""

import datetime as dt

import pyarrow as pa
import pytest

from fusetune.data.table import Table

pandas = pytest.importorskip("pandas")
WHEN = ["2020-03-14 08:30:00.5", "1999-12-31 23:59:59", None]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_times_of_every_resolution(unit):
    stamps = pandas.Series(pandas.to_datetime(WHEN, format="ISO8601")).astype(f"datetime64[{unit}]")
    frame = pandas.DataFrame({"a": stamps, "b": stamps.astype(object)})
    table = Table.read(frame)
    assert table.cells("a") == WHEN
    assert table.cells("b") == WHEN
    assert Table.read(pa.table({"a": pa.array(stamps.tolist()[:2], pa.timestamp(unit))})).cells("a") == WHEN[:2]


def test_times_with_a_zone_and_times_of_day():
    zone = dt.timezone(dt.timedelta(hours=2))
    moment = dt.datetime(2020, 3, 14, 8, 30, tzinfo=zone)
    arrow = Table.read(pa.table({"a": pa.array([moment], pa.timestamp("ns", "+02:00"))})).cells("a")[0]
    assert arrow.startswith("2020-03-14 08:30:00+02")
    assert Table.read(pa.table({"a": pa.array([dt.time(8, 30)], pa.time64("ns"))})).cells("a") == ["08:30:00"]
    records = Table.from_records([{"a": dt.time(8, 30), "b": dt.date(2020, 3, 14), "c": dt.timedelta(minutes=1.5)}])
    assert records.row(0) == {"a": "08:30:00", "b": "2020-03-14", "c": 90.0}


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_durations_are_seconds(unit):
    waits = pandas.Series(pandas.to_timedelta([90, 3600], unit="s")).astype(f"timedelta64[{unit}]")
    table = Table.read(pandas.DataFrame({"a": waits, "b": waits.astype(object)}))
    assert table.cells("a") == table.cells("b") == [90.0, 3600.0]
    nested = pa.array([[dt.timedelta(seconds=90)]], pa.list_(pa.duration(unit)))
    assert Table.read(pa.table({"a": nested})).cells("a") == [[90.0]]


def test_a_row_with_half_a_character_is_rejected_alone():
    cells = ["whole", "cut \ud83d", "whole too"]
    for table in (
        Table.read(pandas.DataFrame({"n": [1, 2, 3], "a": pandas.Series(cells, dtype=object)})),
        Table.from_records([{"n": place, "a": [cell]} for place, cell in enumerate(cells)]),
    ):
        assert table.rows.tolist() == [0, 2] and len(table) == 2
        assert [(item.row, item.column) for item in table.rejected] == [(1, "a")]
        assert "half a character" in table.rejected[0].why


def test_names_of_a_list_of_class_labels():
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"y": datasets.Sequence(label), "z": label})
    data = datasets.Dataset.from_dict({"y": [[0, 1], [], None], "z": [1, -1, 0]}, features=features)
    table = Table.read(data)
    assert table.cells("y")[:2] == [["cat", "dog"], []]
    assert table.cells("z") == ["dog", None, "cat"]


def test_numbers_with_exponents_are_quantities():
    from fusetune.data.schema import Schema

    for form in ("{:.18e}", "{:.3E}", "{:.6f}"):
        rows = [{"a": form.format(place * 0.37 % 1 + 1e-7), "y": place % 2} for place in range(100)]
        assert Schema.detect(Table.from_records(rows), ["y"]).columns["a"].role == "input"
