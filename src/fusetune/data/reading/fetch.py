"""Media at addresses (https://, s3://, ...): fetched through fsspec where the settings say so, within bounds."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from fusetune.config.read import ReadConfig
from fusetune.data.storage.temporary import TemporaryFolder
from fusetune.errors import BadCell, MissingExtra

PIECE = 2**20
"""Bytes that are read at a time."""
MAX_SILENCE = 8
"""After so many failures in a row to get an answer from a host, its other files are not tried."""
_NEXT = re.compile(r";\s*(?=[A-Za-z][A-Za-z0-9+.-]*://)")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True)
class _Copy:
    """A fetched file: its path and content's SHA-256; or why there is none."""

    path: str = ""
    sha256: str = ""
    num_bytes: int = 0
    why: str = ""


def protocol(text: Any) -> str | None:
    """Return an address's protocol in lower case, as "https"; None for what is no address."""
    match = _ADDRESS.match(text.strip()) if isinstance(text, str) else None
    return match[1].lower() if match else None


def addresses(cell: Any) -> list[str]:
    """Return the addresses that a media cell names: one, several separated by `;` or in a list, or `{"path"}`'s."""
    if isinstance(cell, str):
        return [part.strip() for part in _NEXT.split(cell)] if protocol(cell) else []
    if isinstance(cell, dict):
        return addresses(cell.get("path")) if cell.get("bytes") is None else []
    return [found for part in cell for found in addresses(part)] if isinstance(cell, list | tuple) else []


