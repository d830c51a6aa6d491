"""Read untrusted files as plain data of bounded size, without running any code in them.

Only regular files are opened: a pipe would hang, a device never ends, a link leads elsewhere. Parsers return only
strings, numbers, lists and mappings, and their failures become errors of `fusetune.errors`.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fusetune.errors import FolderError, MissingExtra, RunError, UserError

MIB = 2**20
TEXT_BYTES = 128 * MIB
"""Largest size of a JSON or text file; the largest tokenizers have 35 MiB."""
HEADER_BYTES = 25_000_000
"""Largest header of a safetensors file, as on the hub. A model of 1000 tensors has 0.1 MB."""
MOST_FILES = 100_000
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".mar")
"""Suffixes of files that are, or may contain, pickles."""
_MAGIC = {
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"PK\x03\x04": "an archive, as torch.save writes it",
    b"\x93NUMPY": "a NumPy file, which may hold a pickle",
    b"\x1f\x8b": "a compressed file",
    b"BZh": "a compressed file",
    b"\xfd7zXZ": "a compressed file",
    b"\x78\x9c": "a compressed file",
    b"\x78\x01": "a compressed file",
    b"\x78\xda": "a compressed file",
}
_OLD_PICKLE = re.compile(rb"(?:^|[\s(.])[ci][\w.]+\r?\n\w+\r?\n")
"""Matches a text pickle (protocol 0), which names a function by its module and name on separate lines."""
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_BYTES |= dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1)


def walk(
    folder: Path, *, links: Path | None = None, passed: str = "/", error: type[UserError] = FolderError
) -> list[str]:
    """List the files in a folder and its subfolders.

    Args:
        folder: may itself be a link.
        links: a folder that links may lead into, such as the hub's cache; None refuses all links.
        passed: prefix of the paths whose links are skipped, as nothing is read there.
        error: class of the errors raised.

    Returns:
        Paths relative to the folder, with `/`, sorted.

    Raises:
        UserError: it contains a link, a pipe, a socket or a device, or more than `MOST_FILES` files.
    """
    files: list[str] = []
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as listed:
            entries = list(listed)
        for entry in entries:
            name = Path(entry.path).relative_to(folder).as_posix()
            if entry.is_symlink() and name.startswith(passed):
                continue
            if entry.is_symlink() and not _leads_into(Path(entry.path), links):
                raise error(
                    f"{name} is a link, which may lead outside itself",
                    came=os.readlink(entry.path),
                    do="put the file itself there: cp -rL FOLDER COPY, if you trust what it leads to",
                    file=str(folder),
                )
            if entry.is_dir():
                pending.append(Path(entry.path))
            elif not entry.is_file():
                raise error(f"{name} is no file: {_file_type(entry.stat().st_mode)}", do="delete it", file=str(folder))
            else:
                files.append(name)
        if len(files) + len(pending) > MOST_FILES:
            raise error(
                f"the folder has more than {MOST_FILES:,} files", do="name the model's own folder", file=str(folder)
            )
    return sorted(files)


def _leads_into(link: Path, home: Path | None) -> bool:
    if home is None:
        return False
    target = link.resolve()
    return target.is_relative_to(home.resolve()) and target.is_file()


def _file_type(mode: int) -> str:
    for test, name in ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder")):
        if test(mode):
            return name
    return "a link" if stat.S_ISLNK(mode) else "a device"


def read_bytes(path: Path, limit: int, *, links: bool = False) -> bytes:
    """Read a regular file.

    Args:
        path: the file.
        limit: largest size in bytes.
        links: whether the path may be a link; only in a folder that `walk` has checked.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: it is not a regular file, or larger than the limit.
    """
    with os.fdopen(open_plain(path, links=links), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"{path.name} has {size:,} bytes; at most {limit:,} are read")
        return file.read(limit + 1)[:limit]


def open_plain(path: Path, *, links: bool = False) -> int:
    """Open a regular file and return its descriptor; see `read_bytes`."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | (0 if links else getattr(os, "O_NOFOLLOW", 0))
    mode = (path.stat() if links else path.lstat()).st_mode
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path.name} is no file: {_file_type(mode)}")
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # replaced between the two checks
        os.close(descriptor)
        raise ValueError(f"{path.name} is no file")
    return descriptor


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is not valid JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, *, limit: int = TEXT_BYTES, links: bool = False) -> Any:
    """Read and parse a JSON file; raises the errors of `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, limit, links=links))


def refuse_code(data: Any) -> None:
    """Refuse settings that ask for code to be run; columns and labels may still have the names of such settings.

    Raises:
        ValueError: a setting asks for code to be run.
    """
    pending = [data]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            named = value.get("auto_map")
            if isinstance(named, Mapping) and any(str(key).startswith("Auto") for key in named):
                raise ValueError("auto_map names code, which is never run")
            if value.get("trust_remote_code") is True:
                raise ValueError("trust_remote_code asks for a stranger's code to be run, which is never done")
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def tensors_of(path: Path, *, links: bool = False) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Check a safetensors file's header and return its tensors, (dtype, shape) by name.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a safetensors file, or its header is damaged, larger than `HEADER_BYTES` or does not match
            the file.
    """
    if (kind := pickle_like(path, links=links)) and path.suffix == ".safetensors":
        raise ValueError(f"{path.name} is in truth {kind}, which may run code when it is loaded")
    with os.fdopen(open_plain(path, links=links), "rb") as file:
        size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
        if size < 10 or length > min(HEADER_BYTES, size - 8):
            raise ValueError(
                f"the header of {path.name} says that it has {length:,} bytes, of a file of {size:,}; at most "
                f"{HEADER_BYTES:,} are read"
            )
        header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"the header of {path.name} is no list of tensors")
    header.pop("__metadata__", None)
    spans, tensors = [], {}
    for name, entry in header.items():
        tensors[name], span = _tensor(name, entry)
        spans.append(span)
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise ValueError(f"the tensors in {path.name} overlap or leave gaps")
        end = stop
    if end != size - 8 - length:
        raise ValueError(f"the tensors of {path.name} end at byte {end:,} of {size - 8 - length:,}")
    return tensors


