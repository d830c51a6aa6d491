"""Queries that name documents of another table by a key: what they are paired with, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from fusetune.config.catalogue import CatalogueConfig
from fusetune.data.catalogue import Catalogue, Sides
from fusetune.data.keys import find_key, grades_of, key_of, keys_of
from fusetune.data.table import Table
from fusetune.errors import TableError

SIDES = Sides(("ask",), ("title", "text"))
ITEMS = [
    {"sku": "a1", "title": "lamp", "text": "bright", "price": 3},
    {"sku": "b2", "title": "shoe", "text": "red", "price": 4},
    {"sku": "c3", "title": "coat", "text": None, "price": 5},
    {"sku": "d4", "title": "cup", "text": "blue", "price": 6},
]
QUERIES = [
    {"ask": "light", "sku": "a1", "grade": 2, "day": "mon"},
    {"ask": "wear", "sku": "b2|c3", "grade": "3|1", "day": "tue"},
    {"ask": "light", "sku": "c3", "grade": 0, "day": "wed"},
    {"ask": "tea", "sku": "d4", "grade": 0, "day": "thu"},
    {"ask": "wear", "sku": "b2", "grade": 1, "day": "fri"},
]


def table(records, **options):
    return Table.from_records(records, **options)


def read(queries=QUERIES, items=ITEMS, sides=SIDES, **config):
    queries = table(queries, source="queries")
    catalogue = Catalogue.read(table(items, source="items"), CatalogueConfig(**config), queries, sides)
    return catalogue, queries


def test_keys_are_equal_whatever_their_type():
    assert {key_of(cell) for cell in (12, 12.0, "12", " 12 ")} == {"12"}
    assert key_of(None) is None and key_of("  ") is None and key_of(1.5) == "1.5"


@pytest.mark.parametrize(
    ("cell", "keys"),
    [
        ("a", ["a"]),
        (["a", "b", "a"], ["a", "b"]),
        ('["a", 7]', ["a", "7"]),
        ("a|b", ["a", "b"]),
        ("a; b", ["a", "b"]),
        ("a,zz", ["a", "zz"]),
        ("x,y", ["x,y"]),
        ("x, z", ["x, z"]),
        (7, ["7"]),
        (None, []),
        ("[broken", ["[broken"]),
    ],
)
def test_a_cell_may_name_several_keys(cell, keys):
    assert keys_of(cell, {"a", "b", "7", "x,y"}) == keys


def test_grades():
    assert grades_of(2, 3) == [2, 2, 2] and grades_of("3|1", 2) == [3, 1] and grades_of([0, 1], 2) == [0, 1]
    for cell, why in ((None, "missing"), ("many", "no number"), (-1, "0 or more"), ("nan", "0 or more"), ("1|2", "3")):
        with pytest.raises(ValueError, match=why):
            grades_of(cell, 3)


def test_the_key_is_the_column_whose_values_match():
    queries = table([{"ask": f"q{n}", "sku": f"s{n % 5}", "colour": "red", "id": n} for n in range(20)])
    items = table([{"sku": f"s{n}", "title": f"t{n}", "colour": "red", "id": 100 + n} for n in range(8)])
    key = find_key(None, queries, items)
    assert (key.query, key.item) == ("sku", "sku") and "100%" in key.why and "id 0%" in key.why
    with pytest.raises(TableError, match="'id' \\(0% of its cells match"):
        find_key(None, table([{"ask": "q", "id": 1}]), items)
    with pytest.raises(TableError, match=r"catalogue\.key"):  # two columns match
        twice = table([{"sku": f"s{n}", "id": 100 + n} for n in range(8)])
        find_key(None, twice, items)
    assert find_key({"wanted": "sku"}, table([{"wanted": "s1"}]), items).item == "sku"
    with pytest.raises(TableError, match="did you mean 'sku'"):
        find_key("sko", queries, items)


def test_rows_are_paired_with_the_documents_they_name():
    catalogue, queries = read(relevance="grade")
    pairs = catalogue.pairs(queries)
    assert pairs.table.cells("ask") == ["light", "wear", "wear", "light", "tea", "wear"]
    assert pairs.table.cells("title") == ["lamp", "shoe", "coat", "coat", "cup", "shoe"]
    assert pairs.table.cells("grade") == pairs.grades.tolist() == [2, 3, 1, 0, 0, 1]
    assert pairs.table.cells("price") == [3, 4, 5, 5, 6, 4]  # other columns of the catalogue come along
    assert pairs.table.rows.tolist() == [0, 1, 1, 2, 3, 4]
    assert not pairs.rejected


def test_without_relevance_every_named_document_is_relevant():
    catalogue, queries = read()
    assert catalogue.relevance is None and set(catalogue.pairs(queries).grades) == {1}
    named = [{**row, "relevance": row["grade"]} for row in QUERIES]
    assert read(named)[0].relevance == "relevance"


def test_queries_are_searched_once_in_all_documents():
    catalogue, queries = read(relevance="grade")
    pairs = catalogue.pairs(queries)
    searched = catalogue.searched(pairs, np.arange(6), reserved=5)
    assert searched.table.cells("ask") == ["light", "wear", None, None, None, None]
    assert searched.table.cells("title") == ["lamp", "shoe", "lamp", "shoe", "coat", "cup"]
    assert searched.table.cells("day")[:2] == ["mon", "tue"] and searched.table.cells("grade") == [None] * 6
    related = searched.related.toarray()
    assert (related == related.T).all() and not related[2:, 2:].any()
    assert related[:2, 2:].tolist() == [[2, 0, 0, 0], [0, 3, 1, 0]]  # the highest grade of a pair, no grade of 0
    assert searched.num_unanswered == 1  # tea has no relevant document
    assert searched.table.rows.tolist() == [0, 1, 5, 6, 7, 8]
    assert searched.table.file_and_row(7) == ("items", 2) and searched.table.file_and_row(1) == ("queries", 1)


def test_some_pairs_of_a_table():
    catalogue, queries = read(relevance="grade")
    searched = catalogue.searched(catalogue.pairs(queries), np.array([2, 5]), reserved=5)
    assert searched.table.cells("title")[0] == "coat" and searched.related.toarray()[0].tolist() == [0, 0, 1, 1, 0]


def test_rows_that_cannot_be_paired_are_rejected():
    more = [
        {"ask": "lost", "sku": "zz", "grade": 1},
        {"ask": "none", "sku": None, "grade": 1},
        {"ask": None, "sku": "a1", "grade": 1},
        {"ask": "odd", "sku": "a1", "grade": "many"},
        {"ask": "half", "sku": "a1|zz", "grade": 1},
        {"ask": "bare", "sku": "e5", "grade": 1},
    ]
    items = [*ITEMS, {"sku": "e5", "title": None, "text": " ", "price": 1}]
    catalogue, queries = read([*QUERIES, *more], items, relevance="grade")
    rejected = {item.row: item for item in catalogue.pairs(queries).rejected}
    assert {row: item.column for row, item in rejected.items()} == {
        5: "sku",
        6: "sku",
        7: "ask",
        8: "grade",
        9: "sku",
        10: "sku",
    }
    for row, why in ((5, "'zz' is not in items"), (6, "missing"), (7, "no cell"), (8, "no number"), (9, "'zz'")):
        assert why in rejected[row].why
    assert "row 4 of items" in rejected[10].why and rejected[8].value == "many"
    assert [item.row for item in catalogue.rejected] == [4] and catalogue.num_used == 4


def test_repeated_keys():
    catalogue, _ = read(items=[*ITEMS, {**ITEMS[1], "price": 9}, {**ITEMS[0], "sku": None}])
    assert len(catalogue.items) == 5 and catalogue.num_used == catalogue.rows_in == 6
    assert any("1 rows of items repeat a key" in note for note in catalogue.notes)
    assert any("1 rows of items have no 'sku'" in note for note in catalogue.notes)
    with pytest.raises(TableError, match=r"'title'(.|\n)*'b2'(.|\n)*rows 1 and 4: 'shoe' and 'boot'"):
        read(items=[*ITEMS, {**ITEMS[1], "title": "boot"}])


def test_catalogues_that_cannot_be_used(tmp_path):
    with pytest.raises(TableError, match="no document"):
        read(items=[{"sku": "a1", "title": None, "text": ""}], key="sku")
    with pytest.raises(TableError, match="no column 'text'"):
        read(items=[{"sku": "a1", "title": "x"}])
    with pytest.raises(TableError, match="no row names a document"):
        catalogue, queries = read([{"ask": "q", "sku": "zz"}], key="sku")
        catalogue.pairs(queries)
    with pytest.raises(TableError, match="no column 'grades'"):
        read(relevance="grades")
    (tmp_path / "items.csv").write_text("sku,title,text\n")
    with pytest.raises(TableError, match="no row"):
        Catalogue.read(str(tmp_path / "items.csv"), CatalogueConfig(), table(QUERIES), SIDES)


def test_a_column_of_both_tables_is_the_document_s_or_the_query_s():
    queries = [{"ask": "q", "sku": "a1", "title": "mine", "price": 77}]
    catalogue, queries = read(queries, key="sku")
    pairs = catalogue.pairs(queries)
    assert pairs.table.cells("title") == ["lamp"] and pairs.table.cells("price") == [77]
    searched = catalogue.searched(pairs, np.arange(1), reserved=1)
    assert searched.table.cells("price") == [77, None, None, None, None]
    assert searched.table.cells("sku") == ["a1", None, None, None, None]


def test_files_of_documents_are_found_from_another_folder(tmp_path):
    homes = [tmp_path / name for name in ("asked", "items")]
    for home in homes:
        home.mkdir()
    for name in ("1.png", "2.png"):
        (homes[1] / name).write_bytes(b"x")
    items = Table.from_records([{"sku": "a", "photo": "1.png"}, {"sku": "b", "photo": "2.png"}], base_dir=homes[1])
    queries = Table.from_records([{"ask": "q", "sku": "b"}, {"ask": "r", "sku": "a"}], base_dir=homes[0])
    catalogue = Catalogue.read(items, CatalogueConfig(), queries, Sides(("ask",), ("photo",)))
    pairs = catalogue.pairs(queries)
    assert pairs.table.cells("photo") == [str(homes[1].resolve() / name) for name in ("2.png", "1.png")]
    searched = catalogue.searched(pairs, np.arange(2), reserved=2)
    assert set(searched.table.cells("photo")[:2]) == set(searched.table.cells("photo")[2:])


def test_documents_judged_wrong_are_told_apart_from_a_querys_others():
    more = [
        {"ask": "wear", "sku": "a1|d4", "grade": 0, "day": "sat"},
        {"ask": "wear", "sku": "c3", "grade": 0, "day": "sun"},  # another row says that it is relevant
    ]
    catalogue, queries = read([*QUERIES, *more], relevance="grade")
    pairs = catalogue.pairs(queries)
    wrong = catalogue.judged_wrong(pairs, np.arange(len(pairs.items)))
    assert pairs.items.tolist() == [0, 1, 2, 2, 3, 1, 0, 3, 2]
    assert wrong.tolist() == [2, 0, 3, -1, -1, 0, -1, -1, -1]  # light: c3; wear: a1 and d4 in turn
    assert catalogue.judged_wrong(pairs, np.array([1, 2, 5])).tolist() == [-1, -1, -1]


def test_wrong_documents_become_a_column():
    catalogue, queries = read(relevance="grade", sides=Sides(("ask",), ("title",)))
    table = catalogue.with_wrong(catalogue.pairs(queries).table, np.array([2, -1, -1, 0, 1, -1]), "wrong")
    assert table.cells("wrong") == ["coat", None, None, "lamp", "shoe", None]
    assert table.cells("title")[0] == "lamp" and table.rows.tolist() == [0, 1, 1, 2, 3, 4]
