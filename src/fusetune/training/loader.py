"""The data loader: micro-batches, prefetched by a thread or by worker processes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from fusetune.backbones.passes.graphs import capture_lock
from fusetune.data.examples import Examples
from fusetune.data.sampler import UpdateSampler
from fusetune.errors import RunError, UserError
from fusetune.types import Batch

PREFETCH = 4
"""Micro-batches that are made in advance."""
SHARED_MEMORY = Path("/dev/shm")
"""Where worker processes lay batches for the main process, on Linux."""
AMPLE = 2 * 2**30
"""Bytes of free shared memory above which it is not asked how large a batch is."""
PAGE = 4096
IN_FLIGHT = 4
"""Micro-batches of a worker that may lie in shared memory: two in advance, one in the making, one being read."""
WORKER_TIMEOUT = 60
"""Seconds after which a worker process that returns no batch is reported as hanging."""


class _RowPositions(Dataset[int]):
    """Positions of rows in the table, as the sampler draws them and `Examples.batch` takes them."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, position: int) -> int:
        return position


class BatchLoader:
    """Iterate over the updates of a stage; each item is the list of that update's micro-batches.

    A thread prefetches them, or `workers` processes do. With `prefetch=0` and no workers they are made on demand, which
    is fastest when the model itself keeps every core busy.

    Args:
        train: prepared rows.
        sampler: draws the rows of each epoch.
        num_updates: of the stage.
        first: number of updates to leave out at the start, when a run is resumed.
        workers: number of processes; 0 uses a thread of this process, as a daemonic process always does.
        prefetch: micro-batches that the thread makes in advance.
        pin: pack each batch into pinned memory, which a GPU copies from asynchronously.

    Attributes:
        waited: seconds spent waiting for micro-batches.
    """

    def __init__(
        self,
        train: Examples,
        sampler: UpdateSampler,
        num_updates: int,
        *,
        first: int = 0,
        workers: int = 0,
        prefetch: int = PREFETCH,
        pin: bool = False,
    ) -> None:
        if workers and multiprocessing.current_process().daemon:
            warnings.warn("a daemonic process may start no others: trainer.workers=0 is taken", stacklevel=2)
            workers = 0
        self.train, self.sampler, self.workers, self.prefetch = train, sampler, workers, prefetch
        self.pin = pin
        self.first, self.num_updates = first, num_updates
        self.waited = 0.0
        self._thread = ThreadPoolExecutor(1, "fusetune-feed")
        self._requested: Sequence[int] = ()

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """
        Raises:
            RunError: a worker process died or hangs; torch may notice it at any moment.
        """
        self._thread.shutdown(cancel_futures=True)
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader"):
            raise self._worker_error(str(error)) from None

    def __iter__(self) -> Iterator[list[Batch]]:
        if self.workers and self._lacks_shared_memory():
            self.workers = 0
        batches = self._by_processes() if self.workers else self._by_thread()
        for _ in range(self.first, self.num_updates):
            start = time.perf_counter()
            micro_batches = list(itertools.islice(batches, self.sampler.accumulate))
            self.waited += time.perf_counter() - start
            yield micro_batches

    def _epochs(self) -> Iterator[tuple[int, Iterator[list[int]]]]:
        """Yield each epoch with the row positions of its remaining micro-batches.

        Exhaust the positions before asking for the next epoch: both come from one sampler.
        """
        start = self.first // self.sampler.num_updates
        for epoch in itertools.count(start):
            self.sampler.epoch = epoch
            skipped = self.first % self.sampler.num_updates if epoch == start else 0
            yield epoch, itertools.islice(self.sampler, skipped * self.sampler.accumulate, None)

    def _by_thread(self) -> Iterator[Batch]:
        prefetch: deque[Future[Batch]] = deque()
        drawn = ((epoch, positions) for epoch, micro_batches in self._epochs() for positions in micro_batches)
        for epoch, positions in itertools.islice(drawn, (self.num_updates - self.first) * self.sampler.accumulate):
            make: Callable[[], Batch] = partial(self._make_batch, positions, epoch)
            if not self.prefetch:
                yield make()
                continue
            prefetch.append(self._thread.submit(make))
            if len(prefetch) > self.prefetch:
                yield prefetch.popleft().result()
        while prefetch:
            yield prefetch.popleft().result()

    def _make_batch(self, positions: list[int], epoch: int) -> Batch:
        return self._pin(self.train.batch(positions, epoch=epoch))

    def _pin(self, batch: Batch) -> Batch:
        if not self.pin:
            return batch
        with capture_lock:
            return batch.packed(pin=True)

    def _by_processes(self) -> Iterator[Batch]:
        # Without a generator of its own the loader would draw from the one that dropout draws from.
        generator, positions = torch.Generator(), _RowPositions(len(self.train.rows))
        for epoch, micro_batches in self._epochs():
            drawn = list(micro_batches)
            loader: DataLoader[Any] = DataLoader(
                positions,
                batch_sampler=drawn,
                collate_fn=partial(_collate_rows, self.train, epoch=epoch),
                num_workers=self.workers,
                generator=generator,
                timeout=WORKER_TIMEOUT,
                worker_init_fn=_leave_process_group,
            )
            made = iter(loader)
            for self._requested in drawn:
                batch = next(made)
                if isinstance(batch, UserError):
                    raise batch
                yield self._pin(batch)

    def _lacks_shared_memory(self) -> bool:
        """Return whether there is too little shared memory for the workers' batches, who would be killed; warn then."""
        free = free_bytes(SHARED_MEMORY)
        if free is None or free >= AMPLE:
            return False
        epoch, micro_batches = next(self._epochs())
        largest = max(micro_batches, key=len, default=[])
        needed = IN_FLIGHT * self.workers * shared_bytes(self.train.batch(largest, epoch=epoch))
        if needed > free:
            warnings.warn(
                f"{SHARED_MEMORY} has {free / 2**20:.1f} MiB free, and batches of {self.workers} processes take about "
                f"{needed / 2**20:.1f} MiB there: trainer.workers=0 is taken. In a container --shm-size=2g gives more",
                stacklevel=2,
            )
        return needed > free

    def _worker_error(self, why: str) -> RunError:
        """Return the error for a worker process that died or hangs."""
        ids = [int(self.train.rows[position]) for position in self._requested]
        do = "trainer.workers=0 makes batches in the main process; look at these rows' cells; a killed process "
        do += "often means that memory ran out"
        if "shm" in why or "Bus error" in why:
            do += f"; {SHARED_MEMORY} was full: in a container --shm-size=2g gives more"
        if multiprocessing.get_start_method() != "fork":
            do += '; processes that are spawned import your script: put its code under `if __name__ == "__main__":`'
        return RunError(
            f"a process that makes batches was killed or does not answer; rows last requested: {ids[:64]}\n"
            f"  torch says: {why.splitlines()[0]}\n"
            f"  Do: {do}"
        )


def free_bytes(folder: Path) -> int | None:
    """Return the free bytes of the file system that a folder is on, or None where there is no such folder."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def shared_bytes(value: Any) -> int:
    """Return the bytes of shared memory that a batch takes, in whole pages for each tensor.

    Args:
        value: a batch, or mappings, sequences and dataclasses of tensors.
    """
    if isinstance(value, torch.Tensor):
        return (value.nbytes // PAGE + 1) * PAGE
    if isinstance(value, Mapping):
        return sum(map(shared_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(shared_bytes, value))
    return sum(map(shared_bytes, vars(value).values())) if is_dataclass(value) else 0


def _collate_rows(train: Examples, positions: Sequence[int], *, epoch: int) -> Batch | UserError:
    """Make a batch in a worker process; return a user's error instead of raising it, as torch would wrap it."""
    try:
        return train.batch(positions, epoch=epoch)
    except UserError as error:
        return error


def _leave_process_group(number: int) -> None:
    """Move a worker into a process group of its own: signals to the group reach the main process, which stops it."""
    with suppress(OSError):
        os.setpgid(0, 0)
