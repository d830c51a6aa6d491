"""Perturbations: where they enter, how large they are, and that padding and absent columns have none."""

from __future__ import annotations

import wave

import numpy as np
import pytest
import torch
from torch import nn

from fusetune.backbones.load import load_backbone
from fusetune.backbones.word_embeddings import run_encoder, word_embeddings
from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.errors import BackboneError, ConfigError
from fusetune.inference.features import fill_features
from fusetune.modalities.category import CategoryModality
from fusetune.modalities.number import NumberModality
from fusetune.models.build import build_model
from fusetune.models.perturb import Ball, RngState, attacked_columns, find_site, unit_of
from fusetune.models.reader import FEATURES
from fusetune.registry import MODALITIES
from fusetune.tasks.regression import RegressionTask
from fusetune.training.probes.probe import column_scales

TEXTS = ["w1 w2 w3 w4 w5", "w6", "w7 w8 w9", "w1 w9"]
MEDIA = ["bert", "t5", "siglip text", "vit", "resnet", "wav2vec2", "hubert", "whisper", "ast", "spectrogram"]


def media_cells(kind: str, folder) -> list[str]:
    """Four cells of different lengths; one cell of pictures holds two."""
    from PIL import Image

    if kind == "text":
        return TEXTS
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (30, 30, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setnchannels(1), file.setsampwidth(2), file.setframerate(2000)
            file.writeframes((rng.normal(size=400 * (number + 1)) * 8000).astype("<i2").tobytes())
    if kind == "audio":
        return [f"{number}.wav" for number in range(4)]
    return ["0.png", "1.png;2.png", "3.png", "1.png"]


def make(name: str, tiny, folder, *, rows: int = 8, pool: str = "auto"):
    """A model of a media column and two tabular ones, and rows; row 3 lacks the media column, row 5 the number."""
    source, _, kind = name.partition(" ")
    kind = kind or next(k for k, known in KIND.items() if source in known)
    cells = media_cells(kind, folder)
    backbone = load_backbone(tiny(source), kind, pool=pool)
    modalities = {
        "m": MODALITIES.get(kind)("m", backbone=backbone),
        "x": NumberModality("x", bins=3),
        "c": CategoryModality("c"),
    }
    records = [{"m": cells[n % 4], "x": float(n % 5), "c": "uv"[n % 2], "y": float(n)} for n in range(rows)]
    records[3]["m"] = records[5]["x"] = None
    tasks = {"y": RegressionTask("y", transform="none")}
    examples = Examples(Table.from_records(records, base_dir=folder), modalities, tasks)
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    torch.manual_seed(0)
    model = build_model(modalities, tasks, NamedConfig(name="concat", dim=8)).eval()
    for column, scale in column_scales(examples, fill_features(model, examples)).items():
        model.set_scale(column, *scale)
    return model, examples


KIND = {
    "text": ("bert", "t5"),
    "image": ("vit", "resnet"),
    "audio": ("wav2vec2", "hubert", "whisper", "ast", "spectrogram"),
}


def loss_of(model, batch) -> torch.Tensor:
    return model(batch).logits["y"].square().sum()


def gradients(model, ball, deltas):
    found = torch.autograd.grad(loss_of(model, ball.perturbed(deltas)), list(deltas.values()))
    return dict(zip(deltas, found, strict=True))


@pytest.mark.parametrize("name", MEDIA)
def test_every_kind_of_column_is_perturbed_and_only_where_it_is_real(name, tiny, tmp_path):
    model, examples = make(name, tiny, tmp_path)
    batch = examples.batch(range(8))
    ball = Ball(model, batch, ["m", "x", "c"])
    zeros = ball.zeros()
    assert list(ball.sites) == ["m", "x", "c"]
    torch.testing.assert_close(loss_of(model, ball.perturbed(zeros)), loss_of(model, batch))
    grads = gradients(model, ball, zeros)
    sizes = ball.sizes(ball.directions(grads))
    for column, site in ball.sites.items():
        assert len(sizes[column]) == int(batch.cells[column].max()) + 1
        torch.testing.assert_close(sizes[column], torch.ones_like(sizes[column]), atol=1e-4, rtol=0)
        assert not grads[column].masked_fill(site.real.expand_as(grads[column]), 0).any()
        drawn = ball.uniform(0.5)[column]
        assert not drawn.masked_fill(site.real.expand_as(drawn), 0).any() and drawn.abs().max() <= 0.5
        one = {column: ball.climb(zeros, grads, step=0.02, size=0.02)[column]}
        assert loss_of(model, ball.perturbed(one)) > loss_of(model, batch), f"{column} does not climb"


@pytest.mark.parametrize("name", ["bert", "siglip text", "wav2vec2", "whisper"])
def test_padding_is_left_as_it_is(name, tiny, tmp_path):
    model, examples = make(name, tiny, tmp_path)
    batch = examples.batch(range(8))
    ball = Ball(model, batch, ["m"])
    real = ball.sites["m"].real.expand(ball.sites["m"].values.shape)
    assert real.any() and not real.all(), "the cells have different lengths"
    wild = {"m": torch.full_like(ball.sites["m"].values, 3.0).requires_grad_()}
    moved = ball.perturbed(wild).inputs["m"][ball.sites["m"].name]
    before = batch.inputs["m"].get(ball.sites["m"].name, torch.zeros_like(moved))
    assert torch.equal(moved[~real], before[~real]) and not torch.equal(moved[real], before[real])
    lengths = real.flatten(1).sum(1)
    if name == "bert":  # a [CLS], the words, a [SEP]
        assert lengths.tolist() == [16 * (len(text.split()) + 2) for text in TEXTS]
    if name == "wav2vec2":
        assert lengths.tolist() == [400, 800, 1200, 1600]
    if name == "siglip text":
        assert batch.inputs["m"]["attention_mask"].all() and lengths[0] > lengths[1]


def test_a_shift_of_text_is_that_of_its_input_embeddings(tiny, tmp_path):
    model, examples = make("bert", tiny, tmp_path)
    batch = examples.batch(range(8))
    ball = Ball(model, batch, ["m"])
    delta = ball.uniform(0.3)["m"].detach()
    encoder, tensors = model.encoders[model.routes["m"]], batch.inputs["m"]
    shifted = ball.perturbed({"m": delta}).inputs["m"]
    got = run_encoder(encoder, shifted).values
    embeds = encoder.model.embeddings.word_embeddings(tensors["input_ids"])
    unit = embeds[tensors["attention_mask"].bool()].square().mean().sqrt().detach()
    assert ball.units["m"] == pytest.approx(float(unit), rel=1e-5)
    out = encoder.model(inputs_embeds=embeds + delta * unit, attention_mask=tensors["attention_mask"])
    weight = tensors["attention_mask"].unsqueeze(-1).float()
    wanted = (out.last_hidden_state * weight).sum(1) / weight.sum(1)
    torch.testing.assert_close(got[:, 0], wanted)
    torch.testing.assert_close(run_encoder(encoder, tensors).values, encoder(**tensors).values)  # no hook stays behind
    assert not torch.allclose(got, encoder(**tensors).values)


def test_tabular_columns_and_computed_features_are_perturbed_at_their_standardised_features(tiny, tmp_path):
    model, examples = make("bert", tiny, tmp_path)
    examples = examples.given(features=fill_features(model, examples))
    model.projections[1].scale[2] = 0.0  # a feature that never varies
    batch = examples.batch(range(8))
    ball = Ball(model, batch, ["m", "x", "c"], units={"m": 7.0, "x": 7.0})
    assert ball.units == {"m": 1.0, "x": 1.0, "c": 1.0}
    deltas = ball.uniform(0.5)
    for place, column in enumerate(model.columns):
        projection = model.projections[place]
        before = projection.standardise(model.encode(column, batch.inputs[column]).values)
        after = projection.standardise(model.encode(column, ball.perturbed(deltas).inputs[column]).values)
        torch.testing.assert_close(after - before, deltas[column].view_as(before).detach(), atol=1e-5, rtol=1e-4)
    assert not deltas["x"][..., 2].any() and deltas["x"][..., 1].all()


def test_computed_features_of_every_token_are_not_perturbed_at_padding(tiny, tmp_path):
    model, examples = make("bert", tiny, tmp_path, pool="none")
    examples = examples.given(features=fill_features(model, examples))
    batch = examples.batch(range(8))
    real = batch.inputs["m"]["real"]
    assert not real.all()
    deltas = Ball(model, batch, ["m"]).uniform(0.5)
    assert not deltas["m"][~real].any() and deltas["m"][real].any(1).all()


def test_padding_among_computed_features_is_left_as_it_is(tiny, tmp_path):
    model, examples = make("bert", tiny, tmp_path, pool="none")
    examples = examples.given(features=fill_features(model, examples))
    batch = examples.batch(range(8))
    ball = Ball(model, batch, ["m"])
    lengths = [len(text.split()) + 2 for text in TEXTS]
    assert batch.inputs["m"][FEATURES].shape[1] == max(lengths)
    drawn = ball.uniform(1.0)["m"]
    assert drawn.any(2).sum(1).tolist() == lengths
    assert not ball.perturbed({"m": torch.ones_like(drawn)}).inputs["m"][FEATURES][1, 3:].any()


def test_an_absent_column_and_an_unnamed_one_have_no_perturbation(tiny, tmp_path):
    model, examples = make("bert", tiny, tmp_path)
    assert list(Ball(model, examples.batch([3]), ["m", "x"]).sites) == ["x"]
    assert list(Ball(model, examples.batch([5]), ["x"]).sites) == []
    ball = Ball(model, examples.batch([0]), ["m"])
    assert ball.perturbed({}).inputs == ball.batch.inputs


def test_sizes_are_of_cells_with_all_their_parts(tiny, tmp_path):
    model, examples = make("vit", tiny, tmp_path)
    batch = examples.batch(range(8))
    ball = Ball(model, batch, ["m"])
    owner = batch.inputs["m"]["owner"]
    assert owner.tolist() == [0, 1, 1, 2, 3]
    delta = torch.zeros_like(ball.sites["m"].values)
    delta[0], delta[1] = 0.2, 0.2  # the second picture of cell 1 stays as it is
    torch.testing.assert_close(ball.sizes({"m": delta})["m"], torch.tensor([0.2, 0.2 / 2**0.5, 0.0, 0.0]))
    after = ball.directions({"m": delta})["m"].detach()
    torch.testing.assert_close(after[1], torch.full_like(after[1], 2**0.5))
    assert not after[2:].any()


def test_directions_of_gradients_that_are_tiny_zero_or_not_finite(tiny, tmp_path):
    model, examples = make("bert", tiny, tmp_path)
    ball = Ball(model, examples.batch([0, 1, 2, 4]), ["x"])
    gradient = torch.randn(4, *ball.sites["x"].values.shape[1:])
    wanted = ball.directions({"x": gradient})["x"]
    gradient[1], gradient[2, 0], gradient[3, 0] = 0.0, float("nan"), float("inf")
    gradient[0] *= 1e-30
    found = ball.directions({"x": gradient})["x"]
    torch.testing.assert_close(found[0], wanted[0])
    assert not found[1:].any()


def test_climbing_stays_in_the_ball(tiny, tmp_path):
    model, examples = make("bert", tiny, tmp_path)
    ball = Ball(model, examples.batch(range(8)), ["m", "x"])
    up = ball.uniform(1.0)
    near = ball.climb(ball.zeros(), up, step=0.1, size=0.25)
    far = ball.climb(near, up, step=10.0, size=0.25)
    back = ball.climb(near, {name: -value for name, value in up.items()}, step=0.1, size=0.25)
    for column in ("m", "x"):
        torch.testing.assert_close(ball.sizes(near)[column], torch.full_like(ball.sizes(near)[column], 0.1))
        torch.testing.assert_close(ball.sizes(far)[column], torch.full_like(ball.sizes(far)[column], 0.25))
        assert ball.sizes(back)[column].max() < 1e-6


def test_units_are_of_all_cells_and_never_zero(tiny, tmp_path):
    model, examples = make("vit", tiny, tmp_path)
    sites = [find_site(model, "m", examples.batch([row]).inputs["m"]) for row in (0, 1)]
    values = torch.cat([site.values for site in sites])
    assert unit_of(sites) == pytest.approx(float(values.square().mean().sqrt()), rel=1e-5)
    sites[0].values.zero_()
    assert unit_of(sites[:1]) == 1.0
    assert Ball(model, examples.batch([0]), ["m"], units={"m": 5.0}).units == {"m": 5.0}


def test_which_columns(tiny, tmp_path):
    model, _ = make("bert", tiny, tmp_path)
    assert attacked_columns(model, [], where="w") == ["m"]
    assert attacked_columns(model, ["c", "m"], where="w") == ["m", "c"]
    with pytest.raises(ConfigError, match=r"trainer.adversarial.columns names 'mm'(.|\n)*did you mean 'm'"):
        attacked_columns(model, ["mm"], where="trainer.adversarial")
    task = RegressionTask("y", transform="none")
    task.fit([1.0, 2.0])
    plain = build_model({"x": NumberModality("x")}, {"y": task}, NamedConfig(name="concat"))
    assert attacked_columns(plain, [], where="w") == ["x"]


def test_word_embeddings_are_found_by_size_or_refused():
    class Reader(nn.Module):
        def __init__(self, *sizes):
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(size, 2) for size in sizes)

    assert word_embeddings(Reader(4, 30, 9)).num_embeddings == 30
    with pytest.raises(BackboneError, match="no word embeddings"):
        word_embeddings(Reader())


def test_chance_repeats_dropout_and_numpy_and_then_goes_on():
    dropout = nn.Dropout(0.5)
    rng_state = RngState(torch.device("cpu"))
    first = dropout(torch.ones(50)), np.random.rand(3)
    rest = torch.rand(3)
    rng_state.restore()
    again = dropout(torch.ones(50)), np.random.rand(3)
    assert torch.equal(first[0], again[0]) and (first[1] == again[1]).all()
    assert torch.equal(torch.rand(3), rest)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_chance_repeats_dropout_on_a_gpu():
    device = torch.device("cuda")
    dropout, ones = nn.Dropout(0.5), torch.ones(50, device=device)
    rng_state = RngState(device)
    first = dropout(ones)
    rng_state.restore()
    assert torch.equal(dropout(ones), first) and not torch.equal(dropout(ones), first)
