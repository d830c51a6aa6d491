"""Batches made ahead of the step that takes them, and how long steps waited for them."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from fusetune.data.examples import Examples
from fusetune.data.sampler import UpdateSampler
from fusetune.types import Batch

AHEAD = 4
"""Micro-batches that are made before they are asked for."""


class _Places(Dataset[int]):
    """Places in the table: what the sampler draws and `Examples.batch` takes."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, place: int) -> int:
        return place


class Feed:
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
        workers: int = 0,
        ahead: int = AHEAD,
    ) -> None:
        """
        Args:
            train: prepared rows.
            sampler: draws the rows of each epoch.
            num_updates: how many there are.
            workers: processes; 0 for a thread of this one.
            ahead: micro-batches that the thread makes before they are asked for.
        """
        self.train, self.sampler, self.num_updates, self.workers, self.ahead = (
            train,
            sampler,
            num_updates,
            workers,
            ahead,
        )
        self.waited = 0.0
        self._thread = ThreadPoolExecutor(1, "fusetune-feed")

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *raised: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[list[Batch]]:
        batches = self._by_processes() if self.workers else self._by_thread()
        for _ in range(self.num_updates):
            start = time.perf_counter()
            micro_batches = list(itertools.islice(batches, self.sampler.accumulate))
            self.waited += time.perf_counter() - start
            yield micro_batches

    def _drawn(self) -> Iterator[tuple[int, Sequence[int]]]:
        """The epoch and the rows of each micro-batch."""
        for epoch in itertools.count():
            self.sampler.epoch = epoch
            yield from ((epoch, places) for places in list(self.sampler))

    def _by_thread(self) -> Iterator[Batch]:
        ahead: deque[Future[Batch]] = deque()
        for epoch, places in itertools.islice(self._drawn(), self.num_updates * self.sampler.accumulate):
            make: Callable[[], Batch] = partial(self.train.batch, places, epoch=epoch)
            if not self.ahead:
                yield make()
                continue
            ahead.append(self._thread.submit(make))
            if len(ahead) > self.ahead:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _by_processes(self) -> Iterator[Batch]:
        # Without a generator of its own the loader would draw from the one that dropout draws from.
        own, places = torch.Generator(), _Places(len(self.train.rows))
        for epoch in itertools.count():
            self.sampler.epoch = epoch
            loader: DataLoader[Any] = DataLoader(
                places,
                batch_sampler=self.sampler,
                collate_fn=partial(self.train.batch, epoch=epoch),
                num_workers=self.workers,
                generator=own,
            )
            yield from loader
