"""The product on real tables and real pretrained models, as far as a test has time for it; benchmarks do the rest."""

import os
from pathlib import Path

import pytest

import fusetune as ft
from fusetune.errors import TableError

SHARED = Path(os.environ.get("FUSETUNE_DATA", Path(__file__).parents[2] / "shared"))
pytestmark = pytest.mark.real_data


def place(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not there: set FUSETUNE_DATA")
    return path


@pytest.mark.slow
def test_yamnet_hears_what_a_recording_is_of(tmp_path):
    columns = {"fold": {"role": "split", "test": [5], "val": [4]}, "seconds": {"role": "ignore"}}
    tuned = ft.fit(
        place("data/esc10/esc10.csv"),
        target="label",
        out=tmp_path,
        config={"columns": columns, "audio": str(place("models/yamnet"))},
        overrides={"trainer": {"epochs": 0, "head_epochs": 0}, "report": {"bootstrap": 50}},
        progress=False,
    )
    task = tuned.results.tasks[0]
    assert task.rows == 80 and task.main(task.first("after")).value >= 0.9
    assert task.main(task.first("baseline")).value <= 0.15


def test_a_range_of_years_met_first_in_the_test_rows_costs_one_cell(tmp_path):
    data = place("data/movies_poster_plot")
    kept = {"year", "runtime_min", "mpaa_rating", "imdb_votes", "imdb_rating"}
    names = (data / "train.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    tuned = ft.fit(
        data / "train.csv",
        target="imdb_rating",
        val=data / "val.csv",
        test=data / "test.csv",
        out=tmp_path,
        config={"columns": {name: {"role": "ignore"} for name in names if name not in kept}},
        overrides={"trainer": {"epochs": 0, "head_epochs": 2}, "report": {"bootstrap": 50}},
        progress=False,
    )
    predictions = tuned.predict(data / "test.csv")
    errors = [error for error in predictions["error"] if error]
    assert len(predictions) == 273 and None not in predictions["imdb_rating"]
    assert len(errors) == 1 and "year" in errors[0] and "range" in errors[0]
    task = tuned.results.tasks[0]
    assert task.rows == 273 and task.main(task.first("after")).value > 0.25


def test_a_table_in_another_encoding_is_refused_with_the_byte():
    with pytest.raises(TableError, match="2063"):
        ft.schema_of(place("data/covid_xray_figure1/metadata.csv"))
