"""The feature cache: cells' features on disk, shared between runs, written atomically, memory-mapped, bounded in size.

A store is a folder named by the hash of its key, which identifies the features: weights, processor, layer, dtype,
versions. It holds segments: safetensors files with the digests, row counts and values of some cells. A segment gets its
name when it is complete, so any number of processes may write and read at once; two that write the same cells only
waste space. When all stores together exceed the limit, the least recently used segments are deleted.
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
"""Age in seconds at which an unfinished file is deleted, as its process must have ended."""
ENDING = ".safetensors"
KEY = np.dtype("S16")
"""The dtype of a digest."""


class FeatureCache:
    """A folder of feature stores with a limit on their total size."""

    def __init__(self, folder: str | Path, gib: float) -> None:
        """
        Args:
            folder: created when something is written.
            gib: limit on the size of all segments together, in GiB.
        """
        self.folder, self.limit = Path(folder), int(gib * 2**30)

    @classmethod
    def of(cls, folder: str | None, gib: float) -> FeatureCache | None:
        """Return the cache that the settings name: `folder`, else $FUSETUNE_CACHE, else the user's cache folder.

        Returns None for the folder "none", for a limit of 0, and if no folder is named and the user has no home.
        """
        named = folder or os.environ.get("FUSETUNE_CACHE") or str(user_cache() or "none")
        return None if named == "none" or gib == 0 else cls(named, gib)

    def store(self, key: Mapping[str, Any], dtype: torch.dtype) -> FeatureStore:
        """Open the store of a key, a mapping that JSON can hold."""
        return FeatureStore(self, {**key, "dtype": str(dtype)}, dtype)

    def prune(self, spared: set[Path]) -> None:
        """Delete the least recently used segments until the rest fits, except the spared ones, and abandoned files."""
        segments, now = [], time.time()
        for path in self.folder.glob(f"*/*{ENDING}*"):
            try:
                stat = path.stat()
                if path.suffix != ENDING:
                    if now - stat.st_mtime > ABANDONED:
                        path.unlink()
                    continue
            except OSError:
                continue  # another process was faster
            segments.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in segments)
        for _, size, path in sorted(segments):
            if total <= self.limit:
                return
            if path not in spared:
                path.unlink(missing_ok=True)
                total -= size


class FeatureStore:
    """Features by a cell's digest: for each cell a tensor (rows, ...) with any number of rows.

    Attributes:
        broken: unusable segments with the reasons; they are not deleted, and their cells are computed again.
    """

    def __init__(self, cache: FeatureCache, key: Mapping[str, Any], dtype: torch.dtype) -> None:
        text = json.dumps(key, sort_keys=True)
        self.cache, self.dtype, self.key = cache, dtype, hashlib.sha256(text.encode()).hexdigest()
        self.folder = cache.folder / self.key[:32]
        self.broken: list[str] = []
        self._keys = np.zeros(0, dtype=KEY)  # sorted; a dictionary would take ten times the memory
        self._spans = np.zeros((0, 3), dtype=np.int64)  # segment, start and end of each digest's rows
        self._segments: list[Tensor] = []
        self._known: set[Path] = set()
        self._pending: dict[bytes, Tensor] = {}
        self._pending_bytes = 0
        self._key_text = text
        self.refresh()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._pending or self._find(digest) is not None

    def __len__(self) -> int:
        return len(self._keys) + len(self._pending)

    def _find(self, digest: bytes) -> int | None:
        key = np.array(digest, dtype=KEY)
        index = int(np.searchsorted(self._keys, key))
        return index if index < len(self._keys) and self._keys[index] == key else None

    def refresh(self) -> None:
        """Open the segments that were written since the last call."""
        for path in sorted(self.folder.glob(f"*{ENDING}")) if self.folder.is_dir() else ():
            if path not in self._known:
                self._known.add(path)
                try:
                    self._open(path)
                    os.utime(path)
                except (OSError, SafetensorError, ValueError, KeyError) as error:
                    self.broken.append(f"{path}: {error}")

    def _open(self, path: Path) -> None:
        tensors_of(path)  # refuses pipes, which would hang, and links
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") != self.key:
                raise ValueError("it was made for another key")
            digests, counts = file.get_tensor("digests"), file.get_tensor("counts")
            values = file.get_tensor("values")  # a view of the mapped file
        valid = digests.dtype == torch.uint8 and digests.ndim == 2 and counts.dtype == torch.int64
        valid = valid and digests.shape[1] == KEY.itemsize
        if not valid or counts.shape != digests.shape[:1] or bool((counts < 0).any()):
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
        is_first = mapped_full(num, True, bool)
        is_first[1:] = keys[1:] != keys[:-1]
        firsts = mapped_flatnonzero(is_first)
        self._keys, sources = mapped_take(keys, firsts), mapped_take(order, firsts)
        self._spans = mapped_take(mapped_concatenate((self._spans, parts), num), sources)

    def add(self, digest: bytes, rows: Tensor) -> None:
        """Add a cell's rows, (rows, ...). `flush` writes them; it is called when `SEGMENT_BYTES` are collected.

        Raises:
            OSError: a segment cannot be written.
        """
        if digest in self:
            return
        values = rows.detach().to("cpu", self.dtype, copy=True).contiguous()  # files hold no other layout
        self._pending[digest] = values
        self._pending_bytes += values.nbytes
        if self._pending_bytes >= SEGMENT_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the collected cells as a segment.

        Raises:
            OSError: it cannot be written.
        """
        if not self._pending:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        key_file = self.folder / "key.json"
        if not key_file.exists() and not key_file.is_symlink():
            key_file.write_text(self._key_text + "\n", encoding="utf-8")
        path = self.folder / f"{uuid.uuid4().hex}{ENDING}"
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        digests = torch.frombuffer(bytearray(b"".join(self._pending)), dtype=torch.uint8).view(len(self._pending), -1)
        tensors = {
            "digests": digests,
            "counts": torch.tensor([len(rows) for rows in self._pending.values()]),
            "values": torch.cat(list(self._pending.values())),
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
        self._pending, self._pending_bytes = {}, 0
        self._known.add(path)
        self._open(path)
        self.cache.prune(self._known)

    def rows(self, digest: bytes) -> Tensor:
        """Return a cell's rows, (rows, ...) in the store's dtype, as a view that must not be changed."""
        if digest in self._pending:
            return self._pending[digest]
        index = self._find(digest)
        assert index is not None, "the store has the cell"
        segment, start, end = self._spans[index].tolist()
        rows: Tensor = self._segments[segment][start:end]
        return rows

    def has(self, digests: np.ndarray) -> np.ndarray:
        """Return which of the digests, (cells, 16) uint8, the store has: (cells,) bool."""
        return mapped_concatenate((self._has(digests[piece]) for piece in pieces(len(digests))), len(digests))

    def _has(self, digests: np.ndarray) -> np.ndarray:
        keys = np.ascontiguousarray(digests).view(KEY).ravel()
        stored = np.zeros(len(keys), dtype=bool)
        if len(self._keys):
            near = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            stored = self._keys[near] == keys
        return stored | np.isin(keys, np.array(list(self._pending), dtype=KEY))

    def lengths(self, digests: np.ndarray) -> np.ndarray:
        """Return the number of rows of each digest of (cells, 16) uint8: (cells,) int64. The store must have all."""
        return np.fromiter((len(self.rows(digest.tobytes())) for digest in digests), np.int64, len(digests))
