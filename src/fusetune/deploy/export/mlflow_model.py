"""Write a tuned model as an MLflow model, and load it there.

    MLmodel             flavor python_function with the loader below, the signature, the package requirements
    data/               the model folder

No pickle is written: MLflow imports this module and calls `_load_pyfunc` with the folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from fusetune._optional import optional_import
from fusetune.data.output_names import ERROR, ROW
from fusetune.deploy.bundle import Bundle, load_bundle, move, save_bundle
from fusetune.deploy.outputs import OUTPUTS
from fusetune.deploy.rows import needed_columns
from fusetune.deploy.tuned import predict
from fusetune.errors import ConfigError, StorageError, reason

if TYPE_CHECKING:
    import pandas


def save_mlflow(bundle: Bundle, folder: Path) -> Path:
    """Write an MLflow model.

    Args:
        bundle: the tuned model.
        folder: to write; it must not exist.

    Raises:
        MissingExtra: MLflow is not installed.
        ConfigError: the folder exists.
        StorageError: it cannot be written.
    """
    pyfunc: Any = optional_import("mlflow.pyfunc", "to write an MLflow model")
    if folder.exists():
        raise ConfigError(f"{folder} is there already", do="name a new folder, or remove it")
    with tempfile.TemporaryDirectory(prefix="fusetune-") as scratch:
        save_bundle(bundle, Path(scratch))
        try:
            pyfunc.save_model(
                folder,
                loader_module=__name__,
                data_path=scratch,
                signature=signature(bundle),
                pip_requirements=[f"fusetune=={metadata.version('fusetune')}"],
            )
        except OSError as error:
            raise StorageError(f"{folder} cannot be written: {reason(error)}") from error
    return folder


def signature(bundle: Bundle) -> Any:
    """Return MLflow's signature: the input columns, each of which may be missing, and the columns of predictions.

    A column of text takes strings; others take cells of any type, as pictures may be paths or bytes, and numbers text.
    """
    types: Any = optional_import("mlflow.types.schema", "to write an MLflow model")
    models: Any = optional_import("mlflow.models", "to write an MLflow model")
    inputs = []
    for name in needed_columns(bundle):
        text = name in bundle.modalities and bundle.modalities[name].kind == "text"
        inputs.append(types.ColSpec("string" if text else types.AnyType(), name, required=False))
    answers = [(name, kind) for name, kind, _ in OUTPUTS[bundle.model.name].columns(bundle, None, None)]
    written = [(ROW, pa.int64()), *answers, (ERROR, pa.string())]
    outputs = [types.ColSpec(_type(types, kind), name, required=False) for name, kind in written]
    return models.ModelSignature(types.Schema(inputs), types.Schema(outputs))


def _type(types: Any, kind: pa.DataType) -> Any:
    """Return MLflow's type of an Arrow type."""
    if pa.types.is_integer(kind):
        return "long"
    if pa.types.is_floating(kind):
        return "double"
    return "string" if pa.types.is_string(kind) else types.AnyType()


class PyFunc:
    """A tuned model as MLflow calls it."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pandas.DataFrame:
        """Return the predictions of a DataFrame's rows, with its index; `params` is not used."""
        return predict(self.bundle, model_input).to_pandas()


def _load_pyfunc(path: str) -> PyFunc:
    """Load the model folder of an MLflow model; MLflow calls this."""
    bundle = load_bundle(Path(path))
    move(bundle.model)
    return PyFunc(bundle)
