"""Frozen features stand for an encoder's outputs exactly where its kept weights are the pretrained ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fusetune.fitting.findings import Findings
from fusetune.training.callbacks import Check
from fusetune.training.history import TrainingHistory
from fusetune.types import Tokens

FEATURES = Tokens(torch.zeros(2, 1, 3), torch.ones(2, 1, dtype=torch.bool))


@pytest.mark.parametrize(
    ("moved", "changed", "stage", "known"),
    [
        (set(), {"": 0, "text": 0, "image": 0}, "head", {"note", "photo"}),
        ({"image"}, {"": 9, "text": 0, "image": 9}, "tune", {"note"}),
        ({"image"}, {"": 5, "text": 0, "image": 0}, "head", {"note", "photo"}),  # the best step lies before
        ({"image"}, {"": 5, "text": 0, "image": 0}, "tune", {"note"}),  # statistics may have moved
        ({"image"}, {}, "head", {"note"}),  # not counted
    ],
)
def test_features_of_encoders_as_pretrained(moved, changed, stage, known):
    best = Check(stage, 3, 1.0, None, 0.5, 0.5, {}, 0.0)
    history = TrainingHistory([best], best, {"": 9}, moved, [], changed=changed)
    fit = SimpleNamespace(features={"test": {"note": FEATURES, "photo": FEATURES}})
    model = SimpleNamespace(routes={"note": "text", "photo": "image", "price": "number"})
    trained = SimpleNamespace(bundle=SimpleNamespace(model=model), history=history, val_scores={})
    assert set(Findings(fit, trained).unchanged_features("test")) == known
