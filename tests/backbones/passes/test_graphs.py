"""Which passes are replayed, which recording each takes, and what happens where one fails; on a GPU: test_gpu.py.

Here a replay computes the pass again (`captured` of conftest.py), so what is tested is everything around it: sizes,
turns, parameters, limits, errors.
"""

from __future__ import annotations

import random
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch

from fusetune.backbones.load import load_backbone
from fusetune.backbones.passes import compiled, graphs
from fusetune.backbones.passes.base import using
from fusetune.backbones.passes.graphs import ReplayedPass, why_not_replayed
from fusetune.errors import RunError


@pytest.fixture
def text(tiny):
    return load_backbone(tiny("bert"), "text").train()


@contextmanager
def update(replays, encoder):
    """What an update does."""
    replays.begin()
    with using(encoder, replays):
        yield


def cells(backbone, *lengths):
    return backbone.collate_text([backbone.tokenize(" ".join(f"w{word}" for word in range(n))) for n in lengths])


def test_every_shape_is_captured_once(text, captured):
    replays = ReplayedPass("text", text)
    for lengths in ([3, 12], [4, 11, 2], [30, 2], [3, 12]):
        plain = text.eval()(**cells(text, *lengths))
        with update(replays, text):
            found = text(**cells(text, *lengths))
        torch.testing.assert_close(found.values, plain.values, atol=1e-5, rtol=0)
        assert torch.equal(found.mask, plain.mask)
    assert [shapes[:2] for _, shapes in captured] == [[(16, 16)] * 2, [(16, 32)] * 2]


def test_gradients_reach_the_parameters(text, captured):
    names = [name for name, _ in text.named_parameters() if "embeddings" not in name]
    for name, parameter in text.named_parameters():
        parameter.requires_grad_(name in names)
    tensors, replays, found = cells(text.eval(), 3, 12), ReplayedPass("text", text), []
    for replayed in (False, True, True):  # the second replay is none that captures
        with update(replays, text) if replayed else nullcontext():
            text(**tensors).values.square().sum().backward()
        found.append({name: parameter.grad for name, parameter in text.named_parameters()})
        text.zero_grad()
    assert len(captured) == 1
    for plain, replayed in ((found[0], found[1]), (found[0], found[2])):
        assert [name for name, gradient in replayed.items() if gradient is not None] == [
            name for name, gradient in plain.items() if gradient is not None
        ]
        torch.testing.assert_close(
            {name: replayed[name] for name in names if plain[name] is not None},
            {name: plain[name] for name in names if plain[name] is not None},
        )


def test_a_replay_sees_what_an_update_made_of_the_parameters(text, captured):
    tensors, replays = cells(text.eval(), 3, 12), ReplayedPass("text", text)
    for _ in range(2):
        with update(replays, text):
            found = text(**tensors).values
        torch.testing.assert_close(found, text(**tensors).values)
        with torch.no_grad():
            for parameter in text.parameters():
                parameter.mul_(1.1)
    assert len(captured) == 1


def test_large_passes_are_padded_less(text, captured, monkeypatch):
    monkeypatch.setattr(graphs, "PADDED_WORK", 1.0)
    replays, length = ReplayedPass("text", text), 70
    with update(replays, text):
        text(**cells(text, length))
    (shape,) = set(captured[0][1][:2])
    assert shape[0] == 4 and shape[1] % 16 == 0 and shape[1] < compiled.bucket(length + 2)


def test_pictures_are_padded_to_few_rows(tiny, captured):
    photo = load_backbone(tiny("vit"), "image", pool="none").eval()
    pixels = photo.collate_images([np.full((3, *photo.image_size), level, np.uint8) for level in range(0, 250, 50)])
    replays = ReplayedPass("photo", photo)
    with update(replays, photo):
        found = photo(**pixels)
    torch.testing.assert_close(found.values, photo(**pixels).values, atol=1e-5, rtol=1e-4)
    assert captured[0][1][0][0] == 8 and found.grid == photo.grid


def test_passes_of_one_update_have_recordings_and_memory_of_their_own(text, captured):
    replays = ReplayedPass("text", text)
    for _ in range(2):
        with update(replays, text):
            text(**cells(text, 3)), text(**cells(text, 4))
    assert len(captured) == 2
    assert captured[0][0] is not captured[1][0]
    with update(replays, text):
        text(**cells(text, 30))
    assert captured[2][0] is captured[0][0]  # passes of other updates may lie in the same memory


def test_large_passes_and_those_without_gradients_are_not(text, captured, monkeypatch):
    replays = ReplayedPass("text", text)
    with update(replays, text):
        with torch.no_grad():
            text(**cells(text, 3))
        monkeypatch.setattr(graphs, "LAYER_WORK", 1.0)
        text(**cells(text, 3))
    assert captured == []


def test_as_many_as_the_memory_has_room_for(text, captured, monkeypatch):
    trained = sum(parameter.nbytes for parameter in text.parameters())
    monkeypatch.setattr(graphs, "memory", lambda device: graphs.SHARE * trained * 2)
    replays = ReplayedPass("text", text)
    for length in (3, 20, 40, 60):
        with update(replays, text):
            assert text(**cells(text, length)).values.shape == (1, 1, text.dim)
    assert len(captured) == 2


def test_what_cannot_be_captured_is_computed_as_else(text, captured, monkeypatch):
    def fail(over, tensors, pool):
        captured.append(1)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "capture", fail)
    replays = ReplayedPass("text", text)
    plain = text.eval()(**cells(text, 3))
    for _ in range(2):
        with update(replays, text):
            torch.testing.assert_close(text(**cells(text, 3)).values, plain.values)
    assert captured == [1] and replays.failed == "operation not permitted when stream is capturing"


def test_a_generator_that_a_capture_broke_ends_the_run(text, captured, monkeypatch):
    def fail(over, tensors, pool):
        raise RunError("a pass cannot be captured: why\n  Do: trainer.cuda_graphs=false")

    monkeypatch.setattr(graphs, "capture", fail)
    with update(ReplayedPass("text", text), text), pytest.raises(RunError, match="cuda_graphs=false"):
        text(**cells(text, 3))


def test_what_is_never_captured(tiny):
    assert "too many lengths" in why_not_replayed(load_backbone(tiny("wav2vec2"), "audio"))
    assert "batch norm" in why_not_replayed(load_backbone(tiny("mobilenet"), "image", norm_eval=False))
    assert why_not_replayed(load_backbone(tiny("bert"), "text")) == ""


@pytest.mark.parametrize("draw", [lambda: torch.rand(()), np.random.rand, random.random])
def test_passes_that_draw_outside_of_the_gpu_are_not_replayed(text, captured, monkeypatch, draw):
    """A layer left out at random, for example, would be left out in every replay."""
    over, tensors, replays = graphs.capture, cells(text.eval(), 3), ReplayedPass("text", text)
    monkeypatch.setattr(graphs, "capture", lambda *args: draw() and over(*args))
    with update(replays, text):
        torch.testing.assert_close(text(**tensors).values, text(**tensors).values)
    assert replays.failed == "random numbers are drawn outside of the GPU" and len(replays) == 0
