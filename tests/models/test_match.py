"""Sides of several columns: one vector each, absent columns and rows, where training starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.errors import ConfigError
from fusetune.inference.predict import row_vectors
from fusetune.modalities.category import CategoryModality
from fusetune.modalities.number import NumberModality
from fusetune.models.build import build_model
from fusetune.models.match import Match
from fusetune.objectives.contrastive import ContrastiveObjective
from fusetune.objectives.contrastive_parts import row_codes
from fusetune.tasks.retrieval import alignment_tasks, pair_tasks

QUERY, DOCUMENT = ["x", "c"], ["y"]


def rows(num=12, **changes):
    """Row 3 lacks x, row 4 the query, row 5 the document."""
    records = [{"x": float(n % 5), "c": "uvw"[n % 3], "y": float(n)} for n in range(num)]
    records[3]["x"] = records[4]["x"] = records[4]["c"] = records[5]["y"] = None
    modalities = {"x": NumberModality("x"), "c": CategoryModality("c"), "y": NumberModality("y")}
    examples = Examples(Table.from_records(records), modalities)
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    return modalities, examples


def make(fusion="concat", **options):
    modalities, examples = rows()
    torch.manual_seed(0)
    tasks = pair_tasks(QUERY, DOCUMENT)
    model = build_model(modalities, tasks, NamedConfig(name=fusion, dim=8, **options), dropout=0.0)
    return model, examples


def opened(model):
    """The model with fusions that count: their last layers are not zero."""
    for side in model.sides:
        torch.nn.init.normal_(side.out.weight)
    return model


def test_there_is_a_vector_a_side():
    model, examples = make()
    assert isinstance(model, Match) and model.compared == {"query": ("x", "c"), "document": ("y",)}
    outputs = model.eval()(examples.batch(range(12)))
    assert outputs.sides["query"].values.shape == (12, 1, 8)
    assert outputs.sides["query"].mask.squeeze(1).tolist() == [n != 4 for n in range(12)]
    assert outputs.sides["document"].mask.squeeze(1).tolist() == [n != 5 for n in range(12)]
    vectors = row_vectors(model, examples, examples.used)
    norms = {name: values.norm(dim=1).round(decimals=4).tolist() for name, values in vectors.items()}
    assert norms == {"query": [float(n != 4) for n in range(12)], "document": [float(n != 5) for n in range(12)]}


def test_training_starts_from_the_sum_of_projected_columns():
    model, examples = make()
    outputs = model.eval()(examples.batch(range(12)))
    total = outputs.columns["x"].mean() + outputs.columns["c"].mean()
    assert torch.allclose(outputs.sides["query"].mean(), total)


@pytest.mark.parametrize("fusion", ["attention", "concat", "gated", "film", "mean"])
def test_rows_count_alone_and_absent_columns_not_at_all(fusion):
    model, examples = make(fusion)
    opened(model).eval()
    whole = model(examples.batch(range(12))).sides["query"].mean()
    for row in (0, 3, 4):
        alone = model(examples.batch([row])).sides["query"].mean()
        assert torch.allclose(alone[0], whole[row], atol=1e-5)
    assert torch.isfinite(whole).all() and not whole[4].any()
    without = model(examples.restrict(["c", "y"]).batch(range(12))).sides["query"].mean()
    assert torch.allclose(without[3], whole[3], atol=1e-5)  # row 3 lacks x


def test_every_parameter_receives_a_gradient_once_the_fusion_counts():
    model, examples = make(modality_dropout=0.0)
    objective = ContrastiveObjective(opened(model), {}, dim=8)
    batch = examples.batch(range(12))
    loss = objective(model, batch, model(batch))["contrastive"]
    torch.autograd.backward(loss)
    lacking = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert not [name for name in lacking if "null" not in name]


def test_a_batch_of_rows_without_a_side_is_read():
    model, examples = make()
    outputs = model(examples.batch([4]))
    assert not outputs.sides["query"].mask.any()
    loss = ContrastiveObjective(model, {})(model, examples.batch([4]), outputs)["contrastive"]
    torch.autograd.backward(loss)
    assert loss == 0


def test_sides_of_one_column_are_compared_as_columns_are():
    modalities, examples = rows()
    fusion = NamedConfig(name="concat", dim=8)
    sides, columns = (
        build_model({name: modalities[name] for name in "xy"}, tasks, fusion, dropout=0.0).eval()
        for tasks in (pair_tasks(["x"], ["y"]), alignment_tasks({"x": "tabular", "y": "tabular"}))
    )
    sides.load_state_dict(columns.state_dict(), strict=False)
    batch = examples.batch(range(12))
    losses = [ContrastiveObjective(model, {})(model, batch, model(batch))["contrastive"] for model in (sides, columns)]
    assert torch.allclose(*losses)


def test_codes_of_several_columns():
    first, second = torch.tensor([0, 0, 1, -1, -1, 0]), torch.tensor([2, 2, 2, 2, -1, -1])
    codes = row_codes([first, second])
    assert codes[0] == codes[1] and codes[4] == -1
    assert len(set(codes.tolist())) == 5 and (codes[:4] >= 0).all() and codes[5] >= 0
    assert row_codes([first]) is first
    rng = np.random.default_rng(0)
    pairs = torch.from_numpy(rng.integers(0, 1000, (20000, 2)))
    distinct = {tuple(pair) for pair in pairs.tolist()}
    assert len(set(row_codes([pairs[:, 0], pairs[:, 1]]).tolist())) == len(distinct)


def test_a_side_of_an_unknown_column_is_refused():
    modalities, _ = rows()
    with pytest.raises(ConfigError, match="'z'"):
        build_model(modalities, pair_tasks(["x"], ["z"]), NamedConfig(name="concat", dim=8))
