"""Rows on which the linear probe and the heads learn, but encoders are not tuned."""

from __future__ import annotations

import numpy as np
import pytest

import fusetune as ft
from fusetune.errors import ConfigError
from fusetune.training import loop


@pytest.fixture
def tables(shop, write_csv, tmp_path):
    """Two tables, the second with only one of the labels, and rows to measure on."""
    rows = [{name: row[name] for name in ("note", "label")} for row in shop[1]]
    only = [row for row in rows[60:100] if row["label"] == rows[0]["label"]]
    parts = {"old": rows[:60], "new": only, "held": rows[100:]}
    return {name: str(write_csv(tmp_path / f"{name}.csv", part)) for name, part in parts.items()}


@pytest.fixture
def fit(tables, quick, tiny):
    def run(train, *overrides, **options):
        settings = quick | {"text": tiny("bert")}
        held = {"val": tables["held"], "test": tables["held"]}
        named = [tables[name] for name in train]
        return ft.fit(
            named, **({"target": "label"} | held | options), config=settings, overrides=overrides, progress=False
        )

    return run


@pytest.fixture
def drawn(monkeypatch):
    """The positions of train rows that each stage draws."""
    seen = {}
    real = loop.sampler_of

    def sampler_of(learner, stage, train, accelerator):
        sampler = real(learner, stage, train, accelerator)
        seen[stage.name] = np.sort(sampler.indices)
        return sampler

    monkeypatch.setattr(loop, "sampler_of", sampler_of)
    return seen


def test_only_the_other_tables_rows_tune_encoders(fit, tables, drawn):
    tuned = fit(["old", "new"], "data.probe_only=[0]", "trainer.head_epochs=2", "trainer.epochs=1")
    num_new = len(ft.Table.read(tables["new"]))
    assert len(drawn["head"]) == 60 + num_new
    assert drawn["tune"].tolist() == list(range(60, 60 + num_new))
    (task,) = tuned.bundle.targets.values()
    assert len(task.labels) == 2  # the second is in the first table alone
    assert tuned.results.tables[0].rows_used == 60 + num_new


def test_without_it_all_rows_do(fit, drawn):
    fit(["old", "new"], "trainer.head_epochs=1", "trainer.epochs=1")
    assert drawn["tune"].tolist() == drawn["head"].tolist()


@pytest.mark.parametrize(
    ("numbers", "words"), [("[2]", "names the train table 2"), ("[0, 1]", "no row to tune on"), ("[-1]", "probe_only")]
)
def test_mistakes(fit, numbers, words):
    with pytest.raises(ConfigError, match=words):
        fit(["old", "new"], f"data.probe_only={numbers}")


def test_a_model_without_targets_has_no_probe(fit, shop, write_csv, tmp_path, tables):
    rows = [{name: row[name] for name in ("note", "plan")} for row in shop[1]]
    named = str(write_csv(tmp_path / "pairs.csv", rows))
    held = {"val": named, "test": named, "target": None}
    tables |= {"pairs": named}
    with pytest.raises(ConfigError, match="models that predict targets"):
        fit(["pairs", "pairs"], "data.probe_only=[0]", "objectives=[contrastive]", **held)
