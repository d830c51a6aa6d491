"""Tables at addresses: copied whole, known by their content, and plain words where that cannot be."""

from __future__ import annotations

import hashlib
import os
import sys

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusetune import api
from fusetune.data.schema import Schema
from fusetune.data.table import Table
from fusetune.errors import MissingExtra, SchemaError, TableError


@pytest.fixture
def shelf():
    """A bucket in memory, empty before and after."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def put(shelf, name: str, content: bytes) -> str:
    with shelf.open(name, "wb") as file:
        file.write(content)
    return f"memory:/{name}"


def parquet(columns) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def test_a_file_at_an_address_is_the_table_and_its_sum_is_noted(shelf, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    content = b"a,b\n1,x\n2,y\n"
    address = put(shelf, "/shop/rows.csv", content)
    table = Table.read(address)
    assert table.source == address and table.cells("b") == ["x", "y"] and table.file_and_row(1) == (address, 1)
    assert table.notes == [f"copied from its address: 12 bytes, SHA-256 {hashlib.sha256(content).hexdigest()}"]
    assert not list(tmp_path.rglob("*.csv")), "only the Arrow form is kept"
    part = table.select([1])
    del table
    assert part.cells("a") == ["2"] and part.lone
    del part
    assert not list(tmp_path.iterdir()), "and that is gone with the last table"


def test_a_folder_at_an_address_is_one_table_in_the_order_of_names(shelf):
    for number in (2, 0, 1):
        put(shelf, f"/shop/part-{number}.parquet", parquet({"a": [number, number]}))
    put(shelf, "/shop/readme.txt", b"not a table")
    table = Table.read("memory://shop")
    assert table.cells("a") == [0, 0, 1, 1, 2, 2]
    assert table.file_and_row(3) == ("memory:///shop/part-1.parquet", 1)
    assert len(table.notes) == 3 and "part-2.parquet: copied" in table.notes[2]


@pytest.mark.parametrize("ending", ["arrow", "feather"])
def test_an_arrow_file_is_mapped_from_the_copy(shelf, ending):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, pa.schema({"a": pa.int64()})) as writer:
        writer.write_table(pa.table({"a": [1, 2, 3]}))
    assert Table.read(put(shelf, f"/rows.{ending}", sink.getvalue().to_pybytes())).cells("a") == [1, 2, 3]


def test_a_file_address_is_read_where_it_lies(tmp_path):
    path = tmp_path / "my rows.csv"
    path.write_text("a\n1\n")
    table = Table.read(f"file://{str(path).replace(' ', '%20')}")
    assert table.source == str(path) and table.base_dir == tmp_path and not table.notes and not table.lone


@pytest.mark.parametrize(
    ("address", "error", "says"),
    [
        (
            "memory://nothing/rows.csv",
            TableError,
            r"(?s)memory://nothing/rows.csv.*FileNotFound.*check the address",
        ),
        ("memory://shop/rows.xlsx", TableError, r"(?s)not read from '.xlsx' files.*\.csv"),
        ("nosuch://a/b.csv", TableError, r"(?s)no such kind of address.*nosuch://a/b.csv"),
    ],
)
def test_what_cannot_be_read_is_said(shelf, address, error, says):
    with pytest.raises(error, match=says):
        Table.read(address)


def test_a_folder_of_several_kinds_or_none_is_refused(shelf):
    put(shelf, "/mixed/a.csv", b"a\n1\n")
    put(shelf, "/mixed/b.jsonl", b'{"a": 1}\n')
    with pytest.raises(TableError, match=r"(?s)not the parts of one table.*a.csv, b.jsonl"):
        Table.read("memory://mixed")


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtra, match=r"(?s)s3://bucket/a.parquet.*[Ii]nstall s3fs"):
        Table.read("s3://bucket/a.parquet")


def test_an_error_in_the_table_names_the_address_not_the_copy(shelf):
    with pytest.raises(TableError) as caught:
        Table.read(put(shelf, "/broken.parquet", b"PAR1 and no more"))
    assert str(caught.value).startswith("memory://broken.parquet") and "fusetune-table" not in str(caught.value)


def test_media_beside_the_table_are_refused_unless_they_are_here(shelf, shop):
    folder, rows = shop
    address = put(
        shelf,
        "/shop.csv",
        b"photo,label\n" + b"".join(f"{row['photo']},{row['label']}\n".encode() for row in rows[:60]),
    )
    with pytest.raises(SchemaError, match=r"(?s)files beside the table.*copy table and files here"):
        Schema.detect(Table.read(address), ["label"])
    assert Schema.detect(Table.read(address, base_dir=folder), ["label"]).columns["photo"].kind == "image"
    left_out = Schema.detect(Table.read(address), ["label"], {"photo": {"role": "ignore"}})
    assert left_out.inputs == []


def test_a_fit_from_an_address_says_what_it_read_and_gives_the_same_model(shelf, shop, write_csv, tmp_path, quick):
    path = write_csv(tmp_path / "rows.csv", shop[1], ["price", "plan", "label"])
    address = put(shelf, "/rows.csv", path.read_bytes())
    here = api.fit(str(path), target="label", out=tmp_path / "here", config=quick, progress=False)
    there = api.fit(address, target="label", out=tmp_path / "there", config=quick, progress=False)
    assert here.bundle.fingerprint == there.bundle.fingerprint
    assert any(warning.startswith(f"{address}: copied from its address") for warning in there.results.warnings)
    assert not any("copied" in warning for warning in here.results.warnings)
    assert there.results.tables[0].file == address
    assert (tmp_path / "there" / "rejected.jsonl").is_file() and os.listdir(tmp_path / "there")
