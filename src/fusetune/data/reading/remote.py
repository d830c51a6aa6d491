"""Tables at remote addresses (s3://, gs://, hf://, https://, ...), copied through fsspec and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from fusetune.errors import MissingExtra, StorageError, TableError

NOTES = (".txt", ".json")
"""Endings of annotation files that notes on a table have too; in a folder they count if there is no other table."""
PIECE = 8 * 2**20
"""Bytes that are copied at a time."""


@dataclass
class Copied:
    """A file that was copied from a remote address.

    Attributes:
        address: of the original.
        path: of the copy.
        note: a readable description with size and SHA-256.
    """

    address: str
    path: Path
    note: str


def is_address(name: str) -> bool:
    """Return whether a table's name is a URL, not a path."""
    return "://" in name


def local_path(address: str) -> str | None:
    """Return the path of a file:// URL; None for any other URL."""
    parts = urlsplit(address)
    return unquote(parts.path) if parts.scheme == "file" and parts.netloc in ("", "localhost") else None


def copied(address: str, home: Path, endings: Collection[str]) -> Iterator[Copied]:
    """Copy the file at an address, or the shards of a table in a folder there, and yield the copies by name.

    Args:
        address: a URL with a scheme that fsspec knows.
        home: the folder to copy into; the caller may delete a copy before the next one is made.
        endings: extensions of table files, in lower case.

    Raises:
        MissingExtra: the package for such addresses is not installed.
        TableError: it cannot be read, or there is no table.
        StorageError: there is no space for the copy.
    """
    files, root = _open_filesystem(address)
    names = [root]
    try:
        if files.isdir(root):
            tables = sorted(str(name) for name in files.ls(root, detail=False) if _ending(str(name)) in endings)
            names = [name for name in tables if _ending(name) not in NOTES] or tables
            if len({_ending(name) for name in names}) != 1:
                raise TableError(
                    "the files at this address are not the parts of one table",
                    expected="tables of one kind: " + ", ".join(endings),
                    came=", ".join(PurePosixPath(name).name for name in names[:5]) or "no table at all",
                    file=address,
                )
        elif _ending(root) not in endings:
            raise TableError(
                f"tables are not read from {_ending(root)!r} files", expected=", ".join(endings), file=address
            )
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, TableError):
            raise
        raise _unread(address, error) from error
    for name in names:
        where = address if name == root else str(files.unstrip_protocol(name))
        yield _copy(files, name, where, home / _local_name(name))


def _open_filesystem(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # 0.1 s to import

    try:
        files, root = url_to_fs(address)
    except ImportError as error:  # fsspec says which package to install
        what = f"{address}: this kind of address cannot be read here: {error}"
        raise MissingExtra(what, do="pip install what it names, or download the file and give its path") from error
    except ValueError as error:
        known = "file, s3, gs, abfs, hf, http, https and whatever else fsspec knows"
        raise TableError("there is no such kind of address", expected=known, came=address, do=str(error)) from error
    except (OSError, RuntimeError) as error:
        raise _unread(address, error) from error
    return files, str(root)


def _ending(name: str) -> str:
    return PurePosixPath(urlsplit(name).path).suffix.lower()


def _local_name(name: str) -> str:
    return PurePosixPath(unquote(urlsplit(name).path)).name


def _copy(files: Any, name: str, address: str, path: Path) -> Copied:
    sums, size = hashlib.sha256(), 0
    with _opened(path) as target:
        for part in _parts(files, name, address):
            sums.update(part)
            size += len(part)
            try:
                target.write(part)
            except OSError as error:
                raise _no_space(path, error) from error
    return Copied(address, path, f"copied from its address: {size:,} bytes, SHA-256 {sums.hexdigest()}")


def _parts(files: Any, name: str, address: str) -> Iterator[bytes]:
    """Yield a file's content in chunks of `PIECE` bytes."""
    try:
        with files.open(name, "rb") as source:
            while part := source.read(PIECE):
                yield part
    except (OSError, RuntimeError, ValueError) as error:
        raise _unread(address, error) from error


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("wb")
    except OSError as error:
        raise _no_space(path, error) from error


def _no_space(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path}: the table cannot be copied there ({error}). Free some space, or set TMPDIR to another disk"
    )


def _unread(address: str, error: Exception) -> TableError:
    return TableError(
        f"the address cannot be read: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        expected="a file, or a folder of files, that you have access to",
        do="check the address, the credentials that its fsspec package reads from the environment, and the network",
        file=address,
    )
