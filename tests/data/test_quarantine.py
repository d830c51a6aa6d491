import json

import pytest

from fusetune.data.quarantine import Rejected, check_rate, group_rejected, write_rejected
from fusetune.errors import BadCell, StorageError, TooManyRejected

ROWS = [
    Rejected(7, "photo", "a.jpg", "the JPEG is cut off after 512 bytes"),
    Rejected(3, "photo", "b.jpg", "the JPEG is cut off after 9 bytes"),
    Rejected(3, "age", "x", "it is not a number"),
    Rejected(1, None, "1,2,3", "line 3: 3 fields where the header has 2"),
]


def test_it_carries_what_a_bad_cell_says():
    error = BadCell(row=4, column="photo", value=b"abc", why="no picture")
    assert Rejected.from_error(error) == Rejected(4, "photo", b"abc", "no picture")


def test_groups_join_reasons_that_differ_in_numbers_only():
    groups = group_rejected(ROWS, num_rows=1)
    assert [(group.column, group.count, group.rows) for group in groups] == [
        ("photo", 2, (3,)),
        (None, 1, (1,)),
        ("age", 1, (3,)),
    ]
    assert groups[0].why == "the JPEG is cut off after … bytes"
    assert groups[1].why == "line 3: 3 fields where the header has 2"


def test_groups_name_a_few_cells_and_the_nearest_known_ones():
    cells = [
        ("Dog", "did you mean 'dog'?"),
        ("Dog", "did you mean 'dog'?"),
        *((f"x{n}", "correct it") for n in range(9)),
    ]
    (group,) = group_rejected(Rejected(row, "y", cell, "no label", do=do) for row, (cell, do) in enumerate(cells))
    assert group.cells == ("'Dog' (did you mean 'dog'?)", "'x0'", "'x1'", "…")
    assert group.text == "column 'y': no label; came 'Dog' (did you mean 'dog'?), 'x0', 'x1', …"
    (lines,) = group_rejected([ROWS[3]])
    assert lines.cells == () and lines.text == lines.why


def test_the_file_is_json_lines_by_row_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "rejected.jsonl"
    odd = [
        Rejected(0, "a", value, "why") for value in (b"xyz", float("nan"), "é\ud800", "x" * 2000, [1, b"y"], 5, None)
    ]
    write_rejected([*ROWS, *odd], path)
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [record["row"] for record in records] == [0] * 7 + [1, 3, 3, 7]
    assert records[-1] == {
        "row": 7,
        "column": "photo",
        "value": "a.jpg",
        "why": "the JPEG is cut off after 512 bytes",
    }
    values = [record["value"] for record in records[:7]]
    assert values[:3] == ["<3 bytes>", "nan", "é\\ud800"]
    assert values[3].endswith("(2000 characters)")
    assert values[5:] == [5, None]
    assert [one.name for one in tmp_path.iterdir()] == ["rejected.jsonl"]
    with pytest.raises(StorageError, match="cannot be written"):
        write_rejected(ROWS, tmp_path / "no" / "rejected.jsonl")


def test_the_rate_counts_rows_not_cells():
    check_rate(ROWS, 60)  # three rows of 60 are 5 %
    with pytest.raises(TooManyRejected) as caught:
        check_rate(ROWS, 59, source="t.csv")
    text = str(caught.value)
    assert "t.csv: 3 of 59 rows cannot be used" in text
    assert "column 'photo': the JPEG is cut off after … bytes; came 'a.jpg', 'b.jpg' (2 rows: 3, 7)" in text
    check_rate([], 0)
    check_rate(ROWS, 3, limit=1)
    with pytest.raises(TooManyRejected):
        check_rate(ROWS[:1], 1000, limit=0)
