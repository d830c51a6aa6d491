"""Forward passes without gradients: any batch size and order gives the same, and nothing of the model's state moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.models.build import Backbones, build_modalities, build_model
from fusetune.sections import BackboneConfig, NamedConfig
from fusetune.tasks.regression import RegressionTask
from fusetune.training.inference import encode_cells, evaluating, predict_logits


@pytest.fixture(scope="module")
def made(tiny):
    rng = np.random.default_rng(0)
    records = [
        {"a": " ".join(f"w{n}" for n in rng.integers(0, 40, 1 + place % 9)), "b": place % 5 and f"w{place}", "y": place}
        for place in range(20)
    ]
    for record in records:
        record["b"] = record["b"] or None
    backbones = Backbones({"text": BackboneConfig(name=tiny("bert"))})
    modalities = build_modalities({"a": ("text", {}), "b": ("text", {})}, backbones)
    task = RegressionTask("y")
    examples = Examples(Table.from_records(records), modalities, {"y": task})
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    torch.manual_seed(0)
    return build_model(modalities, {"y": task}, NamedConfig(name="attention", dim=8)), examples


def test_batches_and_order_do_not_matter(made):
    model, examples = made
    whole = predict_logits(model, examples, examples.used)["y"]
    torch.testing.assert_close(
        predict_logits(model, examples, examples.used, batch_size=3)["y"], whole, atol=1e-5, rtol=0
    )
    order = np.random.default_rng(1).permutation(20)
    shuffled = predict_logits(model, examples, order, batch_size=7)["y"]
    torch.testing.assert_close(shuffled, whole[torch.from_numpy(order)], atol=1e-5, rtol=0)
    twice = predict_logits(model, examples, np.asarray([4, 4, 1]))["y"]
    torch.testing.assert_close(twice, whole[[4, 4, 1]], atol=1e-5, rtol=0)


def test_dropout_is_off_and_the_mode_comes_back(made):
    model, examples = made
    model.train()
    one, two = (predict_logits(model, examples, examples.used)["y"] for _ in range(2))
    assert torch.equal(one, two) and model.training
    model.eval()
    predict_logits(model, examples, examples.used)
    assert not model.training


def test_evaluating_restores_the_mode_after_an_error():
    module = nn.Dropout().train()
    with pytest.raises(RuntimeError), evaluating(module):
        assert not module.training
        raise RuntimeError
    assert module.training


def test_cells_are_encoded_once_each_in_their_order(made):
    model, examples = made
    column = examples.columns["b"]
    features = encode_cells(model, examples, "b", batch_size=4)
    assert features.shape == (len(column.cells), 1, 16) and not features.is_inference()
    for place in (0, len(column.cells) - 1):
        tensors = column.modality.collate([column.example(place)])
        with evaluating(model):
            alone = model.encode("b", tensors).values
        torch.testing.assert_close(features[place], alone[0], atol=1e-5, rtol=0)


def test_cells_that_could_not_be_read_are_zeros(made):
    model, examples = made
    records = [{"a": "w1"}, {"a": ["no", "text"]}, {"a": "w2"}]
    other = Examples(Table.from_records(records), {"a": examples.columns["a"].modality})
    other.prepare(on_bad_cell="mask")
    features = encode_cells(model, other, "a")
    assert features[1].abs().sum() == 0 and features[0].abs().sum() > 0 and features[2].abs().sum() > 0


def test_no_cell_at_all(made):
    model, examples = made
    other = Examples(Table.from_records([{"a": None, "x": 1}]), {"a": examples.columns["a"].modality})
    other.prepare(on_bad_cell="mask")
    assert encode_cells(model, other, "a").shape == (0, 1, 16)


def test_progress_sees_every_batch(made):
    model, examples = made
    told = []

    def progress(steps, what, total):
        told.append((what, total))
        yield from steps

    predict_logits(model, examples, examples.used, batch_size=6, progress=progress)
    encode_cells(model, examples, "a", batch_size=6, progress=progress)
    assert told == [("predicting", 4), ("encoding a", 4)]
