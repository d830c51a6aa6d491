"""A row of the page: its widgets, the answers, what each column adds, examples, and mistakes."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from fusetune.data.table import Table

ROW: dict[str, Any] = {"note": "w1 w9 w20", "price": 3.5, "plan": "pro"}


@pytest.fixture(scope="module")
def page(run_page, fitted, shop_tables):
    return run_page(fitted, Table.read(shop_tables["test"]), name="shop")


@pytest.fixture(scope="module")
def values(shop) -> list[Any]:
    from gradio_client import handle_file

    return [
        ROW["note"],
        handle_file(shop[0] / "red0.png"),
        handle_file(shop[0] / "voice1.wav"),
        str(ROW["price"]),
        "pro",
    ]


def test_a_widget_for_each_column(page):
    shown = page.labels
    for widget in [("textbox", "note"), ("image", "photo"), ("audio", "voice"), ("textbox", "price")]:
        assert widget in shown
    assert ("dropdown", "plan") in shown and ("label", "label") in shown
    plan = next(c for c in page.client.config["components"] if c["props"].get("label") == "plan")
    assert {value for _, value in plan["props"]["choices"]} == {"basic", "pro", "team"}


def test_the_answer_is_the_models(page, fitted, values, shop):
    label, *_, raw = page.ask("predict", *values)
    row = ROW | {"photo": str(shop[0] / "red0.png"), "voice": str(shop[0] / "voice1.wav")}
    wanted = fitted.predict([row]).table.to_pylist()[0]
    assert label["label"] == wanted["label"] and raw["label"] == wanted["label"]
    shown = {part["label"]: part["confidence"] for part in label["confidences"]}
    proba = fitted.predict_proba([row])[0]
    assert shown == pytest.approx(dict(zip(fitted.labels["label"], proba.tolist(), strict=True)), abs=1e-5)


def test_what_a_column_adds_is_the_change_without_it(page, fitted, values, shop):
    from fusetune.deploy.serve.loaded import load_version
    from fusetune.deploy.ui.asking import ask

    record = ROW | {"photo": [(shop[0] / "red0.png").read_bytes()], "voice": None}
    model = load_version(lambda folder: fitted, fitted.folder, name="shop", precision="float32")
    answered = ask(model, record, explain=True)
    assert set(answered.without) == {"note", "photo", "price", "plan"}  # the row has no voice
    row = ROW | {"photo": str(shop[0] / "red0.png"), "voice": None}
    for column in answered.without:
        lone = fitted.predict_proba([row | {column: None}])[0]
        assert answered.without[column]["label"] == pytest.approx(lone, abs=1e-5)
    explained = page.ask("predict", *values)[-2]
    assert all(f">{column}</span>" in explained for column in ("note", "photo", "voice", "price", "plan"))


def test_a_single_cell_is_answered_and_not_explained(page):
    label, *_, explained, _ = page.ask("predict", "w3 w4", None, None, None, None)
    assert label["label"] in ("yes", "no") and not explained


@pytest.mark.parametrize("typed", ["", None])
def test_an_empty_number_is_missing_and_not_zero(page, fitted, typed):
    label, *_ = page.ask("predict", "w3 w4", None, None, typed, None)
    wanted = fitted.predict_proba([{"note": "w3 w4", "photo": None, "voice": None, "price": None, "plan": None}])[0]
    shown = {part["label"]: part["confidence"] for part in label["confidences"]}
    assert shown == pytest.approx(dict(zip(fitted.labels["label"], wanted.tolist(), strict=True)), abs=1e-5)


def test_what_is_no_number_is_left_out_and_named(page):
    _, note, *_ = page.ask("predict", "w3 w4", None, None, "many", None)
    text = note["value"] if isinstance(note, dict) else note
    assert "price" in text and "predicted without it" in text


def test_a_damaged_file_is_left_out_and_named(page, values, tmp_path):
    from gradio_client import handle_file

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 40)
    _, note, _, raw = page.ask("predict", values[0], handle_file(broken), *values[2:])
    text = note["value"] if isinstance(note, dict) else note
    assert "photo" in text and "predicted without it" in text and raw["error"]


@pytest.fixture(scope="module")
def encode(shop):
    """A shop's row with its picture and sound in base64 and without its target."""

    def row(cells: dict[str, Any]) -> dict[str, Any]:
        files = {name: base64.b64encode((shop[0] / cells[name]).read_bytes()).decode() for name in ("photo", "voice")}
        return {**{name: cells[name] for name in ("note", "price", "plan")}, **files}

    return row


