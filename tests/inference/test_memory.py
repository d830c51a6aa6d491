"""Freed memory stays while a model works, and goes back after."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

import pytest

from fusetune.inference import memory
from fusetune.inference.memory import retain_freed_memory

MB = 2**20
pytestmark = pytest.mark.skipif(memory._libc() is None, reason="another C library, or its allocator is set")


def faults() -> int:
    """Pages that were asked for while a block of 128 MB was written and freed."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = libc.memset.restype = ctypes.c_void_p
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(128 * MB)))
    libc.memset(block, 1, ctypes.c_size_t(128 * MB))
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def held() -> int:
    """Bytes of memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_freed_block_is_used_again_inside_only() -> None:
    """A block written a second time costs no new pages; outside, it does again."""
    with retain_freed_memory():
        faults()
        again = faults()
    outside = faults()
    assert again * 10 < outside


def test_memory_goes_back_after_the_outermost() -> None:
    """Leaving an inner one changes nothing, leaving the last one returns what was freed."""
    with retain_freed_memory():
        with retain_freed_memory():
            faults()
        inside = held()
        again = faults()
    assert inside - held() > 100 * MB
    assert again < 1000


def test_no_more_is_held_than_a_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above it, what is free goes back after every batch."""
    with retain_freed_memory():
        faults()
        inside = held()
        memory.trim_memory()
        assert inside - held() < MB
        monkeypatch.setattr(memory, "_memory", lambda: float(inside))
        memory.trim_memory()
        assert inside - held() > 100 * MB
        monkeypatch.setattr(memory, "_inside", 0)
        monkeypatch.setattr(memory, "_memory", lambda: pytest.fail("looked at where nothing is kept"))
        memory.trim_memory()
        monkeypatch.undo()


def test_an_error_inside_ends_it() -> None:
    """The next one starts anew."""
    with pytest.raises(ValueError, match="no"), retain_freed_memory():
        raise ValueError("no")
    assert memory._inside == 0
    assert faults() > 1000


def test_a_process_whose_allocator_is_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither variable of glibc's is overruled."""
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert memory._libc() is None
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1000000")
    assert memory._libc() is None
