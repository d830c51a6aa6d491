"""What the verbs share: options, printing, and JSON for machines."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fusetune.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from fusetune.deploy.predictions import Predictions

ENDINGS = (".csv", ".jsonl", ".parquet")
"""Of files that tables are written to."""
WIDTH_OF_LOGS = 120
"""Columns of text where the output is no terminal."""


@dataclass
class State:
    """What was asked of the command as a whole."""

    debug: bool = False
    json: bool = False


def state(ctx: Any) -> State:
    """The state of this call."""
    found = ctx.find_root().obj
    return found if isinstance(found, State) else State()


def _remember_json(ctx: typer.Context, value: bool) -> bool:
    root = ctx.find_root()
    if value and isinstance(root.obj, State):
        root.obj.json = True
    return value


Json = Annotated[
    bool,
    typer.Option("--json", help="Print JSON for machines, failures too; no progress.", callback=_remember_json),
]
Target = Annotated[
    list[str] | None, typer.Option("--target", "-t", help="Column to predict; give it again for several.")
]
Slices = Annotated[
    list[str] | None, typer.Option("--slices", "-s", help="Column to split the metrics by; give it again for several.")
]
MissingColumns = Annotated[
    list[str] | None,
    typer.Option("--missing-columns", help="Input column that the table may lack; give it again for several."),
]
Media = Annotated[
    list[str] | None,
    typer.Option("--media", help="Protocol of addresses of media that are fetched, as https; again for several."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a finished model in the folder.")]
Precision = Annotated[
    Literal["float32", "bf16", "int8"],
    typer.Option(help="bf16, int8: faster where the processor has it; evaluate says what that costs."),
]
Host = Annotated[str, typer.Option(help="Address to listen at; another than this machine's own needs a token.")]
AllowHost = Annotated[list[str] | None, typer.Option(help="Name in Host to answer; again for several.")]


def limit(text: str, **bounds: Any) -> Any:
    """Return an option of the panel of limits."""
    return typer.Option(help=text, rich_help_panel="Limits", **bounds)


MaxBodyMib = Annotated[float, limit("Of a request's body.", min=0.001)]
MaxRows = Annotated[int, limit("Rows of a request.", min=1)]
MaxChars = Annotated[int, limit("Characters of a cell.", min=1)]
MaxPixels = Annotated[int, limit("Of a picture.", min=1)]
MaxSeconds = Annotated[float, limit("Of a sound.", min=0.01)]
ModelFolder = Annotated[Path, typer.Argument(help="Folder that `fusetune fit` or `retune` wrote.", show_default=False)]


def leads() -> bool:
    """Whether this is the process that speaks, where several run the same command."""
    return os.environ.get("RANK", "0") == "0"


def shows_progress(as_json: bool) -> bool:
    """Return whether to show progress, on standard error: in the first process, for people."""
    return leads() and not as_json


def console() -> Console:
    """Where results are printed: standard output; silent in all processes but the first."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDTH_OF_LOGS
    return Console(quiet=not leads(), highlight=False, markup=False, emoji=False, width=width)


def errors_console() -> Console:
    """Where failures are printed: standard error; lines are not broken, so that paths can be copied."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a value as standard JSON: text that is JSON already, or anything made of mappings, lists and figures."""
    if leads():
        text = value if isinstance(value, str) else json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)
        print(text, flush=True)


def written(answers: Predictions, out: Path | None, *, as_json: bool) -> bool:
    """Write answers to a file, or print them as JSON; return False if they are still to be shown to a person.

    Args:
        answers: the rows.
        out: the file, or None.
        as_json: what is printed is for machines.

    Raises:
        ConfigError, StorageError: the file's ending is not known, or it cannot be written.
    """
    from fusetune.deploy.predictions import check_ending, write

    if out is not None:
        rows, failed = write([answers], out, check_ending(out))
        if as_json:
            print_json({"out": str(out), "rows": rows, "errors": failed})
        else:
            console().print(f"{rows} rows: {out}")
    elif as_json:
        for row in answers.table.to_pylist():
            print_json(row)
    return out is not None or as_json


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def named_cells(cells: Sequence[str]) -> dict[str, str]:
    """Return the values of `--set COLUMN=VALUE` by column.

    Raises:
        ConfigError: one has no column.
    """
    named = {}
    for cell in cells:
        column, equals, value = cell.partition("=")
        if not equals or not column:
            raise ConfigError(f"{cell!r} names no column", expected="--set COLUMN=VALUE")
        named[column] = value
    return named


def check_model_and_table(model: Path, table: str) -> None:
    """Refuse a table in the place of the model folder, and a model folder in the place of the table.

    Raises:
        ConfigError: so it is; with the right order of the two.
    """
    swapped = is_model(Path(table)) and not is_model(model)
    if swapped:
        raise ConfigError(
            "the model folder and the table are swapped",
            expected="the model folder first, then the table",
            came=f"{model} {table}",
            do=f"write {table} {model}",
        )
    check_table(table)


def check_table(table: str) -> None:
    """Refuse a model folder in the place of a table.

    Raises:
        ConfigError: it is one.
    """
    if is_model(Path(table)):
        raise ConfigError(f"{table} is a model folder", expected="a table: .csv, .tsv, .jsonl, .parquet, ...")


def is_model(folder: Path) -> bool:
    """Whether a folder has a tuned model, or versions of one."""
    from fusetune.deploy.versions import CURRENT
    from fusetune.security.model_folder import BUNDLE

    return any(os.path.isfile(folder / name) for name in (BUNDLE, CURRENT))  # False for a name that no file can have


def is_config(source: str) -> bool:
    """Whether a table argument is a settings file."""
    return Path(source).suffix.lower() in (".yaml", ".yml")


def check_empty(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder with files in it, unless they may be replaced.

    Raises:
        ConfigError: it has some.
    """
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} is not empty", do="give another folder as --out, or replace its files: --overwrite"
        )


def check_out(out: Path, table: str, *, also: Sequence[str] = ()) -> None:
    """Refuse a file that cannot be written, before anything is predicted.

    Args:
        out: the file to write.
        table: the table that is predicted.
        also: endings that are written besides those of tables.

    Raises:
        ConfigError: its name has another ending, its folder is not there, or it is the table itself.
    """
    if out.suffix.lower() not in (*ENDINGS, *also):
        raise ConfigError(
            f"no table can be written as {out.name!r}",
            expected=f"a name that ends in {', '.join((*ENDINGS, *also))}",
            do=f"--out {out.with_suffix('.csv')}",
        )
    if not out.resolve().parent.is_dir():
        raise ConfigError(f"{out} cannot be written", came="its folder is not there", do=f"make it: mkdir {out.parent}")
    if out.resolve() == Path(table).resolve():
        raise ConfigError("the predictions would overwrite the table", came=str(out), do="give --out another name")
