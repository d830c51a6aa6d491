"""What the tuned model is compared with: each sees what its name says and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusetune.config.backbone import BackboneConfig
from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.evaluation.measure import systems
from fusetune.inference.features import fill_features
from fusetune.inference.predict import predict_logits
from fusetune.modalities.category import CategoryModality
from fusetune.modalities.number import NumberModality
from fusetune.modalities.text import TextModality
from fusetune.models.build import Backbones, build_model
from fusetune.tasks.classes.classification import BinaryTask
from fusetune.training.probes.probe import Probe, SplitRows


@pytest.fixture(scope="module")
def made(tiny):
    rng = np.random.default_rng(2)
    records = []
    for place in range(150):
        x = float(rng.normal())
        label = "yes" if x > 0.4 else "no"
        records.append({"note": f"w{place % 40} w{place % 7}", "x": x, "c": "uv"[place % 2], "label": label})
    records[120] |= {"x": None, "c": None}
    records[121]["note"] = None
    backbone = Backbones({"text": BackboneConfig(name=tiny("bert"))}).get("text", None)
    modalities = {
        "note": TextModality("note", backbone=backbone),
        "x": NumberModality("x", bins=0),
        "c": CategoryModality("c"),
    }
    task, table = BinaryTask("label"), Table.from_records(records)
    splits = [
        Examples(table.select(rows), modalities, {"label": task})
        for rows in (range(90), range(90, 120), range(120, 150))
    ]
    for examples in splits:
        examples.prepare(on_bad_cell="mask")
    splits[0].fit()
    torch.manual_seed(0)
    model = build_model(modalities, {"label": task}, NamedConfig(name="concat", dim=8)).eval()
    return model, task, [SplitRows.of("label", e, fill_features(model, e)) for e in splits]


def test_columns_are_grouped_by_their_signal(made):
    _, _, (train, _, _) = made
    assert systems.parts(train.examples) == {"text": ["note"], "tabular": ["x", "c"]}


def test_the_constant_guess_is_the_train_rows_rates(made):
    _, task, (train, _, test) = made
    found = systems.baseline(task, train, test)
    assert found.kind == "baseline" and found.answers.shape == (30, 2)
    np.testing.assert_allclose(found.answers, np.tile([1 - train.truth.mean(), train.truth.mean()], (30, 1)))


def test_before_sees_every_column_with_features(made):
    _, task, (train, val, test) = made
    found = systems.before(Probe.fit(task, train, val, ["note", "x", "c"]), test)
    assert (found.kind, found.columns) == ("before", ["note", "x", "c"]) and "without" not in found.description
    less = systems.before(Probe.fit(task, train, val, ["x"]), test)
    assert "without note, c" in less.description


def test_each_modality_alone_sees_only_itself(made):
    _, task, splits = made
    train, val, test = splits
    text, tabular = systems.alone("label", task, {"train": train, "val": val, "test": test}, {})
    assert (text.name, text.columns, tabular.columns) == ("text alone", ["note"], ["x", "c"])
    assert len(np.unique(text.answers[1:2].round(9), axis=0)) == 1
    np.testing.assert_allclose(tabular.answers, Probe.fit(task, train, val, ["x", "c"]).scores(test))
    accuracy = {c.name: task.metrics(c.answers, test.truth)["accuracy"] for c in (text, tabular)}
    assert accuracy["tabular alone"] > 0.85 > accuracy["text alone"]


def test_hiding_a_modality_is_what_a_missing_cell_is(made):
    model, task, (train, _, test) = made
    text, tabular = systems.without(model, "label", task, train, test)
    assert (text.name, text.columns, tabular.columns) == ("without text", ["note"], ["x", "c"])
    logits = predict_logits(model, test.examples, test.indices)["label"]
    whole = task.answers(logits)
    np.testing.assert_allclose(text.answers[1], whole[1], atol=1e-6)  # that row has no note anyway
    assert np.abs(text.answers[2:] - whole[2:]).max() > 1e-4
    # The row with neither number nor category has its note alone either way.
    np.testing.assert_allclose(tabular.answers[0], whole[0], atol=1e-6)
    # Nothing is left of the row without a note: it gets the constant guess.
    np.testing.assert_allclose(tabular.answers[1], task.constant(train.truth, 1)[0])


def test_a_model_trained_alone_is_asked_where_there_is_one(made):
    model, task, splits = made
    text, tabular = systems.alone(
        "label", task, dict(zip(("train", "val", "test"), splits, strict=True)), {"text": model}
    )
    assert "same recipe" in text.description and "linear model" in tabular.description
    np.testing.assert_allclose(text.answers[1], task.constant(splits[0].truth, 1)[0])


def test_which_modalities_need_a_model_of_their_own(made):
    _, task, (train, _, _) = made
    assert systems.trained_alone("probe", train, [task]) == []
    assert systems.trained_alone("tuned", train, [task]) == ["text", "tabular"]
    scratch = SplitRows(
        train.examples, {n: f for n, f in train.features.items() if n != "note"}, train.indices, train.truth
    )
    assert systems.trained_alone("probe", scratch, [task]) == ["text"]
    assert systems.probe_columns(scratch, ["note", "x"]) == ["x"]
