"""Encoders of a tuned model as backbones of another fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from fusetune.backbones.adapters import adapter_state_dict, merge
from fusetune.backbones.backbone import FILE, Backbone
from fusetune.backbones.hub.source import count_weights, fingerprint, read_json, short_name
from fusetune.errors import BackboneError
from fusetune.security.model_folder import BACKBONES, BUNDLE, WEIGHTS, read_folder


def is_tuned(source: str | None) -> bool:
    """Return whether a source is the folder of a tuned model."""
    return source is not None and (Path(os.path.expanduser(source)) / BUNDLE).is_file()


def load_tuned(source: str, kind: str, *, pool: str, restore: Callable[..., Backbone]) -> Backbone:
    """Load the encoder for one kind of cell, with its tuned weights; an adapter is merged.

    Args:
        source: the folder of a tuned model.
        kind: "text", "image" or "audio".
        pool: "auto", or the pooling that the encoder was tuned with.
        restore: restores an encoder with random weights from its folder.

    Raises:
        FolderError: the folder's files were changed, or are unsafe.
        BackboneError: the model has no encoder or several encoders of this kind, or the encoder has another pooling.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(os.path.expanduser(source))
    read_folder(folder)
    most = count_weights([folder / WEIGHTS])
    files = sorted((folder / BACKBONES).glob(f"*/{FILE}"))
    mine = [file.parent for file in files if read_json(file).get("kind") == kind]
    if len(mine) != 1:
        raise BackboneError(
            f"the tuned model has {'several encoders' if mine else 'no encoder'} for columns of kind {kind}",
            expected=f"one in {folder / BACKBONES}",
            came=", ".join(path.name for path in mine) or f"{', '.join(file.parent.name for file in files) or 'none'}",
            do="name the backbone that it was tuned from" if mine else f"name another backbone for {kind} columns",
            file=str(folder),
        )
    backbone = restore(mine[0], most=most)
    prefix = f"encoders.{mine[0].name}."
    wanted = (
        {f"model.{name}" for name in adapter_state_dict(backbone)} if backbone.adapter else {*backbone.state_dict()}
    )
    try:
        with safe_open(str(folder / WEIGHTS), framework="pt") as weights:
            there = {name.removeprefix(prefix) for name in weights.keys() if name.startswith(prefix)}  # noqa: SIM118
            lost = sorted(wanted - there)
            if lost:
                raise BackboneError(
                    "the tuned model's folder does not hold its whole encoder",
                    came=f"no {', '.join(lost[:3])}",
                    do="copy the folder again from where it was made, or tune again",
                    file=str(folder),
                )
            backbone.load_state_dict({name: weights.get_tensor(prefix + name) for name in wanted}, strict=False)
            merge(backbone)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise BackboneError("the tuned model's weights cannot be read", came=str(error), file=str(folder)) from error
    if pool not in ("auto", backbone.pool):
        raise BackboneError(
            "the encoder was tuned with another pooling", expected=f"pool: {backbone.pool}", came=pool, file=str(folder)
        )
    backbone.source, backbone.fingerprint, backbone.pretrained = source, fingerprint([folder / WEIGHTS]), True
    backbone.key = "_".join([kind, short_name(folder.resolve().name), backbone.fingerprint[:8]])
    return backbone.eval()
