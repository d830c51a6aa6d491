"""Requests that a client should not send: valid ones that are damaged, and bytes of chance."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

ODD_VALUES = [
    "NaN", "-Infinity", "1e999", "-1e999", '"\\ud800"', '"\\udfff\\ud800"', "9" * 400, "-0", "1e-999", "null", "true",
    '""', '"\\u0000"', '"' + "x" * 200_000 + '"', "[]", "{}", "[[[[[[]]]]]]", "[" * 5000, '{"a":' * 5000,
    "[" * 200 + "]" * 200, '"/etc/passwd"', '"https://127.0.0.1:1/x.png"', '{"path": "/etc/passwd"}',
    '"data:image/png;base64,AAAA"', '"data:image/png;base64,iVBORw0KGgo="', '{"bytes": 1}', "[null, [null]]",
    '{"array": [1e308, 1e308], "sampling_rate": 16000}',
]  # fmt: skip
PATHS = [
    *("/predict", "/v2/models/model/infer", "/v1/embeddings", "/v1/chat/completions", "/search", "/schema", "/metrics"),
    *("/admin/versions", "/v2/models/%00/infer", "/../../etc/passwd", "/predict?x=%ff"),
    "/v2/models/model/versions/x/infer",
]
TYPES = [
    *("application/json", "application/json; charset=utf-8", "multipart/form-data; boundary=x", "text/plain", ""),
    *("multipart/form-data", "application/octet-stream", "application/json; charset=\xff"),
]


@dataclass(frozen=True)
class FuzzedRequest:
    """A request: method, path, headers and body."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def fuzzed_requests(row: dict[str, Any], count: int, seed: int) -> list[FuzzedRequest]:
    """Return damaged requests.

    Args:
        row: a valid row of the model.
        count: how many.
        seed: of chance.
    """
    rng = np.random.default_rng(seed)
    return [_request(row, rng) for _ in range(count)]


def _request(row: dict[str, Any], rng: np.random.Generator) -> FuzzedRequest:
    path = PATHS[int(rng.choice(len(PATHS), p=_weights()))]
    media_type = TYPES[0] if rng.random() < 0.6 else TYPES[int(rng.integers(len(TYPES)))]
    body = _form(row, rng) if media_type.startswith("multipart") else _json(row, path, rng)
    if rng.random() < 0.5:
        body = _damaged(body, rng)
    if rng.random() < 0.05:
        body = rng.bytes(int(rng.integers(0, 5000)))
    headers = {"content-type": media_type}
    if rng.random() < 0.05:
        headers["inference-header-content-length"] = str(int(rng.integers(-5, 2000)))
    if rng.random() < 0.03:
        headers["host"] = ["evil.example", "[::1", "localhost:x", "a b", "", "]"][int(rng.integers(6))]
    method = "POST" if rng.random() < 0.95 else ["GET", "PUT", "DELETE", "HEAD", "OPTIONS"][int(rng.integers(5))]
    return FuzzedRequest(method, path, headers, body)


def _weights() -> list[float]:
    first = 0.5
    return [first, *[(1 - first) / (len(PATHS) - 1)] * (len(PATHS) - 1)]


def _json(row: dict[str, Any], path: str, rng: np.random.Generator) -> bytes:
    """Return a body for a path, in which a value of the row may be an odd one."""
    marked = dict(row)
    odd = rng.random() < 0.6
    name = list(row)[int(rng.integers(len(row)))]
    if odd:
        marked[name] = "@@"
    bodies: dict[str, Any] = {
        "/v2": {"inputs": [{"name": n, "shape": [1], "datatype": "BYTES", "data": [v]} for n, v in marked.items()]},
        "/v1/embeddings": {"input": marked.get(name), "model": "model"},
        "/v1/chat": {"messages": [{"role": "user", "content": marked.get(name)}], "stream": bool(rng.random() < 0.5)},
        "/search": {"query": marked, "k": 3},
    }
    body = next((value for start, value in bodies.items() if path.startswith(start)), {"rows": [marked] * 2})
    text = json.dumps(body).replace('"@@"', ODD_VALUES[int(rng.integers(len(ODD_VALUES)))])
    return text.encode("utf-8", "surrogatepass")


def _form(row: dict[str, Any], rng: np.random.Generator) -> bytes:
    """Return a form, some of whose headers and boundaries are missing or wrong."""
    parts = []
    for name, value in row.items():
        file = f'; filename="{name}"' if rng.random() < 0.4 else ""
        head = f'Content-Disposition: form-data; name="{name}"{file}\r\n' if rng.random() < 0.95 else "X: y\r\n"
        more = ["", "Content-Type: image/png\r\n", "Content-Transfer-Encoding: base64\r\n"][int(rng.integers(3))]
        parts.append(f"--x\r\n{head}{more}\r\n{value}\r\n")
    end = "--x--\r\n" if rng.random() < 0.9 else ""
    return ("".join(parts) + end).encode()


def _damaged(body: bytes, rng: np.random.Generator) -> bytes:
    """Return a body that is cut, repeated, or has other bytes in it."""
    data = bytearray(body)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(0, len(data) + 1))
        kind = int(rng.integers(4))
        if kind == 0:
            del data[at:]
        elif kind == 1 and at < len(data):
            data[at] = int(rng.integers(256))
        elif kind == 2:
            data[at:at] = rng.bytes(int(rng.integers(1, 20)))
        else:
            end = min(at + int(rng.integers(1, 50)), len(data))
            data[at:at] = data[at:end]
    return bytes(data)
