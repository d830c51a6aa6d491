"""Which store on disk holds what an encoder makes of cells."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from fusetune.backbones.backbone import Backbone
from fusetune.data.examples import Column
from fusetune.data.store import Cache, Store

FORMAT = 1


def open_store(cache: Cache | None, encoder: Any, boundary: int | str, dtype: torch.dtype) -> Store | None:
    """The store of an encoder's outputs at a boundary, while its weights are those that it was loaded with.

    Args:
        cache: None for no store.
        encoder: as loaded; one without pretrained weights has none.
        boundary: a layer's number, or "output".
        dtype: what is stored.
    """
    if cache is None or not isinstance(encoder, Backbone) or not encoder.pretrained:
        return None
    settings = getattr(encoder.processor, "to_dict", lambda: repr(encoder.processor))
    key = {
        "format": FORMAT,
        "boundary": boundary,
        "encoder": {name: value for name, value in encoder.describe().items() if name not in ("source", "key")},
        "processor": json.dumps(settings() if callable(settings) else settings, sort_keys=True, default=str),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "device": next(encoder.parameters()).device.type,
    }
    return cache.store(key, dtype)


def missing(store: Store, column: Column) -> tuple[list[bytes], np.ndarray]:
    """Each distinct cell's digest, empty for bad ones; and those that the store lacks, most costly first."""
    digests = [b"" if place in column.bad else column.digest(place) for place in range(len(column.cells))]
    wanted = [place for place, digest in enumerate(digests) if digest and digest not in store]
    return digests, np.asarray(sorted(wanted, key=lambda place: -column.size(place)), dtype=np.int64)
