"""What keeps tests off the network works, here and in the processes that tests start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

FAR = "192.0.2.1"  # of the addresses that are nobody's, RFC 5737
TRIES = {
    "connect": f"socket.socket().connect(('{FAR}', 9))",
    "connect_ex": f"socket.socket().connect_ex(('{FAR}', 9))",
    "datagram": f"socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('{FAR}', 9))",
    "name": "socket.getaddrinfo('huggingface.co', 443)",
    "library": "urllib.request.urlopen('https://huggingface.co')",
}


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSETUNE_TEST_CONNECTIONS", str(tmp_path / "log"))
    return tmp_path / "log"


@pytest.mark.parametrize("how", ["connect", "connect_ex", "datagram", "name"])
def test_this_process_is_refused(log, how):
    with pytest.raises(OSError, match="no network"):
        exec(TRIES[how], {"socket": socket})
    assert str(os.getpid()) in log.read_text()


@pytest.mark.parametrize("how", TRIES)
def test_a_process_of_a_test_is_refused_and_written_down(log, how):
    code = (
        f"import contextlib, socket, urllib.request\ntry:\n    {TRIES[how]}\nexcept OSError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "no network" in done.stdout, done.stderr
    assert len(log.read_text().splitlines()) == 1


def test_this_machine_is_reached(log):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        assert socket.getaddrinfo("localhost", 80)
    assert not log.exists()
