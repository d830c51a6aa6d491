"""A real server under attack and under load; `make torture` runs these at full size."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from serve_fuzz import FuzzedRequest, fuzzed_requests

pytest.importorskip("fastapi")
pytestmark = [pytest.mark.slow, pytest.mark.torture]

JSON = {"Content-Type": "application/json"}
MIB = 2**20


class RunningServer:
    """`fusetune serve` as a process of its own."""

    def __init__(self, folder: Path, *options: str, log: Path) -> None:
        command = [sys.executable, "-m", "fusetune", "serve", str(folder), "--port", "0", "--name", "model", *options]
        self.log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(command, stderr=errors, env={**os.environ, "FUSETUNE_TOKEN": ""})
        self.port = self._port()

    def _port(self) -> int:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()
            for line in self.log.read_text().splitlines():
                if '"listening"' in line:
                    return int(json.loads(line)["port"])
            time.sleep(0.1)
        raise AssertionError("the server does not listen")

    def ask(self, body: bytes, path: str = "/predict", seconds: float = 60.0) -> tuple[int, bytes]:
        """Send a request over a connection of its own; return status and answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request("POST", path, body, JSON)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    @property
    def rss(self) -> float:
        """Resident memory, in MiB."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / MIB

    def end(self) -> int:
        """Send SIGTERM; return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture
