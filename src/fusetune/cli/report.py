"""`fusetune report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fusetune.cli import common
from fusetune.errors import FolderError

if TYPE_CHECKING:
    from fusetune.evaluation.results import RunResults

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

REPORT = "report.json"


def _no_report(folder: Path) -> FolderError:
    """Return the error for a folder without a report; it names the folders inside that have one."""
    inside = sorted(str(path.parent) for path in folder.glob(f"*/{REPORT}")) if folder.is_dir() else []
    came = "no such folder" if not folder.exists() else "a folder without it" if folder.is_dir() else "a file"
    return FolderError(
        f"{folder} has no report",
        expected=f"a folder with {REPORT}, as `fusetune fit --out FOLDER` writes it",
        came=came,
        do=f"name one of {', '.join(inside[:5])}" if inside else None,
    )


@app.command()
def report(folder: common.ModelFolder, as_json: common.Json = False) -> None:
    """Show a model folder's report and write its HTML again.

    Everything is read from the folder's report.json. Where a run saved its model and stopped before there was a
    report, the model is compared and the report made; the model is not trained again.

    \b
    Example:
      fusetune report runs/rating
    """
    from fusetune.evaluation.report.write import terminal_table, write_report
    from fusetune.evaluation.results import read_results, to_json
    from fusetune.fitting.saved import unreported

    if unreported(folder):
        results = _made(folder, as_json)
    elif (folder / REPORT).is_file():
        results = read_results(folder / REPORT)
    else:
        raise _no_report(folder)
    page = write_report(results, folder)["html"]
    if as_json:
        common.print_json(to_json(results))
        return
    to = common.console()
    to.print(terminal_table(results))
    to.print(f"report  {page}", soft_wrap=True)


def _made(folder: Path, as_json: bool) -> RunResults:
    """The results of a run whose model is saved, compared now."""
    from fusetune import api

    tuned = api.resume(folder, progress=common.shows_progress(as_json))
    assert tuned.results is not None, "a finished run has results"
    return tuned.results
