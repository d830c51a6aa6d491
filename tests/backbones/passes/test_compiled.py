"""Compiled encoders compute what they compute else, at a few shapes, and nothing of it is left in them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import fusetune
from fusetune.backbones.adapters import adapt
from fusetune.backbones.load import load_backbone
from fusetune.backbones.passes import compiled
from fusetune.backbones.passes.boundary import boundary_pass, frozen_layers, placeholder_inputs, run_to
from fusetune.backbones.passes.compiled import bucket, bucketed, check_compiler, compiling
from fusetune.config.adapter import AdapterConfig
from fusetune.errors import ConfigError, RunError


def has_compiler() -> bool:
    try:
        check_compiler()
    except ConfigError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler here")


@pytest.fixture
def as_it_is(monkeypatch):
    """Everything but the compilation itself."""
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: setattr(self, "_compiled_call_impl", None))


def texts(backbone, *lengths):
    return backbone.collate_text([backbone.tokenize(" ".join(f"w{word}" for word in range(n))) for n in lengths])


def test_few_sizes():
    assert {bucket(size) for size in range(1, 513)} == {16, 32, 48, 64, 96, 128, 192, 256, 384, 512}
    assert all(size <= bucket(size) <= max(2 * 16, 1.5 * size) for size in range(1, 2000))


def test_padding_is_masked_and_within_what_the_model_takes():
    mask = torch.tensor([[1] * 20, [1] * 5 + [0] * 15])
    given = {"input_ids": mask * 7, "attention_mask": mask, "boundary": torch.randn(2, 20, 3)}
    padded, rows, tokens = bucketed(given, most=24)
    assert (rows, tokens) == (2, 20)
    assert {name: tuple(tensor.shape[:2]) for name, tensor in padded.items()} == dict.fromkeys(given, (16, 24))
    assert padded["attention_mask"].sum(1).tolist() == [20] + [5] * 15  # no row is all padding
    pixels = {"pixel_values": torch.zeros(1, 3, 4, 4), "boundary": torch.randn(5, 7, 3)}
    padded, rows, tokens = bucketed(pixels, most=0)
    assert (len(padded["pixel_values"]), padded["boundary"].shape, rows, tokens) == (1, (16, 7, 3), 5, 0)


@pytest.mark.parametrize("pool", ["mean", "cls", "last", "none"])
def test_padded_texts_give_the_same(tiny, as_it_is, pool):
    backbone = load_backbone(tiny("bert"), "text", pool=pool)
    tensors = texts(backbone, 3, 12, 1)
    plain = backbone(**tensors)
    with compiling({"text": backbone}) as said:
        found = backbone(**tensors)
    assert said == [] and backbone.wanted is None
    torch.testing.assert_close(found.values[found.mask], plain.values[plain.mask], atol=1e-5, rtol=0)
    assert torch.equal(found.mask, plain.mask)


@pytest.mark.parametrize("name", ["vit", "mobilenet"])
@pytest.mark.parametrize("pool", ["auto", "none"])
def test_padded_pictures_give_the_same_and_are_joined(tiny, as_it_is, name, pool):
    backbone = load_backbone(tiny(name), "image", pool=pool)
    rng = np.random.default_rng(0)
    pixels = backbone.collate_images([rng.integers(0, 256, (3, *backbone.image_size), dtype=np.uint8) for _ in "1234"])
    for owner in (None, torch.tensor([0, 1, 1, 2])):
        plain = backbone(**pixels, owner=owner)
        with compiling({"image": backbone}):
            found = backbone(**pixels, owner=owner)
        torch.testing.assert_close(found.values, plain.values, atol=1e-5, rtol=1e-4)
        assert torch.equal(found.mask, plain.mask) and found.grid == plain.grid


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_pass_that_starts_later_is_padded_too(tiny, as_it_is, kind):
    backbone = load_backbone(tiny("bert" if kind == "text" else "vit"), kind)
    for name, block in backbone.blocks()[:2]:
        assert name != "final"
        block.requires_grad_(False)
    number = frozen_layers(backbone)
    assert number == 1
    if kind == "text":
        tensors = texts(backbone, 3, 12, 1)
    else:
        tensors = backbone.collate_images([np.full((3, *backbone.image_size), level, np.uint8) for level in (3, 90)])
    with torch.no_grad():
        hidden, plain = run_to(backbone, number, tensors), backbone(**tensors)
        backbone.start = boundary_pass(backbone, number, tensors)
    with compiling({"e": backbone}):
        found = backbone(**placeholder_inputs(backbone, tensors), boundary=hidden)
    torch.testing.assert_close(found.values, plain.values, atol=1e-5, rtol=0)


def test_what_cannot_be_compiled_is_said(tiny, as_it_is):
    voice, photo = load_backbone(tiny("wav2vec2"), "audio"), load_backbone(tiny("mobilenet"), "image", norm_eval=False)
    with compiling({"voice": voice, "photo": photo}) as said:
        assert voice.wanted is None and photo.wanted is None
    assert len(said) == 2 and "voice is not compiled: it reads waveforms" in said[0] and "batch norm" in said[1]


def test_no_compiler_is_a_mistake_that_is_told(monkeypatch, shop_tables, quick, tmp_path):
    from torch._inductor import config

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = {**quick, "trainer": {**quick["trainer"], "compile": True}}
    with (
        config.patch("cpp.cxx", ("/no/such/compiler",)),
        pytest.raises(ConfigError, match=r"(?s)needs a C\+\+ compiler.*Do: install g\+\+.*trainer.compile=false"),
    ):
        fusetune.fit(str(shop_tables["train"]), target="label", out=tmp_path / "m", config=settings, progress=False)


def test_a_compilation_that_fails_is_an_error_and_no_slower_run(tiny, monkeypatch):
    class Failed(RuntimeError):
        __module__ = "torch._inductor.exc"

    def fail(*args, **kwargs):
        raise Failed("no code for this\nand more")

    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: setattr(self, "_compiled_call_impl", fail))
    backbone = load_backbone(tiny("bert"), "text")
    with (
        pytest.raises(RunError, match=r"cannot be compiled: no code for this\n  Do: trainer.compile=false"),
        compiling({"text": backbone}),
    ):
        backbone(**texts(backbone, 3))
    assert backbone(**texts(backbone, 3)).values.isfinite().all()  # and nothing is left


@pytest.mark.parametrize("other", ["adversarial", "vat"])
def test_what_changes_the_inputs_is_refused(tiny, shop_tables, quick, tmp_path, other, monkeypatch):
    monkeypatch.setattr("fusetune.fitting.fit.check_compiler", lambda: None)
    settings = {**quick, "text": tiny("bert"), "trainer": {**quick["trainer"], "compile": True}}
    if other == "adversarial":
        settings["trainer"]["adversarial"] = "fgm"
    else:
        settings["objectives"] = ["vat"]
    settings["columns"] = {"photo": {"role": "ignore"}, "voice": {"role": "ignore"}}
    with pytest.raises(ConfigError, match=other):
        fusetune.fit(str(shop_tables["train"]), target="label", out=tmp_path / "m", config=settings, progress=False)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("adapter", [None, "lora"])
def test_compiled_layers_give_what_plain_ones_give(tiny, adapter):
    """Values and gradients in float32, in training and in evaluation mode; layers share what is compiled."""
    from torch._dynamo.utils import counters

    backbone = load_backbone(tiny("bert"), "text")
    if adapter:
        adapt(backbone, AdapterConfig(name=adapter))
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    backbone.train()
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    batches, names = [texts(backbone, 3, 12, 1), texts(backbone, 4, 9)], list(backbone.state_dict())

    def passes():
        found = []
        for tensors in batches:
            values = backbone(**tensors).values
            found += [values.detach(), *torch.autograd.grad(values.square().sum(), trained)]
        with torch.inference_mode():
            return [*found, backbone(**batches[0]).values.clone()]

    plain = passes()
    torch._dynamo.reset()
    counters.clear()
    with compiling({"text": backbone}):
        quick = passes()
        assert list(backbone.state_dict()) == names
    for one, two in zip(quick, plain, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    # With gradients and without; an adapter's first layer reads what takes none.
    assert counters["stats"]["unique_graphs"] == (3 if adapter else 2)


@pytest.mark.slow
@needs_compiler
def test_a_fit_that_is_compiled_comes_to_the_same(tiny, shop_tables, tmp_path, monkeypatch):
    """The course and the saved folder, which knows nothing of it."""
    shutil.copytree(tiny("bert"), tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    config["hidden_dropout_prob"] = config["attention_probs_dropout_prob"] = 0.0
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config))
    called = []
    monkeypatch.setattr(compiled, "bucketed", lambda *args, **options: called.append(1) or bucketed(*args, **options))
    tuned = {}
    for compile in (False, True):
        settings = {
            "text": str(tmp_path / "bert"),
            "columns": {name: {"role": "ignore"} for name in ("photo", "voice")},
            "fusion": {"name": "concat", "dim": 16},
            "trainer": {
                "epochs": 2,
                "head_epochs": 1,
                "trackers": [],
                "precision": "no",
                "compile": compile,
                "gradient_checkpointing": compile,
            },
            "report": {"bootstrap": 0, "alone": "none"},
        }
        tuned[compile] = fusetune.fit(
            str(shop_tables["train"]),
            target="label",
            val=str(shop_tables["val"]),
            test=str(shop_tables["test"]),
            out=tmp_path / str(compile),
            config=settings,
            progress=False,
        )
    assert called
    losses = [[point.val_loss for point in one.results.curve.points] for one in tuned.values()]
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
    states = [one.bundle.model.state_dict() for one in tuned.values()]
    assert list(states[0]) == list(states[1]) and not [name for name in states[1] if "_orig_mod" in name]
    again = fusetune.load(tmp_path / "True").predict(str(shop_tables["test"]))
    plain = tuned[False].predict(str(shop_tables["test"]))
    np.testing.assert_allclose(again["label_probability"], plain["label_probability"], atol=1e-4)
