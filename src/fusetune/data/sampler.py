"""Which rows make a batch: shuffled from (seed, epoch), rows of like cost together, shared out over processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

POOL_BATCHES = 50


class UpdateSampler(Sampler[list[int]]):
    """Yields the micro-batches of each update in turn, `accumulate` of them an update on every process.

    The order depends on (seed, epoch) alone. Within pools of 50 updates rows are sorted by cost, so that
    little padding is computed; which rows share a pool and the order of updates stay random.
    """

    def __init__(
        self,
        indices: np.ndarray,
        sizes: np.ndarray,
        *,
        batch_size: int,
        accumulate: int = 1,
        seed: int = 0,
        process: int = 0,
        num_processes: int = 1,
    ) -> None:
        """
        Args:
            indices: the rows to draw from.
            sizes: each row's cost, aligned with `indices`.
            batch_size: rows an update, over all processes.
            accumulate: micro-batches an update on each process.
            process: this process's number.
        """
        self.indices, self.sizes = indices, sizes
        self.batch_size, self.accumulate, self.seed = batch_size, accumulate, seed
        self.process, self.num_processes = process, num_processes
        self.epoch = 0

    @property
    def num_updates(self) -> int:
        """Updates an epoch."""
        return -(-len(self.indices) // self.batch_size)

    def __len__(self) -> int:
        return self.num_updates * self.accumulate

    def updates(self) -> list[np.ndarray]:
        """This epoch's updates: each one's rows, over all processes."""
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(len(self.indices))
        pool = self.batch_size * POOL_BATCHES
        batches: list[np.ndarray] = []
        for start in range(0, len(order), pool):
            chunk = order[start : start + pool]
            chunk = chunk[np.argsort(self.sizes[chunk], kind="stable")]
            batches += [chunk[i : i + self.batch_size] for i in range(0, len(chunk), self.batch_size)]
        return [self.indices[batches[i]] for i in generator.permutation(len(batches))]

    def __iter__(self) -> Iterator[list[int]]:
        parts = self.accumulate * self.num_processes
        for update in self.updates():
            # An update too small for every part leaves some parts with a row that another part has too.
            shares = (
                np.array_split(update, parts)
                if len(update) >= parts
                else np.array_split(np.resize(update, parts), parts)
            )
            for micro in shares[self.process * self.accumulate : (self.process + 1) * self.accumulate]:
                yield [int(index) for index in micro]
