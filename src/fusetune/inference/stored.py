"""Open the feature store of an encoder, and find the cells that it lacks."""

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
    """Open the store of an encoder's outputs at a boundary, or return None if there is none.

    Args:
        cache: holds the stores; None for no store.
        encoder: with the weights that it was loaded with; an encoder that is not pretrained has no store.
        boundary: a layer's number, or "output".
        dtype: of the stored features.
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
    """Return each distinct cell's digest, (cells, 16) uint8, and the cells that the store lacks, most costly first."""
    digests, good = column.digests(), column.good()
    return digests, mapped_take(good, mapped_flatnonzero(~store.has(mapped_take(digests, good))))
