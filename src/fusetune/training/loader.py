"""Batches made ahead of the step that takes them, and how long steps waited for them."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from fusetune.backbones.graphs import alone
from fusetune.data.examples import Examples
from fusetune.data.sampler import UpdateSampler
from fusetune.errors import RunError, UserError
from fusetune.types import Batch

AHEAD = 4
"""Micro-batches that are made before they are asked for."""
PATIENCE = 60
"""Seconds after which a worker that gives no batch is taken to hang."""


class _Places(Dataset[int]):
    """Places in the table: what the sampler draws and `Examples.batch` takes."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, place: int) -> int:
        return place


class BatchLoader:
    """The micro-batches of each update, epoch after epoch.

    They are made ahead by a thread, or by processes where `workers` asks for them; with `ahead=0` when they are asked
    for, which is best where the model itself has use for every core.

    Attributes:
        waited: seconds in which nothing was done but wait for the next micro-batches.
    """

    def __init__(
        self,
        train: Examples,
        sampler: UpdateSampler,
        num_updates: int,
        *,
        first: int = 0,
        workers: int = 0,
        ahead: int = AHEAD,
        pin: bool = False,
    ) -> None:
        """
        Args:
            train: prepared rows.
            sampler: draws the rows of each epoch.
            num_updates: how many there are.
            first: how many of them were made before.
            workers: processes; 0 for a thread of this one, as a daemonic process takes in any case.
            ahead: micro-batches that the thread makes before they are asked for.
            pin: pack each into memory that a GPU reads by itself.
        """
        if workers and multiprocessing.current_process().daemon:
            warnings.warn("a daemonic process may start no others: trainer.workers=0 is taken", stacklevel=2)
            workers = 0
        self.train, self.sampler, self.workers, self.ahead = train, sampler, workers, ahead
        self.pin = pin
        self.first, self.num_updates = first, num_updates
        self.waited = 0.0
        self._thread = ThreadPoolExecutor(1, "fusetune-feed")
        self._coming: Sequence[int] = ()

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """
        Raises:
            RunError: a process that makes batches died or hangs; torch may notice it at any moment.
        """
        self._thread.shutdown(cancel_futures=True)
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader"):
            raise self._lost(str(error)) from None

    def __iter__(self) -> Iterator[list[Batch]]:
        batches = self._by_processes() if self.workers else self._by_thread()
        for _ in range(self.first, self.num_updates):
            start = time.perf_counter()
            micro_batches = list(itertools.islice(batches, self.sampler.accumulate))
            self.waited += time.perf_counter() - start
            yield micro_batches

    def _drawn(self) -> Iterator[tuple[int, Iterator[list[int]]]]:
        """Each epoch, and the rows of its micro-batches that are still to come, which are to be taken before the next
        epoch is asked for."""
        start = self.first // self.sampler.num_updates
        for epoch in itertools.count(start):
            self.sampler.epoch = epoch
            made = self.first % self.sampler.num_updates if epoch == start else 0
            yield epoch, itertools.islice(self.sampler, made * self.sampler.accumulate, None)

    def _by_thread(self) -> Iterator[Batch]:
        ahead: deque[Future[Batch]] = deque()
        drawn = ((epoch, places) for epoch, micro_batches in self._drawn() for places in micro_batches)
        for epoch, places in itertools.islice(drawn, (self.num_updates - self.first) * self.sampler.accumulate):
            make: Callable[[], Batch] = partial(self._one, places, epoch)
            if not self.ahead:
                yield make()
                continue
            ahead.append(self._thread.submit(make))
            if len(ahead) > self.ahead:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _one(self, places: list[int], epoch: int) -> Batch:
        return self._packed(self.train.batch(places, epoch=epoch))

    def _packed(self, batch: Batch) -> Batch:
        if not self.pin:
            return batch
        with alone:
            return batch.packed(pin=True)

    def _by_processes(self) -> Iterator[Batch]:
        # Without a generator of its own the loader would draw from the one that dropout draws from.
        own, places = torch.Generator(), _Places(len(self.train.rows))
        for epoch, micro_batches in self._drawn():
            drawn = list(micro_batches)
            loader: DataLoader[Any] = DataLoader(
                places,
                batch_sampler=drawn,
                collate_fn=partial(_made, self.train, epoch=epoch),
                num_workers=self.workers,
                generator=own,
                timeout=PATIENCE,
                worker_init_fn=_stand_apart,
            )
            made = iter(loader)
            for self._coming in drawn:
                batch = next(made)
                if isinstance(batch, UserError):
                    raise batch
                yield self._packed(batch)

    def _lost(self, why: str) -> RunError:
        """What to say of a worker that died or hangs."""
        ids = [int(self.train.rows[place]) for place in self._coming]
        return RunError(
            f"a process that makes batches was killed or does not answer; the rows last asked for: {ids[:64]}\n"
            f"  It says: {why.splitlines()[0]}\n"
            "  Do: trainer.workers=0 makes them in the main process; look at these rows' cells; a killed process often "
            "means that memory is short"
        )


def _made(train: Examples, places: Sequence[int], *, epoch: int) -> Batch | UserError:
    """A worker's batch, or why there is none: torch would not hand over the error as it is."""
    try:
        return train.batch(places, epoch=epoch)
    except UserError as error:
        return error


def _stand_apart(number: int) -> None:
    """Leave Ctrl-C and other signals to the whole process group to the main process, which stops its workers itself."""
    with suppress(OSError):
        os.setpgid(0, 0)
