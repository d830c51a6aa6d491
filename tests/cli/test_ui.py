"""`fusetune ui`: how its options become a page's, its examples, and mistakes noticed before a model is loaded."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fusetune.cli.main import app
from fusetune.config.config import Config
from fusetune.errors import FolderError

pytest.importorskip("gradio")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options of the pages that were started, and what gives their examples; none is."""
    from fusetune.deploy.ui import serving

    options: list[Any] = []

    class Started:
        title = "m, version v2"

        def __init__(self, given: Any, build: Any) -> None:
            options.extend((given, build))

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


def test_examples_are_the_runs_test_rows_or_those_of_a_table(fitted, shop_tables, capsys):
    from fusetune.cli.ui import _examples

    rows = _examples(fitted, None)
    assert len(rows) == 20 and "label" in rows
    assert len(_examples(fitted, str(shop_tables["val"]))) == 20
    bare = type(fitted)(dataclasses.replace(fitted.bundle, config=Config()), folder=None, results=None)
    assert _examples(bare, None) is None and "without examples" in capsys.readouterr().err


def test_a_labelling_has_a_page_of_its_own(asked, tmp_path):
    assert "--media" in run("--media", "x", code=2)
    (tmp_path / "rounds.json").write_text("{}")
    done = CliRunner().invoke(app, ["ui", str(tmp_path), "--port", "0", "--examples", "a.csv"])
    assert done.exit_code == 2 and "--examples" in done.output
    done = CliRunner().invoke(app, ["ui", str(tmp_path), "--port", "0"])
    assert done.exit_code == 0
    with pytest.raises(FolderError):
        asked[-1]()


def test_a_port_that_is_taken(asked):
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert "cannot be listened at" in run("--port", str(other.getsockname()[1]), code=2)
    assert asked == []
