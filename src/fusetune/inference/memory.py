"""Keep freed memory in the process while a model runs: the next batch needs as much again."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""The numbers of glibc's `mallopt` parameters."""
DEFAULTS = {MMAP_MAX: 65536, MMAP_THRESHOLD: 32 * 2**20, TRIM_THRESHOLD: 64 * 2**20}
"""The values that glibc adapts to by itself after large blocks were freed."""
RETAIN = {MMAP_MAX: 0, TRIM_THRESHOLD: -1}

SHARE = 0.5
"""Share of the available memory above which a process returns its freed memory after every batch."""

_lock = threading.Lock()
_inside = 0


def _libc() -> Any:
    """Return the C library, or None if it is not glibc or the user has configured its allocator."""
    if not sys.platform.startswith("linux") or any("malloc" in name.lower() for name in _allocator_settings()):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None


def _allocator_settings() -> list[str]:
    return [name for name in os.environ if name.startswith("MALLOC_")] + [os.environ.get("GLIBC_TUNABLES", "")]


@contextmanager
def retain_freed_memory() -> Iterator[None]:
    """Keep freed memory in the process within the context, and return it to the system afterwards.

    glibc returns every freed block above 32 MiB at once, and the system then provides its pages again one by one, each
    zeroed: with the activations of images this takes a quarter of an update's time. In exchange, the process holds its
    free memory, which `trim_memory` bounds: call it after every batch. Results do not depend on it.

    The context may be nested, in several threads too. It does nothing with another C library, or if $MALLOC_... or
    $GLIBC_TUNABLES configure the allocator.
    """
    global _inside
    libc = _libc()
    if libc is None:
        yield
        return
    with _lock:
        _inside += 1
        if _inside == 1:
            _set(libc, RETAIN)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _set(libc, DEFAULTS)
                libc.malloc_trim(0)


def trim_memory() -> None:
    """Return freed memory to the system if the process holds more than `SHARE` of the available memory."""
    if _inside and int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() > SHARE * _memory():
        ctypes.CDLL(None).malloc_trim(0)


@cache
def _memory() -> float:
    """Return this process's share, in bytes, of the machine's or the container's memory."""
    return total_memory() / int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def total_memory(root: Path = Path("/")) -> int:
    """Return the bytes that the machine has, or that the control group of this process grants where that is less.

    Args:
        root: of the file system in which the kernel says so.
    """
    limits = [limit for limit, _ in _groups(root)]
    return min([os.sysconf("SC_PHYS_PAGES") * resource.getpagesize(), *limits])


def free_memory(root: Path = Path("/")) -> int:
    """Return the bytes that can still be had: of the machine's, and of what the control group grants.

    Args:
        root: of the file system in which the kernel says so.
    """
    free = [limit - used for limit, used in _groups(root)]
    with suppress(OSError, ValueError):  # no such file on another system
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return max(0, min(free)) if free else total_memory(root)


def _groups(root: Path) -> list[tuple[int, int]]:
    """The limit of each control group with one, version 2 or 1, and what is used of it without the page cache's share
    that can be given back; in bytes."""
    usages = []
    for folder, most, used, cached in (
        ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError):  # no such file, or "max"
            limit, usage = (int((root / folder / name).read_text(encoding="ascii")) for name in (most, used))
            lines = (root / folder / "memory.stat").read_text(encoding="ascii").splitlines()
            stat = dict(line.split() for line in lines if len(line.split()) == 2)
            usages.append((limit, max(0, usage - int(stat.get(cached, 0)))))
    return usages


def _set(libc: Any, values: dict[int, int]) -> None:
    for option, value in values.items():
        libc.mallopt(option, value)
