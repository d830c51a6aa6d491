"""`fusetune serve`: how its options become a server's, and mistakes that are noticed before a model is loaded."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fusetune.cli.main import app

pytest.importorskip("fastapi")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options of the servers that were started; none is."""
    from fusetune.deploy.serve import run

    options: list[Any] = []

    class Started:
        @classmethod
        def of(cls, given: Any, load: Any) -> Started:
            options.append(given)
            return cls()

        def run(self, bound: socket.socket) -> None:
            options.append(bound.getsockname()[0])
            bound.close()

    monkeypatch.setattr(run, "Serving", Started)
    monkeypatch.delenv("FUSETUNE_TOKEN", raising=False)
    return options


def serve(*arguments: str, code: int = 0, env: dict[str, str] | None = None) -> Any:
    done = CliRunner().invoke(app, ["serve", "m", "--port", "0", *arguments], env=env)
    assert done.exit_code == code, done.output
    return done


def test_options(asked):
    serve("--max-delay-ms", "20", "--max-body-mib", "2", "--queue", "7", "--name", "rating", "--watch-s", "3")
    options, host = asked
    assert (options.folder, options.name, host) == (Path("m"), "rating", "127.0.0.1")
    assert options.batching.delay == 0.02 and options.batching.queue == 7
    assert options.limits.body_bytes == 2 * 2**20 and options.watch_seconds == 0 and options.access.token is None


def test_versions_and_captures(asked):
    serve("--watch", "--watch-s", "3", "--capture", "x.jsonl", "--redact", "name, email", "--redact", "phone")
    assert asked[0].watch_seconds == 3 and asked[0].capture.redact == ("name", "email", "phone")


@pytest.mark.parametrize("given", [{"FUSETUNE_TOKEN": "secret"}, {}])
def test_the_token_comes_from_the_environment(asked, given):
    arguments = [] if given else ["--token", "secret"]
    serve("--host", "0.0.0.0", "--allow-host", "a.example", *arguments, env=given)
    assert asked[0].access.token == "secret" and asked[0].access.hosts == ("a.example",)
    assert asked[1] == "0.0.0.0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "token"),
        (["--host", "0.0.0.0", "--token", "é"], "token"),
        (["--redact", "name"], "--capture"),
        (["--host", "203.0.113.9", "--token", "x"], "cannot be listened at"),
        (["--queue", "0"], "--queue"),
    ],
)
def test_mistakes(asked, arguments, message):
    assert message in serve(*arguments, code=2).output
    assert asked == []


def test_a_port_that_is_taken(asked):
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = CliRunner().invoke(app, ["serve", "m", "--port", str(other.getsockname()[1])])
    assert done.exit_code == 2 and "cannot be listened at" in done.output and asked == []
