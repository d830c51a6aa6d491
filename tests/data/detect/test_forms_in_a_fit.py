"""A model reads new rows as it read the train rows, whatever they are written in."""

import random

import pytest

import fusetune as ft

QUICK = {
    "trainer": {"epochs": 0, "head_epochs": 10, "trackers": []},
    "report": {"bootstrap": 0, "alone": "none", "errors": 0},
    "data": {"cache": "none"},
}


@pytest.fixture(scope="module")
def european(tmp_path_factory):
    draw = random.Random(0)
    folder = tmp_path_factory.mktemp("forms")
    sizes = [draw.uniform(1, 5000) for _ in range(120)]
    lines = [f"{size:,.2f}".translate(str.maketrans(",.", ".,")) for size in sizes]
    prices = [f"{draw.gauss(size * 2, 2000):.1f}".replace(".", ",") + " €" for size in sizes]
    lines = [
        f"{'n/a' if place % 20 == 7 else line};{place % 3};{price}"
        for place, (line, price) in enumerate(zip(lines, prices, strict=True))
    ]
    (folder / "t.csv").write_text("size;shop;price\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return ft.fit(folder / "t.csv", target="price", config=QUICK, out=folder / "m", progress=False)


def test_what_was_detected_is_in_the_report(european):
    assert any("'n/a' is missing" in note for note in european.results.warnings)


def test_new_rows_in_any_form_are_the_same_numbers(european, tmp_path):
    numbers = [1234.5, 7.25, 999.0]
    frame = pytest.importorskip("pandas").DataFrame({"size": numbers, "shop": [1, 2, 0]})
    expected = european.predict(frame)["price"]
    (tmp_path / "n.csv").write_text("size;shop\n1.234,5;1\n7,25;2\n999;0\n", encoding="utf-8")
    (tmp_path / "p.csv").write_text("size,shop\n1234.5,1\n7.25,2\n999.0,0\n", encoding="utf-8")
    for path in ("n.csv", "p.csv"):
        assert european.predict(tmp_path / path)["price"] == pytest.approx(expected)
    again = ft.load(european.folder)
    assert again.predict(tmp_path / "n.csv")["price"] == pytest.approx(expected)
    (tmp_path / "m.csv").write_text("size,shop\nn/a,\n", encoding="utf-8")
    assert european.predict(tmp_path / "m.csv")["error"] == ["no input column has a value"]
