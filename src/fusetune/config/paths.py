"""Which settings are paths, and from which folder they start."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

FILES = ("train", "val", "test", "users", "out", "schema_file")
"""Settings that are paths, or addresses such as s3://bucket/table.parquet."""
EMBEDDED = ("minilm", "smollm2")
"""The backbones that come with the extras `offline` and `offline-lm`; never paths."""
ENCODERS = ("text", "image", "audio")
"""Sections whose `name` is a folder or a hub id."""


def rebased(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return settings whose relative paths start at a folder.

    A backbone's name is a path where it begins with a dot, or where such a folder exists; else it is a hub id.

    Args:
        settings: nested, as in a YAML file; values of other types than expected are left for validation.
        folder: what relative paths start at.
    """
    out = dict(settings)
    for key in FILES:
        if isinstance(out.get(key), str):
            out[key] = _path(out[key], folder)
        elif isinstance(out.get(key), list):
            out[key] = [_path(value, folder) if isinstance(value, str) else value for value in out[key]]
    catalogue = out.get("catalogue")
    if isinstance(catalogue, str):
        out["catalogue"] = _path(catalogue, folder)
    elif isinstance(catalogue, Mapping) and isinstance(catalogue.get("path"), str):
        out["catalogue"] = {**catalogue, "path": _path(catalogue["path"], folder)}
    for key in ENCODERS:
        out |= {key: _named(out[key], "name", folder)} if key in out else {}
    if isinstance(out.get("columns"), Mapping):
        out["columns"] = {
            name: _named(column, "backbone", folder) if isinstance(column, Mapping) else column
            for name, column in out["columns"].items()
        }
    objectives = out.get("objectives")
    distill = objectives.get("distill") if isinstance(objectives, Mapping) else None
    if isinstance(objectives, Mapping) and isinstance(distill, Mapping) and isinstance(distill.get("teacher"), str):
        teacher = _path(distill["teacher"], folder)
        out["objectives"] = {**objectives, "distill": {**distill, "teacher": teacher}}
    data = out.get("data")
    if isinstance(data, Mapping) and isinstance(data.get("cache"), str) and data["cache"] != "none":
        out["data"] = {**data, "cache": _path(data["cache"], folder)}
    return out


def user_cache() -> Path | None:
    """Return the user's cache folder, or None for a user without a home, as services and containers may have."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusetune"
    except RuntimeError:
        return None


def cache_folder() -> Path:
    """Return `$FUSETUNE_CACHE`, else the user's cache folder.

    For a user without a home, and if $FUSETUNE_CACHE is "none", it is a temporary folder that is removed at exit.
    """
    named = os.environ.get("FUSETUNE_CACHE")
    if named and named != "none":
        return Path(named)
    return _temporary_cache() if named else user_cache() or _temporary_cache()


@cache
def _temporary_cache() -> Path:
    folder = tempfile.mkdtemp(prefix="fusetune-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # no home
        return Path(name)


def _named(section: Any, key: str, folder: Path) -> Any:
    """A section, or the name that stands for it, with its backbone's path rebased."""
    if isinstance(section, str):
        return _backbone(section, folder)
    if isinstance(section, Mapping) and isinstance(section.get(key), str):
        return {**section, key: _backbone(section[key], folder)}
    return section


def _backbone(name: str, folder: Path) -> str:
    path = folder / _expanded(name)
    is_path = name.startswith((".", "~")) or (name not in EMBEDDED and path.is_dir())
    return str(path) if is_path else name


def _path(name: str, folder: Path) -> str:
    return name if "://" in name else str(folder / _expanded(name))
