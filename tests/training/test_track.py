"""The progress bar over an iterator."""

import io

import pytest
from rich import get_console
from rich.console import Console

from fusetune.training.callbacks import track


@pytest.mark.parametrize("name", ["reading photo", "reading [/b]", "reading [red]"])
def test_every_step_comes_and_the_name_is_shown_as_it_is(monkeypatch, name):
    written = io.StringIO()
    monkeypatch.setattr("rich._console", Console(file=written, force_terminal=True, width=120))
    assert get_console().file is written
    assert list(track(iter("abc"), name, 3)) == ["a", "b", "c"]
    assert name in written.getvalue()
