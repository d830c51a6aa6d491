"""What a server counts, in the format of Prometheus."""

from __future__ import annotations

from typing import Any

from fusetune._optional import optional_import

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        prometheus: Any = optional_import("prometheus_client", "to count what a server does")
        self._generate = prometheus.generate_latest
        self.content_type: str = prometheus.CONTENT_TYPE_LATEST
        self.registry = registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Counter(
            "fusetune_requests", "Requests answered.", ["path", "status"], registry=registry
        )
        self.seconds = prometheus.Histogram(
            "fusetune_request_seconds", "Seconds to the end of an answer.", ["path"], buckets=SECONDS, registry=registry
        )
        self.rows = prometheus.Counter("fusetune_rows", "Rows predicted, by version.", ["version"], registry=registry)
        self.row_errors = prometheus.Counter(
            "fusetune_row_errors", "Rows with an entry in their error column.", registry=registry
        )
        self.batch_rows = prometheus.Histogram("fusetune_batch_rows", "Rows a batch.", buckets=ROWS, registry=registry)
        self.batch_seconds = prometheus.Histogram(
            "fusetune_batch_seconds", "Seconds that the model took for a batch.", buckets=SECONDS, registry=registry
        )
        self.queue_rows = prometheus.Gauge("fusetune_queue_rows", "Rows that wait.", registry=registry)
        self.swaps = prometheus.Counter(
            "fusetune_swaps", "Changes of the served version, by outcome.", ["outcome"], registry=registry
        )
        self.model = prometheus.Gauge(
            "fusetune_model", "1 for the version that is served.", ["name", "version"], registry=registry
        )
        self.shadow_rows = prometheus.Counter(
            "fusetune_shadow_rows", "Rows that a candidate predicted as the served model did, or not.",
            ["column", "agrees"], registry=registry,
        )  # fmt: skip
        self.shadow_difference = prometheus.Histogram(
            "fusetune_shadow_difference", "Absolute difference of a candidate's numbers.", ["column"],
            buckets=(0, 1e-6, 1e-4, 1e-3, 0.01, 0.1, 1, 10, 100), registry=registry,
        )  # fmt: skip
        self.lost = prometheus.Counter(
            "fusetune_dropped_rows", "Rows that the shadow or the capture had no time for.", ["by"], registry=registry
        )

    def batch_done(self, rows: int, seconds: float) -> None:
        """See `batching.Watcher`."""
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)

    def queue_changed(self, rows: int) -> None:
        """See `batching.Watcher`."""
        self.queue_rows.set(rows)

    def served(self, name: str, version: str) -> None:
        """Note which version is served now."""
        self.model.clear()
        self.model.labels(name, version).set(1)

    def text(self) -> bytes:
        """Return all counters as text."""
        made: bytes = self._generate(self.registry)
        return made
