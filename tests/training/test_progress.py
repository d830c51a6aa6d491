"""Progress over an iterator: a bar on a terminal, lines by time elsewhere."""

import io
import sys

import pytest
from rich.console import Console

from fusetune.training import progress
from fusetune.training.progress import print_line, track


@pytest.fixture
def written(monkeypatch, request) -> io.StringIO:
    stream = io.StringIO()
    terminal = getattr(request, "param", False)
    monkeypatch.setattr(progress, "console", lambda: Console(file=stream, force_terminal=terminal, width=120))
    return stream


@pytest.mark.parametrize("written", [True], indirect=True)
@pytest.mark.parametrize("name", ["reading photo", "reading [/b]", "reading [red]"])
def test_every_step_comes_and_the_name_is_shown_as_it_is(written, name):
    assert list(track(iter("abc"), name, 3)) == ["a", "b", "c"]
    assert name in written.getvalue()


@pytest.mark.parametrize("name", ["reading photo", "reading [/b]", "reading [red]"])
def test_lines_come_where_a_step_takes_long(monkeypatch, written, name):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def slow():
        for number in range(100):
            now[0] += 1
            yield number

    assert list(track(slow(), name, 100)) == list(range(100))
    lines = written.getvalue().splitlines()
    assert f"{name}  5/100" in lines[0]
    assert 5 < len(lines) < 25


def test_a_quick_step_prints_nothing(written):
    assert list(track(iter(range(50)), "reading", 50)) == list(range(50))
    assert written.getvalue() == ""


@pytest.mark.parametrize("stream", [None, "closed", "broken"])
def test_a_closed_output_stops_nothing(monkeypatch, stream):
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    made = {None: None, "closed": io.StringIO(), "broken": Broken()}[stream]
    if stream == "closed":
        made.close()
    monkeypatch.setattr(sys, "stderr", made)
    print_line("tune")


def test_the_last_line_of_a_stage_is_printed_once(monkeypatch, written):
    """The model may be evaluated again at the end of a stage, with the same figures."""
    monkeypatch.setattr(progress.Pace, "due", lambda self: False)
    lines = progress.StageLines()
    lines.begin("tune", 7, 0)
    for done, note in ((3, "loss 2"), (7, "loss 1"), (7, "loss 1")):
        lines.show(done, note)
        if done == 7:
            lines.end()
    lines.begin("other", 2, 0)
    assert [line.split("  ", 1)[1] for line in written.getvalue().splitlines()] == ["tune  step 7/7  loss 1"]