def _tensor(name: str, entry: Any) -> tuple[tuple[str, tuple[int, ...]], tuple[int, int]]:
    """Return a tensor's dtype and shape, and the bytes at which it begins and ends."""
    if not isinstance(entry, Mapping) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the header's entry {name!r} is not a tensor's")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if entry["dtype"] not in _BYTES:
        raise ValueError(f"the tensor {name!r} has a dtype that there is not: {entry['dtype']!r}")
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers) or len(offsets) != 2:
        raise ValueError(f"the tensor {name!r} has a shape or a place that cannot be")
    start, stop = offsets
    if stop - start != math.prod(shape) * _BYTES[entry["dtype"]]:
        raise ValueError(f"the tensor {name!r} of shape {shape} and dtype {entry['dtype']} is not {stop - start} bytes")
    return (entry["dtype"], tuple(shape)), (start, stop)


def _is_framed(head: bytes, size: int) -> bool:
    """Return whether a file begins like safetensors: the header's length, then the header."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= min(HEADER_BYTES, size - 8)


def pickle_like(path: Path, *, links: bool = False) -> str | None:
    """Describe a regular file's content if loading it may run code; return None for other content."""
    with os.fdopen(open_plain(path, links=links), "rb") as file:
        head = file.read(4096)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        last = file.read(1)
    if path.suffix == ".safetensors" and _is_framed(head, size):
        return None
    for magic, description in _MAGIC.items():
        if head.startswith(magic):
            return description
    return "a pickle" if last == b"." and _OLD_PICKLE.search(head) else None


@contextmanager
def reading(what: str, *, file: Path | str, do: str, error: type[UserError] = FolderError) -> Iterator[None]:
    """Turn every failure within the context into an error about the files that are read there.

    Libraries that build a model from a stranger's description may raise anything. A panic of a Rust library is not even
    an `Exception`.
    """
    try:
        yield
    except BaseException as raised:
        known = isinstance(raised, error | MissingExtra | RunError)
        if known or (not isinstance(raised, Exception) and type(raised).__name__ != "PanicException"):
            raise
        came = str(raised) if isinstance(raised, UserError) else f"{type(raised).__name__}: {str(raised)[:500].strip()}"
        raise error(what, came=came, do=do, file=str(file)) from raised
