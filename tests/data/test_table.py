import csv
import gc
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusetune.data.table import Table, is_missing
from fusetune.errors import TableError, TooManyRejected

WILD = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "NA",
        "null",
        "nan",
        "00501",
        "1e5",
        "",
        " ",
        '"',
        "a,b",
        "x\r\ny",
        "\r",
        "\x00",
        "😀",
        "مرحبا",
        "\u2028",
        "\ufeff",
    ]
)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@given(rows=st.lists(st.tuples(WILD, WILD, WILD), min_size=1, max_size=8), delimiter=st.sampled_from([",", "\t"]))
@QUICK
def test_delimited_cells_come_back_as_written(tmp_path, rows, delimiter):
    text = io.StringIO(newline="")
    # A quoted third column keeps rows of three empty cells apart from blank lines.
    csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([("a", "b", "c"), *rows])
    table = Table.read(write(tmp_path / ("t.csv" if delimiter == "," else "t.tsv"), text.getvalue()))
    assert list(zip(*(table.cells(name) for name in "abc"), strict=True)) == rows
    assert table.rejected == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WILD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WILD, inner, max_size=2),
    max_leaves=5,
)


@given(
    rows=st.lists(st.fixed_dictionaries({"a": JSON}, optional={"b": JSON}), min_size=1, max_size=8), ascii=st.booleans()
)
@QUICK
def test_json_cells_come_back_as_written(tmp_path, rows, ascii):
    path = write(tmp_path / "t.jsonl", "".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in rows))
    table = Table.read(path)
    for name in table.column_names:
        came, want = table.cells(name), [row.get(name) for row in rows]
        assert came == want
        assert [type(cell) for cell in came] == [type(cell) for cell in want]


def test_json_keeps_integers_beyond_2_53_and_beyond_64_bits(tmp_path):
    numbers = [2**53 + 1, 2**63 - 1, -(2**63)]
    assert Table.read(write(tmp_path / "a.jsonl", "".join(f'{{"n": {n}}}\n' for n in numbers))).cells("n") == numbers
    assert Table.read(write(tmp_path / "b.jsonl", f'{{"n": {10**40}}}\n{{"n": 1}}\n')).cells("n") == [10**40, 1]


def test_json_lines_that_are_no_rows_are_rejected_with_their_numbers(tmp_path):
    lines = ['{"a": 1}', "", "{", '{"a": 1, "a": 2}', "3", '{"a": "\\ud800"}', '{"a": ' + "[" * 100_000, '{"a": 7}']
    table = Table.read(write(tmp_path / "t.jsonl", "\n".join(lines)))
    assert table.cells("a") == [1, 7]
    assert table.rows.tolist() == [0, 6]
    assert [item.row for item in table.rejected] == [1, 2, 3, 4, 5]
    whys = [item.why for item in table.rejected]
    for why, part in zip(
        whys, ["not JSON", "'a' appears twice", "not a JSON object", "surrogate", "nested"], strict=True
    ):
        assert part in why
    assert "line 3" in whys[0]


def test_rows_with_a_field_too_many_or_few_are_rejected_and_the_others_keep_their_numbers(tmp_path):
    path = write(tmp_path / "t.csv", "a,b\n1,2\n1,2,3\n\n4\n5,6\n")
    table = Table.read(path)
    assert table.rows.tolist() == [0, 3]
    assert table.cells("a") == ["1", "5"]
    assert [(item.row, item.value) for item in table.rejected] == [(1, "1,2,3"), (2, "4")]
    assert table.rejected[0].why == "line 3: 3 fields where the header has 2"
    assert len(table) + len(table.rejected) == 4


def test_an_unclosed_quote_rejects_what_it_swallows_and_says_where_it_opened(tmp_path):
    rows = "".join(f"{n},x\n" for n in range(50))
    table = Table.read(write(tmp_path / "t.csv", "a,b\n" + rows + '50,"never closed\n51,x\n'))
    assert len(table) == 50
    assert [item.row for item in table.rejected] == [50, 51]
    assert "line 52: a quote is opened here and never closed" in table.rejected[0].why
    assert "swallowed by line 52" in table.rejected[1].why


