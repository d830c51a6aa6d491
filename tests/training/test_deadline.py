"""The time that a fit may take, shared out over its steps."""

from __future__ import annotations

import pytest

from fusetune.training.deadline import Deadline


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_no_limit_is_never_passed():
    clock = Clock()
    deadline = Deadline(None, clock=clock)
    clock.now += 1e9
    assert not deadline.passed() and not deadline.part(0.1).passed()


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_part_is_counted_from_the_start_of_the_run(share):
    clock = Clock()
    deadline = Deadline(2, clock=clock)
    clock.now += 120 * share - 1
    assert not deadline.part(share).passed()
    clock.now += 1
    assert deadline.part(share).passed()
    assert deadline.passed() == (share == 1)
    assert deadline.part(share).start == deadline.start == 100
