"""Decoded cells in memory: what comes out is what went in, and no more is kept than is free."""

from __future__ import annotations

import numpy as np
import pytest

from fusetune.data.storage.packed import BLOCK, PackedExamples, nbytes_of


def arrays(num: int, length: int = 10) -> list[np.ndarray]:
    return [np.arange(place, place + 1 + place % length, dtype=np.int32) for place in range(num)]


@pytest.mark.parametrize(
    "examples",
    [
        arrays(300),
        [np.arange(BLOCK // 64, dtype=np.int32) + place for place in range(40)],  # several blocks
        [float(place) for place in range(50)],
        [f"name{place}" for place in range(50)],
        [np.zeros((3, 2), np.uint8), [np.ones(2), np.ones(3)], True, 7, np.arange(3), 1.5, np.arange(3.0)],
    ],
)
def test_examples_come_back_as_they_were(examples):
    kept = PackedExamples(len(examples) + 1)
    for place, example in enumerate(examples):
        assert kept.add(place, example, 2**30) > 0
    assert len(kept) == len(examples) and len(examples) not in kept
    for place, example in enumerate(examples):
        found = kept.get(place)
        assert place in kept and type(found) is type(example)
        for one, other in zip(
            found if isinstance(found, list) else [found],
            example if isinstance(example, list) else [example],
            strict=True,
        ):
            assert np.array_equal(one, other) and getattr(one, "dtype", None) == getattr(other, "dtype", None)


def test_no_more_is_kept_than_is_free():
    kept, free = PackedExamples(100), 400
    for place, example in enumerate([*arrays(50), *map(float, range(50))]):
        free -= kept.add(place, example, free)
    assert 0 <= free < 9 and 0 < len(kept) < 100
    assert kept.add(99, "a name", 0) == 0 and 99 not in kept


def test_packing_takes_a_fraction_of_what_objects_take():
    examples = arrays(20_000)
    kept = PackedExamples(len(examples))
    packed = sum(kept.add(place, example, 2**30) for place, example in enumerate(examples))
    assert packed == sum(example.nbytes + 12 for example in examples) < sum(map(nbytes_of, examples)) / 3
    assert sum(block.nbytes for block in kept._blocks) < packed + BLOCK


def test_numbers_are_given_together_where_every_place_has_one():
    kept = PackedExamples(3)
    assert kept.numbers(np.asarray([0])) is None
    kept.add(0, 1.5, 100)
    kept.add(2, 2.5, 100)
    assert kept.numbers(np.asarray([2, 0, 2])).tolist() == [2.5, 1.5, 2.5]
    assert kept.numbers(np.asarray([0, 1])) is None
