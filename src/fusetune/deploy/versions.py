"""A folder of versions: model folders beside each other, and the file `current` that names the one in use.

    runs/tickets-versions/
      1/  2/  3/     model folders
      current        "2"

`fusetune serve FOLDER --watch` serves the version that `current` names, and swaps when it changes.
"""

from __future__ import annotations

import os
from pathlib import Path

from fusetune.errors import StorageError, UserError, reason
from fusetune.security.untrusted import read_bytes

CURRENT = "current"
"""The file that names the version in use."""


def current_version(folder: Path) -> str | None:
    """Return the version that a folder's file `current` names; None for a folder without such a file.

    Raises:
        UserError: it names no folder beside it.
    """
    pointer = folder / CURRENT
    if not pointer.is_file():
        return None
    text = read_bytes(pointer, 4096, links=True).decode("utf-8", "replace").strip()
    return checked_version(folder, text)


def folder_in_use(folder: Path) -> Path:
    """Return the model folder that a folder of versions has in use, or the folder itself.

    Raises:
        UserError: `current` names no folder beside it.
    """
    version = current_version(folder)
    return folder if version is None else folder / version


def checked_version(folder: Path, version: str) -> str:
    """Return a version's name if it is a folder directly in the folder of versions.

    Raises:
        UserError: it is none.
    """
    plain = version not in ("", ".", "..") and not set(version) & set("/\\\0")
    if not plain or not (folder / version).is_dir():
        versions = ", ".join(all_versions(folder)) or "none"
        raise UserError(f"there is no version {version[:80]!a}", expected=f"one of: {versions}", file=str(folder))
    return version


def all_versions(folder: Path) -> list[str]:
    """Return the names of the folders with models in a folder of versions."""
    return sorted(path.parent.name for path in folder.glob("*/bundle.json"))


def point_to(folder: Path, version: str) -> None:
    """Have `current` name a version, atomically: a reader sees the old name or the new one.

    Raises:
        UserError: there is no such version.
        StorageError: the file cannot be written.
    """
    checked_version(folder, version)
    draft = folder / f".{CURRENT}.{os.getpid()}"
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(version + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(folder / CURRENT)
    except OSError as error:
        raise StorageError(f"{folder / CURRENT} cannot be written: {reason(error)}") from error
    finally:
        draft.unlink(missing_ok=True)
