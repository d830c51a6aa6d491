"""What answering over HTTP costs: `fusetune serve` and LitServe around the same model, beside the bare model.

    python benchmarks/serve.py                  # tunes a small model of sst2 first
    python benchmarks/serve.py --model RUN --seconds 20
    PYTHONPATH=FOLDER python benchmarks/serve.py    # with litserve and pyzmq installed into FOLDER

Each request is one row over a kept connection. Server and clients share the machine's cores.
"""

from __future__ import annotations

import argparse
import csv
import http.client
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(os.environ.get("FUSETUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))
CONCURRENCY = (1, 8, 32)


def tuned_model(folder: Path) -> Path:
    """Tune the heads of MiniLM on 600 sentences of sst2."""
    import fusetune as ft

    with (DATA / "text_sst2" / "train.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:600]
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    overrides = ["text=minilm", "trainer.epochs=0", "report.bootstrap=0", "report.alone=none", "trainer.trackers=[]"]
    ft.fit(str(folder / "train.csv"), target="label", out=folder / "model", overrides=overrides, progress=False)
    return folder / "model"


def sentences(folder: Path) -> list[dict[str, Any]]:
    """Return rows of the train table that the model was tuned with, with its input columns."""
    from fusetune import api
    from fusetune.data.table import Table

    tuned = api.load(folder)
    names = list(tuned.bundle.modalities)
    table = Table.read(tuned.bundle.config.train[0])
    return [{name: table.row(number)[name] for name in names} for number in range(min(len(table), 400))]


def overhead(folder: Path, port: int, rows: list[dict[str, Any]], count: int) -> None:
    """Predict a row in this process and over HTTP in turn, so that both have the same share of a busy machine."""
    from fusetune import api

    tuned, times = api.load(folder), {name: list[float]() for name in ("predict, 1 row", "the same over HTTP")}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for number in range(count + 5):
        row = rows[number % len(rows)]
        body = json.dumps({"rows": [row]}).encode()
        begun = time.perf_counter()
        tuned.predict([row])
        middle = time.perf_counter()
        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        connection.getresponse().read()
        if number >= 5:
            for name, seconds in zip(times, (middle - begun, time.perf_counter() - middle), strict=True):
                times[name].append(seconds)
    for name, own in times.items():
        show(name, own, len(own) / sum(own))
    own, other = (np.quantile(values, (0.5, 0.99)) * 1e3 for values in times.values())
    print(f"overhead: p50 {other[0] - own[0]:.1f} ms, p99 {other[1] - own[1]:.1f} ms")


def show(name: str, times: list[float], rate: float) -> None:
    p50, p95, p99 = (float(np.quantile(times, share)) * 1e3 for share in (0.5, 0.95, 0.99))
    print(f"{name:34} {rate:8.1f} rows/s   p50 {p50:7.1f} ms   p95 {p95:7.1f} ms   p99 {p99:7.1f} ms", flush=True)


def load_test(port: int, path: str, bodies: list[bytes], clients: int, seconds: float) -> tuple[list[float], float]:
    """Return the latencies of requests by so many clients, and answers a second."""
    times: list[list[float]] = [[] for _ in range(clients)]
    begun, until = time.monotonic(), time.monotonic() + seconds

    def work(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        index = number * 7
        while time.monotonic() < until:
            start = time.perf_counter()
            connection.request("POST", path, bodies[index % len(bodies)], {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
            times[number].append(time.perf_counter() - start)
            index += 1
        connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = [value for own in times for value in own]
    return every, len(every) / (time.monotonic() - begun)


def wait_for(port: int, path: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert process.poll() is None, "the server has ended"
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the server does not answer")


@contextmanager
def running(command: list[str], port: int, health: str) -> Iterator[int]:
    """Run a server that is ready inside."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, health, process)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def compare(ports: dict[str, int], bodies: list[bytes], seconds: float, rounds: int) -> None:
    """Measure servers in turn, in several rounds, so that all have the same share of a busy machine."""
    for port in ports.values():
        load_test(port, "/predict", bodies, 4, 2.0)
    for clients in CONCURRENCY:
        results: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ports}
        for number in range(rounds):
            order = list(ports) if number % 2 == 0 else list(ports)[::-1]
            for name in order:
                times, rate = load_test(ports[name], "/predict", bodies, clients, seconds)
                results[name][0].extend(times)
                results[name][1].append(rate)
        for name, (times, rates) in results.items():
            show(f"{name}, {clients} client{'s' * (clients > 1)}", times, float(np.median(rates)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model's folder; else one of sst2 is tuned")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2, help="of the servers in turn")
    parser.add_argument("--port", type=int, default=8770)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as spare:
        folder = given.model or tuned_model(Path(spare))
        rows = sentences(folder)
        bodies = [json.dumps({"rows": [row]}).encode() for row in rows]
        with ExitStack() as servers:
            serve = [sys.executable, "-m", "fusetune", "serve", str(folder), "--port", str(given.port)]
            ports = {"fusetune serve": servers.enter_context(running(serve, given.port, "/health/ready"))}
            overhead(folder, given.port, rows, 150)
            if importlib.util.find_spec("litserve") is None:
                print("LitServe is not installed")
            else:
                port = given.port + 1
                lit = [sys.executable, str(Path(__file__).with_name("serve_lit.py")), str(folder), str(port)]
                ports["LitServe"] = servers.enter_context(running(lit, port, "/health"))
            compare(ports, bodies, given.seconds, given.rounds)


if __name__ == "__main__":
    main()
