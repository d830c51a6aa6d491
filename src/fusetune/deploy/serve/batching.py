"""`Worker`: the thread that owns the model. It gathers waiting rows into batches and writes texts side by side."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, Protocol

from fusetune.deploy.serve.options import Batching
from fusetune.deploy.serve.problems import Problem

Compute = Callable[[Sequence[Any]], Sequence[Any]]
"""Returns an answer for each row."""


class Watcher(Protocol):
    """Is told what a worker does; see `fusetune.deploy.serve.metrics`."""

    def batch_done(self, rows: int, seconds: float) -> None:
        """A batch was computed."""

    def queue_changed(self, rows: int) -> None:
        """The number of rows that wait has changed."""


@dataclass(eq=False)
class Job:
    """Rows of one request.

    Attributes:
        rows: what `compute` is called with, together with those of other jobs.
        compute: gives an answer for each row, which does not depend on the other rows.
        group: jobs with equal groups may share a batch; None for a job that is computed alone.
        deadline: by `time.monotonic`; a job that has not begun by then is dropped.
        answers: one for each row.
    """

    rows: Sequence[Any]
    compute: Compute
    group: Hashable
    deadline: float
    answers: Future[Sequence[Any]] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class Stream:
    """A text that is written piece by piece.

    Attributes:
        start: called in the worker's thread; returns the pieces.
        put: takes each piece; then None at the end, or the exception that ended it. Called in the worker's thread.
        deadline: by `time.monotonic`; the text is given up then.
        cancelled: set by the reader, when nobody wants the rest.
    """

    start: Callable[[], Iterator[str]]
    put: Callable[[str | Exception | None], None]
    deadline: float
    cancelled: threading.Event = field(default_factory=threading.Event)
    pieces: Iterator[str] | None = None


class Expected:
    """A request that is being read, and whose rows may share the next batch; see `Worker.expecting`."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self._reading = worker, False

    def __enter__(self) -> Expected:
        self._reading = True
        self.worker.expect(1)
        return self

    def __exit__(self, *raised: object) -> None:
        self.end()

    def end(self) -> None:
        """Say that the request has been read, and its rows are in the queue."""
        if self._reading:
            self._reading = False
            self.worker.expect(-1)


