"""The page for labelling: every label is in the round's file at once, and nothing else in it changes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from PIL import Image

import fusetune as ft
from fusetune.errors import ConfigError, TableError

pytest.importorskip("gradio")

from fusetune.lifecycle.labelling.folder import LOCK, LabelFolder
from fusetune.lifecycle.labelling.page import RoundFile, known_labels, label_page


@pytest.fixture
def pool(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"size": rng.normal(size=60), "note": [f'a, "{n}"\nline' for n in range(60)]})
    rows.to_csv(tmp_path / "pool.csv", index=False)
    return tmp_path / "pool.csv"


@pytest.fixture
def home(pool, tmp_path) -> Path:
    call(pool, tmp_path / "labelling")
    return tmp_path / "labelling"


def call(pool: Path, home: Path, **options: Any) -> Any:
    settings = {"target": "kind", "labels": ["low", "top"], "count": 6, "random_share": 0.34, **options}
    return ft.label(pool, out=home, overrides=["columns.note.role=ignore"], **settings)


def function(page: Any, name: str) -> Any:
    return next(one.fn for one in page.fns.values() if one.api_name == name)


def rows_of(home: Path) -> list[list[str]]:
    with (home / "round-1.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_a_label_is_in_the_file_at_once_and_the_next_row_follows(pool, home):
    before = rows_of(home)
    page = label_page(home)
    place, state, *_ = function(page, "row")()
    assert place == 0 and "6 without a label" in state
    place, state, *_ = function(page, "label")(0, " top ")
    after = rows_of(home)
    assert place == 1 and "5 without a label" in state
    assert after[1] == [*before[1][:-1], "top"] and [row[:-1] for row in after] == [row[:-1] for row in before]
    assert call(pool, home).missing == 5  # `fusetune label` reads it
    for at in range(1, 6):
        place, state, *_ = function(page, "label")(at, "low")
    assert place == 5 and "done" in state
    assert call(pool, home).round == 2


def test_rows_without_a_label_come_next_also_those_that_were_passed_over(home):
    page = label_page(home)
    assert function(page, "label")(3, "low")[0] == 4
    function(page, "label")(5, "low")
    assert function(page, "label")(4, "low")[0] == 0


def test_a_row_that_cannot_be_labelled_and_a_change_of_mind(pool, home):
    page = label_page(home)
    function(page, "label")(0, "low")
    assert function(page, "label")(0, "?")[0] == 1
    assert rows_of(home)[1][-1] == "?"
    assert call(pool, home).missing == 5
    ids = LabelFolder.read(home).batches[0].shown
    assert LabelFolder.read(home).log.labels == {ids[0]: None}


def test_what_was_filled_in_elsewhere_meanwhile_stays(home):
    page, rows = label_page(home), rows_of(home)
    rows[3][-1] = "top"
    with (home / "round-1.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    function(page, "label")(0, "low")
    assert [row[-1] for row in rows_of(home)] == ["kind", "low", "", "top", "", "", ""]


def test_no_label_is_written_while_the_folder_is_read(home):
    import gradio

    page, before = label_page(home), (home / "round-1.csv").read_bytes()
    with FileLock(home / LOCK), pytest.raises(gradio.Error, match="another process"):
        function(page, "label")(0, "low")
    with pytest.raises(gradio.Error, match="no label"):
        function(page, "label")(0, "  ")
    assert (home / "round-1.csv").read_bytes() == before


def test_random_rows_have_no_suggestion(pool, home):
    labels = dict.fromkeys(LabelFolder.read(home).batches[0].shown[:3], "low")
    file = RoundFile(LabelFolder.read(home), 1)
    for row in file.batch.shown:
        file.fill(row, labels.get(row, "top"))
    call(pool, home)
    batch = LabelFolder.read(home).batches[1]
    page = label_page(home)
    for place, row in enumerate(batch.shown):
        said = function(page, "label")(place - 1, "low")[-2] if place else function(page, "row")()[-2]
        assert bool(said) == (row in batch.chosen), row
    assert all(row in batch.guesses for row in batch.chosen)


def test_labels_to_choose_from(home):
    assert known_labels(LabelFolder.read(home)) == ["low", "top"]
    kinds = {part["props"].get("value") for part in label_page(home).config["components"] if part["type"] == "button"}
    assert {"1  low", "2  top", "0  cannot be labelled"} <= kinds


def test_pictures_are_shown(tmp_path):
    (tmp_path / "photos").mkdir()
    for n in range(24):
        Image.new("RGB", (8, 8), (n * 10, 0, 0)).save(tmp_path / "photos" / f"{n}.png")
    rows = pd.DataFrame({"photo": [f"photos/{n}.png" for n in range(24)], "size": [n + 0.5 for n in range(24)]})
    rows.to_csv(tmp_path / "pool.csv", index=False)
    ft.label(
        tmp_path / "pool.csv",
        out=tmp_path / "labelling",
        target="kind",
        count=5,
        overrides=["columns.photo.role=ignore"],
    )
    page = label_page(tmp_path / "labelling")
    assert ("image", "photo") in [(part["type"], part["props"].get("label")) for part in page.config["components"]]
    _, _, photo, size, *_ = function(page, "row")()
    assert Image.open(photo).getpixel((0, 0))[0] == int(float(size)) * 10


def test_what_cannot_be_labelled(tmp_path, home):
    with pytest.raises(ConfigError, match="no round"):
        label_page(tmp_path)
    file = RoundFile(LabelFolder.read(home), 1)
    with pytest.raises(TableError, match="no row"):
        file.fill("r0", "low")
    (home / "round-1.csv").write_text("a,b\n1,2\n")
    with pytest.raises(TableError, match="lost a column"):
        file.labels()
    (home / "round-1.csv").unlink()
    with pytest.raises(TableError, match="cannot be read"):
        file.fill("r0", "low")
