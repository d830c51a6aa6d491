"""Exported models without torch: onnxruntime, numpy, tokenizers and pillow read a table and answer it.

    import fusetune.runtime

    model = fusetune.runtime.load("exported")
    model.predict([{"note": "it broke", "price": 12.5}]).rows()

    python -m fusetune.runtime exported new.csv -o out.csv

`fusetune export RUN --to onnx` writes such folders. Nothing here imports torch or transformers. Names are imported when
they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusetune.runtime.model import RuntimeModel as RuntimeModel
    from fusetune.runtime.model import load as load
    from fusetune.runtime.output import Predictions as Predictions

_PLACES = {
    "Predictions": "fusetune.runtime.output",
    "RuntimeModel": "fusetune.runtime.model",
    "load": "fusetune.runtime.model",
}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'fusetune.runtime' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
