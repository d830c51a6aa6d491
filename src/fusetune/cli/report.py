"""`fusetune report`."""

from __future__ import annotations

import typer

from fusetune.cli import common

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def report(folder: common.ModelFolder, as_json: common.Json = False) -> None:
    """Show a model folder's report and write its HTML again.

    Everything is read from the folder's report.json; nothing is computed anew.

    \b
    Example:
      fusetune report runs/rating
    """
    from fusetune.evaluation.report import terminal_table, write_report
    from fusetune.evaluation.results import read_results, to_json

    results = read_results(folder / "report.json")
    page = write_report(results, folder)["html"]
    if as_json:
        common.print_json(to_json(results))
        return
    to = common.console()
    to.print(terminal_table(results))
    to.print(f"report  {page}", soft_wrap=True)