def test_a_stray_quote_in_the_middle_neither_loses_nor_invents_rows(tmp_path):
    table = Table.read(write(tmp_path / "t.csv", 'a,b\n1,"x"y\n2,"open\n3,z\n4,"q"\n5,k\n'))
    assert sorted([*table.rows.tolist(), *(item.row for item in table.rejected)]) == [0, 1, 2, 3, 4]
    assert table.cells("a") == ["5"]


def test_line_endings_quoted_line_breaks_and_nul_bytes(tmp_path):
    table = Table.read(write(tmp_path / "t.csv", 'a,b\r\n1,"x\r\ny"\r\n2,\x00z\r\n'))
    assert table.cells("b") == ["x\r\ny", "\x00z"]


def test_a_megabyte_of_text_in_a_cell(tmp_path):
    long = "ab c" * 262_144
    assert Table.read(write(tmp_path / "t.csv", f'a,b\n"{long}",1\n')).cells("a") == [long]
    assert Table.read(write(tmp_path / "t.jsonl", json.dumps({"a": long}))).cells("a") == [long]
    assert csv.field_size_limit() == 131_072


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_byte_order_marks(tmp_path, encoding, name):
    text = "a,b\né,😀\n" if name == "t.csv" else '{"a": "é", "b": "😀"}\n'
    data = b"\xff\xfe" + text.encode("utf-16-le") if encoding == "utf-16-le-bom" else text.encode(encoding)
    table = Table.read(write(tmp_path / name, data))
    assert table.column_names == ["a", "b"]
    assert (table.cells("a"), table.cells("b")) == (["é"], ["😀"])


@pytest.mark.parametrize("num_before", [0, 3, 5000, 200_000])
def test_wrong_encoding_names_the_byte_and_the_line(tmp_path, num_before):
    good = "a,b\n" + "ä,1\n" * num_before
    data = good.encode() + "38°,2\n".encode("cp1252")
    with pytest.raises(TableError) as caught:
        Table.read(write(tmp_path / "t.csv", data))
    offset = len(good.encode()) + 2
    assert data[offset] == 0xB0
    assert f"byte {offset} (line {num_before + 2}) is not UTF-8" in str(caught.value)
    assert "WINDOWS-1252" in str(caught.value)


def test_wrong_encoding_in_json_and_in_the_last_character(tmp_path):
    with pytest.raises(TableError, match=r"byte 18 \(line 2\) is not UTF-8"):
        Table.read(write(tmp_path / "t.jsonl", b'{"a": "x"}\n{"a": "\xe9"}\n'))
    with pytest.raises(TableError, match="byte 6 "):
        Table.read(write(tmp_path / "t.csv", b"a,b\n1,\xf0\x9f"))


@pytest.mark.parametrize("order", ["le", "be"])
def test_wrong_encoding_counts_the_byte_order_mark(tmp_path, order):
    mark = b"\xff\xfe" if order == "le" else b"\xfe\xff"
    half = "\ud800".encode(f"utf-16-{order}", "surrogatepass")
    data = mark + "a,b\n1,".encode(f"utf-16-{order}") + half + "x\n".encode(f"utf-16-{order}")
    with pytest.raises(TableError, match=r"byte 14 \(line 2\) is not UTF-16"):
        Table.read(write(tmp_path / "t.csv", data))
    with pytest.raises(TableError, match=r"byte 9 \(line 2\) is not UTF-8"):
        Table.read(write(tmp_path / "t.csv", b"\xef\xbb\xbfa,b\n1,\xff\n"))


def test_utf_16_without_a_mark_is_refused(tmp_path):
    with pytest.raises(TableError, match="UTF-16 without a byte order mark"):
        Table.read(write(tmp_path / "t.csv", "a,b\n1,2\n".encode("utf-16-le")))


