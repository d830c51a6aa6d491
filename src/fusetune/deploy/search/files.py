"""Save and load a search index: a folder of safetensors, Parquet and JSON.

index.json            what the index finds, the model it belongs to, the SHA-256 of the other files
vectors.safetensors   vectors, the rows that they are of, and the links between them
rows.parquet          the catalogue's columns of texts and numbers
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from safetensors.numpy import load_file, save_file

from fusetune.deploy.bundle import Bundle, write_text
from fusetune.deploy.search.index import SearchIndex, check_searches, found_side
from fusetune.deploy.search.vectors import VectorIndex
from fusetune.errors import FolderError, StorageError
from fusetune.security.model_folder import file_hash, weights_hash
from fusetune.security.untrusted import read_json, reading, tensors_of

FORMAT = 1
INDEX, VECTORS, ROWS = "index.json", "vectors.safetensors", "rows.parquet"


def save_index(index: SearchIndex, folder: Path, model: Path | None) -> None:
    """Write an index's files; `index.json` is written last.

    Args:
        index: it.
        folder: created if need be.
        model: the folder of its model, or None for a model that is not saved.

    Raises:
        StorageError: a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INDEX).unlink(missing_ok=True)
        arrays = {name: np.ascontiguousarray(values) for name, values in index.vectors.arrays().items()}
        save_file(arrays | {"owners": index.owners}, folder / VECTORS)
        parquet.write_table(index.rows, folder / ROWS)
    except OSError as error:
        raise StorageError(f"the index cannot be written to {folder}: {error}") from error
    content = {
        "format": FORMAT,
        "find": index.find,
        "vectors": index.vectors.state(),
        "refused": {str(row): why for row, why in index.refused.items()},
        "model": None if model is None else weights_hash(model),
        "files": {name: file_hash(folder / name) for name in (VECTORS, ROWS)},
    }
    write_text(folder / INDEX, json.dumps(content, indent=1, ensure_ascii=False))


def load_index(bundle: Bundle, folder: Path, model: Path | None) -> SearchIndex:
    """Load an index.

    Args:
        bundle: the tuned model.
        folder: see `save_index`.
        model: the model's folder, or None.

    Raises:
        ConfigError: the model compares nothing.
        FolderError: it is no index, is damaged, or belongs to another model.
    """
    check_searches(bundle)
    if not (folder / INDEX).is_file():
        raise FolderError("there is no index", file=str(folder), do="make one: fusetune index RUN catalogue.csv")
    with reading("the index cannot be read", file=folder, do="make it again: fusetune index RUN catalogue.csv"):
        content = read_json(folder / INDEX)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, not {FORMAT}")
        for name in (VECTORS, ROWS):
            if file_hash(folder / name) != content["files"][name]:
                raise ValueError(f"{name} was changed or is damaged")
        if model is not None and content["model"] is not None and content["model"] != weights_hash(model):
            raise ValueError("it was made with other weights than the model's, so that its vectors are no longer those")
        tensors_of(folder / VECTORS)
        arrays = load_file(folder / VECTORS)
        index = SearchIndex(
            bundle, found_side(bundle, content["find"]), VectorIndex.restore(content["vectors"], arrays)
        )
        index.rows, index.owners = parquet.read_table(folder / ROWS), arrays["owners"].astype(np.int64)
        index.refused = {int(row): str(why) for row, why in content["refused"].items()}
        count = len(index.vectors.values)
        if not 1 <= index.vectors.dim <= bundle.model.dim or len(index.owners) != count:
            raise ValueError("its vectors are not those of the model")
        if count and not 0 <= index.owners.min() <= index.owners.max() < index.rows.num_rows:
            raise ValueError("its vectors are of rows that it does not have")
    return index
