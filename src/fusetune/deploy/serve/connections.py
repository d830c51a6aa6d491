"""Connections and the end of the server: uvicorn with a limit on slow headers, and SIGTERM that drains."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from fusetune._optional import optional_import
from fusetune.deploy.serve.guard import Guard
from fusetune.deploy.serve.logs import log
from fusetune.deploy.serve.options import ServeOptions
from fusetune.errors import ConfigError, reason

PURPOSE = "to serve a model"
BACKLOG = 2048

if TYPE_CHECKING:
    from uvicorn import Config, Server
    from uvicorn.protocols.http.h11_impl import H11Protocol
else:
    Config = optional_import("uvicorn", PURPOSE).Config
    Server = optional_import("uvicorn", PURPOSE).Server
    H11Protocol = optional_import("uvicorn.protocols.http.h11_impl", PURPOSE).H11Protocol


def timed_protocol(seconds: float) -> type[H11Protocol]:
    """Return uvicorn's protocol with a limit on the seconds in which a request's headers must arrive.

    uvicorn itself closes idle connections after an answer alone, neither silent new ones nor half-sent headers.
    """

    class TimedProtocol(H11Protocol):
        _due: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._cancel()
            else:
                self._expect_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel()
            super().connection_lost(exc)

        def _expect_headers(self) -> None:
            if self._due is None:
                self._due = self.loop.call_later(seconds, self.transport.abort)

        def _cancel(self) -> None:
            if self._due is not None:
                self._due.cancel()
                self._due = None

    return TimedProtocol


class DrainingServer(Server):
    """uvicorn's server, which goes on answering for a while after SIGTERM, and ends as a success.

    Load balancers need a moment to notice that the server is no longer ready. Until then new connections are answered,
    too, each for one request.

    Attributes:
        on_drain: called when the server is told to end.
    """

    def __init__(self, config: Config, *, guard: Guard, drain_seconds: float, on_drain: Callable[[], None]) -> None:
        super().__init__(config)
        self.guard, self.drain_seconds, self.on_drain = guard, drain_seconds, on_drain
        self.end_at: float | None = None

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to drain; a second signal ends at once."""
        if self.end_at is None:
            self.end_at = time.monotonic() + self.drain_seconds
            self.guard.draining = True
            self.on_drain()
            return
        self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Return whether the server should stop accepting connections."""
        if self.end_at is not None and time.monotonic() >= self.end_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        address = self.servers[0].sockets[0].getsockname()
        log("listening", host=address[0], port=address[1])


def make_server(
    guard: Guard, options: ServeOptions, on_drain: Callable[[], None], *, lifespan: Literal["on", "off"] = "off"
) -> DrainingServer:
    """Return a server of an application behind its guard; "on" tells the application of its start and end."""
    config = Config(
        guard,
        http=timed_protocol(options.limits.header_seconds),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan=lifespan,
        backlog=BACKLOG,
        limit_concurrency=options.max_connections,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(options.batching.deadline) + 5,
    )
    return DrainingServer(config, guard=guard, drain_seconds=options.drain_seconds, on_drain=on_drain)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket at an address, which does not listen yet; port 0 takes a free one.

    Raises:
        ConfigError: the address is no address of this machine, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it an answer waits 40 ms for the client's ACK.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, UnicodeError) as error:
        bound.close()
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{host}:{port} cannot be listened at: {why}", do="give another --port or --host") from error
    return bound


def run_server(server: DrainingServer, bound: socket.socket) -> None:
    """Serve at a socket until SIGTERM or Ctrl-C, and return when all requests are answered."""
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} if in_main else {}
    for number in before:
        signal.signal(number, _ignore)  # uvicorn raises the signals again after it has ended
    try:
        server.run([bound])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    log("ended")


def _ignore(number: int, frame: Any) -> None:
    """Take a signal that the server has handled."""
