"""Several train tables in one fit: each with its own targets, drawn in their shares, bad rows named by their file."""

import json

import pytest
from typer.testing import CliRunner

import fusetune
from fusetune.cli.main import app
from fusetune.data import examples


@pytest.fixture
def two(shop, write_csv, tmp_path):
    """The shop's rows in two tables: plan is the target of one, label of the other; a bad price in each."""
    rows = shop[1]
    first = [{key: row[key] for key in ("note", "price", "plan")} for row in rows[:90]]
    second = [{key: row[key] for key in ("note", "price", "label")} for row in rows[90:]]
    first[7] = first[7] | {"price": "many"}
    second[3] = second[3] | {"price": "few"}
    names = write_csv(tmp_path / "a.csv", first), write_csv(tmp_path / "b.csv", second)
    write_csv(
        tmp_path / "held.csv", [{key: row[key] for key in ("note", "price", "plan", "label")} for row in rows[:30]]
    )
    return [str(name) for name in names]


def test_a_fit_on_two_tables_with_a_target_each(two, quick, tmp_path, tiny, monkeypatch):
    shares = []

    class Watched(examples.UpdateSampler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            shares.append((list(map(len, self.strata)), self.shares))

    monkeypatch.setattr(examples, "UpdateSampler", Watched)
    settings = quick | {"text": tiny("bert"), "columns": {"price": "number"}, "data": {"mix": 0.0}}
    held = tmp_path / "held.csv"
    tuned = fusetune.fit(
        two, target=["plan", "label"], val=held, test=held, out=tmp_path / "m", config=settings, progress=False
    )
    assert set(tuned.bundle.tasks) == {"plan", "label"}
    rejected = [json.loads(line) for line in (tmp_path / "m" / "rejected.jsonl").read_text().splitlines()]
    assert [(one["file"], one["row"], one["value"]) for one in rejected] == [(two[0], 7, "many"), (two[1], 3, "few")]
    (sizes, drawn), *_ = shares
    assert sizes == [89, 29] and sum(sizes) == sum(drawn) and abs(drawn[0] - drawn[1]) <= 1
    used = tuned.results.tables
    assert (used[0].rows_in, used[0].rows_used, used[0].rows_rejected) == (120, 118, 2)


def test_the_command_line_takes_several_tables(two, quick, tmp_path, tiny):
    (tmp_path / "s.yaml").write_text(json.dumps(quick | {"text": tiny("bert"), "columns": {"price": "number"}}))
    words = [*two, "-t", "plan", "-c", str(tmp_path / "s.yaml"), "data.mix=0.5", "-o", str(tmp_path / "m"), "--json"]
    done = CliRunner().invoke(app, ["fit", *words])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["tables"][0]["file"].startswith(" + ".join(two))
    config = fusetune.load(tmp_path / "m").bundle.config
    assert (config.train, config.data.mix) == (two, 0.5)


def test_what_is_neither_a_setting_nor_a_table_is_refused(two, tmp_path):
    for words in (["fit", two[0], "trainer.epochs"], ["fit", str(tmp_path / "c.yaml"), two[1]]):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2 and words[-1] in done.stderr.replace("\n", "") and "Traceback" not in done.stderr
