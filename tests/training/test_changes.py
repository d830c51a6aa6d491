"""Which parameters training has changed."""

from __future__ import annotations

import torch
from torch import nn

from fusetune.training.callbacks import Check
from fusetune.training.changes import changed_parameters, digests
from fusetune.training.history import TrainingHistory


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleDict({"text": nn.Linear(3, 4), "image": nn.Linear(2, 2).bfloat16()})
        self.head = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.tensor(1.0))


def test_only_what_differs_is_counted():
    model = Model()
    before = digests(model)
    assert changed_parameters(before, model, model.encoders) == {"": 0, "text": 0, "image": 0}
    with torch.no_grad():
        model.encoders["text"].bias[1] += 1e-3
        model.scale += 1
        model.head.weight.mul_(1)  # touched, and as before
    assert changed_parameters(before, model, model.encoders) == {"": 5, "text": 4, "image": 0}
    with torch.no_grad():
        model.encoders["image"].weight[0, 0] += 1
    assert changed_parameters(before, model, model.encoders)["image"] == 4


def test_a_history_tells_whether_tuned_encoders_are_as_they_were():
    check = Check("head", 3, 1.0, None, 0.5, 0.8, {}, 0.1)
    history = TrainingHistory([check], check, {"text": 9, "": 20}, {"text"}, [], changed={"text": 0, "": 5})
    assert history.encoders_unchanged
    assert TrainingHistory.from_state(history.to_state()) == history
    history.changed["text"] = 2
    assert not history.encoders_unchanged
    state = history.to_state()
    del state["changed"]  # as an earlier version kept it
    assert not TrainingHistory.from_state(state).encoders_unchanged
