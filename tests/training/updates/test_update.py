"""An update waits for the device once, and buffers are what they were where it is not made."""

from __future__ import annotations

import math
import traceback
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fusetune.backbones.passes.base import PlainPass, using
from fusetune.training.updates.update import Buffers
from fusetune.types import as_numbers

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")


class Waits(TorchDispatchMode):
    """Notes what would have a GPU waited for: values asked of it, and shapes that depend on values."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        masks = [one for one in (args[1] if name.startswith(("index", "_index")) and len(args) > 1 else ()) or ()]
        if name in WAITING or any(isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in masks):
            caller = next(one for one in reversed(traceback.extract_stack()[:-1]) if "/torch/" not in one.filename)
            self.seen.append(f"{name} at {caller.filename}:{caller.lineno}")
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def learned(fitted, shop_tables):
    """The shop's learner, and a batch of its rows through every encoder."""
    from fusetune.data.examples import Examples
    from fusetune.data.table import Table
    from fusetune.objectives.total import Total
    from fusetune.training.learner import Learner

    bundle = fitted.bundle
    rows = Examples(Table.read(shop_tables["train"]), bundle.modalities, bundle.tasks)
    rows.prepare(on_bad_cell="reject")
    return Learner(bundle.model, Total(bundle.tasks)), rows.batch(rows.used[:8])


def test_no_value_is_asked_for_on_the_way_to_the_gradients(learned):
    learner, batch = learned
    del batch.inputs["voice"]  # waveforms of several parts are joined by their number, which is asked for
    batch.cells["voice"] = torch.full_like(batch.cells["voice"], -1)
    with ExitStack() as after:
        for encoder in learner.model.encoders.values():
            after.enter_context(using(encoder, PlainPass()))
        waits = after.enter_context(Waits())
        total, parts, _ = learner(batch)
        total.backward()
    # transformers asks once a pass whether a mask has padding; what a fusion checks, it checks on processors alone.
    known = ("/transformers/masking_utils.py", "/fusion/_columns.py")
    assert parts and [one for one in waits.seen if not any(file in one for file in known)] == []
    with Waits() as waits:
        float(total.detach()), torch.ones(3)[torch.tensor([True, False, True])]
    assert len(waits.seen) == 2
    learner.zero_grad()


def test_numbers_are_those_of_the_scalars():
    given = {"a": torch.tensor(0.1), "b": 2.5, "c": torch.tensor(math.inf), "d": torch.tensor(3)}
    assert as_numbers(given) == {"a": float(torch.tensor(0.1)), "b": 2.5, "c": math.inf, "d": 3.0}
    assert as_numbers({}) == {}


def test_buffers_go_back_to_what_was_noted():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(2))
    module.register_buffer("flag", torch.tensor([True, False]))
    buffers = Buffers(module)
    module[0].running_mean.fill_(5)
    buffers.save()
    before = {name: value.clone() for name, value in module.named_buffers()}
    for value in module.buffers():
        value.zero_()
    buffers.restore()
    after = dict(module.named_buffers())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert after["0.running_mean"].tolist() == [5, 5, 5] and after["1.running_var"].tolist() == [1, 1]
