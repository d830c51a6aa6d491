"""A replay of what comes after the encoders gives what the model gives, for every fusion; `captured`: conftest.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fusetune.models.replays import FusionReplays
from fusetune.models.understand import Understand
from fusetune.registry import FUSIONS
from fusetune.types import Batch, Tokens


class Maps(nn.Module):
    """A picture's cells as they are given."""

    pretrained = True

    def __init__(self, dim: int, grid: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        self.dim, self.grid = dim, grid
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, values: torch.Tensor) -> Tokens:
        return Tokens(values * self.scale, torch.ones(values.shape[:2], dtype=torch.bool), self.grid)


def make(fusion: str) -> tuple[Understand, Batch]:
    torch.manual_seed(0)
    encoders = {"maps": Maps(5, (1, 2, 3)), "flat": Maps(4)}
    columns = {"photo": "maps", "note": "flat", "title": "flat", "none": "flat"}
    heads = {"one": nn.Linear(8, 2), "two": nn.Linear(8, 1)}
    model = Understand(encoders, columns, FUSIONS.get(fusion)(list(columns), 8), heads)
    for layer in model.linear or ():
        nn.init.normal_(layer.weight)
    cells = {"photo": [0, 2, -1, 1, 0], "note": [-1, 0, 1, 2, 3], "title": [0, 0, 0, 1, 1], "none": [-1] * 5}
    batch = Batch(
        inputs={
            "photo": {"values": torch.randn(3, 7, 5)},
            "note": {"values": torch.randn(4, 1, 4)},
            "title": {"values": torch.randn(2, 1, 4)},
            "none": {},
        },
        cells={column: torch.tensor(places) for column, places in cells.items()},
        weights=torch.ones(5),
        rows=torch.arange(5),
    )
    return model.eval(), batch


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_outputs_and_gradients_are_the_models(fusion, captured):
    model, batch = make(fusion)
    replays, found = FusionReplays(model), []
    for replayed in (False, True, True):
        replays.begin()
        out = replays(batch) if replayed else model(batch)
        sum(value.square().sum() for value in [*out.logits.values(), out.pooled]).backward()
        found.append((out, {name: parameter.grad for name, parameter in model.named_parameters()}))
        model.zero_grad()
    assert len(captured) == 1
    (plain, wanted), *others = found
    for out, gradients in others:
        torch.testing.assert_close(out.logits, plain.logits)
        torch.testing.assert_close(out.pooled, plain.pooled)
        for one, two in zip(out.columns.values(), plain.columns.values(), strict=True):
            torch.testing.assert_close(one.values, two.values)
            assert torch.equal(one.mask, two.mask) and one.grid == two.grid
        assert list(out.columns) == list(plain.columns)
        for name, gradient in gradients.items():
            # A parameter without a part in it may have zeros for none.
            assert gradient is not None or wanted[name] is None, name
            if gradient is not None:
                right = torch.zeros_like(gradient) if wanted[name] is None else wanted[name]
                torch.testing.assert_close(gradient, right, atol=1e-4, rtol=1e-4, msg=name)


def test_encoders_that_begin_to_learn_are_other_passes(captured):
    model, batch = make("attention")
    replays = FusionReplays(model)
    for trained in (False, True):
        model.encoders.requires_grad_(trained)
        replays.begin()
        replays(batch).logits["one"].sum().backward()
    assert len(captured) == 2 and all(encoder.scale.grad is not None for encoder in model.encoders.values())


def test_other_columns_and_rows_are_other_passes(captured):
    model, batch = make("attention")
    replays = FusionReplays(model)
    without = replace(batch, inputs={**batch.inputs, "title": {}}, cells={**batch.cells, "title": torch.full((5,), -1)})
    for one in (batch, without, batch):
        replays.begin()
        torch.testing.assert_close(replays(one).logits, model(one).logits)
    assert len(captured) == 2
    with torch.no_grad():
        replays.begin()
        replays(batch)
    assert len(captured) == 2


def test_texts_of_many_tokens_are_computed_as_else(captured):
    model, batch = make("attention")
    replays = FusionReplays(model)
    long = replace(batch, inputs={**batch.inputs, "note": {"values": torch.randn(4, 6, 4)}})
    torch.testing.assert_close(replays(long).logits, model(long).logits)
    assert captured == []
