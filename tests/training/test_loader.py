"""Batches made ahead are those of the sampler, in order, however they are made, and no draw of dropout is taken."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from fusetune.backbones.passes.graphs import capture_lock
from fusetune.data.sampler import UpdateSampler
from fusetune.errors import BadCell, RunError
from fusetune.training.loader import PAGE, PREFETCH, BatchLoader, free_bytes, shared_bytes
from fusetune.types import Target


class Rows:
    """Stands in for `Examples`: a batch is its rows and epoch."""

    def __init__(self, num, work=lambda: None):
        self.rows = np.arange(num)
        self.work = work

    def batch(self, places, *, epoch):
        self.work()
        return [int(place) for place in places], epoch


def sampler(num=23, accumulate=2):
    return UpdateSampler(np.arange(num), np.arange(num) % 5, batch_size=6, accumulate=accumulate, seed=3)


@pytest.mark.parametrize(("workers", "prefetch"), [(0, 0), (0, PREFETCH), (2, PREFETCH)])
def test_order_and_epochs(workers, prefetch):
    drawn = sampler()
    expected = []
    for epoch in range(3):
        drawn.epoch = epoch
        batches = [(batch, epoch) for batch in drawn]
        expected += [batches[place : place + 2] for place in range(0, len(batches), 2)]
    chance = torch.get_rng_state()
    with BatchLoader(Rows(23), sampler(), 10, workers=workers, prefetch=prefetch) as loader:
        assert list(loader) == expected[:10]
    assert torch.equal(chance, torch.get_rng_state())


def test_what_is_made_ahead_is_bounded_and_ends():
    made = []
    rows = Rows(23, lambda: made.append(threading.current_thread().name))
    with BatchLoader(rows, sampler(accumulate=1), 100) as loader:
        for taken, _ in zip(range(1, 20), loader, strict=False):
            assert len(made) <= taken + PREFETCH
    assert len(made) <= 20 + PREFETCH and all("fusetune-feed" in name for name in made)


def test_memory_that_a_gpu_reads_is_asked_for_while_no_pass_is_captured():
    class Packed:
        def packed(self, *, pin):
            assert pin
            return capture_lock.locked()

    rows = Rows(23)
    rows.batch = lambda places, *, epoch: Packed()
    with BatchLoader(rows, sampler(), 5, pin=True) as loader:
        assert all(held for micro_batches in loader for held in micro_batches)
    with BatchLoader(rows, sampler(), 5) as loader:
        assert all(type(one) is Packed for micro_batches in loader for one in micro_batches)


def test_waiting_is_counted_and_errors_come_through():
    with BatchLoader(Rows(23, lambda: time.sleep(0.02)), sampler(accumulate=1), 5) as loader:
        for _ in loader:
            pass
    assert 0.05 < loader.waited < 5

    def fail():
        raise KeyError("a cell")

    with BatchLoader(Rows(23, fail), sampler(), 5) as loader, pytest.raises(KeyError, match="a cell"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_cell_that_can_no_longer_be_read_is_named(workers):
    def gone():
        raise BadCell(row=7, column="photo", value="a.png", why="the file is gone", do="bring it back")

    with pytest.raises(BadCell, match=r"(?s)row 7, column 'photo': the file is gone.*Do: bring it back") as caught:  # noqa: SIM117
        with BatchLoader(Rows(23, gone), sampler(), 5, workers=workers) as loader:
            list(loader)
    assert (caught.value.row, caught.value.value) == (7, "a.png")


@pytest.mark.parametrize("first", [1, 4, 7])
@pytest.mark.parametrize(("workers", "prefetch"), [(0, 0), (0, PREFETCH), (2, PREFETCH)])
def test_going_on_gives_the_rest(first, workers, prefetch):
    with BatchLoader(Rows(23), sampler(), 10) as loader:
        expected = list(loader)[first:]
    with BatchLoader(Rows(23), sampler(), 10, first=first, workers=workers, prefetch=prefetch) as loader:
        assert list(loader) == expected


def test_a_killed_worker_is_told_with_its_rows():
    home = os.getpid()

    def die():
        if os.getpid() != home:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RunError, match=r"(?s)was killed.*rows last requested: \[\d+, .*trainer.workers=0"):  # noqa: SIM117
        with BatchLoader(Rows(23, die), sampler(), 5, workers=2) as loader:
            list(loader)


def test_a_worker_that_hangs_is_told(monkeypatch):
    monkeypatch.setattr("fusetune.training.loader.WORKER_TIMEOUT", 0.5)
    with (
        pytest.raises(RunError, match="does not answer"),
        BatchLoader(Rows(23, lambda: time.sleep(20)), sampler(), 5, workers=1) as loader,
    ):
        list(loader)


def test_workers_leave_signals_of_the_group_to_the_main_process():
    groups = Rows(23)
    groups.batch = lambda places, *, epoch: os.getpgid(0)
    with BatchLoader(groups, sampler(), 1, workers=1) as loader:
        assert next(iter(loader))[0] != os.getpgid(0)


def _daemonic(queue):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with BatchLoader(Rows(23), sampler(), 3, workers=2) as loader:
            made = len(list(loader))
    queue.put((made, loader.workers, [str(warning.message) for warning in told if "daemonic" in str(warning.message)]))


def test_a_daemonic_process_makes_batches_itself():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_daemonic, args=(queue,), daemon=True)
    process.start()
    made, workers, told = queue.get(timeout=60)
    process.join(60)
    assert (made, workers, len(told)) == (3, 0, 1)


class Tensors(Rows):
    def batch(self, places, *, epoch):
        return {"values": torch.zeros(len(places), 1000), "rows": [torch.tensor(places)]}, epoch


@pytest.mark.parametrize(("free", "workers"), [(10_000, 0), (10**6, 2), (None, 2)])
def test_little_shared_memory_is_told_and_batches_are_made_here(free, workers, monkeypatch):
    """A worker whose batches do not fit into it would be killed by a bus error."""
    monkeypatch.setattr("fusetune.training.loader.free_bytes", lambda folder: free)
    loader = BatchLoader(Tensors(23), sampler(), 5, workers=2)
    with warnings.catch_warnings(record=True) as told, loader:
        warnings.simplefilter("always")
        made = [[batch["rows"][0].tolist() for batch, _ in update] for update in loader]
    assert loader.workers == workers
    assert len([warning for warning in told if "shm-size" in str(warning.message)]) == (workers == 0)
    with BatchLoader(Tensors(23), sampler(), 5) as plain:
        assert made == [[batch["rows"][0].tolist() for batch, _ in update] for update in plain]


def test_bytes_of_a_batch():
    assert shared_bytes({"a": [torch.zeros(3), (torch.zeros(PAGE),)], "b": "text"}) == 6 * PAGE
    assert shared_bytes(Target(torch.zeros(4), torch.zeros(4, dtype=torch.bool))) == 2 * PAGE
    assert free_bytes(Path("/no/such/folder")) is None


UNGUARDED = """
import multiprocessing
import sys
sys.path.insert(0, {folder!r})
from test_loader import BatchLoader, Rows, sampler
if multiprocessing.parent_process() is None:
    multiprocessing.set_start_method("spawn")
with BatchLoader(Rows(23, int), sampler(), 3, workers=1) as loader:
    list(loader)
"""


@pytest.mark.slow
def test_spawned_workers_without_a_main_guard_fail_in_seconds(tmp_path):
    (tmp_path / "script.py").write_text(UNGUARDED.format(folder=str(Path(__file__).parent)))
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "RunError: a process that makes batches was killed" in done.stderr
    assert 'if __name__ == "__main__"' in done.stderr
