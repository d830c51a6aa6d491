"""Forward passes without gradients: any batch size and order gives the same, and nothing of the model's state moves."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from fusetune.config.backbone import BackboneConfig
from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.inference import predict as inference
from fusetune.inference.features import encoded
from fusetune.inference.predict import encode_cells, evaluating, predict_logits
from fusetune.models.build import Backbones, build_modalities, build_model
from fusetune.registry import FUSIONS
from fusetune.tasks.regression import RegressionTask
from fusetune.training.probes.probe import SplitRows, block, column_scales

MODELS = {"text": "bert", "image": "resnet"}


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


@pytest.fixture(scope="module")
def build(tiny, shop):
    """`build(fusion)`: a model with `pool: none` on texts of 1 to 9 words and cells of 0 to 3 pictures, and 20 rows."""
    folder, _ = shop
    rng = np.random.default_rng(0)
    records = [
        {
            "text": " ".join(f"w{n}" for n in rng.integers(0, 40, 1 + place % 9)),
            "photo": [f"red{n % 4}.png" for n in range(place % 4)] or None,
            "y": place,
        }
        for place in range(20)
    ]
    settings = {kind: BackboneConfig(name=tiny(name), pool="none") for kind, name in MODELS.items()}
    backbones = Backbones(settings)
    modalities = build_modalities({"text": ("text", {}), "photo": ("image", {})}, backbones)
    task = RegressionTask("y")
    examples = Examples(Table.from_records(records, base_dir=folder), modalities, {"y": task})
    examples.prepare(on_bad_cell="reject")
    examples.fit()

    def make(fusion):
        torch.manual_seed(0)
        model = build_model(modalities, {"y": task}, NamedConfig(name=fusion, dim=8))
        for layer in model.linear:
            nn.init.normal_(layer.weight)
        return model, examples

    return make


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
    found = encode_cells(model, "b", examples.columns["b"], batch_size=4)
    features = found.values
    assert features.shape == (len(column.cells), 1, 16) and found.mask.all()
    assert not features.is_inference() and not found.mask.is_inference()
    for place in (0, len(column.cells) - 1):
        tensors = column.modality.collate([column.example(place)])
        with evaluating(model):
            alone = model.encode("b", tensors).values
        torch.testing.assert_close(features[place], alone[0], atol=1e-5, rtol=0)


def test_cells_that_could_not_be_read_are_zeros(made):
    model, examples = made
    records = [{"a": "w1"}, {"a": {"no": "text"}}, {"a": "w2"}]
    other = Examples(Table.from_records(records), {"a": examples.columns["a"].modality})
    other.prepare(on_bad_cell="mask")
    features = encode_cells(model, "a", other.columns["a"])
    assert features.mask.tolist() == [[True], [False], [True]]
    assert features.values.abs().sum((1, 2)).gt(0).tolist() == [True, False, True]


def test_no_cell_at_all(made):
    model, examples = made
    other = Examples(Table.from_records([{"a": None, "x": 1}]), {"a": examples.columns["a"].modality})
    other.prepare(on_bad_cell="mask")
    found = encode_cells(model, "a", other.columns["a"])
    assert found.values.shape == (0, 1, 16) and found.mask.shape == (0, 1)


def test_progress_sees_every_batch(made):
    model, examples = made
    told = []

    def progress(steps, what, total):
        told.append((what, total))
        yield from steps

    predict_logits(model, examples, examples.used, batch_size=6, progress=progress)
    encode_cells(model, "a", examples.columns["a"], batch_size=6, progress=progress)
    assert told == [("predicting", 4), ("encoding a", 4)]


class TestEveryToken:
    """`pool: none`: cells with differing numbers of tokens, and pictures that keep their height and width."""

    @pytest.mark.parametrize("fusion", list(FUSIONS))
    def test_predictions_with_features_are_those_without(self, build, fusion):
        model, examples = build(fusion)
        plain = predict_logits(model, examples, examples.used)["y"]
        alone = torch.cat([predict_logits(model, examples, examples.used[i : i + 1])["y"] for i in range(20)])
        view = encoded(model, examples)
        assert view.columns["text"].features is not None
        given = predict_logits(model, view, view.used, batch_size=7)["y"]
        assert plain.std() > 0.1
        torch.testing.assert_close(alone, plain, atol=1e-4, rtol=0)  # whatever else is in the batch
        torch.testing.assert_close(given, plain, atol=1e-4, rtol=0)

    def test_features_say_which_tokens_are_real(self, build):
        model, examples = build("attention")
        found, column = encode_cells(model, "text", examples.columns["text"], batch_size=3), examples.columns["text"]
        counts = [len(cell.split()) + 2 for cell in column.cells]  # words between two special tokens
        assert found.mask.sum(1).tolist() == counts and found.values.shape[1] == max(counts) == 11
        assert not found.values[~found.mask].any()
        pictures = encode_cells(model, "photo", examples.columns["photo"]).mask.sum(1)
        assert pictures.tolist() == [16 * len(cell) for cell in examples.columns["photo"].cells]

    def test_a_columns_map_reaches_the_fusion_from_features_too(self, build):
        model, examples = build("convolution")
        seen = []
        hook = model.fusion.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        predict_logits(model, examples, examples.used)
        predict_logits(model, encoded(model, examples), examples.used)
        hook.remove()
        assert [(tokens["text"].grid, tokens["photo"].grid) for tokens in seen] == [(None, (0, 4, 4))] * 2

    def test_scale_and_linear_part_read_the_mean_of_the_real_tokens(self, build):
        model, examples = build("attention")
        column, found = examples.columns["text"], encode_cells(model, "text", examples.columns["text"])
        means = torch.stack([values[real].mean(0) for values, real in zip(found.values, found.mask, strict=True)])
        rows = means[torch.from_numpy(column.codes)]
        shift, scale = column_scales(examples, {"text": found})["text"]
        torch.testing.assert_close(shift, rows.mean(0), atol=1e-5, rtol=0)
        split = SplitRows(examples, {"text": found}, examples.used, np.zeros(20))
        expected = (rows - shift) * scale / 4  # the root of 16 features
        np.testing.assert_allclose(block(split, "text", (shift, scale))[:, :-1], expected, atol=1e-5)
        model.set_scale("text", shift, scale)
        reads = []
        hook = model.linear[0].register_forward_pre_hook(lambda _, args: reads.append(args[0]))
        with evaluating(model):
            model(examples.batch(examples.used))
        hook.remove()
        torch.testing.assert_close(reads[0][:, :16], expected, atol=1e-4, rtol=0)


def test_batches_are_cut_by_tokens(made, monkeypatch):
    model, examples = made
    whole = predict_logits(model, examples, examples.used, batch_size=64)["y"]
    for tokens, least, most in ((24, 1, 6), (24, 3, 100), (10**6, 1, 4), (1, 1, 1)):
        for name, value in (("TOKENS", {"cpu": tokens}), ("MIN_ROWS", least), ("MAX_ROWS", {"cpu": most})):
            monkeypatch.setattr(inference, name, value)
        batches: list[np.ndarray] = []
        batch = examples.batch
        monkeypatch.setattr(examples, "batch", lambda rows, to=batches, batch=batch: to.append(rows) or batch(rows))
        torch.testing.assert_close(predict_logits(model, examples, examples.used)["y"], whole, atol=1e-5, rtol=1e-5)
        monkeypatch.undo()
        assert sorted(np.concatenate(batches).tolist()) == examples.used.tolist()
        for rows in batches:
            assert len(rows) <= most
            assert len(rows) <= least or len(rows) * examples.sizes(rows).max() <= tokens
        for rows, after in pairwise(batches):  # none could have taken the next row
            longer = (len(rows) + 1) * examples.sizes(np.append(rows, after[0])).max()
            assert len(rows) == most or (longer > tokens and len(rows) >= least)


def test_encoded_texts_are_cut_by_tokens_where_each_is_read(tiny, monkeypatch):
    backbones = Backbones({"text": BackboneConfig(name=tiny("bert"), pool="none")})
    modalities = build_modalities({"text": ("text", {})}, backbones)
    task = RegressionTask("y")
    rows = [{"text": " ".join(["w1"] * (1 + place)), "y": place} for place in range(12)]
    examples = Examples(Table.from_records(rows), modalities, {"y": task})
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    model = build_model(modalities, {"y": task}, NamedConfig(name="concat", dim=16))
    known = examples.given(features={"text": encode_cells(model, "text", examples.columns["text"])})
    batches: list[np.ndarray] = []
    batch = known.batch
    monkeypatch.setattr(known, "batch", lambda rows: batches.append(rows) or batch(rows))
    monkeypatch.setattr(inference, "TOKENS", {"cpu": 24})
    monkeypatch.setattr(inference, "MIN_ROWS", 1)
    predict_logits(model, known, known.used)
    assert len(batches) > 3 and sorted(np.concatenate(batches).tolist()) == known.used.tolist()
    assert all(len(rows) == 1 or len(rows) * known.sizes(rows).max() <= 24 for rows in batches)


def test_logits_are_fetched_some_batches_at_a_time(made, monkeypatch):
    model, examples = made
    whole = predict_logits(model, examples, examples.used, batch_size=2)["y"]
    monkeypatch.setattr(inference, "PIECE_ROWS", 5)
    assert torch.equal(predict_logits(model, examples, examples.used, batch_size=2)["y"], whole)
    backwards = predict_logits(model, examples, examples.used[::-1], batch_size=2)["y"]
    torch.testing.assert_close(backwards.flip(0), whole)


def test_rows_with_pictures_are_taken_by_number(build, monkeypatch):
    model, examples = build("concat")
    monkeypatch.setattr(inference, "ROWS", 7)
    monkeypatch.setattr(inference, "TOKENS", {"cpu": 1})
    sizes: list[int] = []
    batch = examples.batch
    monkeypatch.setattr(examples, "batch", lambda rows: sizes.append(len(rows)) or batch(rows))
    predict_logits(model, examples, examples.used)
    assert sizes == [7, 7, len(examples) - 14]
