"""Every row once an epoch, whatever the batch size and the number of processes."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fusetune.data.sampler import UpdateSampler


def sampler(num_rows: int, **options: int) -> UpdateSampler:
    sizes = np.random.default_rng(0).integers(1, 100, num_rows)
    return UpdateSampler(np.arange(num_rows) * 3, sizes, **options)  # type: ignore[arg-type]


@given(
    num_rows=st.integers(1, 300),
    batch_size=st.integers(1, 64),
    accumulate=st.integers(1, 4),
    num_processes=st.integers(1, 3),
    epoch=st.integers(0, 5),
)
def test_processes_together_see_every_row_once(
    num_rows: int, batch_size: int, accumulate: int, num_processes: int, epoch: int
) -> None:
    seen: Counter[int] = Counter()
    lengths = set()
    smallest = min(batch_size, num_rows % batch_size or batch_size)
    for process in range(num_processes):
        part = sampler(
            num_rows, batch_size=batch_size, accumulate=accumulate, process=process, num_processes=num_processes
        )
        part.epoch = epoch
        batches = list(part)
        lengths.add(len(batches))
        assert len(batches) == len(part) == part.num_updates * accumulate and all(batches)
        seen.update(row for batch in batches for row in batch)
    assert len(lengths) == 1  # processes that make different numbers of steps would wait for each other forever
    assert set(seen) == set(range(0, 3 * num_rows, 3))
    if smallest >= accumulate * num_processes:
        assert set(seen.values()) == {1}


def test_the_order_follows_seed_and_epoch_alone() -> None:
    first, same = sampler(100, batch_size=8, seed=1), sampler(100, batch_size=8, seed=1)
    assert list(first) == list(same) == list(first)
    same.epoch = 1
    assert list(first) != list(same)
    assert list(first) != list(sampler(100, batch_size=8, seed=2))


def test_rows_of_like_cost_share_a_batch() -> None:
    sizes = np.random.default_rng(0).integers(1, 500, 2000)
    by_cost = UpdateSampler(np.arange(2000), sizes, batch_size=32)
    padded = sum(len(batch) * int(sizes[batch].max()) for batch in by_cost)
    assert padded < 1.1 * sizes.sum()