def server(fitted: Any, tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    """`server("--queue", "10", folder=...)`"""
    running: list[RunningServer] = []

    def start(*options: str, folder: Path | None = None) -> RunningServer:
        running.append(RunningServer(folder or fitted.folder, *options, log=tmp_path / f"{len(running)}.log"))
        return running[-1]

    yield start
    for started in running:
        started.process.kill()
        started.process.wait()


@pytest.fixture(scope="module")
def rows(shop: Any) -> list[dict[str, Any]]:
    """The shop's rows with their pictures and sounds in base64."""
    folder, cells = shop
    files = {path.name: base64.b64encode(path.read_bytes()).decode() for path in folder.glob("*.[pw][na][gv]")}
    names = ("note", "price", "plan")
    return [
        {**{name: row[name] for name in names}, "photo": files[row["photo"]], "voice": files[row["voice"]]}
        for row in cells
    ]


def together(count: int, work: Callable[[int], None]) -> None:
    """Run `work(0)` ... `work(count - 1)` in threads."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]


def body_of(*rows: dict[str, Any]) -> bytes:
    return json.dumps({"rows": rows}).encode()


def send(port: int, request: FuzzedRequest) -> int:
    """Send a request as it is; return the status, 0 where the connection was closed instead."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.putrequest(request.method, request.path, skip_host="host" in request.headers)
        for name, value in request.headers.items():
            connection.putheader(name, value.encode("latin-1"))
        connection.putheader("Content-Length", str(len(request.body)))
        connection.endheaders(request.body)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (ConnectionError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def test_fuzzed_requests(server: Any, rows: Any, tried: Any, capsys: Any) -> None:
    running, requests = server("--max-body-mib", "1"), fuzzed_requests(rows[0], 10_000, seed=5)
    statuses: Counter[int] = Counter()
    slowest = 0.0

    def work(number: int) -> None:
        nonlocal slowest
        for request in requests[number::4]:
            start = time.monotonic()
            statuses[send(running.port, request)] += 1
            slowest = max(slowest, time.monotonic() - start)

    together(4, work)
    good = sum(count for status, count in statuses.items() if 200 <= status < 500)
    tried("a fuzzed request", survived=True, times=good)
    show(capsys, f"fuzzed: {dict(sorted(statuses.items()))}, slowest {slowest:.2f} s")
    assert not [status for status in statuses if status >= 500] and slowest < 5
    assert statuses[200] > 100 and statuses[0] < len(requests) / 50
    assert running.ask(body_of(rows[0]))[0] == 200


def test_large_bodies_are_refused_in_little_memory(server: Any, rows: Any, tried: Any, capsys: Any) -> None:
    running = server("--max-body-mib", "8")
    assert running.ask(body_of(rows[0]))[0] == 200
    before, most, statuses = running.rss, 0.0, []
    for chunked in (False, True, False, True):
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
        body = (bytes(MIB) for _ in range(200))
        headers = JSON if chunked else {**JSON, "Content-Length": str(200 * MIB)}
        try:
            connection.request("POST", "/predict", body, headers, encode_chunked=chunked)
            statuses.append(connection.getresponse().status)
        except ConnectionError:  # the server stopped reading after a while
            statuses.append(0)
        connection.close()
        most = max(most, running.rss)
    tried("a body of 200 MB", survived=True, times=len(statuses))
    show(capsys, f"200 MB bodies: {statuses}, memory grew by {most - before:.1f} MiB")
    assert set(statuses) <= {413, 0} and 413 in statuses and most - before < 30
    assert running.ask(body_of(rows[0]))[0] == 200


def test_half_sent_requests_are_closed_and_hold_nobody_up(server: Any, rows: Any, tried: Any, capsys: Any) -> None:
    running = server()
    starts = [
        b"", b"POST /pre", b"POST /predict HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
    ]  # fmt: skip
    sockets, closed, latencies = [], [0.0] * 100, []
    for number in range(100):
        connection = socket.create_connection(("127.0.0.1", running.port), timeout=30)
        connection.sendall(starts[number % 4])
        sockets.append(connection)
    start = time.monotonic()

    def wait(number: int) -> None:
        try:
            while sockets[number].recv(4096):
                pass
        except ConnectionError:
            pass
        closed[number] = time.monotonic() - start

    waiting = threading.Thread(target=together, args=(100, wait))
    waiting.start()
    while waiting.is_alive():
        begun = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
        connection.request("GET", "/health/live")
        assert connection.getresponse().status == 200
        latencies.append(time.monotonic() - begun)
        time.sleep(0.02)
    waiting.join()
    p99 = float(np.quantile(latencies, 0.99)) * 1e3
    tried("a half-sent request", survived=True, times=100)
    show(capsys, f"half-sent: all closed after {max(closed):.1f} s; /health/live p99 {p99:.1f} ms of {len(latencies)}")
    assert max(closed) < 15 and p99 < 100


def test_overload_is_answered_with_its_statuses(server: Any, rows: Any, tried: Any, capsys: Any) -> None:
    running = server("--queue", "16", "--deadline-s", "0.5", "--batch-rows", "8", "--max-connections", "200")
    statuses: Counter[int] = Counter()
    until, slowest = time.monotonic() + 60, [0.0] * 64

    def work(number: int) -> None:
        random = np.random.default_rng(number)
        while time.monotonic() < until:
            picked = [rows[int(place)] for place in random.integers(0, len(rows), 3)]
            start = time.monotonic()
            status, _ = running.ask(body_of(*picked))
            slowest[number] = max(slowest[number], time.monotonic() - start)
            statuses[status] += 1

    together(64, work)
    tried("a request in an overload", survived=True, times=sum(statuses.values()))
    show(capsys, f"overload: {dict(sorted(statuses.items()))}, slowest {max(slowest):.2f} s")
    assert set(statuses) <= {200, 429, 503, 504} and statuses[200] > 50 and statuses[429] > 50
    assert running.ask(body_of(rows[0]))[0] == 200


def test_rows_of_many_clients_are_answered_as_alone(server: Any, rows: Any, tried: Any, capsys: Any) -> None:
    running = server()
    distinct = [
        {**rows[number % len(rows)], "note": f"w{number % 40} w{number // 40} w{number % 7}", "price": number / 10}
        for number in range(1000)
    ]
    alone = [json.loads(running.ask(body_of(row))[1])["predictions"][0] for row in distinct]
    answers: dict[int, Any] = {}

    def work(number: int) -> None:
        for index in range(number, len(distinct), 32):
            answers[index] = json.loads(running.ask(body_of(distinct[index]))[1])["predictions"][0]

    together(32, work)
    differences = [abs(answers[n]["label_probability"] - own["label_probability"]) for n, own in enumerate(alone)]
    tried("a row among those of others", survived=True, times=1000)
    show(capsys, f"1,000 rows at concurrency 32: largest difference {max(differences):.1e}")
    assert max(differences) < 1e-5 and all(answers[n]["label"] == own["label"] for n, own in enumerate(alone))


def test_memory_does_not_grow_with_requests(server: Any, rows: Any, tried: Any, capsys: Any) -> None:
    running, sizes = server(), []
    count, part = 20_000, 2_000

    def work(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
        for index in range(part // 8):
            connection.request("POST", "/predict", body_of(rows[(index + number) % len(rows)]), JSON)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
        connection.close()

    for _ in range(count // part):
        together(8, work)
        sizes.append(running.rss)
    steady = sizes[len(sizes) // 2 :]
    slope = float(np.polyfit(np.arange(len(steady)) * part / 10_000, steady, 1)[0])
    tried("a request in a long row of them", survived=True, times=count)
    show(capsys, f"{count:,} requests: memory {sizes[0]:.0f} to {sizes[-1]:.0f} MiB, {slope:+.2f} MiB per 10,000")
    assert slope < 5


def test_versions_are_swapped_under_load(
    fitted: Any, server: Any, rows: Any, tmp_path: Path, tried: Any, capsys: Any
) -> None:
    for name in ("v1", "v2"):
        shutil.copytree(fitted.folder, tmp_path / "versions" / name)
    (tmp_path / "versions" / "current").write_text("v1")
    running = server("--watch", "--watch-s", "0.1", folder=tmp_path / "versions")
    ended, statuses, versions = threading.Event(), Counter[int](), Counter[str]()

    def work(number: int) -> None:
        if number == 0:
            for version in ("v2", "v1", "v2", "v1"):
                time.sleep(4)
                (tmp_path / "new").write_text(version)
                (tmp_path / "new").replace(tmp_path / "versions" / "current")
            time.sleep(4)
            ended.set()
        while not ended.is_set():
            status, body = running.ask(body_of(rows[number]))
            statuses[status] += 1
            versions[json.loads(body)["model"]["version"]] += 1

    together(9, work)
    tried("a request while versions are swapped", survived=True, times=sum(statuses.values()))
    swaps = running.log.read_text().count('"swapped"')
    show(capsys, f"hot swap: {dict(statuses)}, {swaps} swaps, answers by {dict(versions)}")
    assert set(statuses) == {200} and swaps >= 3 and set(versions) == {"v1", "v2"}


def test_sigterm_under_load_drops_nothing(server: Any, rows: Any, tried: Any, capsys: Any) -> None:
    running = server("--drain-s", "1")
    outcomes: Counter[str] = Counter()

    def work(number: int) -> None:
        if number == 0:
            time.sleep(2)
            assert running.end() == 0
            return
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
            try:
                connection.connect()
            except ConnectionError:  # the server takes no more
                return
            try:
                connection.request("POST", "/predict", body_of(rows[number]), JSON)
                outcomes[str(connection.getresponse().status)] += 1
            except (ConnectionError, http.client.HTTPException) as error:
                outcomes[type(error).__name__] += 1
            connection.close()

    together(17, work)
    tried("a request while the server ends", survived=True, times=sum(outcomes.values()))
    show(capsys, f"SIGTERM under load: {dict(outcomes)}")
    assert set(outcomes) == {"200"} and outcomes["200"] > 50


def show(capsys: Any, text: str) -> None:
    """Print a figure beside pytest's own output."""
    with capsys.disabled():
        print(f"\n  {text}")
