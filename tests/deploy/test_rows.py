"""Everything that a model can be asked about, and the forms of its answers."""

from __future__ import annotations

import datetime
import io
import math

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from fusetune import api
from fusetune.data.table import Table
from fusetune.errors import ConfigError, TableError

pd = pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def rows(shop, shop_tables) -> list[dict]:
    """The test table's rows, their media as absolute paths."""
    cells = Table.read(shop_tables["test"])
    made = [cells.row(place) for place in range(6)]
    return [{**row, "photo": str(shop[0] / row["photo"]), "voice": str(shop[0] / row["voice"])} for row in made]


@pytest.fixture(scope="module")
def pictures(shop, tiny, quick, tmp_path_factory):
    """A model with pictures alone."""
    folder, rows = shop
    table = Table.from_records([{"photo": row["photo"], "label": row["label"]} for row in rows], base_dir=folder)
    config = {**quick, "target": "label", "image": tiny("resnet"), "columns": {"photo": "image"}}
    return api.fit(table, config=config, out=tmp_path_factory.mktemp("pictures"), progress=False)


def answers(predictions) -> list:
    return predictions["label_probability"]


def test_dictionaries_are_rows(fitted, rows):
    whole = answers(fitted.predict(pd.DataFrame(rows)))
    np.testing.assert_allclose(answers(fitted.predict(rows)), whole, atol=1e-6)
    np.testing.assert_allclose(answers(fitted.predict(tuple(rows))), whole, atol=1e-6)
    np.testing.assert_allclose(answers(fitted.predict(rows[2])), whole[2:3], atol=1e-6)
    assert fitted.evaluate(rows).metrics()["label"]


def test_pictures_in_memory_are_cells(pictures, rows):
    opened = [Image.open(row["photo"]) for row in rows]
    whole = answers(pictures.predict([{"photo": row["photo"]} for row in rows]))
    arrays = [np.asarray(one.convert("RGB")) for one in opened]
    for given in (
        opened,
        arrays,
        [row["photo"] for row in rows],
        [{"photo": one} for one in arrays],
        pd.DataFrame({"photo": opened}),
        pd.DataFrame({"photo": arrays}),
    ):
        np.testing.assert_allclose(answers(pictures.predict(given)), whole, atol=1e-6)
    for alone in (opened[1], arrays[1]):
        np.testing.assert_allclose(answers(pictures.predict(alone)), whole[1:2], atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "F", "HSV"])
def test_pictures_of_every_mode_are_read(pictures, mode):
    base = Image.new("RGB", (8, 8), (200, 30, 20))
    made = base.convert("L").convert("F") if mode == "F" else base.convert(mode)
    assert pictures.predict(made).num_errors == 0


def test_arrays_that_are_no_pictures(pictures):
    for array in (np.zeros((4, 4)), np.zeros(5, np.uint8), np.zeros((4, 4, 2), np.uint8)):
        with pytest.raises(TableError, match=r"(?s)no picture.*uint8, \(height, width\)"):
            pictures.predict([array])


def test_cells_without_names_need_a_single_column(fitted):
    with pytest.raises(TableError, match=r"(?s)no column names.*note, photo"):
        fitted.predict(["a text", "another"])


@pytest.mark.parametrize("index", [["c", "a", "b"], [7, 7, -1], pd.date_range("2024-01-01", periods=3)])
def test_a_frame_keeps_its_index(fitted, rows, index):
    frame = pd.DataFrame(rows[:3], index=index)
    found = fitted.predict(frame).to_pandas()
    assert found.index.equals(frame.index)
    assert list(found["row"]) == [0, 1, 2]
    assert list(frame.assign(guess=found["label"])["guess"]) == list(found["label"]) if index[0] != 7 else True


def test_an_empty_table_gives_an_empty_answer(fitted, rows, tmp_path):
    like = fitted.predict(rows)
    (tmp_path / "t.csv").write_text(",".join(rows[0]) + "\n")
    for empty in (pd.DataFrame(rows)[:0], [], tmp_path / "t.csv", pa.Table.from_pylist(rows)[:0]):
        found = fitted.predict(empty)
        assert len(found) == 0 and found.num_errors == 0
        assert found.table.schema == like.table.schema
        assert fitted.predict_proba(empty).shape == (0, 2)
    assert fitted.predict_to([], tmp_path / "o.csv") == (0, 0)
    assert (tmp_path / "o.csv").read_text().startswith('"row","label"')
    with pytest.raises(TableError):
        fitted.evaluate([])


class TestProbabilities:
    def test_are_those_of_the_table_in_the_order_of_the_labels(self, fitted, rows):
        found, table = fitted.predict_proba(rows), fitted.predict(rows)
        assert found.shape == (6, 2) and fitted.labels == {"label": ["no", "yes"]}
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
        for place, label in enumerate(fitted.labels["label"]):
            np.testing.assert_allclose(found[:, place], table[f"label:{label}"], atol=1e-6)

    def test_a_row_that_cannot_be_predicted_is_nan(self, fitted, rows):
        nothing = dict.fromkeys(rows[0])
        found = fitted.predict_proba([rows[0], nothing, rows[1]])
        kept = fitted.predict([rows[0], nothing, rows[1]])["label_probability"]
        assert [math.isnan(row[0]) for row in found] == [value is None for value in kept]

    def test_the_target_must_have_labels(self, fitted, rows):
        with pytest.raises(ConfigError, match=r"(?s)target='label'.*target='labl'"):
            fitted.predict_proba(rows, "labl")


class TestMissingColumns:
    def test_declared_ones_are_missing_cells(self, fitted, rows):
        without = [{name: cell for name, cell in row.items() if name not in ("photo", "plan")} for row in rows]
        emptied = [{**row, "photo": None, "plan": None} for row in rows]
        found = fitted.predict(without, missing_columns=["photo", "plan"])
        np.testing.assert_allclose(answers(found), answers(fitted.predict(emptied)), atol=1e-6)
        np.testing.assert_allclose(
            fitted.predict_proba(without, missing_columns=["photo", "plan"]).max(1), answers(found), atol=1e-6
        )
        assert fitted.evaluate(without, missing_columns=["photo", "plan"]).metrics()["label"]

    def test_others_are_named_with_what_to_do(self, fitted, rows):
        without = [{name: cell for name, cell in row.items() if name != "photo"} for row in rows]
        with pytest.raises(TableError, match=r"(?s)'photo'.*--missing-columns photo"):
            fitted.predict(without)
        with pytest.raises(ConfigError, match=r"(?s)'foto' is no input.*'photo'"):
            fitted.predict(without, missing_columns=["foto"])

    def test_one_that_is_there_is_read(self, fitted, rows):
        found = fitted.predict(rows, missing_columns=["photo"])
        np.testing.assert_allclose(answers(found), answers(fitted.predict(rows)), atol=1e-6)


def test_bytes_of_a_picture_are_a_cell_too(pictures):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    assert pictures.predict([{"photo": file.getvalue(), "when": datetime.date(2024, 1, 1)}]).num_errors == 0


def test_the_target_is_the_second_argument_and_the_folder_is_told(records_frame, quick, capsys):
    tuned = api.fit(records_frame, "label", config=quick)
    assert list(tuned.labels) == ["label"]
    assert str(tuned.folder) in capsys.readouterr().err


@pytest.fixture
def records_frame(shop):
    return pd.DataFrame([{"price": float(row["price"]), "label": row["label"]} for row in shop[1]])
