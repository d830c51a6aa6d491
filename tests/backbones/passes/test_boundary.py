"""Passes that start at the first trained layer give what whole passes give, gradients included, or are not made."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.freeze import freeze
from fusetune.backbones.load import load_backbone
from fusetune.backbones.passes.boundary import boundary_pass, frozen_layers, placeholder_inputs, run_to, starting_at

TEXT = ["bert", "roberta", "llama", "gpt2", "clip"]
IMAGE = ["vit", "dinov2", "mobilenet", "clip", "siglip"]
AUDIO = ["spectrogram"]


def loaded(tiny, name: str, kind: str, pool: str | None = None) -> tuple[Backbone, dict[str, torch.Tensor]]:
    backbone = load_backbone(tiny(name), kind, **({"pool": pool} if pool else {}))
    rng = np.random.default_rng(0)
    if kind == "text":
        texts = [" ".join(f"w{n}" for n in rng.integers(0, 40, length)) for length in (3, 7, 1, 5)]
        tensors = backbone.collate_text([backbone.tokenize(text) for text in texts])
    elif kind == "image":
        pictures = [rng.integers(0, 255, (3, *backbone.image_size)).astype(np.uint8) for _ in range(4)]
        tensors = {**backbone.collate_images(pictures), "owner": torch.tensor([0, 1, 1, 2])}
    else:
        rate = backbone.sampling_rate
        sounds = [rng.normal(0, 0.1, round(rate * seconds)).astype(np.float32) for seconds in (0.5, 2.0, 1.0)]
        tensors = backbone.collate_audio([backbone.prepare_audio(sound, rate) for sound in sounds])
    return backbone.eval(), tensors


def cases():
    named = (
        [(name, "text") for name in TEXT] + [(name, "image") for name in IMAGE] + [(name, "audio") for name in AUDIO]
    )
    return pytest.mark.parametrize(("name", "kind"), named)


@cases()
@pytest.mark.parametrize("pool", [None, "none"])
def test_equal_with_gradients(tiny, name: str, kind: str, pool: str | None) -> None:
    backbone, tensors = loaded(tiny, name, kind, pool)
    freeze(backbone, "bottom:2")
    number = frozen_layers(backbone)
    assert number == 1
    with torch.inference_mode():
        backbone.start = boundary_pass(backbone, number, tensors)
    assert backbone.start is not None
    hidden = run_to(backbone, number, tensors).detach()
    live = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    found = []
    for inputs in (tensors, {**placeholder_inputs(backbone, tensors), "boundary": hidden}):
        tokens = backbone(**inputs)
        weight = torch.linspace(0, 1, tokens.values.numel()).view_as(tokens.values) * tokens.mask.unsqueeze(-1)
        gradients = torch.autograd.grad((tokens.values * weight).sum(), live, allow_unused=True)
        found.append([tokens.values, *(g if g is not None else torch.zeros(1) for g in gradients)])
    for whole, later in zip(*found, strict=True):
        torch.testing.assert_close(later, whole, atol=1e-5, rtol=1e-4)


def test_the_frozen_layers_do_not_run(tiny) -> None:
    backbone, tensors = loaded(tiny, "bert", "text")
    freeze(backbone, "bottom:2")
    with torch.inference_mode():
        backbone.start = boundary_pass(backbone, 1, tensors)
        hidden = run_to(backbone, 1, tensors)
        frozen = backbone.model.encoder.layer[0].intermediate.dense
        frozen.register_forward_hook(lambda *_: pytest.fail("a frozen layer ran"))
        backbone(**tensors, boundary=hidden)
    assert "forward" not in vars(backbone.model.encoder.layer[0])  # as it was


def test_how_many_layers_are_frozen(tiny) -> None:
    backbone, _ = loaded(tiny, "bert", "text")
    blocks = len(backbone.blocks())
    for rule, number in [("none", 0), ("bottom:1", 0), ("bottom:2", 1), ("all", 0), ("only:bias", 0)]:
        freeze(backbone, rule)
        assert frozen_layers(backbone) == number, rule
    assert blocks == 3
    for name in ("wav2vec2", "ast"):
        speech = load_backbone(tiny(name), "audio")
        freeze(speech, "bottom:2")
        assert frozen_layers(speech) == 0  # sounds of several lengths: how many rows are real is the model's own affair


def test_models_that_do_not_bear_it_are_found_out(tiny) -> None:
    backbone, tensors = loaded(tiny, "bert", "text")
    freeze(backbone, "bottom:2")
    layer = backbone.model.encoder.layer[1]
    plain = layer.forward
    seen: list[float] = []

    def peeking(hidden, *args, **kwargs):  # reads something besides what the layer before it said
        seen.append(float(backbone.model.encoder.layer[0].output.dense.weight.sum()) + len(seen))
        return plain(hidden * (1 + len(seen)), *args, **kwargs)

    layer.forward = peeking
    with torch.inference_mode():
        assert boundary_pass(backbone, 1, tensors) is None
    t5, tensors = loaded(tiny, "t5", "text")
    freeze(t5, "bottom:2")
    if frozen_layers(t5):  # its first layer also says how later ones weigh positions
        with torch.inference_mode():
            assert boundary_pass(t5, frozen_layers(t5), tensors) is None


def test_an_error_inside_leaves_the_model_as_it_was(tiny) -> None:
    backbone, tensors = loaded(tiny, "bert", "text")
    freeze(backbone, "bottom:2")
    whole = backbone(**tensors).values
    with pytest.raises(KeyError), starting_at(backbone, 1, torch.zeros(1)):
        raise KeyError
    assert torch.equal(backbone(**tensors).values, whole)


def test_a_boundary_that_nobody_tried_is_refused(tiny) -> None:
    backbone, tensors = loaded(tiny, "bert", "text")
    with pytest.raises(LookupError, match="boundary"):
        backbone(**tensors, boundary=torch.zeros(4, 9, 16))
