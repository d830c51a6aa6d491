"""When a training's state is kept, what it holds, and what signals do."""

from __future__ import annotations

import json
import os
import random
import signal
import threading

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from fusetune.errors import FolderError, Interrupted
from fusetune.training.checkpoints import checkpoint_manager as keeping
from fusetune.training.checkpoints.checkpoint_manager import (
    END_PARTS,
    STATE_PARTS,
    CheckpointManager,
    rng_states,
    set_rng_states,
)


@pytest.fixture
def cpu():
    """An accelerator made for the test: other tests may have reset the state that all accelerators share."""
    return Accelerator(cpu=True)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(keeping.time, "monotonic", lambda: self.now)


def whole(**changes):
    return dict.fromkeys(STATE_PARTS, 0) | {"stage": "tune", "precision": "no", "processes": [{}]} | changes


def test_all_generators_come_back():
    torch.manual_seed(3), np.random.seed(4), random.seed(5)
    state = rng_states(torch.device("cpu"))
    first = torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.gauss(0, 1) for _ in range(3)]
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    set_rng_states(state, torch.device("cpu"))
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.gauss(0, 1) for _ in range(3)]) == first


def test_generators_come_back_from_the_disk(tmp_path):
    random.gauss(0, 1)  # leaves half of a pair
    CheckpointManager(tmp_path, 0).save(whole(processes=[{"generators": rng_states(torch.device("cpu"))}]))
    drawn = torch.rand(2).tolist(), np.random.normal(size=3).tolist(), random.gauss(0, 1)
    saved = CheckpointManager(tmp_path, 0).pop("tune")
    set_rng_states(saved["processes"][0]["generators"], torch.device("cpu"))
    assert (torch.rand(2).tolist(), np.random.normal(size=3).tolist(), random.gauss(0, 1)) == drawn


def test_every_so_many_minutes(tmp_path, monkeypatch, cpu):
    clock = Clock(monkeypatch)
    manager = CheckpointManager(tmp_path, 2)
    assert not manager.due(cpu)
    clock.now += 119
    assert not manager.due(cpu)
    clock.now += 1
    assert manager.due(cpu)
    manager.save(whole())
    assert not manager.due(cpu)


def test_writing_takes_a_twentieth_of_the_time_at_most(tmp_path, monkeypatch, cpu):
    clock = Clock(monkeypatch)
    manager = CheckpointManager(tmp_path, 1)
    real = manager.checkpoints.save
    monkeypatch.setattr(manager.checkpoints, "save", lambda state: (real(state), setattr(clock, "now", clock.now + 30)))
    manager.save(whole())
    clock.now += 599
    assert not manager.due(cpu)
    clock.now += 1
    assert manager.due(cpu)


def test_none_is_kept_without_a_folder_or_minutes(tmp_path, cpu):
    for manager in (CheckpointManager(), CheckpointManager(tmp_path, None)):
        manager.save(whole())
        assert not manager.due(cpu) and manager.saved is None
    assert not list(tmp_path.iterdir())


def test_a_state_is_taken_once_by_its_stage(tmp_path):
    CheckpointManager(tmp_path, 0).save(whole())
    manager = CheckpointManager(tmp_path, 0)
    assert manager.pop("head") is None and manager.is_past("head") and not manager.is_past("tune")
    assert manager.pop("tune")["stage"] == "tune"
    assert manager.pop("tune") is None and not manager.is_past("head")


def test_another_number_of_processes_is_refused(tmp_path):
    CheckpointManager(tmp_path, 0).save(whole(processes=[{}, {}]))
    CheckpointManager(tmp_path, 0, processes=2)
    with pytest.raises(FolderError, match=r"(?s)another number of processes.*Expected: 2.*Came: 1"):
        CheckpointManager(tmp_path, 0)


def test_what_a_long_training_came_to_is_kept(tmp_path, monkeypatch, cpu):
    clock = Clock(monkeypatch)
    manager = CheckpointManager(tmp_path, 5)
    manager.save_end({"weights": {}, "history": {}}, cpu)
    assert CheckpointManager(tmp_path, 5).saved is None
    clock.now += keeping.END_SECONDS
    manager.save_end({"weights": {}, "history": {}}, cpu)
    assert CheckpointManager(tmp_path, 5).pop(keeping.END).keys() == END_PARTS.keys()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_update_and_a_second_one_does_not(tmp_path, number, cpu):
    manager = CheckpointManager(tmp_path, 5)
    before = signal.getsignal(number)
    with manager.handle_signals():
        manager.raise_if_signalled()
        os.kill(os.getpid(), number)
        assert manager.due(cpu)
        assert signal.getsignal(number) == before  # the second one is as it was before the run
        with pytest.raises(Interrupted, match="--resume goes on from it") as caught:
            manager.raise_if_signalled()
    assert caught.value.signal == number and isinstance(caught.value, KeyboardInterrupt)
    assert signal.getsignal(number) == before


def test_an_evaluation_is_left_at_once(tmp_path):
    manager = CheckpointManager(tmp_path, 5)
    reached = []
    with manager.handle_signals(), pytest.raises(Interrupted), manager.interruptible(1):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            reached.append(1)
    assert not manager.checking and len(reached) < 1000


def test_several_processes_stop_together_later(tmp_path):
    manager = CheckpointManager(tmp_path, 5)
    with manager.handle_signals(), manager.interruptible(2):
        os.kill(os.getpid(), signal.SIGTERM)
        assert manager.signal == signal.SIGTERM


@pytest.mark.parametrize("keeps", [False, True])
def test_signals_are_let_alone_where_they_cannot_be_answered(tmp_path, keeps):
    manager, found = CheckpointManager(tmp_path if keeps else None, 5), []
    before = signal.getsignal(signal.SIGTERM)

    def look():
        with manager.handle_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    if keeps:  # only the main thread may set handlers
        thread = threading.Thread(target=look)
        thread.start(), thread.join()
    else:
        look()
    assert found == [before]


def test_many_cells_are_written_as_few_are(tmp_path, monkeypatch):
    monkeypatch.setattr("fusetune.data.storage.mapped.PIECE_ROWS", 3)
    for num in (0, 1, 3, 7):
        found = np.arange(num) * 5
        assert CheckpointManager(tmp_path, 5).step_cells(f"x{num}", found).tolist() == found.tolist()
        assert (tmp_path / "places" / f"x{num}.json").read_text() == json.dumps(found.tolist())


def test_cells_computed_together_stay_together(tmp_path):
    first = np.asarray([5, 3, 9])
    assert CheckpointManager(tmp_path, 5).step_cells("x", first).tolist() == [5, 3, 9]
    assert CheckpointManager(tmp_path, 5).step_cells("x", np.asarray([9])).tolist() == [5, 3, 9]
    assert CheckpointManager().step_cells("x", np.asarray([9])).tolist() == [9]
