"""Pages of tiny models, served in a thread and asked by Gradio's own client."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")


class Running:
    """A page that is served, and its client."""

    def __init__(self, server: Any, port: int) -> None:
        from gradio_client import Client

        self.server, self.port, self.url = server, port, f"http://127.0.0.1:{port}"
        self.client = Client(self.url, verbose=False, analytics_enabled=False)

    def ask(self, name: str, *values: Any) -> Any:
        return self.client.predict(*values, api_name=f"/{name}")

    def refused(self, name: str, *values: Any) -> str:
        """The sentence that the page shows."""
        from gradio_client.exceptions import AppError

        with pytest.raises(AppError) as refusal:
            self.ask(name, *values)
        return str(refusal.value.args[0] if refusal.value.args else refusal.value)

    @property
    def labels(self) -> list[tuple[str, str]]:
        """The type and the label of what the page shows."""
        parts = self.client.config["components"]
        return [(part["type"], part["props"].get("label") or "") for part in parts]


@pytest.fixture(scope="session", autouse=True)
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One folder of uploads for all pages of this process."""
    before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED")}
    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("uploads").resolve())
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="module")
def run_page() -> Iterator[Callable[..., Running]]:
    """`run_page(tuned, examples=None, ...)` with further fields of `ServeOptions`; ended after the module's tests."""
    from fusetune.deploy.serve.connections import bind
    from fusetune.deploy.serve.options import ServeOptions
    from fusetune.deploy.ui.page import load_page
    from fusetune.deploy.ui.serving import PageServer

    started: list[tuple[Any, Any, threading.Thread]] = []

    def run(tuned: Any, examples: Any = None, folder: Path | None = None, **options: Any) -> Running:
        settings = replace(ServeOptions(folder or tuned.folder, port=0, drain_seconds=0.0), **options)
        page = PageServer(settings, lambda: load_page(settings, lambda folder: tuned, lambda tuned: examples))
        bound, server = bind("127.0.0.1", 0), page.server()
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        started.append((page, server, thread))
        while not server.started and thread.is_alive():
            time.sleep(0.02)
        return Running(page, bound.getsockname()[1])

    yield run
    for page, server, thread in started:
        server.should_exit = True
        thread.join(20)
        page.close()
