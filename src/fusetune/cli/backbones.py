"""`fusetune backbones`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fusetune.cli import common

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command()
def backbones(
    source: Annotated[
        str | None, typer.Argument(help="A model's folder or hub id, or a folder that holds such folders.")
    ] = None,
    kind: Annotated[
        Literal["text", "image", "audio"] | None, typer.Option(help="Only for columns of this kind.")
    ] = None,
    as_json: common.Json = False,
) -> None:
    """List the pretrained models at hand, or describe one.

    Without a source: the embedded text models, the small encoders that are
    trained from scratch, and what is in the hub's cache. With a model: it is
    loaded and described for every kind of column that it reads; the setting
    freeze=bottom:K counts the blocks shown.

    \b
    Examples:
      fusetune backbones
      fusetune backbones ../models
      fusetune backbones ../models/mobilenet-v2
      fusetune backbones minilm --kind text
    """
    from fusetune.backbones.hub import listing

    if source is not None and not _holds_models(Path(source)):
        described = listing.describe(source, kind)
        if as_json:
            common.print_json(described)
        else:
            _show(described)
        return
    if source is None:
        listed = [asdict(one) for one in listing.list_backbones()]
    else:
        listed = [asdict(one) for one in listing.list_backbones([Path(source)]) if one.where == "folder"]
        listed += _refused(Path(source), {one["path"] for one in listed})
    listed = [one for one in listed if kind in (None, *one["kinds"])]
    if as_json:
        common.print_json(listed)
    else:
        _list(listed)


def _holds_models(folder: Path) -> bool:
    return folder.is_dir() and not (folder / "config.json").is_file() and any(folder.glob("*/config.json"))


def _refused(folder: Path, listed: set[str]) -> list[dict[str, Any]]:
    """The model folders that cannot be used, with the reason."""
    from fusetune.backbones.hub import source
    from fusetune.errors import BackboneError

    found: list[dict[str, Any]] = []
    for path in sorted(config.parent for config in folder.glob("*/config.json")):
        if str(path) in listed:
            continue
        why = "it encodes neither text nor images nor audio"
        try:
            source.check_safe(path)
            source.weight_files(path)
        except BackboneError as error:
            why = error.what
        found.append({"name": str(path), "kinds": [], "where": "folder", "path": str(path), "refused": why})
    return found


def _list(listed: list[dict[str, Any]]) -> None:
    from rich.table import Column, Table

    shown = Table(Column("name", overflow="fold"), "reads", "writes", "dim", "parameters", "where")
    for one in listed:
        if "refused" in one:
            shown.add_row(one["name"], "", "", "", "", f"cannot be used: {one['refused']}")
            continue
        dim = "" if one["dim"] is None else str(one["dim"])
        reads, writes = ", ".join(one["kinds"]), "text" if one["writes"] else ""
        shown.add_row(one["name"] or "(none named)", reads, writes, dim, f"{one['parameters']:,}", one["where"])
    common.console().print(shown)


def _show(described: list[dict[str, Any]]) -> None:
    from rich.table import Table

    for facts in described:
        shown = Table("block", "parameters", title=f"{facts['name']} for {facts['kind']} columns", title_justify="left")
        for block in facts["blocks"]:
            shown.add_row(block["name"], f"{block['parameters']:,}")
        to = common.console()
        to.print(shown)
        for name, value in facts.items():
            if name not in ("name", "kind", "blocks"):
                to.print(f"{name:<15}{value:,}" if name == "parameters" else f"{name:<15}{value}")
