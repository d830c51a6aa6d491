"""Several tables as one: every cell, row number and rejected row can be found again."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusetune.data.quarantine import Rejected
from fusetune.data.reading.joined import concat
from fusetune.data.table import Table
from fusetune.errors import TableError

CELLS = st.none() | st.integers(-5, 5) | st.floats(allow_nan=False, width=16) | st.text(max_size=3) | st.booleans()
RECORDS = st.lists(st.fixed_dictionaries({"a": st.none() | st.text()}, optional={"b": CELLS, "c": CELLS}), min_size=1)


@given(st.lists(RECORDS, min_size=1, max_size=4))
def test_cells_and_rows_are_those_of_the_tables(many: list[list[dict]]) -> None:
    tables = [Table.from_records(records, source=f"t{number}") for number, records in enumerate(many)]
    joined = concat(tables)
    assert joined.column_names == list(dict.fromkeys(name for table in tables for name in table.column_names))
    assert len(joined) == sum(map(len, tables)) == len(set(joined.rows.tolist()))
    if len(tables) == 1:
        assert joined is tables[0]
    for index in range(len(joined)):
        source, row = joined.file_and_row(int(joined.rows[index]))
        assert tables[joined.parts()[index]].source == source
        for name, cell in joined.row(index).items():
            own = many[int(source[1:])][row].get(name)
            assert cell == own or str(cell) == str(own) or float(cell) == float(own)


def test_kinds_of_numbers_become_one_and_numbers_beside_text_are_text() -> None:
    one, other = pd.DataFrame({"n": [1, 2], "label": [1, 0]}), pd.DataFrame({"n": [0.5], "label": ["1"]})
    joined = concat([Table.read(one), Table.read(other)])
    assert joined.cells("n") == [1.0, 2.0, 0.5]
    assert joined.cells("label") == ["1", "0", "1"]


def test_columns_that_cannot_be_one_are_named() -> None:
    one, other = pd.DataFrame({"x": [b"\x00"]}), pd.DataFrame({"x": [1.5]})
    with pytest.raises(TableError, match="column 'x'"):
        concat([Table.read(one), Table.read(other)])


def test_rejected_rows_and_selected_rows_lead_back(write_csv, tmp_path: Path) -> None:
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    first.write_text("a,b\n" + "1,2\n" * 30 + "1,2,3\n")
    second.write_text("a,b\n1,2,3\n" + "3,4\n" * 30)
    joined = concat([Table.read(first), Table.read(second)])
    assert len(joined) == 60 and [joined.file_and_row(item.row) for item in joined.rejected] == [
        (str(first), 30),
        (str(second), 0),
    ]
    assert all(isinstance(item, Rejected) for item in joined.rejected)
    some = joined.select([59, 0])
    assert [some.file_and_row(int(row)) for row in some.rows] == [(str(second), 30), (str(first), 0)]
    assert some.parts().tolist() == [1, 0]
    again = concat([joined, Table.read(first)])
    assert [source for source, _ in again.files] == [str(first), str(second), str(first)]
    assert np.unique(again.rows).size == 90


def test_names_of_files_keep_their_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pic.png").write_bytes(name.encode())
        (tmp_path / name / "t.csv").write_text("pic,words\npic.png,hello\npic.png;pic.png,there\n")
    joined = concat([Table.read(tmp_path / name / "t.csv") for name in ("one", "two")])
    where = [[Path(part).read_bytes() for part in cell.split(";")] for cell in joined.cells("pic")]
    assert where == [[b"one"], [b"one", b"one"], [b"two"], [b"two", b"two"]]
    assert joined.cells("words") == ["hello", "there"] * 2
    near = concat([Table.read(tmp_path / "one" / "t.csv")] * 2)
    assert near.cells("pic")[0] == "pic.png"
