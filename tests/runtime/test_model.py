"""The runtime's predictions are those of the tuned model, and it needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import fusetune.runtime
from fusetune.errors import ConfigError, FolderError, TableError
from fusetune.runtime.files import RUNTIME

BLOCKED = ("torch", "transformers", "sklearn", "scipy", "accelerate", "peft", "safetensors")
HEAVY = ("pyarrow", "pydantic", "yaml", "pandas")
START = """
import sys
for name in {names}: sys.modules[name] = None
import fusetune.runtime
from fusetune.runtime.__main__ import main
"""


def same(ours, theirs):
    assert list(ours.columns) == theirs.table.column_names
    for name in ours.columns:
        for left, right in zip(ours[name], theirs[name], strict=True):
            if isinstance(right, float):
                assert left == pytest.approx(right, abs=1e-4, rel=1e-4)
            else:
                assert left == right


@pytest.fixture(scope="module")
def model(exported):
    return fusetune.runtime.load(exported[0], threads=1)


@pytest.mark.parametrize("on_bad_cell", ["mask", "reject"])
def test_a_table_with_missing_and_bad_cells_and_rejected_rows(exported, model, on_bad_cell):
    _, tuned, table, _ = exported
    ours = model.predict(table, on_bad_cell=on_bad_cell)
    same(ours, tuned.predict(table, on_bad_cell=on_bad_cell))
    assert len(ours) == 14 and ours["row"] == list(range(14)) and ours["key"][3] == "k3"
    assert "price" in ours["error"][8] and "nowhere.png" not in str(ours["label"]) and ours["label"][9] is None
    assert ours.num_errors == 3


def test_rows_as_dictionaries(exported, model, monkeypatch):
    _, tuned, table, _ = exported
    monkeypatch.chdir(table.parent)
    rows = _records(tuned, table)
    same(model.predict(rows), tuned.predict(rows))
    assert model.predict(rows[0])["label"] == model.predict(rows[:1])["label"]
    same(model.predict([]), tuned.predict([]))


def _records(tuned, table):
    read = tuned.read(table)
    return [read.row(index) for index in range(len(read))]


def test_many_rows_in_batches_are_those_of_single_rows(exported, model, monkeypatch):
    _, tuned, table, _ = exported
    monkeypatch.chdir(table.parent)
    rows = _records(tuned, table) * 7
    together = model.predict(rows)
    for index in (0, 7, 50, 97):
        alone = model.predict(rows[index])
        assert alone["rating"][0] == pytest.approx(together["rating"][index], rel=1e-4)


def test_columns_may_be_missing_if_that_is_said(exported, model):
    row = {"note": "w1", "plan": "pro"}
    with pytest.raises(TableError, match="'price'"):
        model.predict(row)
    others = ["photo", "voice", "price", "day"]
    same(model.predict(row, missing_columns=others), exported[1].predict(row, missing_columns=others))
    with pytest.raises(ConfigError, match="price"):
        model.predict(row, missing_columns=["pricee"])
    with pytest.raises(TableError, match="no column names"):
        model.predict(["a"])


def test_pictures_in_memory(exported, model):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    others = ["voice", "price", "day", "note", "plan"]
    for cell in (pixels, Image.fromarray(pixels)):
        same(model.predict({"photo": cell}, missing_columns=others),
             exported[1].predict({"photo": cell}, missing_columns=others))  # fmt: skip


def test_variants_and_folders_are_checked(exported, tmp_path):
    folder, *_ = exported
    assert fusetune.runtime.load(folder, "int8").labels["label"] == ["no", "yes"]
    with pytest.raises(FolderError, match="float32, int8"):
        fusetune.runtime.load(folder, "float16")
    with pytest.raises(FolderError, match="no exported model"):
        fusetune.runtime.load(tmp_path)
    (tmp_path / RUNTIME).write_text("{")
    with pytest.raises(FolderError):
        fusetune.runtime.load(tmp_path)
    content = json.loads((folder / RUNTIME).read_text())
    (tmp_path / RUNTIME).write_text(json.dumps(content))
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:1000])
    with pytest.raises(FolderError):
        fusetune.runtime.load(tmp_path)
    (tmp_path / RUNTIME).write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(FolderError, match="later format"):
        fusetune.runtime.load(tmp_path)


def test_rows_are_predicted_where_nothing_but_the_runtime_can_be_imported(exported, model, tmp_path):
    folder, _, table, _ = exported
    row = {"note": "w1 w2", "price": "3.5", "plan": "pro", "photo": str(table.parent / "red1.png"), "day": "2021-04-01"}
    code = START.format(names=BLOCKED + HEAVY) + (
        "import json\n"
        f"found = fusetune.runtime.load({str(folder)!r}, threads=1).predict([json.loads(sys.stdin.read())],"
        " missing_columns=['voice'])\n"
        "assert not any(sys.modules.get(name) for name in " + repr(BLOCKED + HEAVY) + ")\n"
        f"found.write({str(tmp_path / 'out.csv')!r})\n"
        "print(json.dumps(found.rows()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(row), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == model.predict([row], missing_columns=["voice"]).rows()
    assert (tmp_path / "out.csv").read_text().startswith("row,")


def test_the_command_line_reads_a_table_without_torch(exported, model, tmp_path):
    folder, _, table, _ = exported
    out = tmp_path / "out.jsonl"
    code = START.format(names=BLOCKED) + "sys.exit(main(sys.argv[1:]))"
    run = [sys.executable, "-c", code, str(folder), str(table), "--threads", "1"]
    done = subprocess.run([*run, "-o", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in out.read_text().splitlines()] == model.predict(table).rows()
    wrong = subprocess.run([*run, "-o", str(tmp_path / "out.txt")], capture_output=True, text=True)
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
