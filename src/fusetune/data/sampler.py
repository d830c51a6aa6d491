"""Sampling of batches: shuffled by (seed, epoch), bucketed by cost, sharded across processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from fusetune.data.storage.mapped import mapped_arange, mapped_flatnonzero

MAX_POOL = 50
"""Updates whose rows are sorted by cost together, at most."""
MIN_POOLS = 64
"""Pools an epoch has at least: in few updates, rows of one length each make some seeds learn worse."""


class UpdateSampler(Sampler[list[int]]):
    """Yields the micro-batches of each update in turn, `accumulate` of them an update on every process.

    The order depends on (seed, epoch) alone. Within pools of some updates rows are sorted by cost, which saves padding,
    if an epoch has many updates. The pools' rows and the order of the updates stay random.
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
        tables: np.ndarray | None = None,
        mix: float = 1.0,
        unlabelled: np.ndarray | None = None,
        ratio: float = 1.0,
        by_cost: bool = True,
    ) -> None:
        """
        Args:
            indices: the rows to draw from.
            sizes: each row's cost, aligned with `indices`.
            batch_size: rows an update, over all processes.
            accumulate: micro-batches an update on each process.
            seed: of the order.
            process: rank of this process.
            num_processes: world size.
            tables: the number of each row's table, aligned with `indices`.
            mix: exponent of temperature sampling: a row comes from table i, of n_i rows, with probability
                p_i ∝ n_i^mix. 1 takes every row once an epoch, 0 takes equally many rows of each table
                (Arivazhagan et al. 2019, arXiv 1907.05019, with T = 1 / mix). The length of an epoch is the same.
            unlabelled: whether each row lacks a target, aligned with `indices`. None: all have one.
            ratio: rows without a target that an epoch takes for each row with one, at most. If there are more, the
                next epoch goes on with the others.
            by_cost: sort the rows of a pool of updates. False leaves each update's rows to chance, so that what
                compares them with each other does not compare texts of one length alone.
        """
        self.indices, self.sizes = indices, sizes
        self.batch_size, self.accumulate, self.seed, self.by_cost = batch_size, accumulate, seed, by_cost
        self.process, self.num_processes = process, num_processes
        self.strata, self.shares = _strata(len(indices), tables, mix, unlabelled, ratio)
        self.epoch = 0

    @property
    def num_updates(self) -> int:
        """Number of updates an epoch."""
        return -(-sum(self.shares) // self.batch_size)

    def __len__(self) -> int:
        return self.num_updates * self.accumulate

    def updates(self) -> Iterator[np.ndarray]:
        """Yield the rows of each of this epoch's updates, over all processes."""
        generator = np.random.default_rng((self.seed, self.epoch))
        order = self._draw()
        generator.shuffle(order)
        updates = min(MAX_POOL, max(1, self.num_updates // MIN_POOLS)) if self.by_cost else 1
        pool = self.batch_size * updates  # of one update, rows are sorted for its micro-batches
        for start in range(0, len(order), pool):
            chunk = order[start : start + pool]
            order[start : start + pool] = chunk[np.argsort(self.sizes[chunk], kind="stable")]
        for start in generator.permutation(self.num_updates) * self.batch_size:
            yield self.indices[order[start : start + self.batch_size]]

    def _draw(self) -> np.ndarray:
        """Return this epoch's rows: each stratum's share continues its passes, which are reshuffled one by one."""
        if sum(self.shares) == len(self.indices) and all(map(_is_complete, self.strata, self.shares)):
            return mapped_arange(len(self.indices))
        result = []
        for number, (indices, share) in enumerate(zip(self.strata, self.shares, strict=True)):
            first, last = self.epoch * share, (self.epoch + 1) * share
            passes = range(first // len(indices), -(-last // len(indices)))
            rows = [indices[np.random.default_rng((self.seed, number, k)).permutation(len(indices))] for k in passes]
            start = first - passes.start * len(indices)
            result.append(np.concatenate(rows)[start : start + share] if share else indices[:0])
        return np.concatenate(result)

    def __iter__(self) -> Iterator[list[int]]:
        parts = self.accumulate * self.num_processes
        for update in self.updates():
            # Where an update has fewer rows than parts, some rows are repeated, so that no part is empty.
            shares = (
                np.array_split(update, parts)
                if len(update) >= parts
                else np.array_split(np.resize(update, parts), parts)
            )
            for micro in shares[self.process * self.accumulate : (self.process + 1) * self.accumulate]:
                yield [int(index) for index in micro]


def _is_complete(positions: np.ndarray, share: int) -> bool:
    return len(positions) == share


def _strata(
    num_rows: int, tables: np.ndarray | None, mix: float, unlabelled: np.ndarray | None, ratio: float
) -> tuple[list[np.ndarray], list[int]]:
    """Return the positions of each table's rows, then of those without a target, and how many an epoch draws."""
    if tables is None and unlabelled is None:
        return [], [num_rows]
    labelled = mapped_arange(num_rows) if unlabelled is None else mapped_flatnonzero(~unlabelled)
    if tables is None:
        strata = [labelled]
    else:
        own = tables[labelled]
        strata = [labelled[mapped_flatnonzero(own == code)] for code in np.unique(own)]
    shares = _shares([len(positions) for positions in strata], mix)
    if unlabelled is not None:
        strata.append(mapped_flatnonzero(unlabelled))
        shares.append(min(len(strata[-1]), round(ratio * len(labelled))))
    return strata, shares


def _shares(counts: list[int], mix: float) -> list[int]:
    """Return each table's number of rows in an epoch: N p_i, p_i ∝ n_i^mix, rounded by the largest remainders."""
    if mix == 1 or len(counts) < 2:
        return counts
    weights = np.asarray(counts, dtype=np.float64) ** mix
    exact = sum(counts) * weights / weights.sum()
    shares = np.floor(exact).astype(np.int64)
    left = sum(counts) - int(shares.sum())
    shares[np.argsort(shares - exact, kind="stable")[:left]] += 1
    return [int(share) for share in shares]
