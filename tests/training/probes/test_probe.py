"""Linear probes: standardised features, absent cells as zeros with a flag, and scikit-learn as the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.inference.features import fill_features
from fusetune.modalities.category import CategoryModality
from fusetune.modalities.number import NumberModality
from fusetune.models.build import build_model
from fusetune.tasks.classes.classification import BinaryTask
from fusetune.training.probes.probe import Probe, SplitRows, block, column_scales, learn_scale


@pytest.fixture(scope="module")
def splits():
    rng = np.random.default_rng(0)
    records = []
    for place in range(200):
        x = rng.normal()
        label = "yes" if x + rng.normal() * 0.5 + (0.8 if place % 2 else 0) > 0.4 else "no"
        records.append({"x": None if place % 6 == 0 else x, "c": "uv"[place % 2], "label": label})
    modalities = {"x": NumberModality("x", bins=0), "c": CategoryModality("c")}
    task = BinaryTask("label")
    table = Table.from_records(records)
    made = [Examples(table.select(rows), modalities, {"label": task}) for rows in (range(120), range(120, 200))]
    for examples in made:
        examples.prepare(on_bad_cell="reject")
    made[0].fit()
    model = build_model(modalities, {"label": task}, NamedConfig(name="concat", dim=4))
    return task, [SplitRows.of("label", examples, fill_features(model, examples)) for examples in made]


def test_scales_standardise_and_drop_what_never_varies():
    torch.manual_seed(0)
    values = torch.randn(50, 3) * torch.tensor([1.0, 1.2, 0.0]) + torch.tensor([0.0, 5.0, 7.0])
    shift, scale = learn_scale(values)
    made = (values - shift) * scale
    torch.testing.assert_close(made[:, :2].std(0, unbiased=False), torch.ones(2))
    assert torch.equal(made[:, 2], torch.zeros(50))
    assert torch.isfinite(torch.cat(learn_scale(torch.zeros(0, 3)))).all()


def test_a_feature_that_hardly_varies_is_not_blown_up():
    values = torch.randn(50, 3) * torch.tensor([1.0, 2.0, 1e-4])
    shift, scale = learn_scale(values)
    made = ((values - shift) * scale).std(0, unbiased=False)
    torch.testing.assert_close(made[:2], torch.ones(2))
    assert 0 < made[2] < 0.01


def test_blocks_hold_scaled_features_and_whether_the_cell_is_absent(splits):
    _, (train, _) = splits
    scales = column_scales(train.examples, train.features)
    made = block(train, "x", scales["x"])
    absent = train.examples.columns["x"].codes[train.indices] < 0
    assert made.shape == (120, 2) and made.dtype == np.float32
    assert np.array_equal(made[:, -1], absent.astype(np.float32))
    assert not made[absent, 0].any()
    assert made[~absent, 0].mean() == pytest.approx(0, abs=1e-5)
    assert made[~absent, 0].std() == pytest.approx(1, abs=1e-4)


def test_scales_come_from_rows_that_are_used(splits):
    _, (train, _) = splits
    view = train.examples.restrict(["x", "c"])
    view.used = view.used[:10]
    few = column_scales(view, train.features)["x"]
    assert not torch.allclose(few[0], column_scales(train.examples, train.features)["x"][0])


def test_it_is_about_as_good_as_scikit_learns(splits):
    task, (train, val) = splits
    probe = Probe.fit(task, train, val, ["x", "c"])
    scales = column_scales(train.examples, train.features)
    features = [np.concatenate([block(split, name, scales[name]) for name in ("x", "c")], 1) for split in (train, val)]
    oracle = LogisticRegression(C=10).fit(features[0], train.truth).predict_proba(features[1])
    ours = task.metrics(probe.scores(val), val.truth)
    theirs = task.metrics(oracle, val.truth)
    assert ours["roc_auc"] == pytest.approx(theirs["roc_auc"], abs=0.03)
    assert ours["log_loss"] == pytest.approx(theirs["log_loss"], abs=0.1)


def test_more_columns_tell_more(splits):
    task, (train, val) = splits
    both, one = (task.metrics(Probe.fit(task, train, val, c).scores(val), val.truth) for c in (["x", "c"], ["c"]))
    assert both["roc_auc"] > one["roc_auc"] + 0.05


def test_an_empty_validation_split(splits):
    task, (train, val) = splits
    empty = SplitRows(val.examples, val.features, val.indices[:0], val.truth[:0])
    assert Probe.fit(task, train, empty, ["x"]).scores(val).shape == (80, 2)
