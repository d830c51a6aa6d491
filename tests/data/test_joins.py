import pytest

from fusetune.data.joins import listed
from fusetune.data.table import Table
from fusetune.errors import TableError

RECORDS = [
    {"q": "who", "c": "she", "a": "x", "b": "y", "list": '["m", "n"]'},
    {"q": None, "c": "he", "a": None, "b": "z", "list": None},
    {"q": None, "c": None, "a": None, "b": None, "list": None},
]


def test_cells_of_several_columns_become_lists():
    table = Table.from_records(RECORDS)
    joined = table.with_joined({"q + c": ["q", "c"], "choices": ["q", ["a", "b"]], "listed": ["c", ["list"]]})
    assert joined.cells("q + c") == [["who", "she"], [None, "he"], None]
    assert joined.cells("choices") == [["who", ["x", "y"]], [None, [None, "z"]], None]
    assert joined.cells("listed") == [["she", ["m", "n"]], ["he", []], None]
    assert joined.missing("q + c").tolist() == [False, False, True]
    assert "q + c" not in table and joined.column_names[: len(RECORDS[0])] == table.column_names


def test_selected_rows_keep_their_joined_cells():
    table = Table.from_records(RECORDS).select([1, 0])
    assert table.with_joined({"j": ["q", "c"]}).cells("j") == [[None, "he"], ["who", "she"]]
    assert table.with_joined({"j": ["q", "c"]}).select([1]).cells("j") == [["who", "she"]]


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(TableError, match="'quest'"):
        Table.from_records(RECORDS).with_joined({"j": ["quest", "c"]})


@pytest.mark.parametrize(
    ("cell", "entries"),
    [
        (["m", None, " "], ["m", None, None]),
        ('["m", "n"]', ["m", "n"]),
        ("[broken", ["[broken"]),
        ("m", ["m"]),
        (None, []),
        ({"text": ["m", "n"], "label": ["A", "B"]}, ["m", "n"]),
        ('{"label": ["1", "2"], "text": ["m", "n"]}', ["m", "n"]),
        ({"text": ["m", "n"], "label": [0, 1]}, ["m", "n"]),
        ({"text": ["m"]}, ["m"]),
    ],
)
def test_the_list_of_a_cell(cell, entries):
    assert listed(cell) == entries


@pytest.mark.parametrize("labels", [["B", "A"], ["A"], "AB"])
def test_labels_out_of_order_make_no_list(labels):
    cell = {"text": ["m", "n"], "label": labels}
    assert listed(cell) == [cell]
