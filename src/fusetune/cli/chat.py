"""`fusetune chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusetune.cli import common

if TYPE_CHECKING:
    from fusetune.deploy.chat import ChatSession

app = typer.Typer(add_completion=False, rich_markup_mode="rich")
HELP = "/reset forgets what was said, /quit ends. Ctrl-C stops an answer."


@app.command()
def chat(
    source: Annotated[
        str, typer.Argument(help="A folder that `fusetune fit` wrote, or a language model's folder or hub id.")
    ],
    system: Annotated[
        str | None, typer.Option(help="Text of the system message; else that of the tuning.", show_default=False)
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another column of the prompt, COLUMN=TEXT; again for several.", show_default=False),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Of draws; 0: the likeliest tokens.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of draws.", show_default=False)] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer.", show_default=False)] = None,
    as_json: common.Json = False,
) -> None:
    """Chat with a language model: each line of input is a message.

    The model reads the latest turns that it has room for. /reset forgets what
    was said, /quit ends, Ctrl-C stops an answer. With --json each answer is a
    line of JSON.

    \b
    Examples:
      fusetune chat runs/support
      fusetune chat runs/translate --set style=formal
      fusetune chat smollm2 --system "Answer in one sentence." --temperature 0.7
      echo "Where is my parcel?" | fusetune chat runs/support --json
    """
    from fusetune.deploy.chat import ChatOptions, ChatSession

    options = ChatOptions(system, temperature, seed, max_tokens)
    texts = common.named_cells(given or [])
    if common.is_model(Path(source)):
        from fusetune import api

        session = ChatSession.of_bundle(api.load(source).bundle, options, texts)
    else:
        session = ChatSession.of_pretrained(source, options)
    shows = sys.stdin.isatty() and not as_json
    if shows:
        alone = "" if session.conversation is not None else " Each message is answered by itself."
        common.errors_console().print(HELP + alone, style="dim")
    for line in _lines(shows):
        text = line.strip()
        if text in ("/quit", "/exit"):
            return
        if text == "/reset":
            session.reset()
        elif text:
            _answer(session, text, as_json=as_json)


def _lines(shows: bool) -> Iterator[str]:
    """Yield the lines of standard input; with `shows`, ask for each."""
    while True:
        if shows:
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line


def _answer(session: ChatSession, text: str, *, as_json: bool) -> None:
    """Print an answer, piece by piece or as JSON; a message that cannot be answered is told and not remembered."""
    from fusetune.errors import Interrupted, UserError

    written: list[str] = []
    error = None
    try:
        for piece in session.reply(text):
            written.append(piece)
            if not as_json:
                print(piece, end="", flush=True)
    except UserError as refused:
        error = refused
    except Interrupted:
        raise
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    if as_json:
        answer = {"message": text, "answer": "".join(written)}
        common.print_json({**answer, "error": None if error is None else str(error)})
        return
    print(flush=True)
    if error is not None:
        common.errors_console().print(f"error: {error}", style="red")
