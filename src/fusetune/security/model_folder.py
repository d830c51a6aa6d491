"""Check a model folder: its files are those that were saved, and none can run code.

The list of files in `bundle.json` comes from the same source as the files, so it reveals damage but not malice. The
files themselves are therefore checked too: links and pickles are refused, and so are unlisted files in the folders that
models are read from.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from fusetune.errors import FolderError
from fusetune.security.untrusted import PICKLED, open_plain, pickle_like, read_json, reading, refuse_code, walk

FORMAT = 1
BUNDLE, WEIGHTS, CONFIG, SCHEMA, BACKBONES = (
    "bundle.json",
    "model.safetensors",
    "config.yaml",
    "schema.yaml",
    "backbones",
)
LISTED = {".json", ".yaml", ".safetensors", ".txt", ".model", ".jinja"}
"""Suffixes of the files that `bundle.json` may list."""
READ_FROM = (BACKBONES, "stack")
"""Folders that libraries read models from. Users may keep other files elsewhere; they are never read."""
GIT = ".git/"
"""Git's own folder, which is never read."""
LINKS = "logs/wandb/"
"""A folder in which a tracker creates links; they are not followed."""


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a regular file, in hexadecimal digits."""
    with os.fdopen(open_plain(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_hash(folder: Path) -> str:
    """Return the SHA-256 of the weights of a model folder, as its `bundle.json` has it."""
    return str(read_json(folder / BUNDLE)["files"][WEIGHTS])


def read_folder(folder: Path) -> dict[str, Any]:
    """Check a model folder's files and return the content of `bundle.json`.

    Raises:
        FolderError: it is not a model folder, was written by a later version, or has a file that is missing, altered,
            unlisted or may run code.
    """
    with reading("the model folder cannot be read", file=folder, do="copy it again from where it was made"):
        content = _read_content(folder)
        files = content["files"]
        _check_names(files, folder)
        _check_foreign(files, folder)
        _check_hashes(files, folder)
    return content


def _read_content(folder: Path) -> dict[str, Any]:
    if not (folder / BUNDLE).is_file():
        raise FolderError(
            "this is no model folder",
            expected=f"a folder with {BUNDLE}, as `fusetune fit --out FOLDER` writes it",
            came="no such folder" if not folder.exists() else "a folder without it" if folder.is_dir() else "a file",
            file=str(folder),
        )
    try:
        content = read_json(folder / BUNDLE)
        refuse_code(content)
        version = int(content["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FolderError(f"{BUNDLE} cannot be read", came=str(error), file=str(folder)) from error
    if version > FORMAT:
        raise FolderError(
            "the folder was written by a later fusetune",
            expected=f"format {FORMAT} or less",
            came=f"format {version} of fusetune {content.get('versions', {}).get('fusetune')}",
            do="pip install --upgrade fusetune",
            file=str(folder),
        )
    return dict(content)


def _check_names(files: Mapping[str, str], folder: Path) -> None:
    for name in files:
        parts = PurePosixPath(name).parts
        if "/".join(parts) != name or ".." in parts or name.startswith("/") or not name.isprintable() or "\\" in name:
            raise FolderError(f"the model folder names a file outside itself: {name!r}", file=str(folder))
        if PurePosixPath(name).suffix not in LISTED or (len(parts) > 1 and parts[0] not in READ_FROM):
            raise _foreign(name, folder)


def _check_foreign(files: Mapping[str, str], folder: Path) -> None:
    for name in walk(folder, passed=LINKS):
        if name not in files and name.partition("/")[0] in READ_FROM:
            raise _foreign(name, folder)
        if name.startswith(GIT):
            continue
        pickled = pickle_like(folder / name)
        if pickled or PurePosixPath(name).suffix.lower() in PICKLED:
            raise FolderError(
                f"{name} is {pickled or 'of a sort that holds pickles'}, which may run code when it is loaded",
                expected="safetensors, JSON and YAML only",
                do="do not use this folder unless you know where the file comes from; if you do, move the file out",
                file=str(folder),
            )


def _foreign(name: str, folder: Path) -> FolderError:
    return FolderError(
        f"{name} is no file of a model folder",
        expected=f"in {' and '.join(READ_FROM)} what {BUNDLE} lists, and there {', '.join(sorted(LISTED))} files",
        do="move it out of the folder, if it is yours; else do not use the folder",
        file=str(folder),
    )


def _check_hashes(files: Mapping[str, str], folder: Path) -> None:
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            raise FolderError(f"{name} is missing from the model folder", file=str(folder), do="copy it again")
        if file_hash(path) != digest:
            raise FolderError(
                f"{name} is not the file that was saved",
                expected=f"SHA-256 {digest}",
                do="copy the folder again from where it was made, or tune again",
                file=str(folder),
            )
