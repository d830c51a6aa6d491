"""What the user decides about a server: its address, limits, batching, and what is logged."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fusetune.errors import ConfigError

MIB = 2**20
LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that only programs on this machine can reach."""


@dataclass(frozen=True)
class Limits:
    """The largest request that is read; a larger one is refused with status 413 or 422.

    Attributes:
        body_bytes: of a request's body.
        rows: of a request.
        chars: of one cell of text.
        pixels: of one picture, width × height.
        seconds: of one sound.
        depth: of nested lists and objects in JSON.
        body_seconds: in which a request's body must arrive.
        header_seconds: in which a request's headers must arrive.
    """

    body_bytes: int = 32 * MIB
    rows: int = 1000
    chars: int = 100_000
    pixels: int = 25_000_000
    seconds: float = 600.0
    depth: int = 32
    body_seconds: float = 10.0
    header_seconds: float = 5.0


@dataclass(frozen=True)
class Batching:
    """How requests share a prediction, and how long they wait.

    Attributes:
        rows: most rows of a batch.
        delay: most seconds that a request waits for others that are being read at the time.
        queue: most rows that wait; further requests are answered with status 429.
        deadline: seconds after which a request is answered with status 504.
        streams: most texts that are written at the same time; as many again wait.
    """

    rows: int = 64
    delay: float = 0.005
    queue: int = 1024
    deadline: float = 30.0
    streams: int = 8


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        host: the address that the server listens at.
        token: that requests must bring in `Authorization: Bearer`; None asks for none.
        hosts: names in the `Host` header that are answered besides IP addresses and localhost; "*" for any.
        origins: web pages that may call, as in the `Origin` header; "*" for any.
    """

    host: str = "127.0.0.1"
    token: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise ConfigError("the token cannot be sent in a header", expected="printable ASCII characters")
        if self.host not in LOOPBACK and self.token is None:
            raise ConfigError(
                f"{self.host} can be reached from other machines, so that a token is needed",
                expected="--token TEXT, or the environment variable FUSETUNE_TOKEN",
                do="give a token, or leave --host out to serve this machine alone",
            )


@dataclass(frozen=True)
class Capture:
    """Where inputs and predictions are written, for drift and labelling.

    Attributes:
        file: a .jsonl file, which is appended to; None writes nothing.
        redact: columns whose cells are left out.
    """

    file: Path | None = None
    redact: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServeOptions:
    """Everything that a server is told.

    Attributes:
        folder: of the model, or one of versions with a file `current` that names one.
        name: the model's name in addresses and answers; the folder's name by default.
        port: to listen at; 0 takes a free one.
        drain_seconds: how long the server answers on new connections after SIGTERM, before it stops accepting them.
        max_connections: connections that are open at the same time.
        watch_seconds: how often the folder is checked for a new version; 0 never.
        shadow: folder of a candidate that predicts the same rows, for comparison; or None.
        precision: see `FineTuned.predict`.
    """

    folder: Path
    name: str | None = None
    port: int = 8000
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)
    batching: Batching = field(default_factory=Batching)
    capture: Capture = field(default_factory=Capture)
    drain_seconds: float = 1.0
    max_connections: int = 1000
    watch_seconds: float = 0.0
    shadow: Path | None = None
    precision: str = "float32"
