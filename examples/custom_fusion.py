"""Add a fusion of your own and tune with it. In a package it is named by an entry point: see docs/extending.md."""

import random
import tempfile
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor, nn

import fusetune as ft
from fusetune.fusion.base import Fused, Fusion
from fusetune.registry import FUSIONS
from fusetune.testing.fusion import check_fusion
from fusetune.types import Tokens


class MaxFusion(Fusion):
    """The largest value of every feature among all columns that are there, through one layer."""

    def __init__(self, columns: Sequence[str], dim: int, *, bias: bool = True) -> None:
        super().__init__(columns, dim)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(self, columns: dict[str, Tokens], present: dict[str, Tensor]) -> Fused:
        tokens = {}
        for name in self.columns:
            mask = columns[name].mask & present[name].unsqueeze(1)  # (batch, tokens)
            values = columns[name].values.masked_fill(~mask.unsqueeze(-1), 0)  # what is absent may be NaN
            tokens[name] = Tokens(values, mask)
        largest = [part.values.masked_fill(~part.mask.unsqueeze(-1), -torch.inf) for part in tokens.values()]
        return Fused(tokens, self.out(torch.cat(largest, 1).amax(1)))  # (batch, dim)


check_fusion(MaxFusion)  # what every fusion must keep to
FUSIONS.register("max", f"{__name__}:MaxFusion")

chance = random.Random(0)
rows = [{"size": chance.gauss(0, 1), "age": chance.gauss(0, 1), "kind": chance.choice("ABC")} for _ in range(300)]
for row in rows:
    row["price"] = max(row["size"], row["age"]) * 100 + (50 if row["kind"] == "A" else 0)

tuned = ft.fit(
    pd.DataFrame(rows),
    target="price",
    config={"fusion": {"name": "max", "bias": False}, "trainer": {"epochs": 0, "head_epochs": 60, "trackers": []}},
    out=tempfile.mkdtemp(),
    progress=False,
)
assert tuned.results is not None
for system in tuned.results.tasks[0].systems:
    print(f"{system.name:<20} R² {system.metrics['r2'].value:6.3f}   {system.description}")
