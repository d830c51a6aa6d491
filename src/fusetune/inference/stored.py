"""Which store on disk holds what an encoder makes of cells."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from fusetune.backbones.backbone import Backbone
from fusetune.data.column import Column
from fusetune.data.storage.feature_cache import FeatureCache, FeatureStore
from fusetune.data.storage.mapped import mapped_flatnonzero, mapped_take

FORMAT = 1


def open_store(
    cache: FeatureCache | None, encoder: Any, boundary: int | str, dtype: torch.dtype
) -> FeatureStore | None:
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


def missing(store: FeatureStore, column: Column) -> tuple[np.ndarray, np.ndarray]:
    """Each distinct cell's digest, (cells, 16) uint8; and those that the store lacks, most costly first."""
    digests, good = column.digests(), column.good()
    return digests, mapped_take(good, mapped_flatnonzero(~store.has(mapped_take(digests, good))))
