import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusetune.data.partition import partition
from fusetune.data.schema import ColumnSpec, Schema
from fusetune.data.splits import carve_val, may_train, read_splits, split_rows, strata_of
from fusetune.data.table import Table
from fusetune.errors import TableError


def made(columns, **specs):
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    schema = Schema({name: ColumnSpec(name, *specs[name]) for name in columns})
    return Table.from_records(rows), schema


def classes(num, seed=0, shares=(0.7, 0.25, 0.05)):
    return np.random.default_rng(seed).choice(["a", "b", "c"], num, p=shares).tolist()


@given(
    sizes=st.lists(st.integers(1, 6), min_size=3, max_size=60),
    num_strata=st.integers(1, 8),
    seed=st.integers(0, 9),
    parts=st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.5), (0.98, 0.01, 0.01), (0.1, 0.45, 0.45)]),
)
@settings(max_examples=150, deadline=None)
def test_every_row_is_in_one_part_units_are_whole_and_no_part_is_empty(sizes, num_strata, seed, parts):
    rng = np.random.default_rng(seed)
    units = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    strata = np.unique(rng.integers(0, num_strata, len(units)), return_inverse=True)[1]
    which = partition(strata, units, parts, seed)
    assert set(which.tolist()) == set(range(len(parts)))
    assert all(len(set(which[units == unit].tolist())) == 1 for unit in range(len(sizes)))
    assert (which == partition(strata, units, parts, seed)).all()


def test_classes_get_even_shares_and_a_rare_one_stays_in_train():
    labels = [*classes(999), "once"]
    table, schema = made({"x": list(range(1000)), "y": labels}, x=("number",), y=("category", "target"))
    rows = split_rows(table, schema, seed=3)
    assert {name: len(places) for name, places in rows.items()} == {"train": 800, "val": 100, "test": 100}
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(1000))
    for name, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        for label in "abc":
            expected = share * labels.count(label)
            assert abs(sum(labels[place] == label for place in rows[name]) - expected) <= 2
    assert 999 in rows["train"]


def test_numbers_are_split_evenly_over_their_range():
    values = np.random.default_rng(0).exponential(size=500)
    table, schema = made({"x": list(range(500)), "y": values.tolist()}, x=("number",), y=("number", "target"))
    rows = split_rows(table, schema, seed=0)
    top = set(np.argsort(values)[-50:].tolist())
    assert [len(top & set(places.tolist())) for places in rows.values()] == [40, 5, 5]


