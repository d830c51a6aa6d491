"""Servers of tiny models: in this process without a socket, or in a thread at a free port."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fusetune.data.table import Table
from fusetune.testing.tiny_models import make

if TYPE_CHECKING:
    from fusetune.deploy.fine_tuned import FineTuned
    from fusetune.deploy.serve.run import Serving

pytest.importorskip("fastapi")

TOKEN = "a-secret-token"


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> FineTuned:
    """A model of a text and a number with two labels."""
    import numpy as np

    from fusetune import api

    folder = tmp_path_factory.mktemp("served")
    rng = np.random.default_rng(0)
    rows = [
        {
            "id": f"r{number}",
            "note": " ".join(f"w{word}" for word in rng.integers(0, 40, 8)),
            "price": float(rng.uniform(1, 9)),
            "label": ("no", "yes")[number % 2],
        }
        for number in range(60)
    ]
    config = {
        "text": str(make("bert", folder / "bert")),
        "fusion": {"name": "attention", "dim": 16},
        "trainer": {"epochs": 0, "head_epochs": 1, "trackers": []},
        "report": {"bootstrap": 0, "errors": 1, "alone": "none"},
        "columns": {"id": {"role": "id"}},
    }
    return api.fit(Table.from_records(rows), target="label", config=config, out=folder / "model", progress=False)


@pytest.fixture(scope="session")
def make_serving() -> Iterator[Callable[..., Serving]]:
    """`make_serving(tuned, name="model", ...)` with further fields of `ServeOptions`; ended after the tests."""
    from fusetune.deploy.serve.options import ServeOptions
    from fusetune.deploy.serve.run import Serving

    made: list[Serving] = []

    def build(tuned: FineTuned, load: Callable[[Path], FineTuned] | None = None, **options: Any) -> Serving:
        assert tuned.folder is not None
        settings = ServeOptions(tuned.folder, port=0, drain_seconds=0.0)
        serving = Serving.of(replace(settings, **options), load or (lambda folder: tuned))
        made.append(serving)
        return serving

    yield build
    for serving in made:
        serving.close()


@pytest.fixture(scope="session")
def client_of() -> Callable[..., Any]:
    """`client_of(serving)`: a client without a socket."""
    from starlette.testclient import TestClient

    def build(serving: Serving, **headers: str) -> Any:
        base = "http://127.0.0.1"
        return TestClient(serving.guard, base_url=base, headers=headers, raise_server_exceptions=False)

    return build


@pytest.fixture(scope="session")
def listening() -> Callable[..., Any]:
    """`with listening(serving) as port:` a server in a thread."""
    from fusetune.deploy.serve.connections import bind

    @contextmanager
    def run(serving: Serving) -> Iterator[int]:
        bound, server = bind("127.0.0.1", 0), serving.server()
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield bound.getsockname()[1]
        finally:
            server.handle_exit(15, None)
            thread.join(20)
            assert not thread.is_alive()

    return run


@pytest.fixture(scope="session")
def encoded(shop: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A shop's row with its picture and sound in base64 and without its targets."""

    def row(cells: dict[str, Any]) -> dict[str, Any]:
        files = {name: base64.b64encode((shop[0] / cells[name]).read_bytes()).decode() for name in ("photo", "voice")}
        return {**{name: cells[name] for name in ("note", "price", "plan")}, **files}

    return row
