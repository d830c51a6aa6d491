"""Serve a model until the process is told to end."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import cast

from fusetune.deploy.serve.app import build_guard
from fusetune.deploy.serve.capture import CaptureFile
from fusetune.deploy.serve.connections import DrainingServer, make_server, run_server
from fusetune.deploy.serve.guard import Guard
from fusetune.deploy.serve.loaded import Live, LoadModel, load_version
from fusetune.deploy.serve.logs import log
from fusetune.deploy.serve.metrics import Metrics
from fusetune.deploy.serve.options import LOOPBACK, ServeOptions
from fusetune.deploy.serve.service import Service
from fusetune.deploy.serve.shadow import Shadow
from fusetune.deploy.serve.versions import Versions
from fusetune.deploy.tuned import Precision

END_SECONDS = 10.0
"""How long the threads of a server are waited for."""


@dataclass
class Serving:
    """A server with its parts, before it runs.

    Attributes:
        service: the model and what is around it.
        versions: change of the served version.
        guard: the application.
    """

    service: Service
    versions: Versions
    guard: Guard

    @classmethod
    def of(cls, options: ServeOptions, load: LoadModel) -> Serving:
        """Load the model and build its server.

        Args:
            options: what the user decided.
            load: loads a model's folder.

        Raises:
            UserError: the model cannot be loaded, or an option does not fit it.
        """
        precision = cast(Precision, options.precision)
        metrics = Metrics()
        model = load_version(
            load,
            options.folder,
            name=options.name,
            precision=precision,
            shows_rows=options.access.host in LOOPBACK,
        )
        shadow = None
        if options.shadow is not None:
            shadow = Shadow(load_version(load, options.shadow, name="shadow", precision=precision), metrics)
        capture = CaptureFile(options.capture, model.inputs, metrics) if options.capture.file is not None else None
        service = Service(options, Live(model), metrics, shadow=shadow, capture=capture)
        versions = Versions(service, load)
        return cls(service, versions, build_guard(service, versions))

    def server(self) -> DrainingServer:
        """Return the server that answers at the port of the options."""
        return make_server(self.guard, self.service.options, self._drain)

    def run(self, bound: socket.socket) -> None:
        """Serve at a socket until SIGTERM or Ctrl-C; return when every request is answered."""
        model, options = self.service.live.model, self.service.options
        log("serving", model=model.name, version=model.version)
        if options.watch_seconds > 0:
            self.versions.watch(options.watch_seconds)
        try:
            run_server(self.server(), bound)
        finally:
            self.close()

    def close(self) -> None:
        """End the threads, after what waits is done."""
        self.versions.close()
        self.service.worker.close(END_SECONDS)
        if self.service.shadow is not None:
            self.service.shadow.close(END_SECONDS)
        if self.service.capture is not None:
            self.service.capture.close(END_SECONDS)

    def _drain(self) -> None:
        self.service.ready = False
        log("draining", seconds=self.service.options.drain_seconds)