REFUSED = [
    ("t.csv", "", "empty"),
    ("t.csv", "\ufeff", "empty"),
    ("t.csv", "\n\n", "empty"),
    ("t.csv", "a,b\n", "a header and no row"),
    ("t.csv", "a,a\n1,2\n", "more than once: 'a'"),
    ("t.csv", "a,\n1,2\n", "column 2 of 2 without a name"),
    ("t.csv", 'a,"b\n1,2\n', "the header cannot be read"),
    ("t.jsonl", "\n", "empty"),
    ("t.jsonl", '[{"a": 1}]', "one JSON array"),
    ("t.jsonl", '{"": 1}\n', "without a name"),
    ("t.xlsx", "x", "CSV"),
    ("t.pkl", "x", "can run code"),
    ("t", "x", "no extension"),
    ("t.parquet", "PAR1 no", "cannot be read as Parquet"),
    ("t.arrow", "no", "cannot be read as Arrow"),
    ("t.parquet", "", "0 bytes"),
]


@pytest.mark.parametrize(("name", "content", "message"), REFUSED)
def test_files_that_are_refused_by_name(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(TableError, match=message) as caught:
        Table.read(path)
    assert str(path) in str(caught.value)


def test_a_file_without_one_usable_row_is_refused(tmp_path):
    with pytest.raises(TooManyRejected, match="2 of 2 rows"):
        Table.read(write(tmp_path / "t.csv", "a,b\n1\n2\n"))
    with pytest.raises(TooManyRejected):
        Table.read(write(tmp_path / "t.jsonl", "1\n2\n"))


def test_a_missing_file_is_answered_with_the_nearest_name(tmp_path):
    write(tmp_path / "train.csv", "a\n1\n")
    with pytest.raises(TableError, match=r"did you mean 'train.csv'\?"):
        Table.read(tmp_path / "trian.csv")
    with pytest.raises(TableError, match=r"folder .* is not there either"):
        Table.read(tmp_path / "no" / "train.csv")


def test_a_misspelt_column_is_answered_with_the_nearest(tmp_path):
    table = Table.read(write(tmp_path / "t.csv", "rating,plot\n1,x\n"))
    with pytest.raises(TableError, match=r"did you mean 'rating'\?"):
        table.cells("ratin")
    with pytest.raises(TableError, match=r"'plt'.*\n.*\n.*'plt': did you mean 'plot'"):
        table.require(["ratng", "plt"])


@pytest.mark.parametrize(("delimiter", "word"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")])
def test_a_csv_with_another_delimiter_is_read_by_it_with_a_note(tmp_path, delimiter, word):
    text = "".join(delimiter.join(row) + "\n" for row in [("a", "b"), ("1,5", "x"), ("2,5", "y, z"), ("3",)])
    table = Table.read(write(tmp_path / "t.csv", text))
    assert table.cells("a") == ["1,5", "2,5"]
    assert word in table.notes[0]
    assert len(table.rejected) == 1


def test_one_column_with_semicolons_in_it_stays_one_column(tmp_path):
    table = Table.read(write(tmp_path / "t.csv", "text\nwell; yes\nno\nso; it; goes\n"))
    assert table.column_names == ["text"]
    assert len(table) == 3
    assert table.notes == []


def test_parquet_media_dates_and_categories(tmp_path):
    import datetime
    import decimal

    arrow = pa.table(
        {
            "bytes": pa.array([b"\x00\xff", None]),
            "struct": pa.array([{"bytes": b"a", "path": "x.png"}, {"bytes": None, "path": None}]),
            "list": pa.array([["a.png", "b.png"], []]),
            "big": pa.array([2**63 - 1, None]),
            "day": pa.array([datetime.date(2020, 2, 29), None]),
            "price": pa.array([decimal.Decimal("1.10"), None]),
            "category": pa.array(["u", "v"]).dictionary_encode(),
        }
    )
    pq.write_table(arrow, tmp_path / "t.parquet")
    pa.feather.write_feather(arrow, tmp_path / "t.feather")
    for name in ("t.parquet", "t.feather"):
        table = Table.read(tmp_path / name)
        assert table.row(0) == {
            "bytes": b"\x00\xff",
            "struct": {"bytes": b"a", "path": "x.png"},
            "list": ["a.png", "b.png"],
            "big": 2**63 - 1,
            "day": "2020-02-29",
            "price": "1.10",
            "category": "u",
        }
        assert {name for name in table.column_names if table.missing(name)[1]} == {
            "bytes", "struct", "big", "day", "price",
        }  # fmt: skip
    with pa.OSFile(str(tmp_path / "s.arrow"), "wb") as sink, pa.ipc.new_stream(sink, arrow.schema) as writer:
        writer.write_table(arrow)
    assert Table.read(tmp_path / "s.arrow").cells("big") == [2**63 - 1, None]


def latin(rows, bad):
    """Arrow text of which one cell is not UTF-8."""
    cells = pa.array([b"caf\xe9" if row == bad else b"word" for row in range(rows)], pa.binary())
    return pa.StringArray.from_buffers(rows, *cells.buffers()[1:])


def test_text_in_parquet_and_arrow_that_is_not_utf_8_is_refused_by_column_and_row(tmp_path):
    arrow = pa.table({"id": list(range(3000)), "note": latin(3000, 2500)})
    pq.write_table(arrow, tmp_path / "t.parquet")
    pa.feather.write_feather(arrow, tmp_path / "t.arrow", compression="uncompressed")
    with pytest.raises(TableError, match="not UTF-8") as caught:
        Table.read(tmp_path / "t.parquet")
    assert (caught.value.file, caught.value.row, caught.value.column) == (str(tmp_path / "t.parquet"), 2500, "note")
    for source in (tmp_path / "t.arrow", arrow):
        with pytest.raises(TableError, match="not UTF-8") as caught:
            Table.read(source)
        assert caught.value.column == "note" and caught.value.file


def test_arrow_that_points_outside_of_its_data_is_refused_not_followed(tmp_path):
    pa.feather.write_feather(pa.table({"a": ["xx", "yy", "zz"]}), tmp_path / "t.arrow", compression="uncompressed")
    data = (tmp_path / "t.arrow").read_bytes()
    place = data.index(np.array([0, 2, 4], "<i4").tobytes())
    for offsets in ([0, 2**30, 2**30], [0, -5, 4], [4, 2, 0]):
        broken = data[:place] + np.array(offsets, "<i4").tobytes() + data[place + 12 :]
        with pytest.raises(TableError, match=r"column 'a'.*is broken"):
            Table.read(write(tmp_path / "b.arrow", broken))
    codes = pa.DictionaryArray.from_arrays(pa.array([0, 9], pa.int32()), pa.array(["x"]), safe=False)
    with pytest.raises(TableError, match=r"column 'a'.*is broken"):
        Table.read(pa.table({"a": codes}))


def test_a_parquet_file_that_lies_about_its_rows_is_refused(tmp_path):
    import corpus

    with pytest.raises(TableError, match=r"claims 20,000 rows and has 12,345|cannot be read"):
        Table.read(write(tmp_path / "t.parquet", corpus.lying_rows()))


def test_dates_inside_lists_and_structs_become_text_and_other_types_are_named(tmp_path):
    import datetime

    day, money = datetime.date(2020, 1, 2), __import__("decimal").Decimal("1.10")
    arrow = pa.table({"a": [[day], None], "b": [{"at": day, "cost": [money]}, {"at": None, "cost": None}]})
    table = Table.read(arrow)
    assert table.cells("a") == [["2020-01-02"], None]
    assert table.cells("b") == [{"at": "2020-01-02", "cost": ["1.10"]}, {"at": None, "cost": None}]
    categories = pa.array([{"c": "u"}], pa.struct([("c", pa.dictionary(pa.int8(), pa.string()))]))
    assert Table.read(pa.table({"a": categories})).cells("a") == [{"c": "u"}]
    twice = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    union = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])
    for cells in (twice, union, pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), pa.array(["x"]))):
        with pytest.raises(TableError, match=r"column 'a'.*are not read"):
            Table.read(pa.table({"a": cells}))
    zone = pa.array([2**50], pa.timestamp("us", "Nowhere/City"))
    with pytest.raises(TableError, match=r"column 'a'.*cannot be read"):
        Table.read(pa.table({"a": zone}))


