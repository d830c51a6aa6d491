"""`Shadow`: a candidate predicts the rows of real requests, and its agreement with the served model is counted."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from fusetune.deploy.serve.inputs import Record
from fusetune.deploy.serve.loaded import Loaded
from fusetune.deploy.serve.logs import log
from fusetune.deploy.serve.metrics import Metrics

MAX_WAITING = 64
"""Requests that wait for the candidate; further ones are not compared, so that it never delays an answer."""
CLOSE = 1e-6


class Shadow:
    """Compares a candidate with the served model in a thread of its own.

    Attributes:
        model: the candidate.
    """

    def __init__(self, model: Loaded, metrics: Metrics) -> None:
        self.model, self.metrics = model, metrics
        self._waiting: queue.Queue[tuple[Sequence[Record], Sequence[Mapping[str, Any]]] | None] = queue.Queue(
            MAX_WAITING
        )
        self._thread = threading.Thread(target=self._run, name="fusetune-shadow", daemon=True)
        self._thread.start()

    def offer(self, records: Sequence[Record], answers: Sequence[Mapping[str, Any]]) -> None:
        """Compare the candidate's predictions of some rows with the answers that were given, if there is time."""
        try:
            self._waiting.put_nowait((records, answers))
        except queue.Full:
            self.metrics.lost.labels("shadow").inc(len(records))

    def close(self, seconds: float) -> None:
        """Compare what waits, and end."""
        try:
            self._waiting.put(None, timeout=seconds)
        except queue.Full:
            return
        self._thread.join(seconds)

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            records, answers = item
            try:
                names = self.model.inputs.kinds
                known = [{name: record.get(name) for name in (*names, *self.model.inputs.extra)} for record in records]
                self._compare(answers, self.model.predict(known))
            except Exception as error:  # a broken candidate must not end the comparison, nor the server
                self.metrics.shadow_rows.labels("", "failed").inc(len(records))
                log("shadow failed", error=error)

    def _compare(self, answers: Sequence[Mapping[str, Any]], candidate: Sequence[Mapping[str, Any]]) -> None:
        decided = [task.target for task in self.model.bundle.targets.values()]
        for answer, other in zip(answers, candidate, strict=True):
            for name in decided:
                live, own = answer.get(name), other.get(name)
                agrees = live == own
                if isinstance(live, float) and isinstance(own, float):
                    difference = abs(live - own)
                    self.metrics.shadow_difference.labels(name).observe(difference)
                    agrees = difference <= CLOSE * max(1.0, abs(live))
                self.metrics.shadow_rows.labels(name, "yes" if agrees else "no").inc()