class Worker:
    """One thread that computes everything that needs the model, so that requests do not compete for the processor.

    Rows that wait are gathered into batches, in the order of arrival. Texts that are written take turns with batches,
    a token each.
    """

    def __init__(self, options: Batching, watcher: Watcher) -> None:
        self.options, self.watcher = options, watcher
        self._jobs: deque[Job] = deque()
        self._new_streams: deque[Stream] = deque()
        self._streams: list[Stream] = []
        self._changed = threading.Condition()
        self._expected = 0
        self._waiting_rows = 0
        self._seconds_a_row = 0.01
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="fusetune-model", daemon=True)
        self._thread.start()

    def expecting(self) -> Expected:
        """Return a context in which a request is read; until its end a batch waits for it, up to the longest delay."""
        return Expected(self)

    def expect(self, change: int) -> None:
        """Change the number of requests that are being read."""
        with self._changed:
            self._expected += change
            self._changed.notify()

    def submit(self, job: Job) -> Future[Sequence[Any]]:
        """Add a job; return its answers.

        Raises:
            Problem: 429, too many rows wait; 503, the server is ending.
        """
        with self._changed:
            if self._closed:
                raise Problem(503, "ending", "the server is ending", retry_after=1)
            if self._waiting_rows and self._waiting_rows + len(job.rows) > self.options.queue:
                seconds = math.ceil(self._waiting_rows * self._seconds_a_row)
                message = f"{self._waiting_rows} rows are waiting; try again later"
                raise Problem(429, "overloaded", message, retry_after=min(max(seconds, 1), 60))
            self._jobs.append(job)
            self._count_waiting(len(job.rows))
            self._changed.notify()
        return job.answers

    def write(self, stream: Stream) -> None:
        """Add a text to write.

        Raises:
            Problem: as `submit`.
        """
        with self._changed:
            if self._closed:
                raise Problem(503, "ending", "the server is ending", retry_after=1)
            if len(self._new_streams) + len(self._streams) >= 2 * self.options.streams:
                message = f"{2 * self.options.streams} texts are written or wait; try again later"
                raise Problem(429, "overloaded", message, retry_after=1)
            self._new_streams.append(stream)
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """Refuse further jobs, and wait for those that are there."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _count_waiting(self, rows: int) -> None:
        self._waiting_rows += rows
        self.watcher.queue_changed(self._waiting_rows)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._jobs or self._streams or self._new_streams or self._closed):
                    self._changed.wait()
                if self._closed and not (self._jobs or self._streams or self._new_streams):
                    return
                batch = self._next_batch()
                while self._new_streams and len(self._streams) < self.options.streams:
                    self._streams.append(self._new_streams.popleft())
            if batch:
                self._compute(batch)
            self._streams = [stream for stream in self._streams if _step(stream)]

    def _next_batch(self) -> list[Job]:
        """Take the first job and those that can share its batch; wait for requests that are being read."""
        now = time.monotonic()
        late = [job for job in self._jobs if job.deadline <= now]
        for job in late:
            self._take(job)
            _fail(job, Problem(504, "late", "the request waited longer than the server's deadline"))
        if not self._jobs:
            return []
        first = self._jobs[0]
        until = first.arrived + self.options.delay
        while (
            self._expected
            and not self._streams
            and not self._closed
            and sum(len(job.rows) for job in self._matching(first)) < self.options.rows
            and (remaining := until - time.monotonic()) > 0
        ):
            self._changed.wait(remaining)
        batch = self._matching(first)
        for job in batch:
            self._take(job)
        return [job for job in batch if job.answers.set_running_or_notify_cancel()]

    def _matching(self, first: Job) -> list[Job]:
        batch, rows = [first], len(first.rows)
        if first.group is None:
            return batch
        for job in self._jobs:
            if job is first or job.group != first.group:
                continue
            if rows + len(job.rows) > self.options.rows:
                break
            batch.append(job)
            rows += len(job.rows)
        return batch

    def _take(self, job: Job) -> None:
        self._jobs.remove(job)
        self._count_waiting(-len(job.rows))

    def _compute(self, batch: list[Job]) -> None:
        """Compute a batch; where that fails, each job by itself, so that a request's fault is its own."""
        rows = [row for job in batch for row in job.rows]
        start = time.monotonic()
        try:
            answers = batch[0].compute(rows)
        except Exception as error:
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            for job in batch:
                self._compute([job])
            return
        seconds = time.monotonic() - start
        self._seconds_a_row = 0.8 * self._seconds_a_row + 0.2 * seconds / max(len(rows), 1)
        self.watcher.batch_done(len(rows), seconds)
        first = 0
        for job in batch:
            last = first + len(job.rows) if job.group is not None else len(answers)
            job.answers.set_result(answers[first:last])
            first = last


def _fail(job: Job, error: Exception) -> None:
    try:
        job.answers.set_exception(error)
    except InvalidStateError:  # the request has gone
        return


def _step(stream: Stream) -> bool:
    """Write the next piece of a text; return whether there may be more."""
    try:
        if stream.cancelled.is_set():
            _close(stream)
            return False
        if time.monotonic() > stream.deadline:
            _close(stream)
            raise Problem(504, "late", "the answer took longer than the server's deadline")
        if stream.pieces is None:
            stream.pieces = stream.start()
        piece = next(stream.pieces, None)
        stream.put(piece)
        return piece is not None
    except Exception as error:
        with contextlib.suppress(RuntimeError):  # the reader's event loop has ended
            stream.put(error)
        return False


def _close(stream: Stream) -> None:
    close = getattr(stream.pieces, "close", None)
    if close is not None:
        close()