def test_tables_of_no_column_are_refused(tmp_path):
    with pytest.raises(TableError, match="no column"):
        Table.read(write(tmp_path / "t.jsonl", "{}\n{}\n"))
    with pytest.raises(TableError, match="no column"):
        Table.read(pa.table({}))


def test_files_that_are_no_text_are_named(tmp_path):
    for start, what in ((b"PK\x03\x04", "Excel"), (b"\x1f\x8b", "gzip"), (b"PAR1", "Parquet"), (b"ARROW1\0", "Arrow")):
        for name in ("t.csv", "t.jsonl"):
            with pytest.raises(TableError, match=rf"the file is .*{what}.* not text"):
                Table.read(write(tmp_path / name, start + b"a,b\n1,2\n"))


def test_paths_that_cannot_be_looked_up_are_refused(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.csv")
    paths = {
        str(tmp_path / "pipe.csv"): "a device or a pipe",
        str(tmp_path / ("x" * 300 + ".csv")): "too long",
        "~nobody-there/t.csv": "home",
        "a\0b.csv": "not there",
        str(write(tmp_path / "file.csv", "a\n1\n") / "t.csv"): "is not there either",
    }
    for path, why in paths.items():
        with pytest.raises(TableError, match=why) as caught:
            Table.read(path)
        assert caught.value.file == path


def test_two_byte_order_marks_are_no_part_of_the_name(tmp_path):
    assert Table.read(write(tmp_path / "t.csv", "\ufeff\ufeffa,b\n1,2\n")).column_names == ["a", "b"]


def test_data_frames(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "int": [2**62 + 1, 2],
            "float": [1.5, np.nan],
            "text": ["NA", None],
            "mixed": pandas.Series([1, "00501"], dtype=object, index=["x", "y"]),
            "gap": pandas.array([2**60 + 1, None], dtype="Int64"),
            "when": pandas.to_datetime(["2020-01-02 03:04", None]),
            "list": [["a", "b"], ["c"]],
            "bytes": [b"\xff", None],
            "period": pandas.period_range("2020-01", periods=2, freq="M"),
            "bin": pandas.cut([1.0, 2.0], 2),
            "class": pandas.Categorical(["u", "v"]),
            7: [True, False],
        },
        index=["x", "y"],
    )
    table = Table.read(frame)
    assert table.cells("int") == [2**62 + 1, 2]
    assert table.cells("mixed") == [1, "00501"]
    assert table.cells("gap") == [2**60 + 1, None]
    assert table.cells("list") == [["a", "b"], ["c"]]
    assert table.cells("period") == ["2020-01", "2020-02"]
    assert table.cells("bin")[1].startswith("(1.5")
    assert table.cells("class") == ["u", "v"]
    assert table.cells("7") == [True, False]
    assert table.cells("bytes") == [b"\xff", None]
    assert table.cells("when")[0].startswith("2020-01-02 03:04")
    assert {name for name in table.column_names if table.missing(name)[1]} == {"float", "text", "gap", "when", "bytes"}
    with pytest.raises(TableError, match="more than once"):
        Table.read(pandas.DataFrame([[1, 2]], columns=["a", "a"]))
    with pytest.raises(TableError, match="no rows"):
        Table.read(pandas.DataFrame({"a": []}))
    with pytest.raises(TableError, match=r"column 'a'.*cannot be kept"):
        Table.read(pandas.DataFrame({"a": [object()]}))