def test_equal_seeds_give_equal_splits_and_others_differ():
    table, schema = made({"x": list(range(200)), "y": classes(200)}, x=("number",), y=("category", "target"))
    first, again, other = (split_rows(table, schema, seed=seed)["test"].tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_groups_stay_whole_with_classes_in_every_split():
    groups = np.random.default_rng(0).integers(0, 60, 600)
    labels = ["ab"[group % 2] for group in groups]
    table, schema = made(
        {"x": list(range(600)), "g": [f"p{group}" for group in groups], "y": labels},
        x=("number",),
        g=("category", "group"),
        y=("category", "target"),
    )
    rows = split_rows(table, schema, seed=0)
    held = [{groups[place] for place in places} for places in rows.values()]
    assert sum(map(len, held)) == len(set(groups.tolist()))
    assert all({labels[place] for place in places} == {"a", "b"} for places in rows.values())
    assert abs(len(rows["test"]) - 60) <= 15


def test_rows_without_a_group_are_groups_of_their_own():
    table, schema = made({"x": list(range(40)), "g": [None] * 40}, x=("number",), g=("category", "group"))
    assert len(split_rows(table, schema, seed=0)["test"]) == 4


def test_rows_of_equal_content_stay_together():
    texts = [f"text {place % 80}" for place in range(100)]
    table, schema = made({"t": texts, "y": classes(100)}, t=("text",), y=("category", "target"))
    for seed in range(5):
        rows = split_rows(table, schema, seed=seed)
        held = [{texts[place] for place in places} for places in rows.values()]
        assert sum(map(len, held)) == 80


def test_a_fixed_set_of_texts_does_not_hinder_splitting():
    table, schema = made({"t": ["yes?", "no?"] * 50, "y": classes(100)}, t=("text",), y=("category", "target"))
    assert len(split_rows(table, schema, seed=0)["test"]) == 10


def test_a_split_column_decides_and_what_it_does_not_name_is_taken_from_train():
    says = ["Train"] * 80 + ["dev"] * 10 + ["TEST"] * 10
    table, schema = made({"x": list(range(100)), "s": says}, x=("number",), s=("category", "split"))
    assert {name: (len(found), found.min()) for name, found in split_rows(table, schema, seed=0).items()} == {
        "train": (80, 0),
        "val": (10, 80),
        "test": (10, 90),
    }
    with pytest.raises(TableError, match="10 cells say test, and test rows are given in a table of their own"):
        split_rows(table, schema, wanted=("val",), seed=0)
    table, schema = made({"x": list(range(100)), "s": says[:90] + ["dev"] * 10}, x=("number",), s=("category", "split"))
    rows = split_rows(table, schema, seed=0)
    assert rows["val"].tolist() == list(range(80, 100))
    assert sorted([*rows["train"], *rows["test"]]) == list(range(80))
    assert len(rows["test"]) == 9  # 0.1 of what 0.8 and 0.1 share


def test_folds_are_split_by_options():
    table, schema = made(
        {"x": list(range(50)), "fold": [place % 5 + 1 for place in range(50)]}, x=("number",), fold=("number", "split")
    )
    schema.columns["fold"].options.update({"test": [5], "val": 4})
    rows = split_rows(table, schema, seed=0)
    assert {name: len(found) for name, found in rows.items()} == {"train": 30, "val": 10, "test": 10}
    assert set(table.cells("fold", rows["test"])) == {5}
    schema.columns["fold"].options["tset"] = [1]
    with pytest.raises(TableError, match="no split 'tset'"):
        read_splits(table, schema)


@pytest.mark.parametrize(
    ("cell", "message"), [(None, "row 2, column 's': the cell is missing"), ("tain", "names no split")]
)
def test_a_cell_that_names_no_split_is_refused_with_its_row(cell, message):
    table, schema = made({"x": [1, 2, 3], "s": ["train", "test", cell]}, x=("number",), s=("category", "split"))
    with pytest.raises(TableError, match=message):
        split_rows(table, schema, seed=0)


def test_too_few_rows_or_groups_are_refused():
    table, schema = made({"x": [1, 2]}, x=("number",))
    with pytest.raises(TableError, match="too few rows to make train, val, test of"):
        split_rows(table, schema, seed=0)
    table, schema = made({"x": list(range(90)), "g": ["a", "b"] * 45}, x=("number",), g=("category", "group"))
    with pytest.raises(TableError, match="too few groups in the column 'g'"):
        split_rows(table, schema, seed=0)
    assert len(carve_val(table, schema, seed=0)["val"]) == 45


def test_shares_of_nothing_give_no_rows():
    table, schema = made({"x": list(range(20))}, x=("number",))
    rows = split_rows(table, schema, fractions=(0.75, 0, 0.25), seed=0)
    assert {name: len(found) for name, found in rows.items()} == {"train": 15, "val": 0, "test": 5}
    rows = split_rows(table, schema, wanted=("test",), fractions=(0.4, 0.4, 0.2), seed=0)
    assert {name: len(found) for name, found in rows.items()} == {"train": 13, "test": 7}


def test_texts_that_hardly_repeat_share_a_stratum():
    answers = [None, "none of it", "none of it"] * 20 + [f"answer {number}" for number in range(60)]
    strata = strata_of(answers)
    assert len(set(strata[60:].tolist())) == 1 and len(set(strata.tolist())) == 3
    labels = [f"label {number % 40}" for number in range(400)] + ["rare one", "rare two"]
    assert len(set(strata_of(labels).tolist())) == 42


def test_strata_of_numbers_classes_and_gaps():
    assert len(set(strata_of([*range(100), None]).tolist())) == 10
    assert strata_of(["b", "A ", "a", None]).tolist() == [2, 1, 1, 0]
    assert strata_of([1.0, 1, "1", True]).tolist()[:3] == [0, 0, 0]


def test_more_rows_than_a_piece_are_split_alike(monkeypatch):
    rng = np.random.default_rng(1)
    cases = [
        (rng.integers(0, num, 300), np.unique(rng.integers(0, 400, 300), return_inverse=True)[1]) for num in (1, 4, 90)
    ]
    numbers = rng.normal(size=300).tolist()

    def split():
        parts = [partition(strata, units, [0.8, 0.1, 0.1], seed).tolist() for seed, (strata, units) in enumerate(cases)]
        return [*parts, strata_of(numbers).tolist(), strata_of(list("abca") * 75).tolist()]

    whole = split()
    monkeypatch.setattr("fusetune.data.storage.mapped.PIECE_ROWS", 7)
    monkeypatch.setattr("fusetune.data.storage.mapped.LARGE", 1)
    assert split() == whole


def test_rows_without_a_target_train_unless_another_split_has_them_or_their_group():
    rows = [
        {"x": "a", "who": "ann", "split": "train"},
        {"x": "b", "who": "bob", "split": "train"},
        {"x": "c", "who": None, "split": "test"},
        {"x": "d", "who": None, "split": "train"},
        {"x": "e", "who": "ann", "split": None},
    ]
    table, held = Table.from_records(rows), Table.from_records([{"x": "z", "who": "bob", "split": "test"}])
    columns = {"x": ColumnSpec("x", "text", "input"), "who": ColumnSpec("who", "category", "group")}
    by_group = may_train(table, Schema(columns), [held])
    assert by_group.tolist() == [True, False, True, True, True]
    by_both = may_train(table, Schema(columns | {"split": ColumnSpec("split", "category", "split")}), [held])
    assert by_both.tolist() == [True, False, False, True, False]


def test_lists_that_hardly_repeat_are_not_classes():
    """Lists of tags: each is nearly the only one of its kind, and all may be in any split."""
    from fusetune.data.splits import MAX_CLASSES, strata_of

    cells = [["O"] * (number + 1) for number in range(MAX_CLASSES + 50)]
    assert not strata_of(cells).any()
    assert len(set(strata_of([["a"], ["b"]] * 20).tolist())) == 2
