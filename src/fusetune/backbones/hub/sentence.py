"""Pooling and normalisation of a sentence encoder, in the format of sentence-transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusetune.backbones.hub.source import read_json
from fusetune.errors import BackboneError
from fusetune.security.untrusted import parse_json, read_bytes

MODULES = "modules.json"
_MODES = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls", "lasttoken": "last"}
"""Supported poolings by their names in sentence-transformers (`pooling_mode`, `pooling_mode_...`)."""
_KNOWN = {"Transformer", "Pooling", "Normalize", "Dropout"}
_BYTES = 2**20


@dataclass(frozen=True)
class Pooling:
    """The pooling of a sentence encoder.

    Attributes:
        pool: "mean", "cls" or "last".
        normalised: whether vectors are scaled to unit length.
    """

    pool: str
    normalised: bool


def stated_pooling(folder: Path) -> Pooling | None:
    """Return the pooling that a folder of sentence-transformers states, or None.

    Raises:
        BackboneError: the pooling, or a module after it, is not supported.
    """
    modules = _modules(folder)
    paths = [path for name, path in modules if name == "Pooling"] or ["1_Pooling"]
    file = folder / paths[0] / "config.json"
    if not file.is_file():
        return None
    if other := [name for name, _ in modules if name not in _KNOWN]:
        raise _refused(folder, f"a module {other[0]} after its pooling")
    config = read_json(file)
    mode = config.get("pooling_mode")
    if mode is not None:
        modes = list(mode) if isinstance(mode, list | tuple) else str(mode).split("+")
    else:
        flags = (key for key, value in config.items() if key.startswith("pooling_mode_") and value is True)
        modes = [key.removeprefix("pooling_mode_") for key in flags]
    if not modes:
        return None
    if len(modes) > 1 or modes[0] not in _MODES:
        raise _refused(folder, f"the pooling {' and '.join(map(str, modes))}")
    return Pooling(_MODES[modes[0]], any(name == "Normalize" for name, _ in modules))


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Return the class name and the path of each module of `modules.json`, in order."""
    file = folder / MODULES
    if not file.is_file():
        return []
    try:
        entries: Any = parse_json(read_bytes(file, _BYTES, links=True))
        modules = [(str(entry["type"]).rpartition(".")[2], str(entry.get("path", ""))) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackboneError(f"{MODULES} cannot be read", came=str(error), file=str(file)) from error
    if wrong := [path for _, path in modules if ".." in Path(path).parts or Path(path).is_absolute()]:
        raise BackboneError(f"{MODULES} leads outside the folder", came=wrong[0], file=str(file))
    return modules


def _refused(folder: Path, came: str) -> BackboneError:
    return BackboneError(
        "the sentence encoder makes its vector in a way that is not computed here",
        expected="the mean of the tokens, the first or the last token",
        came=came,
        do="say which to take instead, pool: mean, cls, last or none, or name another backbone",
        file=str(folder),
    )
