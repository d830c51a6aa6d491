"""Texts in groups of like length give what they give together, and cost less."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusetune.backbones.load import load_backbone
from fusetune.backbones.passes import grouping
from fusetune.backbones.passes.base import PlainPass, using
from fusetune.backbones.passes.grouping import RoundedPass, length_cuts


@given(st.lists(st.integers(1, 200), max_size=80), st.integers(1, 600))
def test_cuts_save_what_a_pass_costs(lengths: list[int], overhead: int) -> None:
    found = np.sort(np.asarray(lengths, dtype=np.int64))
    cuts = length_cuts(found, overhead)
    assert cuts == sorted(set(cuts)) and all(0 < cut < len(found) for cut in cuts)
    groups = np.split(found, cuts)
    padded = sum(len(group) * int(group.max(initial=0)) for group in groups)
    alone = len(found) * int(found.max(initial=0))
    assert alone - padded >= len(cuts) * overhead
    for group in groups:  # and no cut that pays is left out
        assert all(place * (group[-1] - group[place - 1]) < overhead for place in range(1, len(group)))


@pytest.mark.parametrize("name", ["bert", "roberta", "t5", "llama", "gpt2", "clip"])
@pytest.mark.parametrize("pool", ["mean", "cls", "last", "none"])
def test_equal_to_one_pass(tiny, name: str, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "PASS_TOKENS", 4)
    backbone = load_backbone(tiny(name), "text", pool=pool).eval()
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in rng.integers(0, 40, length)) for length in (1, 9, 2, 2, 1, 8, 1)]
    tensors = backbone.collate_text([backbone.tokenize(text) for text in texts])
    live = list(backbone.parameters())
    found, passes = [], []
    encode = backbone.hidden_states
    monkeypatch.setattr(backbone, "hidden_states", lambda **inputs: passes.append(1) or encode(**inputs))
    for together in (False, True):
        with using(backbone, PlainPass()) if together else nullcontext():
            tokens = backbone(**tensors)
        tokens.values = tokens.values.masked_fill(~tokens.mask.unsqueeze(-1), 0)
        loss = (tokens.values * torch.linspace(0, 1, tokens.values.numel()).view_as(tokens.values)).sum()
        gradients = torch.autograd.grad(loss, live, allow_unused=True)
        found.append([tokens.values, tokens.mask.float(), *(g for g in gradients if g is not None)])
    assert len(passes) > 2
    for grouped, one in zip(*found, strict=True):
        torch.testing.assert_close(grouped, one, atol=1e-5, rtol=1e-4)


def test_a_plain_pass_that_is_asked_for_is_one_pass(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "PASS_TOKENS", 1)
    backbone = load_backbone(tiny("bert"), "text").eval()
    tensors = backbone.collate_text([backbone.tokenize(text) for text in ("w1", "w1 w2 w3 w4")])
    passes: list[int] = []
    encode = backbone.hidden_states
    monkeypatch.setattr(backbone, "hidden_states", lambda **inputs: passes.append(1) or encode(**inputs))
    with using(backbone, PlainPass()):
        backbone(**tensors)
    backbone(**tensors)
    assert len(passes) == 3


@pytest.mark.parametrize("name", ["bert", "roberta", "t5", "gpt2"])
@pytest.mark.parametrize("pool", ["mean", "last", "none"])
def test_texts_padded_to_few_widths_give_the_same(tiny, name, pool, monkeypatch) -> None:
    backbone = load_backbone(tiny(name), "text", pool=pool, max_tokens=20).eval()
    widths: list[int] = []
    encode = backbone.hidden_states
    monkeypatch.setattr(
        backbone, "hidden_states", lambda **inputs: widths.append(inputs["input_ids"].shape[1]) or encode(**inputs)
    )
    for words in (3, 11, 40):  # the last is cut at the limit, which is no multiple
        tensors = backbone.collate_text([backbone.tokenize("w1 w2 w3"), backbone.tokenize("w5 " * words)])
        plain, rounded = (strategy(backbone, tensors) for strategy in (PlainPass(), RoundedPass()))
        width = tensors["input_ids"].shape[1]
        assert widths[-2:] == [width, min(-(-width // 8) * 8, 20)]
        assert torch.equal(rounded.mask, plain.mask)
        torch.testing.assert_close(rounded.values[rounded.mask], plain.values[plain.mask], atol=1e-5, rtol=1e-4)
