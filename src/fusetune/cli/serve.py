"""`fusetune serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusetune.cli import common

if TYPE_CHECKING:
    from fusetune.deploy.serve.options import ServeOptions

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


def _batching(text: str, **bounds: Any) -> Any:
    return typer.Option(help=text, rich_help_panel="Batching", **bounds)


def _version(text: str, **bounds: Any) -> Any:
    return typer.Option(help=text, rich_help_panel="Versions and inputs", **bounds)


@app.command()
def serve(
    ctx: typer.Context,
    folder: common.ModelFolder,
    port: Annotated[int, typer.Option(help="Port to listen at; 0: a free one.", min=0, max=65535)] = 8000,
    host: common.Host = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(envvar="FUSETUNE_TOKEN", help="Requests bring it as Authorization: Bearer.", show_default=False),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name in addresses and answers.", show_default="the folder's")
    ] = None,
    allow_host: common.AllowHost = None,
    allow_origin: Annotated[list[str] | None, typer.Option(help="Web page that may call; again for several.")] = None,
    precision: common.Precision = "float32",
    max_delay_ms: Annotated[float, _batching("Longest wait for rows of other requests.", min=0)] = 5.0,
    batch_rows: Annotated[int, _batching("Most rows of a batch.", min=1)] = 64,
    queue: Annotated[int, _batching("Most rows that wait; then 429.", min=1)] = 1024,
    deadline_s: Annotated[float, _batching("Seconds until a request is given up; then 504.", min=0.01)] = 30.0,
    streams: Annotated[int, _batching("Texts written at the same time.", min=1)] = 8,
    drain_s: Annotated[float, _batching("Seconds of new connections after SIGTERM.", min=0)] = 1.0,
    max_connections: Annotated[int, common.limit("Open at the same time; then 503.", min=1)] = 1000,
    max_body_mib: common.MaxBodyMib = 32.0,
    max_rows: common.MaxRows = 1000,
    max_chars: common.MaxChars = 100_000,
    max_pixels: common.MaxPixels = 25_000_000,
    max_seconds: common.MaxSeconds = 600.0,
    watch: Annotated[bool, _version("Serve a new version as soon as the folder has or names it.")] = False,
    watch_s: Annotated[float, _version("How often --watch looks, in seconds.", min=0.05)] = 2.0,
    shadow: Annotated[
        Path | None, _version("A candidate that predicts the same rows, for comparison.", show_default=False)
    ] = None,
    capture: Annotated[
        Path | None, _version("Append inputs and predictions to this .jsonl file.", show_default=False)
    ] = None,
    redact: Annotated[
        list[str] | None, _version("Column that --capture leaves out; again for several.", show_default=False)
    ] = None,
) -> None:
    """Answer requests over HTTP with a tuned model.

    Rows as JSON or uploads at /predict; the Open Inference Protocol at /v2;
    OpenAI's /v1/embeddings and /v1/chat/completions; /search; /metrics. Logs
    are JSON lines on standard error. SIGTERM answers what was asked, then ends.

    \b
    Examples:
      fusetune serve runs/rating
      fusetune serve runs/rating --port 9000 --max-delay-ms 20 --batch-rows 128
      FUSETUNE_TOKEN=... fusetune serve runs/rating --host 0.0.0.0 --allow-host models.example
      fusetune serve versions --watch --shadow runs/candidate
      fusetune serve runs/rating --capture inputs.jsonl --redact name,email
    """
    options = _options(ctx.params)
    from fusetune.deploy.serve.connections import bind
    from fusetune.deploy.serve.logs import log_to_stderr

    bound = bind(options.access.host, options.port)
    from fusetune import api
    from fusetune.deploy.serve.run import Serving

    log_to_stderr()
    Serving.of(options, api.load).run(bound)


def _options(given: dict[str, Any]) -> ServeOptions:
    """Return the command's arguments as options.

    Raises:
        ConfigError: one does not go with another.
    """
    from fusetune.deploy.serve.options import MIB, Access, Batching, Capture, Limits, ServeOptions
    from fusetune.errors import ConfigError

    redact = tuple(part.strip() for names in given["redact"] or () for part in names.split(",") if part.strip())
    if redact and given["capture"] is None:
        raise ConfigError("--redact leaves columns out of what --capture writes", do="add --capture FILE.jsonl")
    return ServeOptions(
        folder=given["folder"],
        name=given["name"],
        port=given["port"],
        access=Access(
            given["host"], given["token"], tuple(given["allow_host"] or ()), tuple(given["allow_origin"] or ())
        ),
        limits=Limits(
            body_bytes=int(given["max_body_mib"] * MIB),
            rows=given["max_rows"],
            chars=given["max_chars"],
            pixels=given["max_pixels"],
            seconds=given["max_seconds"],
        ),
        batching=Batching(
            rows=given["batch_rows"],
            delay=given["max_delay_ms"] / 1000,
            queue=given["queue"],
            deadline=given["deadline_s"],
            streams=given["streams"],
        ),
        capture=Capture(given["capture"], redact),
        drain_seconds=given["drain_s"],
        max_connections=given["max_connections"],
        watch_seconds=given["watch_s"] if given["watch"] else 0.0,
        shadow=given["shadow"],
        precision=given["precision"],
    )
