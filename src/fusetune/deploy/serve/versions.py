"""Change of the served version without a lost request: by the folder that is watched, or on demand."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from fusetune.deploy.serve.bodies import json_object
from fusetune.deploy.serve.loaded import (
    Loaded,
    LoadModel,
    fingerprint,
    load_version,
)
from fusetune.deploy.serve.logs import log
from fusetune.deploy.serve.problems import Problem
from fusetune.deploy.serve.service import Service
from fusetune.deploy.serve.web import Request, Response, json_response
from fusetune.deploy.versions import all_versions, checked_version, current_version, folder_in_use
from fusetune.errors import FusetuneError, UserError


class Versions:
    """Loads versions beside the served one and swaps them in.

    Requests that are being answered keep the model that they began with; the old one leaves the memory after them.
    """

    def __init__(self, service: Service, load: LoadModel) -> None:
        self.service, self.load = service, load
        self.folder = service.options.folder
        self._loading = threading.Lock()
        self._seen = self._state()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _state(self) -> str:
        """Return what changes when another version should be served."""
        return f"{current_version(self.folder)}:{fingerprint(folder_in_use(self.folder))}"

    def watch(self, seconds: float) -> None:
        """Check the folder every so many seconds, in a thread."""
        self._thread = threading.Thread(target=self._watch, args=(seconds,), name="fusetune-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()

    def _watch(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            self.check()

    def check(self) -> bool:
        """Swap in the version that the folder names now, if it is another; return whether it was.

        A version that cannot be loaded is logged and counted, and the one before stays; it is tried again when the
        folder changes.
        """
        try:
            state = self._state()
        except (UserError, OSError):  # the pointer is being written, or names what is not there yet
            return False
        if state == self._seen:
            return False
        self._seen = state
        try:
            self.swap(None)
        except (FusetuneError, OSError, ValueError, RuntimeError) as error:
            self.service.metrics.swaps.labels("failed").inc()
            log("swap failed", error=error, folder=str(self.folder))
            return False
        return True

    def swap(self, version: str | None) -> Loaded:
        """Load a version and serve it.

        Args:
            version: its name in the folder of versions; None for the one that the folder names.

        Raises:
            FusetuneError: it cannot be loaded.
        """
        options, live = self.service.options, self.service.live
        with self._loading:
            folder = self.folder if version is None else self.folder / checked_version(self.folder, version)
            model = load_version(
                self.load,
                folder,
                name=live.model.name,
                precision=live.model.precision,
                shows_rows=live.model.shows_rows,
            )
            if version is not None:
                model.version = version
            before = live.swap(model)
        self.service.metrics.served(model.name, model.version)
        self.service.metrics.swaps.labels("done").inc()
        log("swapped", before=before.version, version=model.version, folder=str(options.folder))
        return model

    async def listed(self, request: Request, service: Service) -> Response:
        """Return the versions in the folder and the one that is served."""
        _require_token(service)
        return json_response({"versions": all_versions(self.folder), "served": service.live.model.version})

    async def load_on_demand(self, request: Request, service: Service) -> Response:
        """Serve another version of the folder: `{"version": "v1"}`. It stays until the folder names a new one."""
        _require_token(service)
        body: dict[str, Any] = await json_object(request, service.options.limits)
        version = body.get("version")
        if not isinstance(version, str) or len(body) != 1:
            raise Problem(422, "invalid_request", 'expected {"version": NAME}')
        try:
            model = await asyncio.to_thread(self.swap, version)
        except UserError as error:
            raise Problem.of(error) from error
        return json_response({"served": model.version})


def _require_token(service: Service) -> None:
    """Refuse on a server without a token, where anyone on the machine could change the model."""
    if service.options.access.token is None:
        raise Problem(403, "no_token", "this server was started without a token, which changes of the version need")
