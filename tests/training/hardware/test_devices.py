"""Threads are as many as there are cores for this process, and no more than were asked for."""

import pytest
import torch

from fusetune.config.trainer import TrainerConfig
from fusetune.errors import ConfigError
from fusetune.training.hardware import devices
from fusetune.training.hardware.devices import choose_threads, make_accelerator, num_cores


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Eight processors on four cores."""
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda process: set(range(8)))
    for one in range(8):
        place = tmp_path / f"devices/system/cpu/cpu{one}/topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(f"{one % 4},{one % 4 + 4}\n")
    (tmp_path / "fs/cgroup/cpu").mkdir(parents=True)
    return tmp_path


def test_cores_are_counted_once_and_within_the_groups_share(machine, monkeypatch):
    assert num_cores(machine) == 4
    (machine / "fs/cgroup/cpu.max").write_text("max 100000\n")
    assert num_cores(machine) == 4
    (machine / "fs/cgroup/cpu.max").write_text("150000 100000\n")
    assert num_cores(machine) == 2
    (machine / "fs/cgroup/cpu.max").unlink()
    (machine / "fs/cgroup/cpu/cpu.cfs_quota_us").write_text("-1\n")
    (machine / "fs/cgroup/cpu/cpu.cfs_period_us").write_text("100000\n")
    assert num_cores(machine) == 4
    (machine / "fs/cgroup/cpu/cpu.cfs_quota_us").write_text("50000\n")
    assert num_cores(machine) == 1
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda process: {0, 4})
    (machine / "fs/cgroup/cpu/cpu.cfs_quota_us").write_text("900000\n")
    assert num_cores(machine) == 1
    assert num_cores(machine / "nothing") == 2  # two processors of which no more is known


@pytest.mark.parametrize(
    ("said", "together", "before", "found"),
    [("", "", 8, 6), ("", "", 3, 3), ("", "4", 8, 1), ("", "9", 8, 1), ("8", "2", 8, 8)],
)
def test_threads(monkeypatch, said, together, before, found):
    now = [before]
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: now.__setitem__(0, number))
    monkeypatch.setattr(devices, "num_cores", lambda: 6)
    for name, value in (("OMP_NUM_THREADS", said), ("LOCAL_WORLD_SIZE", together)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    assert choose_threads() == now[0] == found


@pytest.mark.parametrize("asked", ["FSDP", "DEEPSPEED"])
def test_spread_parameters_are_refused(monkeypatch, asked):
    monkeypatch.setenv(f"ACCELERATE_USE_{asked}", "true")
    with pytest.raises(ConfigError, match=rf"(?s)ask for {asked}.*trainer.shard=true.*Do: launch with torchrun"):
        make_accelerator(TrainerConfig(), None)
