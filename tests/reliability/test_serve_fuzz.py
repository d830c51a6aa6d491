"""Damaged requests to a server in this process: none is answered with a fault of ours. More: test_serve_torture.py."""

from __future__ import annotations

import base64
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from serve_fuzz import FuzzedRequest, fuzzed_requests

pytest.importorskip("fastapi")


@pytest.fixture(scope="module")
def served(fitted: Any, shop: Any) -> Any:
    """A client of the shop's model, and a valid row."""
    from starlette.testclient import TestClient

    from fusetune.deploy.serve.options import Limits, ServeOptions
    from fusetune.deploy.serve.run import Serving

    options = ServeOptions(fitted.folder, name="model", limits=replace(Limits(), body_bytes=2**20))
    serving = Serving.of(options, lambda folder: fitted)
    folder, cells = shop
    row = {name: cells[0][name] for name in ("note", "price", "plan")}
    row |= {name: base64.b64encode((folder / cells[0][name]).read_bytes()).decode() for name in ("photo", "voice")}
    yield TestClient(serving.guard, base_url="http://127.0.0.1", raise_server_exceptions=False), row
    serving.close()


def send(client: Any, request: FuzzedRequest) -> int:
    headers = {name: value.encode("latin-1") for name, value in request.headers.items()}
    return int(client.request(request.method, request.path, content=request.body, headers=headers).status_code)


def test_no_damaged_request_is_a_fault(served: Any) -> None:
    client, row = served
    statuses: Counter[int] = Counter()
    for request in fuzzed_requests(row, 200, seed=1):
        start = time.monotonic()
        statuses[send(client, request)] += 1
        assert time.monotonic() - start < 5, request
    assert max(statuses) < 500, statuses
    assert statuses[200] and statuses[400] and statuses[422]
