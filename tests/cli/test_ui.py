"""`fusetune ui`: how its options become a page's, its examples, and mistakes noticed before a model is loaded."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fusetune.cli.main import app

pytest.importorskip("gradio")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options of the pages that were started, and what gives their examples; none is."""
    from fusetune.deploy.ui import serving

    options: list[Any] = []

    class Started:
        version = "v2"

        def __init__(self, given: Any, load: Any, examples: Any) -> None:
            options.extend((given, examples))
            self.model = type("Model", (), {"name": given.name or given.folder.name})

        def run(self, bound: socket.socket) -> None:
            bound.close()

    monkeypatch.setattr(serving, "PageServer", Started)
    monkeypatch.delenv("FUSETUNE_TOKEN", raising=False)
    return options


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["ui", "m", "--port", "0", *arguments])
    assert done.exit_code == code, done.output
    return done.output


def test_options(asked):
    said = run("--max-body-mib", "2", "--max-rows", "7", "--max-chars", "9", "--max-pixels", "8", "--max-seconds", "3")
    options = asked[0]
    assert options.folder == Path("m") and options.access.host == "127.0.0.1" and options.access.token is None
    limits = options.limits
    assert limits.body_bytes == 2 * 2**20 and (limits.rows, limits.chars, limits.pixels) == (7, 9, 8)
    assert limits.seconds == 3 and "m, version v2: http://127.0.0.1:" in said


def test_another_host_needs_a_token(asked):
    assert "token" in run("--host", "0.0.0.0", code=2) and asked == []
    run("--host", "0.0.0.0", "--token", "secret", "--allow-host", "a.example")
    assert asked[0].access.token == "secret" and asked[0].access.hosts == ("a.example",)


def test_examples_are_the_runs_test_rows_or_those_of_a_table(asked, fitted, shop_tables, capsys):
    run()
    rows = asked[1](fitted)
    assert len(rows) == 20 and "label" in rows
    run("--examples", str(shop_tables["val"]))
    assert len(asked[3](fitted)) == 20
    run()
    bare = type(fitted)(fitted.bundle, folder=None, results=None)
    bare.bundle = type(fitted.bundle)(**{**vars(fitted.bundle), "config": type(fitted.bundle.config)()})
    assert asked[5](bare) is None and "without examples" in capsys.readouterr().err


def test_a_port_that_is_taken(asked):
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert "cannot be listened at" in run("--port", str(other.getsockname()[1]), code=2)
    assert asked == []
