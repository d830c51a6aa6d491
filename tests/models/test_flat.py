"""A flat model: equal answers for every task, absent cells, several pictures, n-grams; and what has no flat form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fusetune.backbones.load import load_backbone
from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.errors import ConfigError
from fusetune.modalities.audio import AudioModality
from fusetune.modalities.category import CategoryModality
from fusetune.modalities.date import DateModality
from fusetune.modalities.image import ImageModality
from fusetune.modalities.number import NumberModality
from fusetune.modalities.text import TextModality
from fusetune.models.build import build_model
from fusetune.models.flat import FlatModel
from fusetune.registry import TASKS

TARGETS = {
    "multiclass": lambda n: "abc"[n % 3],
    "ordinal": lambda n: n % 4,
    "multilabel": lambda n: ("p", "q", "p|q")[n % 3],
    "regression": lambda n: 1.5 * n**3 + 2,
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Twelve rows of all kinds; some lack some columns, some have two pictures."""
    folder, rng = tmp_path_factory.mktemp("flat"), np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    records = [
        {
            "note": f"w{n} w{n % 5} w7" + " w3" * (n % 4),
            "photo": ("a.png", "a.png;b.png", "b.png")[n % 3],
            "price": n * 1.5,
            "plan": "xyz"[n % 3],
            "day": f"2020-0{1 + n % 9}-1{n % 10}",
            **{name: make(n) for name, make in TARGETS.items()},
        }
        for n in range(12)
    ]
    for n, name in enumerate(("note", "photo", "price", "plan", "day")):
        records[n + 2][name] = None
    return Table.from_records(records, base_dir=folder)


def build(tiny, rows, tasks, **settings):
    modalities = {
        "note": TextModality("note", backbone=load_backbone(tiny("bert"), "text")),
        "photo": ImageModality("photo", backbone=load_backbone(tiny("mobilenet"), "image")),
        "price": NumberModality("price", bins=4),
        "plan": CategoryModality("plan"),
        "day": DateModality("day"),
    }
    examples = Examples(rows, modalities, tasks)
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    modalities["note"].learn_ngrams([modalities["note"].decode(cell, row=0, base_dir=rows.base_dir)
                                     for cell in rows.cells("note") if cell])  # fmt: skip
    torch.manual_seed(0)
    model = build_model(modalities, tasks, NamedConfig(name="attention", dim=16, **settings))
    model.extend({("note", part): len(ngrams) for part, ngrams in modalities["note"].ngrams.items()}, [])
    with torch.no_grad():
        for parameter in [*model.linear.parameters(), *model.ngrams.buffers()]:
            parameter.normal_(std=0.3)
        for column in model.columns:
            model.projection(column).shift.normal_()
    return model.eval(), modalities, examples


def compare(model, modalities, tasks, examples, indices):
    flat = FlatModel(model, modalities, tasks)
    batch = examples.batch(indices)
    with torch.inference_mode():
        logits = model(batch).logits
        answers = dict(zip(flat.outputs, flat(*flat.tensors_of(batch)), strict=True))
    assert [given.name for given in flat.inputs] and len(flat.inputs) == len(flat.examples())
    for name, task in tasks.items():
        wanted = task.answers(logits[name])
        assert answers[task.target].dtype == torch.float32
        np.testing.assert_allclose(answers[task.target].numpy(), wanted, atol=2e-6, rtol=2e-5)


def test_answers_of_every_task_with_absent_cells_and_several_pictures(tiny, rows):
    tasks = {name: TASKS.get(name)(name) for name in TARGETS}
    model, modalities, examples = build(tiny, rows, tasks)
    compare(model, modalities, tasks, examples, np.arange(12))
    compare(model, modalities, tasks, examples, np.array([3]))  # no row has a photo
    assert {"tokens", "characters"} == set(modalities["note"].ngrams)


@pytest.mark.parametrize("transform", ["none", "standard", "log1p", "yeo-johnson", "quantile"])
@pytest.mark.parametrize("clip", [False, True])
def test_numbers_return_to_their_unit_as_in_numpy(transform, clip):
    task = TASKS.get("regression")("y", transform=transform, clip=clip)
    task.fit([float(value) for value in np.random.default_rng(1).gamma(1.0, 20, 300)])
    logits = torch.linspace(-9, 9, 181)
    np.testing.assert_allclose(task.answer_module()(logits).numpy(), task.answers(logits), rtol=1e-4, atol=1e-3)


def test_levels_are_ordered_where_their_logits_are_not():
    task = TASKS.get("ordinal")("y")
    task.fit([1, 2, 3, 4])
    logits = torch.tensor([[1.0, 2.0, -1.0], [0.0, -3.0, 4.0]])
    np.testing.assert_allclose(task.answer_module()(logits).numpy(), task.answers(logits), atol=1e-6)


def test_the_model_is_left_as_it_is(tiny, rows):
    tasks = {"multiclass": TASKS.get("multiclass")("multiclass")}
    model, modalities, _ = build(tiny, rows, tasks)
    model.train()
    flat = FlatModel(model, modalities, tasks)
    assert model.training and not flat.model.training
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_patches_of_a_sound_are_parts(tiny, shop):
    folder, records = shop
    table = Table.from_records([{**row, "voice": row["voice"] if n else None} for n, row in enumerate(records[:6])],
                               base_dir=folder)  # fmt: skip
    modalities = {
        "voice": AudioModality("voice", backbone=load_backbone(tiny("spectrogram"), "audio")),
        "price": NumberModality("price"),
    }
    tasks = {"label": TASKS.get("binary")("label")}
    examples = Examples(table, modalities, tasks)
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    model = build_model(modalities, tasks, NamedConfig(name="gated", dim=16)).eval()
    compare(model, modalities, tasks, examples, np.arange(6))


def test_what_has_no_flat_form_is_refused_by_name(tiny):
    modalities = {
        "voice": AudioModality("voice", backbone=load_backbone(tiny("wav2vec2"), "audio")),
        "note": TextModality("note", backbone=load_backbone(tiny("bert"), "text"), read="tokens"),
    }
    tasks = {"label": TASKS.get("binary")("label")}
    tasks["label"].fit(["a", "b"])
    model = build_model(modalities, tasks, NamedConfig(name="gated", dim=16))
    with pytest.raises(ConfigError) as error:
        FlatModel(model, modalities, tasks)
    assert "'voice'" in str(error.value) and "'note'" in str(error.value)
