"""Separators, quotes and encodings of text files, and that no line is lost to a quote."""

import csv
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusetune.config.config import Config
from fusetune.config.read import ReadConfig
from fusetune.data.table import Table
from fusetune.errors import ConfigError, TableError

QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def accounted(table):
    return len(table) + len(table.rejected)


WORD = st.text(st.sampled_from('ab "'), min_size=1, max_size=6).filter(str.strip)


@given(
    rows=st.lists(st.tuples(WORD, st.sampled_from("01")), min_size=3, max_size=12),
    ending=st.sampled_from([".csv", ".tsv"]),
)
@QUICK
def test_every_line_of_unquoted_text_is_a_row_or_rejected(tmp_path, rows, ending):
    separator = "," if ending == ".csv" else "\t"
    lines = ["text" + separator + "y", *(separator.join(row) for row in rows)]
    try:
        table = Table.read(write(tmp_path / f"t{ending}", "\n".join(lines) + "\n"))
    except TableError as error:  # a file of which no row can be used
        assert "rejected" in str(error)
        return
    except ValueError as error:
        assert "rows" in str(error)
        return
    assert accounted(table) == len(rows) or any("hold a line break" in note for note in table.notes)


@given(
    rows=st.lists(
        st.tuples(st.text(st.sampled_from('a,"\n'), max_size=8), st.sampled_from("01")), min_size=2, max_size=8
    )
)
@QUICK
def test_cells_that_were_quoted_when_written_come_back(tmp_path, rows):
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("text", "y"), *rows])
    table = Table.read(write(tmp_path / "t.csv", text.getvalue()))
    assert list(zip(table.cells("text"), table.cells("y"), strict=True)) == rows


def test_quotes_in_tab_separated_sentences_are_text(tmp_path):
    lines = [f"fine {place}\t1" for place in range(20)] + ['"Hello there\t1', "second\t0", 'and bye"\t0', '"Hm\t1']
    path = write(tmp_path / "t.tsv", "text\ty\n" + "\n".join(lines) + "\n")
    table = Table.read(path)
    assert len(table) == len(lines)
    assert table.cells("text", [20]) == ['"Hello there']
    assert "quotation marks" in table.notes[0] and "line 22" in table.notes[0]
    kept = Table.read(path, read=ReadConfig(quote="double"))
    assert "\n" in kept.cells("text", [20])[0]


def test_lines_joined_by_a_stray_quote_are_rejected_one_by_one_elsewhere(tmp_path):
    lines = [f"fine {place},1" for place in range(20)] + ['"Hello there,1', "second,0", 'and bye",0']
    table = Table.read(write(tmp_path / "t.csv", "text,y\n" + "\n".join(lines) + "\n"))
    assert (len(table), len(table.rejected)) == (20, 3)
    assert "data.read.quote" in table.rejected[0].why
    text = "text,y\n" + "\n".join(['"a, b",1', *lines]) + "\n"  # quotes are used, and three lines are still not a cell
    assert [len(table.rejected) for table in [Table.read(write(tmp_path / "u.csv", text))]] == [3]
    literal = Table.read(tmp_path / "t.csv", read=ReadConfig(quote="none"))
    assert literal.cells("text", [20]) == ['"Hello there'] and not literal.rejected


def test_a_line_that_names_the_separator_is_no_row(tmp_path):
    table = Table.read(write(tmp_path / "t.csv", "sep=;\r\na;b\r\n1,5;x\r\n2,5\r\n"))
    assert table.column_names == ["a", "b"] and table.cells("a") == ["1,5"]
    assert "sep=" in table.notes[0]
    assert "line 4" in table.rejected[0].why
    other = Table.read(write(tmp_path / "u.csv", "sep=^\na^b\n1^x\n"))
    assert other.cells("b") == ["x"]


@pytest.mark.parametrize(("separator", "written"), [(";", ";"), ("tab", "\t"), ("bar", "|"), ("^", "^")])
def test_the_separator_may_be_named(tmp_path, separator, written):
    path = write(tmp_path / "t.csv", f"a{written}b,c\n1{written}2,3\n")
    assert Table.read(path, read=ReadConfig(separator=separator)).row(0) == {"a": "1", "b,c": "2,3"}


def test_single_quotes(tmp_path):
    path = write(tmp_path / "t.csv", "a,b\n'x, y',1\n")
    assert Table.read(path, read=ReadConfig(quote="single")).cells("a") == ["x, y"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("t.csv", "a,b\ncafé €,1\n"), ("t.csv", "sep=;\na;b\ncafé €;1\n"), ("t.jsonl", '{"a": "café €"}\n')],
)
def test_the_encoding_may_be_named(tmp_path, name, text):
    path = write(tmp_path / name, text, "cp1252")
    with pytest.raises(TableError, match=r"data\.read\.encoding=cp1252"):
        Table.read(path)
    assert Table.read(path, read=ReadConfig(encoding="cp1252")).cells("a") == ["café €"]
    with pytest.raises(TableError, match="not in the encoding ascii"):
        Table.read(path, read=ReadConfig(encoding="ascii"))


def test_the_cache_tells_settings_apart(tmp_path):
    path, cache = write(tmp_path / "t.csv", "a;b,c\n1;2,3\n"), tmp_path / "cache"
    names = [
        Table.read(path, cache_dir=cache, read=ReadConfig(separator=separator)).column_names for separator in (";", ",")
    ]
    assert names == [["a", "b,c"], ["a;b", "c"]]


def test_a_first_column_without_a_name_is_the_index_that_was_written(tmp_path):
    table = Table.read(write(tmp_path / "t.csv", ",a\n0,x\n1,y\n"))
    assert table.column_names == ["Unnamed: 0", "a"]


@pytest.mark.parametrize(
    "wrong",
    [{"separator": "ab"}, {"separator": ""}, {"encoding": "utf-9"}, {"quot": "x"}],
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(ConfigError):
        Config.build({"data": {"read": wrong}})
