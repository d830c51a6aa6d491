"""`Guard`: ASGI middleware in front of everything: who asks, how much is sent and how fast; logs and counts answers."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fusetune.deploy.serve.logs import log
from fusetune.deploy.serve.metrics import Metrics
from fusetune.deploy.serve.options import LOOPBACK, Access, Limits
from fusetune.deploy.serve.problems import Problem
from fusetune.deploy.serve.strict_json import dump

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
"""Paths that are answered without a token and for any host, as Kubernetes asks for them."""
LINGER_SECONDS = 2.0
"""How long the rest of a refused body is read and thrown away, so that the client sees the answer."""
SEND_SECONDS = 30.0
"""In which a client has to read a part of an answer."""
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]+")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass
class Exchange:
    """A request and its answer while they go through the guard."""

    headers: Mapping[str, str]
    request_id: str
    start: float
    status: int = 0
    received: int = 0
    complete: bool = False
    answered: bool = False


class Guard:
    """Checks requests before the application sees them.

    Attributes:
        draining: whether connections are closed after an answer, as the server is about to end.
    """

    def __init__(self, app: App, access: Access, limits: Limits, metrics: Metrics, paths: Callable[[str], str]) -> None:
        """
        Args:
            app: the application.
            access: who may ask.
            limits: of a request.
            metrics: counts answers.
            paths: returns the name of a path that answers are counted under.
        """
        self.app, self.access, self.limits, self.metrics, self.paths = app, access, limits, metrics, paths
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        exchange = Exchange(headers, request_id, time.perf_counter())
        exchange.complete = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        scope.setdefault("state", {})["request_id"] = request_id
        guarded_send = self._send(exchange, receive, send)
        try:
            self._check(scope, exchange)
        except Problem as problem:
            await _answer(problem, scope["path"], guarded_send)
        else:
            await self.app(scope, self._receive(exchange, receive), guarded_send)
        finally:
            self._note(scope, exchange)

    def _note(self, scope: Scope, exchange: Exchange) -> None:
        seconds, path = time.perf_counter() - exchange.start, self.paths(scope["path"])
        self.metrics.requests.labels(path, str(exchange.status)).inc()
        self.metrics.seconds.labels(path).observe(seconds)
        if path not in OPEN:
            client = (scope.get("client") or ("",))[0]
            log(
                "request", method=scope["method"], path=scope["path"][:200], status=exchange.status,
                ms=round(seconds * 1e3, 2), bytes_in=exchange.received, client=client, request_id=exchange.request_id,
                **scope["state"].get("log", {}),
            )  # fmt: skip

    def _check(self, scope: Scope, exchange: Exchange) -> None:
        """Check token, host, origin and announced size.

        Raises:
            Problem: 401, 403, 413 or 400.
        """
        headers, path = exchange.headers, scope["path"]
        if path not in OPEN:
            self._check_host(headers)
            if scope["method"] != "OPTIONS":
                self.check_token(headers)
        length = headers.get("content-length")
        if length is not None:
            if not length.isdecimal() or not length.isascii():
                raise Problem(400, "invalid_length", "Content-Length is no number")
            if len(length) > 18 or int(length) > self.limits.body_bytes:
                raise self._too_large()

    def check_token(self, headers: Mapping[str, str]) -> None:
        """Check the token that a request brings, if one is asked for.

        Raises:
            Problem: 401, it is missing or wrong.
        """
        if self.access.token is None:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        known = hmac.compare_digest(token.strip().encode("latin-1"), self.access.token.encode("latin-1"))
        if scheme.lower() != "bearer" or not known:
            raise Problem(401, "no_token", "send the server's token in the header Authorization: Bearer TOKEN")

    def _check_host(self, headers: Mapping[str, str]) -> None:
        host = headers.get("host", "")
        name = _host_name(host)
        allowed = (*LOOPBACK, self.access.host, *self.access.hosts)
        if not (_is_address(name) or name in allowed or "*" in self.access.hosts):
            message = f"the host {host[:80]!a} is not served here; --allow-host adds a name"
            raise Problem(403, "unknown_host", message)
        origin = headers.get("origin")
        if origin is None or "*" in self.access.origins or origin in self.access.origins:
            return
        if origin not in (f"http://{host}", f"https://{host}"):
            message = f"pages of {origin[:80]!a} may not call this server; --allow-origin adds one"
            raise Problem(403, "unknown_origin", message)

    def _too_large(self) -> Problem:
        message = f"the body is larger than {self.limits.body_bytes:,} bytes"
        return Problem(413, "too_large", message)

    def _receive(self, exchange: Exchange, receive: Receive) -> Receive:
        """Return a `receive` that counts bytes and gives up on bodies that do not arrive in time."""
        due = exchange.start + self.limits.body_seconds

        async def limited() -> Message:
            if exchange.complete:
                return await receive()  # waits for the client to disconnect
            try:
                async with asyncio.timeout(max(due - time.perf_counter(), 0.001)):
                    message = await receive()
            except TimeoutError:
                limit = self.limits.body_seconds
                text = f"the body did not arrive within {limit:g} seconds"
                raise Problem(408, "slow_body", text) from None
            if message["type"] == "http.request":
                exchange.received += len(message.get("body", b""))
                exchange.complete = not message.get("more_body", False)
                if exchange.received > self.limits.body_bytes:
                    raise self._too_large()
            return message

        return limited

    def _send(self, exchange: Exchange, receive: Receive, send: Send) -> Send:
        """Return a `send` that adds headers, and reads the rest of a refused body before it ends the answer."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status, exchange.answered = message["status"], True
                headers = [*message.get("headers", []), (b"x-request-id", exchange.request_id.encode())]
                if self.draining or not exchange.complete:
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            elif message["type"] == "http.response.body" and not message.get("more_body") and not exchange.complete:
                await send({**message, "more_body": True})
                if exchange.status != 408:  # a slow client has been waited for long enough
                    await _throw_away(receive)
                message = {"type": "http.response.body", "body": b""}
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)

        return guarded


async def _throw_away(receive: Receive) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while True:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body"):
                    return


async def _answer(problem: Problem, path: str, send: Send) -> None:
    body = dump(problem.body_for(path))
    headers = {"content-type": "application/json", "content-length": str(len(body)), **problem.headers}
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _host_name(host: str) -> str:
    """Return a Host header's name or address without the port, "" for what is neither."""
    try:
        return (urlsplit(f"//{host}").hostname or "") if _HOST.fullmatch(host) else ""
    except ValueError:  # half an IPv6 address
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