def test_hugging_face_datasets_give_undecoded_media_and_class_names():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "text": datasets.Value("string"),
        }
    )
    data = datasets.Dataset.from_dict(
        {"image": [{"bytes": b"not decoded", "path": None}, None], "label": [1, -1], "text": ["x", "y"]},
        features=features,
    )
    table = Table.read(data)
    assert table.cells("image") == [{"bytes": b"not decoded", "path": None}, None]
    assert table.cells("label") == ["yes", None]
    assert Table.read(data.select([1])).cells("text") == ["y"]
    with pytest.raises(TableError, match="choose a split: data\\[name\\], of 'train'"):
        Table.read(datasets.DatasetDict({"train": data}))


def test_selection_keeps_row_ids_and_order(tmp_path):
    arrow = pa.concat_tables([pa.table({"n": list(range(start, start + 7))}) for start in range(0, 70, 7)])
    table = Table.read(arrow)
    places = [69, 0, 33, 33, 7]
    part = table.select(places)
    assert part.cells("n") == places == part.rows.tolist() == part.arrow.column("n").to_pylist()
    assert part.select([False, True, False, False, True]).cells("n") == [0, 7]
    assert part.select([4, 0]).cells("n", [1]) == [69]
    assert table.select([]).cells("n") == []
    with pytest.raises(IndexError):
        table.cells("n", [70])
    with pytest.raises(IndexError):
        table.cells("n", [-1])


