"""`fusetune export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fusetune.cli import common

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


class Format(StrEnum):
    """The formats that a model can be written in."""

    ONNX = "onnx"
    SENTENCE_TRANSFORMERS = "sentence-transformers"
    TRANSFORMERS = "transformers"
    MLFLOW = "mlflow"


@app.command()
def export(
    folder: common.ModelFolder,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    to: Annotated[Format, typer.Option(help="The format.")] = Format.SENTENCE_TRANSFORMERS,
    side: Annotated[
        str | None, typer.Option(help="Which side of pairs: query or document, if they give a text different vectors.")
    ] = None,
    variants: Annotated[
        str, typer.Option(help="Of onnx: float32, float16, int8, with commas. float32 is always written.")
    ] = "float32",
    check: Annotated[
        str | None, typer.Option(help="Of onnx: a table to check the export on. Else the run's validation rows.")
    ] = None,
    overwrite: common.Overwrite = False,
    as_json: common.Json = False,
) -> None:
    """Write a model in the format of another library.

    onnx for a model that predicts or compares: a folder that runs without
    torch, by fusetune.runtime, checked on real rows as it is made.
    sentence-transformers for a side of a model of pairs; transformers for a
    model that writes; mlflow for any.

    \b
    Examples:
      fusetune export runs/rating --to onnx --out exported
      fusetune export runs/rating --to onnx --variants int8 --out exported
      fusetune export runs/pairs --to sentence-transformers --out runs/pairs-st
      fusetune export runs/german --to transformers --out german
      fusetune export runs/tickets --to mlflow --out tickets-mlflow
    """
    from fusetune import api

    common.check_empty(out, overwrite=overwrite)
    tuned, notes, report = api.load(folder), list[str](), dict[str, Any]()
    if to is Format.ONNX:
        report = tuned.save_onnx(out, variants=[name.strip() for name in variants.split(",")], check=check)
    elif to is Format.TRANSFORMERS:
        notes = tuned.save_transformers(out)
    elif to is Format.MLFLOW:
        tuned.save_mlflow(out)
    else:
        tuned.save_sentence_transformer(out, side=side)
    if as_json:
        common.print_json({"folder": str(out), "format": to.value, "notes": notes, **report})
        return
    if report:
        _print_report(report)
    common.console().print(f"{to.value}  {out}", soft_wrap=True)
    for note in notes:
        common.console().print(f"note: {note}", soft_wrap=True)


def _print_report(report: dict[str, Any]) -> None:
    """Print the table of variants beside the model in torch."""
    from rich.table import Table

    targets = list(report["eager"]["metrics"])
    table = Table(title=f"{report['rows']} rows of {report['source']}", title_justify="left")
    heads = ["variant", "size", "rows/s", "p50", "p95", "largest difference", "same decisions", *targets]
    for name in heads:
        table.add_column(name, justify="left" if name == "variant" else "right")
    for name, result in {"torch": report["eager"], **report["variants"]}.items():
        size, differences, same = result.get("size_bytes"), result.get("largest_difference"), result.get("agreement")
        table.add_row(
            name,
            "" if size is None else f"{size / 1e6:.1f} MB",
            f"{result['rows_per_second']:.0f}",
            f"{result['latency_p50_ms']:.1f} ms",
            f"{result['latency_p95_ms']:.1f} ms",
            "" if not differences else f"{max(differences.values()):.2g}",
            "" if not same else f"{min(same.values()):.1%}",
            *("" if (value := result["metrics"].get(target)) is None else f"{value:.4f}" for target in targets),
        )
    common.console().print(table)
