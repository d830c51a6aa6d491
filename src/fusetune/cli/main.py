"""The command `fusetune`: its verbs, what is shown when one fails, and the exit codes.

0: done. 1: the run failed. 2: the user's mistake. 3: the new rows of `drift` or `watch --once` differ, or
`label-errors` finds too many. 130: stopped by Ctrl-C. 143: stopped by SIGTERM.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import warnings
from types import FrameType
from typing import Annotated, Any

import typer
import typer.core
import typer.main

import fusetune
from fusetune.cli import common, failures
from fusetune.cli.streams import make_safe
from fusetune.errors import Interrupted, nearest

VERBS = {
    "fit": "Tune a model on a table; write the model folder and the report.",
    "predict": "Predict the rows of a table with a tuned model.",
    "generate": "Write answers with a tuned model that writes: of one row, or of a table.",
    "evaluate": "Measure a tuned model on labelled rows.",
    "drift": "Test whether new rows come from the distribution of a run's held-out rows.",
    "label": "Choose the rows of a pool that a person labels next.",
    "label-errors": "List the rows whose label is likely wrong.",
    "retune": "Tune a model again on new rows; use the result only if it passes a gate.",
    "rollback": "Use an earlier version of a model that was tuned again.",
    "watch": "Test the tables that arrive in a folder for drift, and tune the model again on them.",
    "embed": "Write a vector for every row of a table.",
    "index": "Build a model's search index of a catalogue, add to it or remove from it.",
    "search": "Find the rows of a catalogue that are nearest to a query.",
    "recommend": "Recommend items to users.",
    "chat": "Chat with a language model, tuned or as it is.",
    "serve": "Answer requests over HTTP with a tuned model.",
    "ui": "Try a tuned model in a web page, or label rows in one.",
    "merge": "Work a model's adapters into its weights, for a folder that needs no other.",
    "export": "Write a model in the format of another library.",
    "report": "Show a model folder's report and write its HTML again.",
    "rank": "List pretrained models by what their frozen features are worth for a table.",
    "search-settings": "Search the settings of a fit on validation rows, and compare the winner with them as they are.",
    "schema": "Show what each column of a table is taken for, and why.",
    "launch": "Print the command or manifest that runs a fit on many GPUs or machines.",
    "doctor": "Look at this installation: versions, devices, memory, caches, extras.",
    "demo": "Make a sample table, tune on it and show what tuning bought.",
    "samples": "Write a generated table whose best reachable score is known.",
    "backbones": "List the pretrained models at hand, or describe one.",
}
"""Each verb's line in the list; the verb is `app` in the module of its name, with _ for -."""


class Verbs(typer.core.TyperGroup):
    """The verbs: imported one by one when used, with failures turned into messages and exit codes."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All verbs, in the order in which they are used."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The verb's command, or None where there is no such verb."""
        if cmd_name not in VERBS:
            return None
        if cmd_name not in self.commands:
            module = importlib.import_module(f"fusetune.cli.{cmd_name.replace('-', '_')}")
            command = typer.main.get_command(module.app)
            command.name, command.short_help = cmd_name, VERBS[cmd_name]
            self.commands[cmd_name] = command
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb that the first argument names; a misspelt one is answered with the nearest."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            hint = nearest(args[0], VERBS) or f"The verbs are {', '.join(VERBS)}."
            ctx.fail(f"There is no verb {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb.

        Raises:
            typer.Exit: with the exit code, where the verb failed; what to say has been said.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            common.errors_console().print(f"\n{str(stop) or 'stopped'}", style="yellow")
            raise typer.Exit(128 + stop.signal if isinstance(stop, Interrupted) else 130) from None
        except Exception as error:
            if type(error).__name__ == "NoSuchOption":
                _hint_setting(error)
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort | BrokenPipeError):
                raise  # typer's own: a usage error, --help, a closed pipe
            raise typer.Exit(failures.tell(error, common.state(ctx))) from error


def _hint_setting(error: Any) -> None:
    """Add to the message on an unknown option how the setting of that name is given."""
    from fusetune.config.config import Config, elsewhere

    name = str(error.option_name).lstrip("-").replace("-", "_")
    hint = f"did you mean {name}=VALUE?" if name in Config.model_fields else elsewhere(name)
    if hint is not None:
        error.message += f"; settings are given as KEY=VALUE, without dashes: {hint}"


app = typer.Typer(cls=Verbs, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fusetune {fusetune.__version__}")
        raise typer.Exit()


@app.callback()
def root(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Fine-tune pretrained models on tables of text, images, audio, numbers and categories.

    \b
    Example:
      fusetune fit train.csv --target rating --out runs/rating
    """
    ctx.obj = common.State(debug=debug)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _stop(number: int, frame: FrameType | None) -> None:
    """End as Ctrl-C does."""
    raise Interrupted(number, saved=False)


def main() -> None:
    """Run the command line of this process and exit."""
    make_safe()
    signal.signal(signal.SIGTERM, _stop)
    warnings.showwarning = failures.show_warning(warnings.showwarning)
    try:
        app(prog_name="fusetune")
    except KeyboardInterrupt:
        sys.exit(130)
