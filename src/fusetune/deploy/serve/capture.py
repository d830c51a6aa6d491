"""`CaptureFile`: inputs and predictions as JSON lines, for drift and labelling. Only where the user asks for it."""

from __future__ import annotations

import base64
import json
import os
import queue
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fusetune.deploy.serve.inputs import Inputs, Record
from fusetune.deploy.serve.logs import log
from fusetune.deploy.serve.metrics import Metrics
from fusetune.deploy.serve.options import Capture
from fusetune.errors import ConfigError, StorageError, nearest, reason

MAX_WAITING = 1024
"""Requests that wait to be written; further ones are counted and not written."""
REDACTED = "[redacted]"


class CaptureFile:
    """Appends a line for each row: time, model, version, the row's cells, its predictions.

    Files in cells are written in base64. The file can be read by its owner alone.
    """

    def __init__(self, options: Capture, inputs: Inputs, metrics: Metrics) -> None:
        """
        Args:
            options: the file, and the columns whose cells are left out.
            inputs: the columns of the model.
            metrics: count what could not be written.

        Raises:
            ConfigError: a column to leave out is none of the model's.
            StorageError: the file cannot be written.
        """
        assert options.file is not None, "a capture has a file"
        known = [*inputs.kinds, *inputs.extra]
        for name in options.redact:
            if name not in known:
                raise ConfigError(
                    f"{name!r} is no column that requests have", expected=", ".join(known), do=nearest(name, known)
                )
        self.path, self.redacted, self.metrics = options.file, frozenset(options.redact), metrics
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            self._file = os.fdopen(handle, "a", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written: {reason(error)}") from error
        self._waiting: queue.Queue[tuple[str, str, Sequence[Record], Sequence[Mapping[str, Any]]] | None]
        self._waiting = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="fusetune-capture", daemon=True)
        self._thread.start()

    def offer(self, name: str, version: str, records: Sequence[Record], answers: Sequence[Mapping[str, Any]]) -> None:
        """Write rows and their answers, if the disk keeps up."""
        try:
            self._waiting.put_nowait((name, version, records, answers))
        except queue.Full:
            self.metrics.lost.labels("capture").inc(len(records))

    def close(self, seconds: float) -> None:
        """Write what waits, and close the file."""
        try:
            self._waiting.put(None, timeout=seconds)
        except queue.Full:
            return
        self._thread.join(seconds)
        self._file.close()

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            name, version, records, answers = item
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            head = {"time": now, "model": name, "version": version}
            try:
                for record, answer in zip(records, answers, strict=True):
                    cells = {column: self._shown(column, cell) for column, cell in record.items()}
                    own = {column: REDACTED if column in self.redacted else cell for column, cell in answer.items()}
                    line = {**head, "row": cells, "prediction": own}
                    self._file.write(json.dumps(line, ensure_ascii=True, default=str) + "\n")
                self._file.flush()
            except OSError as error:
                self.metrics.lost.labels("capture").inc(len(records))
                log("capture failed", file=str(self.path), reason=reason(error))

    def _shown(self, column: str, cell: Any) -> Any:
        if column in self.redacted:
            return None if cell is None else REDACTED
        if isinstance(cell, list):
            return [base64.b64encode(part).decode() if isinstance(part, bytes) else part for part in cell]
        return cell
