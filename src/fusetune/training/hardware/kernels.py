"""How many compiled kernels oneDNN, which computes bfloat16 on processors, keeps in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable

CAPACITY = 128
"""Kernels that are kept: those of a few updates. The default of 1024 takes some 1.5 GB."""
VARIABLES = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"
"""The environment variables of oneDNN's cache and of that of torch's interface to it, read when they are first used."""


def limit_kernel_cache(kinds: Iterable[str]) -> None:
    """Limit oneDNN's caches to `CAPACITY` kernels if all encoders read texts; a limit that the user has set stays.

    oneDNN compiles a kernel for every shape of a matrix product, of about 1 MB, and keeps the last 1024. Batches of
    texts have a new shape nearly every time, so that what is kept is seldom used again. Convolutions have many kernels
    of few shapes, all of which are needed in every update.

    Args:
        kinds: of the input columns.
    """
    if not {"image", "audio"} & set(kinds):
        for variable in VARIABLES:
            os.environ.setdefault(variable, str(CAPACITY))
