"""Every row once an epoch, whatever the batch size and the number of processes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
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


def padded(batches: list[list[int]], sizes: np.ndarray) -> float:
    """Return the cost with padding, relative to that without."""
    return sum(len(batch) * int(sizes[batch].max()) for batch in batches) / sizes.sum()


def test_rows_of_like_cost_share_a_batch_if_an_epoch_has_many_updates() -> None:
    sizes = np.random.default_rng(0).integers(1, 500, 20_000)
    ratios = [
        padded(list(UpdateSampler(np.arange(num), sizes[:num], batch_size=4)), sizes[:num])
        for num in (400, 4000, 20_000)
    ]
    assert ratios[0] > 1.4 and 1.2 > ratios[1] > ratios[2] and ratios[2] < 1.02


@pytest.mark.parametrize(("rows", "by_cost"), [(2000, True), (20_000, False)])
def test_updates_have_rows_of_all_costs_if_they_are_few_or_compared(rows: int, by_cost: bool) -> None:
    sizes = np.random.default_rng(0).integers(1, 500, rows)
    batches = list(UpdateSampler(np.arange(rows), sizes, batch_size=32, accumulate=2, by_cost=by_cost))
    assert sorted(row for batch in batches for row in batch) == list(range(rows))
    updates = [one + two for one, two in zip(batches[::2], batches[1::2], strict=True)]
    assert np.mean([sizes[update].std() for update in updates]) > 0.9 * sizes.std()
    for one, two in zip(batches[::2], batches[1::2], strict=True):  # micro-batches still have rows of like cost
        assert sizes[one].max() <= sizes[two].min()


@given(counts=st.lists(st.integers(1, 60), min_size=2, max_size=4), mix=st.floats(0, 1), epochs=st.integers(1, 6))
def test_tables_are_drawn_in_their_share_and_their_rows_in_turn(counts: list[int], mix: float, epochs: int) -> None:
    tables = np.repeat(np.arange(len(counts)), counts)
    drawn = UpdateSampler(np.arange(len(tables)), np.ones(len(tables)), batch_size=8, tables=tables, mix=mix)
    weights = np.asarray(counts) ** mix / np.sum(np.asarray(counts) ** mix)
    seen: Counter[int] = Counter()
    for epoch in range(epochs):
        drawn.epoch = epoch
        rows = [row for update in drawn for row in update]
        assert len(rows) == len(tables)
        per_table = np.bincount(tables[rows], minlength=len(counts))
        assert np.abs(per_table - len(tables) * weights).max() < 1
        seen.update(rows)
    for table in range(len(counts)):  # nobody is drawn a second time before all were drawn once
        times = [seen[row] for row in np.flatnonzero(tables == table)]
        assert max(times) - min(times) <= 1


def test_one_table_or_a_mix_of_one_change_nothing() -> None:
    sizes = np.random.default_rng(0).integers(1, 100, 90)
    plain = list(UpdateSampler(np.arange(90), sizes, batch_size=8))
    tables = np.repeat([0, 1], [80, 10])
    assert plain == list(UpdateSampler(np.arange(90), sizes, batch_size=8, tables=tables, mix=1))
    assert plain == list(UpdateSampler(np.arange(90), sizes, batch_size=8, tables=np.zeros(90), mix=0.3))
    assert plain != list(UpdateSampler(np.arange(90), sizes, batch_size=8, tables=tables, mix=0.3))


def test_rows_without_a_target_are_drawn_in_their_share_and_in_turn() -> None:
    unlabelled = np.arange(100) % 5 > 0  # 20 rows with a target, 80 without
    sizes, options = np.random.default_rng(0).integers(1, 9, 100), {"batch_size": 7, "unlabelled": unlabelled}
    part, again = UpdateSampler(np.arange(100), sizes, **options), UpdateSampler(np.arange(100), sizes, **options)
    drawn: Counter[int] = Counter()
    for epoch in range(4):
        part.epoch = again.epoch = epoch
        rows = [row for batch in part for row in batch]
        assert rows == [row for batch in again for row in batch] and part.num_updates == -(-40 // 7)
        assert len(rows) == len(set(rows)) == 40 and set(np.flatnonzero(~unlabelled)) <= set(rows)
        drawn.update(rows)
    assert all(drawn[row] == 1 for row in np.flatnonzero(unlabelled)), "four epochs see each of the others once"
    for ratio, share in ((0.0, 0), (2.5, 50), (9.0, 80)):
        rows = [row for batch in UpdateSampler(np.arange(100), sizes, ratio=ratio, **options) for row in batch]
        assert unlabelled[rows].sum() == share and (~unlabelled[rows]).sum() == 20
