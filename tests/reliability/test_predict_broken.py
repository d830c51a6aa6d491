"""Predictions for a table of which a tenth of the rows is broken: all answered, in order, the good ones as ever."""

from __future__ import annotations

import json

import pytest

from fusetune.data.table import Table

TOLERANCE = 1e-5
COLUMNS = ("note", "photo", "voice", "price", "plan")

UNREADABLE = {
    3: ("not JSON", lambda row: json.dumps(row)[:-9]),
    17: ("not a JSON object", lambda row: "[1, 2]"),
    29: ("appears twice", lambda row: '{"price": 1, ' + json.dumps(row)[1:]),
    41: ("half of a surrogate pair", lambda row: json.dumps({**row, "note": "cut \ud83d"})),
    53: ("nested too deeply", lambda row: '{"note": ' + "[" * 100_000),
    65: ("no input column has a value", lambda row: json.dumps(dict.fromkeys(row))),
}
BAD_CELLS = {
    8: ("photo", "missing.png", "no such file"),
    22: ("photo", "broken.jpg", "corrupt"),
    36: ("voice", "cut.wav", "cut off"),
    50: ("voice", {"bytes": None, "path": "https://example.org/a.wav"}, "is a URL"),
    78: ("price", "three", "not a number"),
    99: ("note", ["a text", "in a list"], "type list"),
}


@pytest.fixture(scope="module")
def rows(shop):
    return [{name: row[name] for name in COLUMNS} | {"price": float(row["price"])} for row in shop[1]]


@pytest.fixture(scope="module")
def broken(shop, rows, tmp_path_factory):
    """The shop's rows as JSON lines, a tenth of them broken in every way."""
    pytest.importorskip("simplejpeg")
    import corpus

    folder = tmp_path_factory.mktemp("broken")
    for media in (*shop[0].glob("*.png"), *shop[0].glob("*.wav")):
        (folder / media.name).symlink_to(media)
    (folder / "broken.jpg").write_bytes(corpus.damaged(corpus.JPEG, 300))
    (folder / "cut.wav").write_bytes(corpus.wav(lie=10**6))
    lines = [json.dumps(row) for row in rows]
    for place, (_, make) in UNREADABLE.items():
        lines[place] = make(rows[place])
    for place, (name, cell, _) in BAD_CELLS.items():
        lines[place] = json.dumps({**rows[place], name: cell})
    path = folder / "t.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def clean(fitted, shop, rows):
    return fitted.predict(Table.from_records(rows, base_dir=shop[0])).table.to_pylist()


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value, abs=TOLERANCE) if isinstance(value, float) else value), name


def test_a_tenth_is_broken(rows):
    assert len(UNREADABLE | BAD_CELLS) * 10 == len(rows) == 120


@pytest.mark.parametrize("on_bad_cell", ["mask", "reject"])
def test_as_many_rows_in_order_with_the_reason_where_one_is_broken(fitted, broken, clean, on_bad_cell):
    found = fitted.predict(broken, on_bad_cell=on_bad_cell).table.to_pylist()
    assert [row["row"] for row in found] == list(range(120))
    for place, row in enumerate(found):
        if place in UNREADABLE:
            assert UNREADABLE[place][0] in row["error"] and row["label"] is None and row["label:yes"] is None
        elif place in BAD_CELLS:
            name, _, why = BAD_CELLS[place]
            assert f"column {name!r}" in row["error"] and why in row["error"]
            assert (row["label"] is None) == (on_bad_cell == "reject")
        else:
            same(row, clean[place])


def test_a_row_without_its_bad_cell_is_predicted_as_if_the_cell_were_missing(fitted, shop, rows, broken):
    found = fitted.predict(broken).table.to_pylist()
    emptied = [{**rows[place], name: None} for place, (name, _, _) in BAD_CELLS.items()]
    expected = fitted.predict(Table.from_records(emptied, base_dir=shop[0])).table.to_pylist()
    for place, other in zip(BAD_CELLS, expected, strict=True):
        same(found[place] | {"row": 0, "error": None}, other | {"row": 0})
        assert "predicted without it" in found[place]["error"]


def test_a_row_alone_is_predicted_as_in_the_table(fitted, broken, clean):
    table = Table.read(broken)
    for place in range(0, len(table), 4):
        (alone,) = fitted.predict(table.select([place])).table.to_pylist()
        if int(table.rows[place]) not in UNREADABLE | BAD_CELLS:
            same(alone, clean[int(table.rows[place])])


def test_a_broken_row_alone_is_answered(fitted, broken):
    empty = json.dumps(dict.fromkeys(COLUMNS) | {"note": "w1"})
    whys = {place: why for place, (why, _) in UNREADABLE.items()} | {at: why for at, (_, _, why) in BAD_CELLS.items()}
    for place, line in enumerate(broken.read_text(encoding="utf-8").splitlines()):
        if place in whys:
            # A file without one row is refused as a whole; beside a row, each line has its place.
            path = broken.with_name("alone.jsonl")
            path.write_text(f"{empty}\n{line}\n", encoding="utf-8")
            found = fitted.predict(path)
            assert found["row"] == [0, 1] and found["error"][0] is None and found["label"][0] is not None
            assert whys[place] in found["error"][1]