class MediaFetcher:
    """Copies media from their addresses to a temporary folder, each once; safe to use from several threads.

    An address is fetched only if its protocol is among the allowed ones, up to a size and a time. Chained addresses
    (`zip://a.png::https://...`) are refused, as they name more than one protocol.

    Attributes:
        protocols: that may be fetched.
    """

    def __init__(self, protocols: Collection[str], *, max_bytes: int, seconds: float) -> None:
        """
        Args:
            protocols: as "https".
            max_bytes: the most bytes a file may have.
            seconds: the most time that fetching a file may take.
        """
        self.protocols, self.max_bytes, self.seconds = frozenset(protocols), max_bytes, seconds
        self._folder: TemporaryFolder | None = None
        self._copies: dict[str, Future[_Copy]] = {}
        self._silent: Counter[str] = Counter()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, read: ReadConfig | None) -> MediaFetcher | None:
        """Return the fetcher that the settings ask for, or None."""
        if read is None or not read.media:
            return None
        return cls(read.media, max_bytes=int(read.media_mib * 2**20), seconds=read.media_seconds)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a worker process needs; it fetches again what was not fetched before."""
        done = {
            address: copy.result() for address, copy in self._copies.items() if copy.done() and not copy.exception()
        }
        return {**self.__dict__, "_lock": None, "_copies": done, "_folder": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._copies = threading.Lock(), {}
        for address, copy in state["_copies"].items():
            self._copies[address] = Future()
            self._copies[address].set_result(copy)

    def local(self, cell: Any, *, row: int, column: str) -> Any:
        """Return a media cell with the paths of fetched copies in the place of allowed addresses.

        Raises:
            BadCell: one of them cannot be fetched.
            MissingExtra: the package for this kind of address is not installed.
        """
        if isinstance(cell, str):
            found = addresses(cell)
            if not found or not {protocol(part) for part in found} <= self.protocols:
                return cell
            paths = [self._path(part, row, column) for part in found]
            return paths if len(paths) > 1 else paths[0]
        if isinstance(cell, dict) and cell.get("bytes") is None and cell.get("path") is not None:
            path = self.local(cell["path"], row=row, column=column)
            return path if isinstance(path, list) else {**cell, "path": path}
        if isinstance(cell, list | tuple):
            return [self.local(part, row=row, column=column) for part in cell]
        return cell

    def _path(self, address: str, row: int, column: str) -> str:
        copy = self._copy(address)
        if copy.why:
            do = "check the address, or download the file and give its path"
            raise BadCell(row=row, column=column, value=address, why=copy.why, do=do)
        return copy.path

    def _copy(self, address: str) -> _Copy:
        with self._lock:
            known = self._copies.get(address)
            mine: Future[_Copy] = Future()
            if known is None:
                self._copies[address] = mine
        if known is not None:
            return known.result()
        try:
            mine.set_result(self._fetched(address))
        except BaseException as error:
            mine.set_exception(error)
            raise
        return mine.result()

    def _fetched(self, address: str) -> _Copy:
        """Fetch an address in a thread of its own, which is left alone where it takes too long."""
        if "::" in address:
            return _Copy(why="it is a chained address, which is not fetched")
        host = f"{protocol(address)}://{urlsplit(address).netloc}"
        if self._silent[host] >= MAX_SILENCE:
            return _Copy(why=f"it was not fetched: {host} failed to answer {MAX_SILENCE} times in a row")
        outcome: Future[_Copy] = Future()
        stop = threading.Event()

        def run() -> None:
            try:
                outcome.set_result(_download(address, self._target(address), self.max_bytes, stop))
            except BaseException as error:
                outcome.set_exception(error)

        threading.Thread(target=run, name="fusetune-fetch", daemon=True).start()
        try:
            copy = outcome.result(self.seconds)
        except TimeoutError:
            stop.set()
            self._silent[host] += 1
            return _Copy(why=f"it was not fetched within {self.seconds:g} seconds")
        except ImportError as error:
            what = f"{address}: this kind of address cannot be read here: {error}"
            raise MissingExtra(what, do="pip install what it names, or download the files") from error
        except Exception as error:
            cause = _cause(error)
            status = getattr(cause, "status", None)  # of HTTP
            if isinstance(cause, FileNotFoundError) or status in (404, 410):
                return _Copy(why="there is nothing at this address")
            self._silent[host] += not (isinstance(cause, PermissionError) or status in range(400, 500))
            first = (str(cause).splitlines() or [""])[0]
            return _Copy(why=f"it cannot be fetched: {type(cause).__name__}: {first}")
        self._silent[host] = 0
        return copy

    def _target(self, address: str) -> Path:
        with self._lock:
            if self._folder is None:
                self._folder = TemporaryFolder("fusetune-media-")
        ending = PurePosixPath(urlsplit(address).path).suffix
        name = hashlib.sha256(address.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return self._folder.folder / (name + (ending if re.fullmatch(r"\.\w{1,8}", ending) else ""))

    def digest(self, cells: Collection[Any]) -> str:
        """Return the SHA-256 over the content of what these cells' addresses gave, in the order of the addresses."""
        sums = hashlib.sha256()
        for address in sorted({address for cell in cells for address in addresses(cell)}):
            if (copy := self._copies.get(address)) is not None and copy.done() and not copy.exception():
                sums.update(f"{address}\0{copy.result().sha256}\n".encode("utf-8", "surrogatepass"))
        return sums.hexdigest()

    def note(self, column: str, cells: Sequence[Any]) -> str | None:
        """Return a sentence on what was fetched for a column's cells, or None where nothing was."""
        found = {address for cell in cells for address in addresses(cell)} & self._copies.keys()
        copies = [self._copies[address].result() for address in found if not self._copies[address].exception()]
        got = [copy for copy in copies if not copy.why]
        if not copies:
            return None
        size = sum(copy.num_bytes for copy in got)
        return (
            f"column {column!r}: {len(got)} of {len(copies)} files were fetched from their addresses, {size:,} bytes, "
            f"SHA-256 over all {self.digest(cells)}"
        )


def _cause(error: BaseException) -> BaseException:
    """Return the error behind fsspec's FileNotFoundError, which stands for every failure to connect, too."""
    while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _download(address: str, target: Path, max_bytes: int, stop: threading.Event) -> _Copy:
    from fsspec.core import url_to_fs  # 0.1 s to import

    files, name = url_to_fs(address)
    sums, size = hashlib.sha256(), 0
    with files.open(name, "rb") as source, target.open("wb") as copy:
        while (part := source.read(PIECE)) and not stop.is_set():
            size += len(part)
            if size > max_bytes:
                return _Copy(why=f"the file is larger than {max_bytes / 2**20:g} MiB (data.read.media_mib)")
            sums.update(part)
            copy.write(part)
    return _Copy(str(target), sums.hexdigest(), size)
