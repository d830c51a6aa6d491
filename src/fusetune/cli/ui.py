"""`fusetune ui`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusetune.cli import common

if TYPE_CHECKING:
    from fusetune.data.table import Table
    from fusetune.deploy.fine_tuned import FineTuned
    from fusetune.deploy.serve.options import ServeOptions

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def ui(
    ctx: typer.Context,
    folder: Annotated[
        Path, typer.Argument(help="Folder that `fusetune fit`, `retune` or `label` wrote.", show_default=False)
    ],
    port: Annotated[int, typer.Option(help="Port to listen at; 0: a free one.", min=0, max=65535)] = 7860,
    host: common.Host = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(envvar="FUSETUNE_TOKEN", help="The password that browsers ask for.", show_default=False),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name in the page.", show_default="the folder's")] = None,
    examples: Annotated[
        str | None,
        typer.Option(help="Table whose rows are shown as examples.", show_default="the run's test rows"),
    ] = None,
    media: Annotated[
        Path | None,
        typer.Option(help="Folder of a labelling's pictures and sounds.", show_default="the one around the labelling"),
    ] = None,
    allow_host: common.AllowHost = None,
    precision: common.Precision = "float32",
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    max_body_mib: common.MaxBodyMib = 32.0,
    max_rows: common.MaxRows = 1000,
    max_chars: common.MaxChars = 100_000,
    max_pixels: common.MaxPixels = 25_000_000,
    max_seconds: common.MaxSeconds = 600.0,
) -> None:
    """Try a tuned model in a web page, or label the rows that `fusetune label` has chosen.

    A widget for each column, the answers with their probabilities, rows of the
    test table to click at, a table in and out, and the report. The page is for
    this machine alone unless --host says otherwise, and asks no other machine
    for anything. Ctrl-C ends it.

    \b
    Examples:
      fusetune ui runs/rating
      fusetune ui runs/rating --open --examples new.csv
      fusetune ui labelling
      FUSETUNE_TOKEN=... fusetune ui runs/rating --host 0.0.0.0 --allow-host models.example
    """
    options = _options(ctx.params)
    from fusetune.deploy.serve.connections import bind
    from fusetune.deploy.ui.serving import PageServer

    bound = bind(host, port)
    server = PageServer(options, _page(options, examples, media))
    address = f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"
    common.console().print(f"{server.title}: {address} (Ctrl-C ends it)")
    if open_browser:
        import webbrowser

        webbrowser.open(address)
    server.run(bound)


def _page(options: ServeOptions, examples: str | None, media: Path | None) -> Callable[[], Any]:
    """Return what builds the page: of a model, or of a labelling.

    Raises:
        ConfigError: an option is of the other kind of page.
    """
    from fusetune.errors import ConfigError
    from fusetune.lifecycle.labelling.folder import ROUNDS

    if (options.folder / ROUNDS).is_file():
        if examples is not None:
            raise ConfigError("--examples is of a model's page", do="leave it out")
        from fusetune.lifecycle.labelling.page import label_page

        return lambda: label_page(options.folder, media=media)
    if media is not None:
        raise ConfigError("--media is of a labelling's page", do="leave it out")
    from fusetune import api
    from fusetune.deploy.ui.page import load_page

    return lambda: load_page(options, api.load, lambda tuned: _examples(tuned, examples))


def _examples(tuned: FineTuned, table: str | None) -> Table | None:
    """Return the rows of a table, or the test rows of the run where its tables are still there."""
    from fusetune.errors import UserError
    from fusetune.lifecycle.held_out import all_rows

    if table is not None:
        return tuned.read(table)
    try:
        return all_rows(tuned).get("test")
    except UserError as error:
        common.errors_console().print(f"without examples: {error.what}")
        return None


def _options(given: dict[str, Any]) -> ServeOptions:
    """Return the command's arguments as options.

    Raises:
        ConfigError: one does not go with another.
    """
    from fusetune.deploy.serve.options import MIB, Access, Limits, ServeOptions

    return ServeOptions(
        folder=given["folder"],
        name=given["name"],
        port=given["port"],
        access=Access(given["host"], given["token"], tuple(given["allow_host"] or ())),
        limits=Limits(
            body_bytes=int(given["max_body_mib"] * MIB),
            rows=given["max_rows"],
            chars=given["max_chars"],
            pixels=given["max_pixels"],
            seconds=given["max_seconds"],
        ),
        drain_seconds=0.0,
        precision=given["precision"],
    )
