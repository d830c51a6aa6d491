"""The choice of a pass: what is asked for, what the result depends on, what saves time or memory, in this order."""

from __future__ import annotations

import pytest
import torch

from fusetune.backbones.load import load_backbone
from fusetune.backbones.passes import grouping
from fusetune.backbones.passes.base import BOUNDARY, PlainPass, using
from fusetune.backbones.passes.boundary import BoundaryPass
from fusetune.backbones.passes.choice import choose
from fusetune.backbones.passes.compiled import CompiledPass
from fusetune.backbones.passes.graphs import ReplayedPass
from fusetune.backbones.passes.grouping import ExactPass, GroupedPass, PicturesPass, RoundedPass


@pytest.fixture
def text(tiny):
    return load_backbone(tiny("bert"), "text")


@pytest.fixture
def uneven(text):
    return text.collate_text([text.tokenize("w1 " * words) for words in (1, 1, 1, 20)])


def test_an_encoders_own_way(text, uneven, tiny, monkeypatch) -> None:
    even = {name: tensor[:2, :3] for name, tensor in uneven.items()}
    monkeypatch.setattr(grouping, "PASS_TOKENS", 8)
    assert type(choose(text.eval(), even)) is PlainPass and isinstance(choose(text, uneven), GroupedPass)
    for gradients in (False, True):  # a pass without gradients draws the same dropout
        with torch.set_grad_enabled(gradients):
            assert isinstance(choose(text.train(), even), RoundedPass)
            assert isinstance(choose(text, uneven), RoundedPass)
    monkeypatch.setattr(grouping, "TRAINING_TOKENS", 8)
    assert isinstance(choose(text, uneven), GroupedPass)
    text.start = BoundaryPass(1, gives_tuples=False)
    assert choose(text, {**uneven, BOUNDARY: torch.zeros(4, 22, 16)}) is text.start
    for separate in ("lengths", "cells"):
        text.separate = separate
        assert isinstance(choose(text, uneven), ExactPass)
    photo, pixels = load_backbone(tiny("vit"), "image"), torch.zeros(3, 3, 32, 32)
    monkeypatch.setattr(grouping, "PICTURES", 2)
    with torch.no_grad():
        assert isinstance(choose(photo, {"pixel_values": pixels}), PicturesPass)
        assert isinstance(choose(photo, {"pixel_values": pixels[:2]}), PlainPass)
    assert isinstance(choose(photo, {"pixel_values": pixels}), PlainPass)


def test_what_is_asked_for_comes_first_where_it_is_right(text, uneven, captured, monkeypatch) -> None:
    monkeypatch.setattr(grouping, "PASS_TOKENS", 8)
    with using(text, CompiledPass()) as _:
        assert isinstance(choose(text, uneven), CompiledPass)
        with using(text, PlainPass()):  # the innermost counts
            assert isinstance(choose(text, uneven), PlainPass)
        assert isinstance(choose(text, uneven), CompiledPass)
    with using(text, ReplayedPass("text", text)):
        assert isinstance(choose(text, uneven), ReplayedPass)
        with torch.no_grad():
            assert isinstance(choose(text, uneven), GroupedPass)
    with using(text, PlainPass()):
        text.separate = "lengths"
        assert isinstance(choose(text, uneven), ExactPass), "correct before quick"
    with pytest.raises(KeyError), using(text, PlainPass()):
        raise KeyError
    assert text.wanted is None and captured == []


@pytest.mark.parametrize("separate", ["lengths", "cells"])
@pytest.mark.parametrize("pool", ["mean", "cls", "last", "none"])
def test_exact_passes_give_what_a_plain_pass_gives(tiny, separate, pool) -> None:
    text = load_backbone(tiny("bert"), "text", pool=pool)
    tensors = text.collate_text([text.tokenize("w1 w2 " * words) for words in (2, 1, 5, 1)])
    plain, passes = text(**tensors), []
    run = text.hidden_states
    text.hidden_states = lambda **given: passes.append(len(given["input_ids"])) or run(**given)
    text.separate = separate
    exact = text(**tensors)
    assert passes == ([2, 1, 1] if separate == "lengths" else [1, 1, 1, 1])
    assert torch.equal(exact.mask, plain.mask)
    torch.testing.assert_close(exact.values[exact.mask], plain.values[plain.mask], atol=1e-5, rtol=1e-4)
