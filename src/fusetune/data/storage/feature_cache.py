"""Tensors of cells kept on disk between runs: written whole or not at all, mapped to be read, bounded in size.

A store is a folder named by the hash of its key, which says what the tensors are (weights, processor, place in the
model, number format, versions). In it are segments: safetensors files of some cells' digests, row counts and values.
A segment appears under its name when it is complete, so any number of processes may write and read at once; two that
write the same cells waste space and nothing else. The least lately used segments go when all stores together outgrow
their limit.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fusetune.config.paths import user_cache
from fusetune.data.storage.mapped import mapped_concatenate, mapped_flatnonzero, mapped_full, mapped_take, pieces
from fusetune.security.untrusted import tensors_of

SEGMENT_BYTES = 64 * 2**20
ABANDONED = 24 * 3600
"""Seconds after which a file that was never finished is taken for that of a process that is gone."""
ENDING = ".safetensors"
KEY = np.dtype("S16")
"""A digest as numpy sorts it."""


class FeatureCache:
    """Where stores are, and how large they may be together."""

    def __init__(self, folder: str | Path, gib: float) -> None:
        """
        Args:
            folder: made when something is written.
            gib: GiB of all segments together.
        """
        self.folder, self.limit = Path(folder), int(gib * 2**30)

    @classmethod
    def of(cls, folder: str | None, gib: float) -> FeatureCache | None:
        """Return the cache of a setting: its folder, else $FUSETUNE_CACHE, else the user's cache folder.

        It is None for "none", and for a user without a home who names no folder.
        """
        named = folder or os.environ.get("FUSETUNE_CACHE") or str(user_cache() or "none")
        return None if named == "none" or gib == 0 else cls(named, gib)

    def store(self, key: Mapping[str, Any], dtype: torch.dtype) -> FeatureStore:
        """The store of this key."""
        return FeatureStore(self, {**key, "dtype": str(dtype)}, dtype)

    def prune(self, spared: set[Path]) -> None:
        """Delete the segments that were not used for the longest time until the rest fits, and abandoned files."""
        found, now = [], time.time()
        for path in self.folder.glob(f"*/*{ENDING}*"):
            try:
                stat = path.stat()
                if path.suffix != ENDING:
                    if now - stat.st_mtime > ABANDONED:
                        path.unlink()
                    continue
            except OSError:
                continue  # another process was faster
            found.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.limit:
                return
            if path not in spared:
                path.unlink(missing_ok=True)
                total -= size


class FeatureStore:
    """Rows of one shape for each of some cells.

    Attributes:
        broken: segments that could not be used, with the reason; they are left alone and written anew.
    """

    def __init__(self, cache: FeatureCache, key: Mapping[str, Any], dtype: torch.dtype) -> None:
        text = json.dumps(key, sort_keys=True)
        self.cache, self.dtype, self.key = cache, dtype, hashlib.sha256(text.encode()).hexdigest()
        self.folder = cache.folder / self.key[:32]
        self.broken: list[str] = []
        self._keys = np.zeros(0, dtype=KEY)  # sorted; a dictionary would take ten times the memory
        self._where = np.zeros((0, 3), dtype=np.int64)  # segment, start and end of each key's rows
        self._segments: list[Tensor] = []
        self._known: set[Path] = set()
        self._waiting: dict[bytes, Tensor] = {}
        self._waiting_bytes = 0
        self._described = text
        self.refresh()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._waiting or self._find(digest) is not None

    def __len__(self) -> int:
        return len(self._keys) + len(self._waiting)

    def _find(self, digest: bytes) -> int | None:
        key = np.array(digest, dtype=KEY)
        place = int(np.searchsorted(self._keys, key))
        return place if place < len(self._keys) and self._keys[place] == key else None

    def refresh(self) -> None:
        """Take in the segments that were written since."""
        for path in sorted(self.folder.glob(f"*{ENDING}")) if self.folder.is_dir() else ():
            if path not in self._known:
                self._known.add(path)
                try:
                    self._open(path)
                    os.utime(path)
                except (OSError, SafetensorError, ValueError, KeyError) as error:
                    self.broken.append(f"{path}: {error}")

    def _open(self, path: Path) -> None:
        tensors_of(path)  # a pipe would hang, and a link lead elsewhere
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") != self.key:
                raise ValueError("it was made for another key")
            digests, counts = file.get_tensor("digests"), file.get_tensor("counts")
            values = file.get_tensor("values")  # a view of the mapped file
        whole = digests.dtype == torch.uint8 and digests.ndim == 2 and counts.dtype == torch.int64
        whole = whole and digests.shape[1] == KEY.itemsize
        if not whole or counts.shape != digests.shape[:1] or bool((counts < 0).any()):
            raise ValueError("its parts are of another sort")
        ends = counts.cumsum(0)
        if (int(ends[-1]) if len(ends) else 0) != len(values):
            raise ValueError("its parts do not fit together")
        like = self._segments[0].shape[1:] if self._segments else values.shape[1:]
        if values.dtype != self.dtype or values.shape[1:] != like:
            raise ValueError("its rows are of another sort")
        self._segments.append(values)
        parts = torch.stack([torch.full_like(ends, len(self._segments) - 1), ends - counts, ends], 1).numpy()
        added = np.ascontiguousarray(digests.numpy()).view(KEY).ravel()
        num = len(self._keys) + len(added)
        keys = mapped_concatenate((self._keys, added), num)
        order = np.argsort(keys, kind="stable")
        keys = mapped_take(keys, order)
        new = mapped_full(num, True, bool)
        new[1:] = keys[1:] != keys[:-1]
        firsts = mapped_flatnonzero(new)
        self._keys, places = mapped_take(keys, firsts), mapped_take(order, firsts)
        self._where = mapped_take(mapped_concatenate((self._where, parts), num), places)

    def add(self, digest: bytes, rows: Tensor) -> None:
        """Keep a cell's rows, (rows, ...); they are on disk after the next `flush`, which happens by itself at times.

        Raises:
            OSError: a segment cannot be written.
        """
        if digest in self:
            return
        kept = rows.detach().to("cpu", self.dtype, copy=True)
        self._waiting[digest] = kept
        self._waiting_bytes += kept.nbytes
        if self._waiting_bytes >= SEGMENT_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits as a segment.

        Raises:
            OSError: it cannot be written.
        """
        if not self._waiting:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        described = self.folder / "key.json"
        if not described.exists() and not described.is_symlink():
            described.write_text(self._described + "\n", encoding="utf-8")
        path = self.folder / f"{uuid.uuid4().hex}{ENDING}"
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        digests = torch.frombuffer(bytearray(b"".join(self._waiting)), dtype=torch.uint8).view(len(self._waiting), -1)
        tensors = {
            "digests": digests,
            "counts": torch.tensor([len(rows) for rows in self._waiting.values()]),
            "values": torch.cat(list(self._waiting.values())),
        }
        try:
            save_file(tensors, partial, metadata={"key": self.key})
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        except SafetensorError as error:
            raise OSError(f"{partial}: {error}") from error
        finally:
            partial.unlink(missing_ok=True)
        self._waiting, self._waiting_bytes = {}, 0
        self._known.add(path)
        self._open(path)
        self.cache.prune(self._known)

    def rows(self, digest: bytes) -> Tensor:
        """A cell's rows, (rows, ...) of the store's dtype: a view, not to be changed."""
        if digest in self._waiting:
            return self._waiting[digest]
        place = self._find(digest)
        assert place is not None, "the cell is not here"
        segment, start, end = self._where[place].tolist()
        rows: Tensor = self._segments[segment][start:end]
        return rows

    def has(self, digests: np.ndarray) -> np.ndarray:
        """(cells,) bool, which of (cells, 16) uint8 digests are here."""
        return mapped_concatenate((self._has(digests[piece]) for piece in pieces(len(digests))), len(digests))

    def _has(self, digests: np.ndarray) -> np.ndarray:
        keys = np.ascontiguousarray(digests).view(KEY).ravel()
        found = np.zeros(len(keys), dtype=bool)
        if len(self._keys):
            near = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            found = self._keys[near] == keys
        return found | np.isin(keys, np.array(list(self._waiting), dtype=KEY))

    def lengths(self, digests: np.ndarray) -> np.ndarray:
        """(cells,) int64, how many rows each of (cells, 16) uint8 digests has; all are here."""
        return np.fromiter((len(self.rows(digest.tobytes())) for digest in digests), np.int64, len(digests))
