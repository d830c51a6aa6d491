"""`Service`: what all endpoints share: the model that is served, its worker, limits and counters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from typing import Any

from fusetune.deploy.serve.batching import Compute, Expected, Job, Stream, Worker
from fusetune.deploy.serve.capture import CaptureFile
from fusetune.deploy.serve.inputs import Record
from fusetune.deploy.serve.loaded import Live, Loaded
from fusetune.deploy.serve.metrics import Metrics
from fusetune.deploy.serve.options import ServeOptions
from fusetune.deploy.serve.problems import Problem
from fusetune.deploy.serve.shadow import Shadow
from fusetune.errors import UserError

GRACE_SECONDS = 1.0
"""Beyond the deadline, after which a request whose batch is being computed is given up."""


class Service:
    """A served model with everything around it.

    Attributes:
        options: what the user decided.
        live: the model that is served now.
        metrics: counters.
        worker: the thread that owns the models.
        shadow: compares a candidate with the served model; or None.
        capture: writes inputs and predictions; or None.
        ready: whether requests are welcome; False while the server ends.
    """

    def __init__(
        self,
        options: ServeOptions,
        live: Live,
        metrics: Metrics,
        *,
        shadow: Shadow | None = None,
        capture: CaptureFile | None = None,
    ) -> None:
        self.options, self.live, self.metrics = options, live, metrics
        self.shadow, self.capture, self.ready = shadow, capture, True
        self.worker = Worker(options.batching, metrics)
        metrics.served(live.model.name, live.model.version)

    def model(self, name: str | None = None) -> Loaded:
        """Return the served model.

        Args:
            name: that the request gives; None for a request without one.

        Raises:
            Problem: 404, another model is asked for.
        """
        model = self.live.model
        if name is not None and name != model.name:
            raise Problem(404, "unknown_model", f"there is no model {name[:80]!a}; this server has {model.name!r}")
        return model

    async def predict(self, model: Loaded, records: Sequence[Record], expected: Expected) -> list[dict[str, Any]]:
        """Return each record's predictions, in a batch with those of other requests.

        Args:
            model: the model.
            records: rows.
            expected: the request.

        Raises:
            Problem: see `compute`.
        """
        group = None if model.draws else ("predict", id(model))
        answers: list[dict[str, Any]] = []
        for number, answer in enumerate(await self.compute(records, model.predict, group, expected)):
            row_name = next(iter(answer))
            answers.append({**answer, row_name: number})
        self.metrics.rows.labels(model.version).inc(len(answers))
        self.metrics.row_errors.inc(sum(list(answer.values())[-1] is not None for answer in answers))
        if self.shadow is not None:
            self.shadow.offer(records, answers)
        if self.capture is not None:
            self.capture.offer(model.name, model.version, records, answers)
        return answers

    async def compute(
        self, rows: Sequence[Any], compute: Compute, group: Hashable, expected: Expected
    ) -> Sequence[Any]:
        """Compute answers in the worker; see `batching.Job`.

        Args:
            rows, compute, group: of the job.
            expected: the request, which ends as soon as its rows are in the queue.

        Raises:
            Problem: 422, the rows cannot be read; 429, too many rows wait; 503, the server ends; 504, it took longer
                than the deadline.
        """
        deadline = self.options.batching.deadline
        job = Job(rows, compute, group, time.monotonic() + deadline)
        answers = asyncio.wrap_future(self.worker.submit(job))
        expected.end()
        try:
            async with asyncio.timeout(deadline + GRACE_SECONDS):
                return await answers
        except TimeoutError:
            message = f"the answer took longer than the server's deadline of {deadline:g} seconds"
            raise Problem(504, "late", message) from None
        except UserError as error:
            raise Problem.of(error) from error

    async def write(self, start: Callable[[], Iterator[str]]) -> AsyncIterator[str]:
        """Yield the pieces of a text as the worker writes them.

        Args:
            start: called in the worker's thread; returns the pieces.

        Raises:
            Problem: as `compute`.
        """
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | Exception | None]()

        def put(piece: str | Exception | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        deadline = time.monotonic() + self.options.batching.deadline
        stream = Stream(start, put, deadline)
        self.worker.write(stream)
        try:
            while (piece := await pieces.get()) is not None:
                if isinstance(piece, UserError):
                    raise Problem.of(piece) from piece
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            stream.cancelled.set()
