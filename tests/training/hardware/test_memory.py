"""Micro-batches fit into memory: what is measured repeats, what is chosen is even, and results stay the same."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tests.training.test_loop import Watch, make, stage
from torch import nn

from fusetune.inference.memory import free_memory, total_memory
from fusetune.training.hardware import memory
from fusetune.training.hardware.memory import PassMemory, measure, split
from fusetune.training.loop import run_stage

GIB = 2**30


@pytest.fixture
def machine(monkeypatch):
    """Has so much memory, total and free, as its attributes say."""
    sizes = {"total": 16 * GIB, "free": 12 * GIB}
    monkeypatch.setattr(memory, "total_memory", lambda: sizes["total"])
    monkeypatch.setattr(memory, "free_memory", lambda: sizes["free"])
    return sizes


def group(root, folder, **files):
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / folder / name.replace("__", ".")).write_text(text)


def test_limits_of_control_groups_count(tmp_path):
    without = total_memory(tmp_path)
    assert without == free_memory(tmp_path), "nothing says what is used"
    stat = "anon 1\ninactive_file 1048576\n"
    group(tmp_path, "sys/fs/cgroup", memory__max="67108864\n", memory__current="33554432\n", memory__stat=stat)
    assert total_memory(tmp_path) == 64 * 2**20 and free_memory(tmp_path) == 33 * 2**20
    group(tmp_path, "sys/fs/cgroup", memory__max="max\n")
    assert total_memory(tmp_path) == without
    old = {"memory__limit_in_bytes": "8388608", "memory__usage_in_bytes": "9388608", "memory__stat": ""}
    group(tmp_path, "sys/fs/cgroup/memory", **old)
    assert total_memory(tmp_path) == 8 * 2**20 and free_memory(tmp_path) == 0
    group(tmp_path, "sys/fs/cgroup/memory", memory__usage_in_bytes="0")
    group(tmp_path, "proc", meminfo="MemTotal: 9 kB\nMemAvailable:    1024 kB\n")
    assert free_memory(tmp_path) == 2**20


def test_powers_of_two_that_follow_the_machine_and_not_the_moment(machine):
    needs = PassMemory(fixed=0, row=GIB / 4)  # 8 GiB a batch; 4 GiB are allowed
    assert split(needs, 32, 1).accumulate == 2 and split(needs, 32, 1).rows == 16
    for free in (8.1, 10, 16):
        machine["free"] = free * GIB
        assert split(needs, 32, 1).accumulate == 2
    machine["free"] = 1 * GIB
    assert split(needs, 32, 1).accumulate == 16, "what is free, where that is little"
    machine["free"] = 0
    assert split(needs, 32, 1).rows == 1
    machine.update(total=64 * GIB, free=60 * GIB)
    assert split(needs, 32, 1).accumulate == 1 and not split(needs, 32, 1).text
    assert split(needs, 32, 4).accumulate == 4, "what was asked for, at least"


class Wide(nn.Module):
    """Keeps `width` numbers a row for the backward pass."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.dropout = nn.Parameter(torch.ones(width)), nn.Dropout(0.5)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, batch):
        self.passes += 1
        return self.dropout(batch.weights[:, None] * self.weight).exp().sum(), {}, None


def test_measured_is_what_autograd_keeps_and_leaves_no_trace():
    learner, examples = make()
    rows, rng_state = examples.used[:3], torch.get_rng_state()
    first = measure(learner, examples.batch, rows)
    assert first == measure(learner, examples.batch, rows) and first.row > 0 and first.fixed >= 0
    assert torch.equal(rng_state, torch.get_rng_state())
    wide = Wide(10_000)
    wide.objective = learner.objective
    needs = measure(wide.train(), examples.batch, rows)
    assert 2 * 40_000 <= needs.row <= 4 * 40_000, "the exponentials and the mask of dropout, 4 bytes each"
    assert needs.fixed < 1000, "weights are not counted"
    assert wide.passes == 0 and wide.weight.grad is None
    assert measure(wide, examples.batch, rows[:1]).fixed == 0


def trained(machine, total, **changes):
    """The losses of a stage on a machine with so much memory; how many micro-batches were made, and what was said."""
    machine.update(total=total, free=total)
    learner, examples = make()
    watch, sizes = Watch(), []
    done = stage(learner, batch_size=16, epochs=2, **changes)
    learner.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0].rows)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_stage(learner, done, examples, lambda: (0.0, 0.0, {}), Accelerator(cpu=True), [watch])
    return [sum(losses.values()) for losses in watch.losses], sizes, done.notes


def test_the_same_losses_in_any_memory(machine):
    plain, sizes, said = trained(machine, 64 * GIB, fits_memory=True)
    assert max(sizes) == 16 and not said
    tight, sizes, said = trained(machine, 20_000, fits_memory=True)
    assert max(sizes[2:]) < 16 and len(said) == 1, "the first two passes are the trial"
    np.testing.assert_allclose(plain, tight, atol=1e-6)
    assert trained(machine, 20_000, fits_memory=False)[1] == [16] * 6


def test_statistics_of_the_micro_batch_forbid_it(machine):
    machine.update(total=20_000, free=20_000)
    learner, examples = make()
    learner.norm = nn.BatchNorm1d(3)
    done = stage(learner, batch_size=16, epochs=1, fits_memory=True)
    run_stage(learner, done, examples, lambda: (0.0, 0.0, {}), Accelerator(cpu=True), [])
    assert not done.notes
