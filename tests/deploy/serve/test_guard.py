"""Who may ask: token, host and origin; and what is refused by its announced size."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from fusetune.deploy.serve.logs import NAME, JsonLines
from fusetune.deploy.serve.options import Access, Limits
from fusetune.errors import ConfigError

TOKEN = "a-secret-token"
ROW = {"rows": [{"note": "w1", "price": 1}]}


@pytest.fixture(scope="module")
def open_client(plain, make_serving, client_of) -> Any:
    return client_of(make_serving(plain))


@pytest.fixture(scope="module")
def guarded_client(plain, make_serving, client_of) -> Any:
    access = Access("0.0.0.0", TOKEN, hosts=("models.example",), origins=("https://page.example",))
    return client_of(make_serving(plain, access=access))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "models.example"])
def test_other_hosts_need_a_token(host) -> None:
    with pytest.raises(ConfigError, match="token"):
        Access(host)
    assert Access(host, "x").token == "x"
    with pytest.raises(ConfigError, match="header"):
        Access(host, "é\n")


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer wrong", 401),
        (f"Basic {TOKEN}", 401),
        (f"Bearer {TOKEN}x", 401),
        (b"Bearer \xff\xfe", 401),
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN} ", 200),
    ],
)
def test_token(guarded_client, header, status) -> None:
    headers = {} if header is None else {"authorization": header}
    answer = guarded_client.post("/predict", json=ROW, headers=headers)
    assert answer.status_code == status
    assert (answer.headers.get("www-authenticate") == "Bearer") == (status == 401)


@pytest.mark.parametrize("path", ["/schema", "/metrics", "/openapi.json", "/admin/versions", "/nowhere"])
def test_everything_but_health_needs_the_token(guarded_client, path) -> None:
    assert guarded_client.get(path).status_code == 401
    assert guarded_client.get("/health/live").status_code == guarded_client.get("/health/ready").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:8000", 200),
        ("[::1]:8000", 200),
        ("10.0.0.7:80", 200),
        ("evil.example", 403),
        ("models.example", 403),
        ("localhost.evil.example", 403),
        ("localhost@evil.example", 403),
        ("", 403),
        ("a b", 403),
        ("[::1", 403),
        ("::1]", 403),
        ("[]", 403),
        ("[v1.x]", 403),
        ("localhost:99999999", 200),
        ("127.0.0.1:x", 200),
    ],
)
def test_host(open_client, host, status) -> None:
    assert open_client.get("/schema", headers={"host": host}).status_code == status


def test_host_that_is_allowed(guarded_client) -> None:
    headers = {"authorization": f"Bearer {TOKEN}", "host": "models.example"}
    assert guarded_client.get("/schema", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1", 200),
        ("https://page.example", 200),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://127.0.0.1:9", 403),
    ],
)
def test_origin(guarded_client, origin, status) -> None:
    headers = {"authorization": f"Bearer {TOKEN}", "origin": origin}
    answer = guarded_client.post("/predict", json=ROW, headers=headers)
    assert answer.status_code == status
    allowed = answer.headers.get("access-control-allow-origin")
    assert allowed == ("https://page.example" if origin == "https://page.example" else None)


@pytest.mark.parametrize(("length", "status"), [("99999999999", 413), ("9" * 400, 413), ("-1", 400), ("1e3", 400)])
def test_announced_sizes(open_client, length, status) -> None:
    headers = {"content-length": length, "content-type": "application/json"}
    answer = open_client.post("/predict", content=b"", headers=headers)
    assert answer.status_code == status and answer.headers["connection"] == "close"


def test_request_ids_and_logs(open_client, caplog) -> None:
    with caplog.at_level(logging.INFO, logger=NAME):
        answer = open_client.post("/predict", json=ROW, headers={"x-request-id": "abc-1"})
        assert answer.headers["x-request-id"] == "abc-1"
        odd = open_client.post("/predict", json=ROW, headers={"x-request-id": "a\tb" * 100})
        assert len(odd.headers["x-request-id"]) == 32
    line = json.loads(JsonLines().format(caplog.records[0]))
    assert (line["event"], line["status"], line["rows"], line["request_id"]) == ("request", 200, 1, "abc-1")
    assert "w1" not in json.dumps(line)  # no cell is logged


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_body_without_an_announced_size_is_counted_as_it_comes(plain, make_serving, client_of, pieces) -> None:
    client = client_of(make_serving(plain, limits=Limits(body_bytes=1000)))
    body = json.dumps(ROW).encode()
    padded = body + b" " * (1001 - len(body))
    step = -(-len(padded) // pieces)
    parts = [padded[start : start + step] for start in range(0, len(padded), step)]
    headers = {"content-type": "application/json"}
    answer = client.post("/predict", content=iter(parts), headers=headers)
    assert "content-length" not in answer.request.headers and answer.status_code == 413
    parts[-1] = parts[-1][:-1]
    assert client.post("/predict", content=iter(parts), headers=headers).status_code == 200
