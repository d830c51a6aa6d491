"""Columns to logits: absent cells, shared encoders, standardisation, and the linear start for every task."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.inference.features import fill_features
from fusetune.inference.predict import predict_logits
from fusetune.modalities.category import CategoryModality
from fusetune.modalities.number import NumberModality
from fusetune.models.build import build_model
from fusetune.models.reader import FEATURES
from fusetune.models.understand import Understand
from fusetune.registry import FUSIONS, TASKS
from fusetune.tasks.abilities import Probed
from fusetune.training.probes.probe import Probe, SplitRows, column_scales
from fusetune.types import Batch

PROBED = [name for name in TASKS if issubclass(TASKS.get(name), Probed)]

CELLS = {
    "binary": lambda x, n: "yes" if x + n > 0 else "no",
    "multiclass": lambda x, n: "abc"[int(np.digitize(x + n, [-0.7, 0.7]))],
    "multilabel": lambda x, n: "|".join(t for t, on in (("p", x > 0), ("q", n > 0.3)) if on) or "r",
    "regression": lambda x, n: round(3 + 2 * x + n, 4),
    "ordinal": lambda x, n: int(np.digitize(2 * x + n, [-2, -0.5, 0.5, 2])),
    "relation": lambda x, n: f"in({['e1,e2', 'e2,e1'][int(x + n > 0)]})",
}


def make(task: str, fusion: str = "attention", rows: int = 90):
    """Train and validation examples of two tabular columns with missing cells, and a model on them."""
    rng = np.random.default_rng(3)
    records = []
    for place in range(rows):
        x, n = rng.normal(), rng.normal() * 0.5
        records.append({"x": round(x, 3), "c": "uvw"[place % 3], "t": CELLS[task](x, n)})
        if place % 7 == 0:
            records[-1]["x"] = None
        elif place % 5 == 0:
            records[-1]["c"] = None
    modalities = {"x": NumberModality("x", bins=4), "c": CategoryModality("c")}
    tasks = {"t": TASKS.get(task)("t")}
    table = Table.from_records(records)
    train, val = (Examples(table.select(places), modalities, tasks) for places in (np.arange(60), np.arange(60, rows)))
    for examples in (train, val):
        examples.prepare(on_bad_cell="reject")
    train.fit()
    torch.manual_seed(0)
    model = build_model(modalities, tasks, NamedConfig(name=fusion, dim=16))
    return model, tasks["t"], train, val


@pytest.mark.parametrize("fusion", list(FUSIONS))
@pytest.mark.parametrize("task", PROBED)
def test_a_linear_start_gives_the_probes_scores(task, fusion):
    model, t, train, val = make(task, fusion)
    features = fill_features(model, train), fill_features(model, val)
    splits = [SplitRows.of("t", examples, found) for examples, found in zip((train, val), features, strict=True)]
    probe = Probe.fit(t, *splits, list(model.columns))
    for name, (shift, scale) in column_scales(train, features[0]).items():
        model.set_scale(name, shift, scale)
    probe.install(model, "t")
    for split in splits:
        ours = t.answers(predict_logits(model, split.examples, split.indices)["t"])
        np.testing.assert_allclose(ours, probe.scores(split), atol=1e-5, rtol=1e-5)
    baseline = t.evaluate(t.constant(splits[0].truth, len(splits[1].truth)), splits[1].truth)
    tuned = t.evaluate(probe.scores(splits[1]), splits[1].truth)
    better = tuned[t.main.name] > baseline[t.main.name]
    assert better == t.main.greater_is_better


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_every_parameter_gets_a_gradient_after_a_linear_start(fusion):
    model, t, train, val = make("multiclass", fusion)
    found = fill_features(model, train)
    split = SplitRows.of("t", train, found)
    Probe.fit(t, split, SplitRows.of("t", val, fill_features(model, val)), list(model.columns)).install(model, "t")
    nn.init.normal_(next(iter(model.heads[0].parameters())), std=0.1)  # at zero it stops gradients for one step only
    batch = train.batch(train.used)
    t.loss(model.train()(batch).logits["t"], batch.targets["t"], batch.weights).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not without


def test_heads_at_zero_learn_from_the_first_step():
    model, t, train, val = make("multiclass")
    split = SplitRows.of("t", train, fill_features(model, train))
    Probe.fit(t, split, SplitRows.of("t", val, fill_features(model, val)), list(model.columns)).install(model, "t")
    batch = train.batch(train.used)
    t.loss(model(batch).logits["t"], batch.targets["t"], batch.weights).backward()
    assert sum(float(p.grad.abs().sum()) for p in model.heads.parameters()) > 0


def test_an_absent_columns_value_never_matters():
    model, _, train, _ = make("binary")
    model.eval()
    batch = train.batch([0, 1, 2])
    logits = model(batch).logits["t"]
    absent = (batch.cells["x"] < 0).tolist()
    assert absent == [True, False, False]
    changed = Batch(
        {**batch.inputs, "x": {"values": batch.inputs["x"]["values"] * 0 + 9.0}}, batch.cells, batch.weights, batch.rows
    )
    other = model(changed).logits["t"]
    torch.testing.assert_close(other[:1], logits[:1])
    assert not torch.allclose(other[1:], logits[1:])


def test_a_column_that_a_batch_does_not_bring_is_absent():
    model, _, train, _ = make("binary")
    model.eval()
    batch = train.batch([1, 2])
    less = Batch({"c": batch.inputs["c"]}, {"c": batch.cells["c"]}, batch.weights, batch.rows)
    empty = Batch(
        {**batch.inputs, "x": {}},
        {**batch.cells, "x": torch.full((2,), -1)},
        batch.weights,
        batch.rows,
    )
    torch.testing.assert_close(model(less).logits["t"], model(empty).logits["t"])
    assert torch.isfinite(model(less).logits["t"]).all()


def test_features_computed_before_give_the_same_output():
    model, _, train, _ = make("regression")
    model.eval()
    plain = model(train.batch(train.used)).logits["t"]
    batch = train.given(features=fill_features(model, train)).batch(train.used)
    assert FEATURES in batch.inputs["x"]
    torch.testing.assert_close(model(batch).logits["t"], plain)


def test_standardising_takes_off_shift_and_scales():
    model, _, _, _ = make("binary")
    shift, scale = torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([2.0, 0, 1, 1, 1])
    model.set_scale("x", shift, scale)
    projection = model.projections[0]
    values = torch.randn(3, 1, 5)
    torch.testing.assert_close(projection.standardise(values), (values - shift) * scale)


def test_two_columns_share_an_encoder_and_have_their_own_projections():
    class Encoder(nn.Module):
        dim, pretrained = 3, True

    encoder = Encoder()
    fusion = FUSIONS.get("concat")(["a b", "a.b"], 8)
    model = Understand({"e": encoder}, {"a b": "e", "a.b": "e"}, fusion, {"t": nn.Linear(8, 2)})
    assert len(model.encoders) == 1 and len(model.projections) == 2
    assert model.linear[0].in_features == 2 * 4


def test_nothing_pretrained_gives_no_linear_part():
    class Encoder(nn.Module):
        dim, pretrained = 3, False

    model = Understand({"e": Encoder()}, {"a": "e"}, FUSIONS.get("concat")(["a"], 8), {"t": nn.Linear(8, 2)})
    assert model.linear is None and model.linear_columns == []
