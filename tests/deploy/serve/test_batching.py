"""The worker: what shares a batch, what waits, what is refused, and texts that take turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from fusetune.deploy.serve.batching import Job, Stream, Worker
from fusetune.deploy.serve.options import Batching
from fusetune.deploy.serve.problems import Problem


class Counted:
    """Counts what a worker does."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.waiting = 0

    def batch_done(self, rows: int, seconds: float) -> None:
        self.batches.append(rows)

    def queue_changed(self, rows: int) -> None:
        self.waiting = rows


class Gate:
    """A computation that can be held up."""

    def __init__(self) -> None:
        self.open, self.entered = threading.Event(), threading.Event()

    def __call__(self, rows: Sequence[Any]) -> list[Any]:
        self.entered.set()
        assert self.open.wait(10)
        return [f"<{row}>" for row in rows]


@pytest.fixture
def made() -> Iterator[Any]:
    workers = []

    def build(**options: Any) -> tuple[Worker, Counted]:
        counted = Counted()
        workers.append(Worker(Batching(**options), counted))
        return workers[-1], counted

    yield build
    for worker in workers:
        worker.close(5)


def job(rows: Sequence[Any], compute: Any, group: Any = "a", seconds: float = 10.0) -> Job:
    return Job(rows, compute, group, time.monotonic() + seconds)


def blocked(worker: Worker) -> Gate:
    """Keep the worker busy until the gate is opened."""
    gate = Gate()
    worker.submit(job(["gate"], gate, None))
    assert gate.entered.wait(5)
    return gate


def test_waiting_jobs_share_a_batch_up_to_its_size(made) -> None:
    worker, counted = made(rows=4)
    gate = blocked(worker)
    double = lambda rows: [row * 2 for row in rows]  # noqa: E731
    futures = [worker.submit(job(rows, double)) for rows in ([1, 2], [3], [4, 5], [6])]
    gate.open.set()
    assert [future.result(5) for future in futures] == [[2, 4], [6], [8, 10], [12]]
    assert counted.batches == [1, 3, 3] and counted.waiting == 0


def test_groups_are_apart_and_none_is_alone(made) -> None:
    worker, counted = made(rows=10)
    gate = blocked(worker)
    same = lambda rows: list(rows)  # noqa: E731
    futures = [worker.submit(job([name], same, group)) for name, group in (("x", 1), ("y", 2), ("z", 1), ("n", None))]
    futures.append(worker.submit(job(["m"], lambda rows: ["several", "answers"], None)))
    gate.open.set()
    assert [future.result(5) for future in futures] == [["x"], ["y"], ["z"], ["n"], ["several", "answers"]]
    assert counted.batches == [1, 2, 1, 1, 1]


def test_a_faulty_request_fails_alone(made) -> None:
    worker, _ = made(rows=10)
    gate = blocked(worker)

    def compute(rows: Sequence[Any]) -> list[Any]:
        if "bad" in rows:
            raise ValueError("bad")
        return list(rows)

    futures = [worker.submit(job([row], compute)) for row in ("a", "bad", "b")]
    gate.open.set()
    assert futures[0].result(5) == ["a"] and futures[2].result(5) == ["b"]
    with pytest.raises(ValueError, match="bad"):
        futures[1].result(5)


def test_a_batch_waits_for_requests_that_are_being_read(made) -> None:
    worker, counted = made(rows=10, delay=5.0)
    same = lambda rows: list(rows)  # noqa: E731
    with worker.expecting():
        first = worker.submit(job([1], same))
        time.sleep(0.05)
        assert not first.done()
        second = worker.submit(job([2], same))
    assert first.result(5) == [1] and second.result(5) == [2]  # at once: nobody else is expected
    assert counted.batches == [2]


def test_a_full_queue_and_late_jobs(made) -> None:
    worker, _ = made(queue=3)
    gate = blocked(worker)
    same = lambda rows: list(rows)  # noqa: E731
    late = worker.submit(job([1], same, seconds=0.01))
    large = worker.submit(job([1, 2], same))
    with pytest.raises(Problem) as refused:
        worker.submit(job([3], same))
    assert refused.value.status == 429 and refused.value.headers["Retry-After"]
    time.sleep(0.02)
    gate.open.set()
    assert large.result(5) == [1, 2]
    with pytest.raises(Problem) as gone:
        late.result(5)
    assert gone.value.status == 504


def test_a_request_larger_than_the_queue_is_answered_if_nothing_waits(made) -> None:
    worker, _ = made(queue=2)
    assert worker.submit(job([1, 2, 3], list)).result(5) == [1, 2, 3]


def test_requests_that_were_given_up_are_not_computed(made) -> None:
    worker, counted = made()
    gate = blocked(worker)
    future = worker.submit(job([1], list))
    assert future.cancel()
    gate.open.set()
    assert worker.submit(job([2], list)).result(5) == [2] and counted.batches == [1, 1]


def test_closing_finishes_what_waits(made) -> None:
    worker, _ = made()
    gate = blocked(worker)
    future = worker.submit(job([1], list))
    closing = threading.Thread(target=worker.close, args=(5,))
    closing.start()
    time.sleep(0.02)
    with pytest.raises(Problem) as refused:
        worker.submit(job([2], list))
    assert refused.value.status == 503
    gate.open.set()
    closing.join(5)
    assert future.result(1) == [1]


def test_texts_take_turns_with_each_other_and_with_batches(made) -> None:
    worker, _ = made(streams=2)
    gate, written, done = blocked(worker), [], threading.Event()

    def put(piece: Any) -> None:
        written.append(piece)
        if written.count(None) == 2:
            done.set()

    for letter in "ab":
        worker.write(Stream(lambda letter=letter: iter([f"{letter}{n}" for n in range(3)]), put, time.monotonic() + 9))
    answers = worker.submit(job([1], list))
    gate.open.set()
    assert done.wait(5) and answers.result(5) == [1]
    assert written == ["a0", "b0", "a1", "b1", "a2", "b2", None, None]


def test_texts_that_fail_are_late_or_given_up(made) -> None:
    worker, _ = made(streams=1)
    gate, written = blocked(worker), []

    def broken() -> Iterator[str]:
        yield "a"
        raise RuntimeError("no more")

    worker.write(Stream(broken, written.append, time.monotonic() + 9))
    cancelled = Stream(lambda: iter("xyz"), written.append, time.monotonic() + 9)
    cancelled.cancelled.set()
    worker.write(cancelled)
    with pytest.raises(Problem) as refused:
        worker.write(Stream(lambda: iter("x"), written.append, 0.0))
    assert refused.value.status == 429
    gate.open.set()
    while len(written) < 2:
        time.sleep(0.01)
    assert written[0] == "a" and str(written[1]) == "no more"
    worker.write(Stream(lambda: iter("x"), written.append, 0.0))
    while len(written) < 3:
        time.sleep(0.01)
    assert isinstance(written[2], Problem) and written[2].status == 504
