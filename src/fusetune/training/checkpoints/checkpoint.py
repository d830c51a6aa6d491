"""Checkpoints: a training's state in folders that are written atomically and verified when they are read.

    00000003-5f0c…/            number, then the first digits of the manifest's SHA-256
        tensors.safetensors    every tensor
        state.json             everything else, with references to the tensors by name
        manifest.json          each file's SHA-256 and size

A folder is written under a temporary name, flushed to disk and renamed, so a crash at any moment leaves the earlier
checkpoints intact. The two newest are kept. If the newest is damaged, the one before it is read, with a warning.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fusetune.errors import FolderError, StorageError
from fusetune.security.untrusted import read_json, tensors_of, walk

FORMAT = 1
MAX_CHECKPOINTS = 2
STATE_BYTES = 2**30
"""Largest size of state.json, which is read into memory."""
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_NAME = re.compile(r"\d{8}-[0-9a-f]{16}")


class Checkpoints:
    """The checkpoints in a folder.

    Args:
        folder: created when the first checkpoint is written.

    Attributes:
        warnings: the damaged checkpoints that `newest` passed over, with the reasons.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.warnings: list[str] = []

    def __len__(self) -> int:
        return len(self._paths())

    def _paths(self) -> list[Path]:
        """Return the folders of the checkpoints, the newest first."""
        listed = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted((path for path in listed if _NAME.fullmatch(path.name)), reverse=True)

    def save(self, state: Any) -> Path:
        """Write a state and delete all but the newest two checkpoints.

        Args:
            state: nested dicts, lists and tuples of tensors, strings, numbers, booleans and None.

        Returns:
            The new checkpoint's folder.

        Raises:
            StorageError: it cannot be written; earlier checkpoints are unchanged.
        """
        tensors: dict[str, Tensor] = {}
        text = json.dumps(_packed(state, tensors, {}), allow_nan=False)
        size = len(text) + sum(tensor.nbytes for tensor in tensors.values())
        earlier = self._paths()
        number = int(earlier[0].name[:8]) + 1 if earlier else 1
        partial = self.folder / f".partial-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clean()
            partial.mkdir()
            save_file(tensors, partial / TENSORS)
            (partial / STATE).write_text(text, encoding="utf-8")
            manifest = {"format": FORMAT, "files": {name: _described(partial / name) for name in (TENSORS, STATE)}}
            (partial / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
            for path in (partial / TENSORS, partial / STATE, partial / MANIFEST, partial):
                flush(path)
            final = self.folder / f"{number:08d}-{_hash(partial / MANIFEST)[:16]}"
            partial.rename(final)
            flush(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise StorageError(
                f"a checkpoint of {size:,} bytes cannot be written to {self.folder}: {error}"
                f"{_free(self.folder) if _is_full(error) else ''}\n"
                "  Do: make room, or name another place with --out; trainer.checkpoint_minutes=none writes none"
            ) from error
        for old in [final, *earlier][MAX_CHECKPOINTS:]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def _clean(self) -> None:
        """Remove partial folders of interrupted writers."""
        for path in self.folder.glob(".partial-*"):
            shutil.rmtree(path, ignore_errors=True)

    def newest(self) -> Any:
        """Return the newest intact state, or None if there is no checkpoint; damaged ones are listed in `warnings`.

        Raises:
            FolderError: there are checkpoints, but none is intact.
        """
        self.warnings = []
        paths = self._paths()
        for path in paths:
            try:
                return _read(path)
            except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
                self.warnings.append(f"the checkpoint {path} is damaged and was passed over: {error}")
        if paths:
            raise FolderError(
                "no checkpoint is intact",
                came="; ".join(self.warnings),
                do="start anew with --no-resume, which deletes them",
                file=str(self.folder),
            )
        return None


def _read(path: Path) -> Any:
    if path.is_symlink():
        raise ValueError(f"{path.name} is a link")
    if set(walk(path)) != {TENSORS, STATE, MANIFEST}:
        raise ValueError("its files are not those that were written")
    if _hash(path / MANIFEST)[:16] != path.name[9:]:
        raise ValueError(f"{MANIFEST} is not the one that was written")
    manifest = read_json(path / MANIFEST)
    if manifest["format"] > FORMAT:
        raise ValueError("it was written by a later fusetune")
    for name in (TENSORS, STATE):
        if _described(path / name) != manifest["files"][name]:
            raise ValueError(f"{name} is not the file that was written")
    tensors_of(path / TENSORS)
    state = _unpacked(read_json(path / STATE, limit=STATE_BYTES), load_file(path / TENSORS))
    if not isinstance(state, dict):
        raise ValueError("it holds no state of a training")
    return state


def flush(path: Path) -> None:
    """Flush a file's content, or a folder's list of files, to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _described(path: Path) -> dict[str, Any]:
    return {"sha256": _hash(path), "bytes": path.stat().st_size}


def _is_full(error: Exception) -> bool:
    return "os error 28" in str(error) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT))


def _free(folder: Path) -> str:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return f"; {shutil.disk_usage(existing).free:,} bytes are free"


def _packed(value: Any, tensors: dict[str, Tensor], seen: dict[tuple[Any, ...], str]) -> Any:
    """Return the value as JSON with references to tensors, and collect these; equal tensors are stored once."""
    if isinstance(value, Tensor):
        tensor = value.detach()
        key = (tensor.data_ptr(), tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() == 0 or key not in seen:
            name = str(len(tensors))
            is_view = tensor.untyped_storage().nbytes() != tensor.nbytes  # safetensors refuses parts of a storage
            tensors[name] = tensor.to("cpu", copy=is_view).contiguous()
            seen[key] = name
        return {"$tensor": seen[key]}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _packed(part, tensors, seen) for key, part in value.items()}
        return {"$items": [[key, _packed(part, tensors, seen)] for key, part in value.items()]}
    if isinstance(value, list):
        return [_packed(part, tensors, seen) for part in value]
    if isinstance(value, tuple):
        return {"$tuple": [_packed(part, tensors, seen) for part in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$items" in value:
        return {key: _unpacked(part, tensors) for key, part in value["$items"]}
    if "$tuple" in value:
        return tuple(_unpacked(part, tensors) for part in value["$tuple"])
    if "$float" in value:
        return float(value["$float"])
    return {key: _unpacked(part, tensors) for key, part in value.items()}
