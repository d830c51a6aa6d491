"""Real sockets: slow clients, large bodies, and an end that answers what was asked."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from fusetune.deploy.serve.connections import bind
from fusetune.deploy.serve.options import Batching, Limits
from fusetune.errors import ConfigError

ROW = json.dumps({"rows": [{"note": "w1", "price": 1}]}).encode()
HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LIMITS = Limits(body_bytes=100_000, header_seconds=0.3, body_seconds=0.3)


@pytest.fixture(scope="module")
def port(plain, make_serving, listening) -> Any:
    with listening(make_serving(plain, limits=LIMITS)) as port:
        yield port


def closed_after(port: int, data: bytes) -> tuple[float, bytes]:
    """Send the start of a request; return the seconds until the connection is closed, and what was answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
        start, answer = time.monotonic(), b""
        try:
            while part := connection.recv(65_536):
                answer += part
        except ConnectionResetError:
            pass
        return time.monotonic() - start, answer


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", b""),
        (b"POST /predict HTTP/1.1\r\nHost: loc", b""),
        (HEAD + b"Content-Length: 9\r\n\r\n{", b"408"),
        (HEAD + b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"row', b"408"),
        (b"\x16\x03\x01\x02\x00\x01\x00", b"400"),
    ],
    ids=["silent", "headers", "body", "chunk", "tls"],
)  # fmt: skip
def test_half_sent_requests_are_closed(port, data, status) -> None:
    seconds, answer = closed_after(port, data)
    assert seconds < 5 and (status in answer.split(b"\r\n")[0] if status else answer == b"")


def test_a_connection_answers_several_requests(port) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for _ in range(3):
        connection.request("POST", "/predict", ROW, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200 and json.loads(answer.read())["predictions"]
        time.sleep(0.35)  # longer than headers may take: it counts from their first byte
    connection.close()


@pytest.mark.parametrize("chunked", [False, True])
def test_the_client_of_a_large_body_sees_why_it_is_refused(port, chunked) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    body: Any = (b" " * 10_000 for _ in range(200)) if chunked else b" " * 2_000_000
    connection.request("POST", "/predict", body, {"Content-Type": "application/json"}, encode_chunked=chunked)
    answer = connection.getresponse()
    assert answer.status == 413 and json.loads(answer.read())["error"]["type"] == "too_large"
    connection.close()


def test_answers_are_sent_at_once(plain, make_serving, listening, monkeypatch) -> None:
    """An answer's headers and body are two packets, the second of which would wait for the client's ACK."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    options = []
    made = H11Protocol.connection_made

    def connection_made(self: Any, transport: Any) -> None:
        options.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        made(self, transport)

    monkeypatch.setattr(H11Protocol, "connection_made", connection_made)
    with listening(make_serving(plain)) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/health/live")
        assert connection.getresponse().status == 200
    assert options and all(options)


def test_an_address_that_is_taken_is_a_mistake_of_the_user(port) -> None:
    with pytest.raises(ConfigError, match="cannot be listened at"):
        bind("127.0.0.1", port)
    with pytest.raises(ConfigError, match="cannot be listened at"):
        bind("203.0.113.9", 0)


def test_requests_are_answered_while_the_server_ends(plain, make_serving, listening) -> None:
    serving = make_serving(plain, batching=Batching(delay=0.0))
    held, answers = threading.Event(), []
    compute = type(serving.service.live.model).predict

    def slow(records: Any) -> Any:
        held.set()
        time.sleep(0.3)
        return compute(serving.service.live.model, records)

    serving.service.live.model.predict = slow  # type: ignore[method-assign]
    with listening(serving) as port:

        def ask() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("POST", "/predict", ROW, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answers.append((answer.status, answer.getheader("connection")))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert held.wait(5)
    for thread in threads:
        thread.join(10)
    assert answers == [(200, "close")] * 3
    assert not serving.service.ready


@pytest.mark.slow
def test_sigterm_ends_the_command_with_success(plain) -> None:
    command = [sys.executable, "-m", "fusetune", "serve", str(plain.folder), "--port", "0", "--drain-s", "0.2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        port = next(json.loads(line)["port"] for line in lines if '"listening"' in line)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/predict", ROW, {"Content-Type": "application/json"})
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