@pytest.mark.parametrize("column", ["note", "photo", "voice"])
def test_mistakes_have_the_servers_sentences(run_page, fitted, encode, values, shop, column):
    from starlette.testclient import TestClient

    from fusetune.deploy.serve.options import Limits, ServeOptions
    from fusetune.deploy.serve.run import Serving

    limits = {"note": Limits(chars=5), "photo": Limits(pixels=100), "voice": Limits(seconds=0.1)}[column]
    serving = Serving.of(ServeOptions(fitted.folder, limits=limits), lambda folder: fitted)
    try:
        client = TestClient(serving.guard, base_url="http://127.0.0.1")
        cells = shop[1][0] | {"note": ROW["note"], "photo": "red0.png", "voice": "voice1.wav"}
        answer = client.post("/predict", json={"rows": [encode(cells)]})
    finally:
        serving.close()
    said = run_page(fitted, limits=limits).refused("predict", *values)
    assert column in said and said == answer.json()["error"]["message"]


def test_an_empty_row_is_refused_in_a_sentence_without_a_traceback(page, capfd):
    said = page.refused("predict", "", None, None, None, None)
    assert "Traceback" not in said and len(said) > 10
    assert "Traceback" not in capfd.readouterr().err


def test_what_is_quoted_is_not_markup(page, values):
    said = page.refused("predict", "<b>" + "w1 " * 40_000, *values[1:])
    assert "100,000 characters" in said and "<" not in said


def test_rows_of_the_test_table_are_examples(page, shop_tables):
    dataset = next(c for c in page.client.config["components"] if c["type"] == "dataset")
    assert dataset["props"]["headers"] == ["note", "photo", "voice", "price", "plan", "in the table"]
    notes = {row["note"]: row["label"] for row in map(Table.read(shop_tables["test"]).row, range(20))}
    samples = dataset["props"]["samples"]
    assert len(samples) == 12 and all(notes[sample[0]] == sample[-1] for sample in samples)


def test_a_table_comes_back_with_its_predictions(page, fitted, encode, shop, tmp_path):
    from gradio_client import handle_file

    rows = [encode(row) for row in shop[1][:5]] + [{"note": "", "photo": "", "voice": "", "price": "", "plan": ""}]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, _ = page.ask("predict_table", handle_file(tmp_path / "new.jsonl"))
    path = out["value"] if isinstance(out, dict) else out
    table = Table.read(path if isinstance(path, str) else path["path"])
    wanted = fitted.predict([{**row, **{n: str(shop[0] / row[n]) for n in ("photo", "voice")}} for row in shop[1][:5]])
    assert len(table) == 6 and table.cells("label")[:5] == wanted["label"]
    assert table.cells("error")[5] is not None


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"note": "w1", "photo": "PATH", "voice": null, "price": 1, "plan": "pro"}\n', "never opened"),
        ("a.csv", "note,price\nw1,2\n", "photo"),
        ("a.parquet", "PAR1", "ends in .csv"),
        ("a.json", "{", "not JSON"),
    ],
)
def test_tables_that_are_refused(page, shop, tmp_path, name, text, said):
    from gradio_client import handle_file

    (tmp_path / name).write_text(text.replace("PATH", str(Path(shop[0]) / "red0.png")))
    assert said in page.refused("predict_table", handle_file(tmp_path / name))