def test_the_temporary_file_goes_with_the_last_table(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    table = Table.read(write(tmp_path / "t.csv", "a\n1\n2\n"))
    part = table.select([1])
    del table
    gc.collect()
    assert len(list(tmp_path.glob("fusetune-table-*/*.arrow"))) == 1
    assert part.cells("a") == ["2"]
    del part
    gc.collect()
    assert list(tmp_path.glob("fusetune-table-*")) == []


def test_the_cache_is_used_again_and_notices_a_changed_file(tmp_path):
    path, cache = write(tmp_path / "t.csv", "a;b\n1;2\n3\n4;5\n"), tmp_path / "cache"
    first = Table.read(path, cache_dir=cache)
    made = sorted(cache.glob("*.arrow"))
    stamp = made[0].stat().st_mtime_ns
    again = Table.read(path, cache_dir=cache)
    assert sorted(cache.glob("*")) == sorted([*made, *cache.glob("*.json")])
    assert made[0].stat().st_mtime_ns == stamp
    assert (again.rows.tolist(), again.rejected, again.notes) == (first.rows.tolist(), first.rejected, first.notes)
    assert again.notes
    write(path, "a;b\n1;2\n3;9\n4;5\n6;7\n")
    assert len(Table.read(path, cache_dir=cache)) == 4


def test_records_and_missing():
    table = Table.from_records([{"a": np.int64(3), "b": b"x"}, {"a": 4, "c": {"bytes": b"y", "path": None}}])
    assert table.cells("a") == [3, 4]
    assert table.cells("b") == [b"x", None]
    assert table.cells("c") == [None, {"bytes": b"y", "path": None}]
    with pytest.raises(TableError, match="no rows"):
        Table.from_records([])
    present = ["NA", "null", " x ", 0, False, [], {"bytes": b"x", "path": None}, {"other": None}]
    assert not any(map(is_missing, present))
    assert all(map(is_missing, [None, "", " \t", float("nan"), {"bytes": None, "path": ""}]))


def test_a_folder_of_shards_is_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):
        pq.write_table(pa.table({"a": [number * 10, number * 10 + 1], "b": ["x", "y"]}), folder / f"p-{number}.parquet")
    (folder / "_SUCCESS").write_text("")
    table = Table.read(folder)
    assert table.cells("a") == [0, 1, 10, 11, 20, 21] and table.source == str(folder)
    assert table.file_and_row(3) == (str(folder / "p-1.parquet"), 1) and table.base_dir == folder.absolute()
    (folder / "extra.csv").write_text("a,b\n1,2\n")
    with pytest.raises(TableError, match="not the parts of one table"):
        Table.read(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TableError, match="no table at all"):
        Table.read(tmp_path / "empty")
