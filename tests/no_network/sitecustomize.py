"""Refuses connections to other machines, and writes down who tried.

Python runs this file first where its folder is on PYTHONPATH, so it holds in every process that a test starts.
"""

import os
import socket
from typing import Any

LOG = "FUSETUNE_TEST_CONNECTIONS"
"""The variable with the file that attempts are written to."""


def is_local(host: object) -> bool:
    """Whether a host is this machine."""
    name = host.decode() if isinstance(host, bytes) else host
    if name is None or not isinstance(name, str):
        return True
    own = {"", "localhost", "::1", "::", "0.0.0.0", "127.0.0.1", socket.gethostname()}
    return name in own or name.startswith("127.") or name.removesuffix(".localdomain") in own


def refuse(host: object) -> None:
    """Write the attempt down and fail."""
    if path := os.environ.get(LOG):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"process {os.getpid()}: {host}\n")
    raise ConnectionRefusedError(f"tests have no network, and a connection to {host} was tried")


def install() -> None:
    """Put the refusals in place of the functions that connect or ask for a name, once a process."""
    if getattr(socket, "refuses_others", False):
        return
    for name in ("connect", "connect_ex", "sendto"):
        _guard_method(name)
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        _guard_function(name)
    socket.refuses_others = True  # type: ignore[attr-defined]


def _guard_method(name: str) -> None:
    real = getattr(socket.socket, name)

    def guarded(self: socket.socket, *arguments: Any) -> Any:
        address = arguments[-1]
        if self.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple) and not is_local(address[0]):
            refuse(address[0])
        return real(self, *arguments)

    setattr(socket.socket, name, guarded)


def _guard_function(name: str) -> None:
    real = getattr(socket, name)

    def guarded(host: Any, *arguments: Any, **options: Any) -> Any:
        if not is_local(host):
            refuse(host)
        return real(host, *arguments, **options)

    setattr(socket, name, guarded)


install()
