"""The names of an exported folder's files, and reading its description.

runtime.json       the columns with what was learned about them, the outputs, and the variants
model.onnx         the network in float32; model.VARIANT.onnx, if there are others; FILE.data beside it, if it is large
tokenizers/KEY/    tokenizer.json of each text encoder
export.json        what was checked and measured when the folder was written
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusetune.errors import FolderError
from fusetune.security.untrusted import read_json, reading

RUNTIME, EXPORT, TOKENIZERS = "runtime.json", "export.json", "tokenizers"
FORMAT = 1
FLOAT32 = "float32"


def graph_file(variant: str) -> str:
    """Return the name of a variant's graph."""
    return "model.onnx" if variant == FLOAT32 else f"model.{variant}.onnx"


def read_description(folder: Path) -> dict[str, Any]:
    """Return the content of runtime.json.

    Raises:
        FolderError: it is missing or broken, or has a later format.
    """
    if not (folder / RUNTIME).is_file():
        raise FolderError(
            "this is no exported model",
            expected=f"a folder with {RUNTIME}",
            do="fusetune export RUN --to onnx --out FOLDER writes one",
            file=str(folder),
        )
    with reading("the exported model cannot be read", file=folder / RUNTIME, do="export it again"):
        content = read_json(folder / RUNTIME)
        found = int(content["format"])
        if found > FORMAT:
            raise FolderError(
                "the exported model has a later format",
                expected=f"up to {FORMAT}",
                came=str(found),
                do="install the version of fusetune that wrote it",
            )
    return dict(content)
