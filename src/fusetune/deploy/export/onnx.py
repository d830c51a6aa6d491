"""Export a tuned model to ONNX, as a folder that `fusetune.runtime` runs; see `fusetune.runtime.files`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fusetune._optional import optional_import
from fusetune.deploy.bundle import Bundle, write_text
from fusetune.deploy.export.check import check_variant, eager_speeds, find_rows, require_equal
from fusetune.deploy.export.description import check_exportable, describe
from fusetune.deploy.export.graphs import VARIANTS, trace, write_onnx, write_variant
from fusetune.errors import ConfigError, StorageError, nearest, reason
from fusetune.models.flat import FlatModel
from fusetune.runtime.files import EXPORT, FLOAT32, RUNTIME

CHECK_ROWS = 256
"""Rows that an export is checked on, at most."""


def save_onnx(
    bundle: Bundle, folder: Path, *, variants: Sequence[str] = (), check: Any = None, rows: int = CHECK_ROWS
) -> dict[str, Any]:
    """Write a model as a folder that `fusetune.runtime` runs, and check it on real rows.

    The folder appears complete or not at all: it is written under another name and renamed when every check is passed.

    Args:
        bundle: the tuned model; it stays as it is.
        folder: to write; a folder of this name is replaced.
        variants: "float16", "int8"; float32 is always written.
        check: the table whose rows are compared; None takes the validation or train rows that the run's settings name.
        rows: how many of them, at most.

    Returns:
        What was checked, as in `export.json`: `rows`, `source`, `eager` and, by name, `variants`; see `check_variant`.

    Raises:
        ConfigError: the model cannot be exported, a variant is unknown, or there are no rows to check it on.
        MissingExtra: the extra `export` is not installed.
        ExportError: the float32 graph answers otherwise than the model.
        StorageError: the folder cannot be written.
    """
    wanted = check_variants(variants)
    for module in ("onnx", "onnxscript", "onnxruntime"):
        optional_import(module, "to export to ONNX")
    check_exportable(bundle)
    compared = find_rows(bundle, check, rows)
    flat = FlatModel(bundle.model, bundle.modalities, bundle.targets)
    with whole_folder(folder) as partial:
        content = describe(bundle, flat, partial)
        write_onnx(flat, trace(flat), partial)
        results: dict[str, Any] = {}
        for variant in wanted:
            if variant != FLOAT32:
                write_variant(variant, flat, partial)
            write_text(partial / RUNTIME, as_json({**content, "variants": [*results, variant]}))
            results[variant] = check_variant(bundle, compared, partial, variant)
            if variant == FLOAT32:
                require_equal(results[variant], variant)
        report = {
            "source": compared.source,
            "rows": len(compared.examples),
            "eager": eager_speeds(bundle, compared),
            "variants": results,
        }
        write_text(partial / EXPORT, as_json(report))
    return report


def as_json(content: Any) -> str:
    """Return JSON text with a final line break."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def check_variants(variants: Sequence[str]) -> list[str]:
    """Return the variants to write, float32 first.

    Raises:
        ConfigError: a variant is unknown.
    """
    for name in variants:
        if name not in VARIANTS:
            raise ConfigError(f"there is no variant {name!r}", expected=", ".join(VARIANTS), do=nearest(name, VARIANTS))
    return list(dict.fromkeys([FLOAT32, *variants]))


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of `folder` at the end; after an error there is neither.

    Raises:
        StorageError: it cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)
    except OSError as error:
        raise StorageError(f"the export cannot be written to {folder}: {reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
