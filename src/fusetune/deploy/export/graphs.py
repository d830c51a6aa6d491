"""The graphs of an export: ONNX in float32, float16 and int8, from one traced program."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusetune._optional import optional_import
from fusetune.errors import ConfigError
from fusetune.models.flat import FlatModel
from fusetune.runtime.files import FLOAT32, graph_file

VARIANTS = (FLOAT32, "float16", "int8")
EXTERNAL_BYTES = 2**30
"""Graphs with more bytes of weights have them in a file of their own, as a protobuf message has at most 2 GiB."""
QUANTISED, AFFINE = "MatMul", "Gemm"
"""The operator whose weights become 8-bit integers, in the encoders' linear layers; the quantiser turns affine maps
into it. 8-bit convolutions are slower than those in float32 on a CPU, and 8-bit embeddings, n-grams and heads cost more
accuracy than they save."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporters log and warn about their own work."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def trace(flat: FlatModel) -> torch.export.ExportedProgram:
    """Return a flat model as a program with dynamic numbers of rows, tokens, parts and n-grams.

    Raises:
        ConfigError: the model cannot be traced.
    """
    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple(
        {axis: dynamic for axis, size in enumerate(given.shape) if isinstance(size, str)} for given in flat.inputs
    )
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(flat, flat.examples(), dynamic_shapes=(shapes,), strict=False)
    except Exception as error:  # torch.export has no common class of errors
        raise _refusal(flat, error) from error


def _refusal(flat: FlatModel, error: Exception) -> ConfigError:
    encoders = {type(column.encoder).__name__: name for name, column in flat.columns.items()}
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return ConfigError(
        "the model cannot be traced by torch.export",
        came=f"{type(error).__name__}: {lines[0] if lines else ''}; columns {', '.join(encoders.values())}",
        do="tune it with another encoder",
    )


def write_onnx(flat: FlatModel, program: torch.export.ExportedProgram, folder: Path) -> Path:
    """Write a program as the float32 graph of an export.

    Raises:
        ConfigError: an operator of the model has no form in ONNX.
        MissingExtra: the extra `export` is not installed.
        OSError: the graph cannot be written.
    """
    optional_import("onnxscript", "to export to ONNX")
    onnx: Any = optional_import("onnx", "to export to ONNX")
    path, names = folder / graph_file(FLOAT32), [given.name for given in flat.inputs]
    try:
        with _quiet():
            exported = torch.onnx.export(
                program,
                args=(),
                input_names=names,
                output_names=flat.outputs,
                dynamo=True,
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # of torch.onnx, onnxscript and onnx_ir
        raise _refusal(flat, error) from error
    assert exported is not None
    size = sum(parameter.nbytes for parameter in [*flat.parameters(), *flat.buffers()])
    large = size > EXTERNAL_BYTES
    exported.save(str(path), external_data=large)
    graph = onnx.load(str(path))
    _fold_transposes(graph, onnx)
    for value, shape in [
        *zip(graph.graph.input, (given.shape for given in flat.inputs), strict=True),
        *((value, ("rows",)) for value in graph.graph.output),
    ]:
        for axis, name in zip(value.type.tensor_type.shape.dim, shape, strict=False):
            if isinstance(name, str):
                axis.dim_param = name
    del graph.graph.value_info[:]  # shapes by the exporter's own names
    (folder / f"{path.name}.data").unlink(missing_ok=True)  # read above
    onnx.save(graph, str(path), save_as_external_data=large, location=f"{path.name}.data")
    return path


def _fold_transposes(graph: Any, onnx: Any) -> None:
    """Store weights transposed where a graph transposes them, as it does with those of encoders of several columns.

    Matrix products then have their weights as constants, which the quantiser looks for.
    """
    stored = {value.name: value for value in graph.graph.initializer}
    folded: dict[tuple[str, tuple[int, ...]], str] = {}
    renamed: dict[str, str] = {}
    nodes = []
    for node in graph.graph.node:
        if node.op_type != "Transpose" or node.input[0] not in stored:
            nodes.append(node)
            continue
        order = tuple(next(part.ints for part in node.attribute if part.name == "perm"))
        key = node.input[0], order
        if key not in folded:
            folded[key] = node.output[0]
            values = onnx.numpy_helper.to_array(stored[node.input[0]]).transpose(order)
            graph.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(values), folded[key]))
        renamed[node.output[0]] = folded[key]
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
    used = {name for node in nodes for name in node.input}
    kept = [value for value in graph.graph.initializer if value.name in used]
    del graph.graph.node[:], graph.graph.initializer[:]
    graph.graph.node.extend(nodes)
    graph.graph.initializer.extend(kept)


def write_variant(variant: str, flat: FlatModel, folder: Path) -> Path:
    """Write another variant of an export's float32 graph.

    Args:
        variant: "float16", whose weights and arithmetic have half the bytes; or "int8", dynamic quantisation of the
            encoders' linear layers, a scale for each output.
        flat: the flat model.
        folder: with the float32 graph.

    Raises:
        MissingExtra: the extra `export` is not installed.
        OSError: the graph cannot be written.
    """
    onnx: Any = optional_import("onnx", f"to export {variant}")
    source, path = folder / graph_file(FLOAT32), folder / graph_file(variant)
    large = (folder / f"{source.name}.data").exists()
    graph = onnx.load(str(source))
    with _quiet():
        if variant == "int8":
            quantization: Any = optional_import("onnxruntime.quantization", "to export int8")
            quantization.quantize_dynamic(
                str(source),
                str(path),
                op_types_to_quantize=[QUANTISED],
                nodes_to_exclude=_not_quantised(graph, flat, onnx),
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
                use_external_data_format=large,
            )
        else:
            float16: Any = optional_import("onnxruntime.transformers.float16", "to export float16")
            graph = float16.convert_float_to_float16(graph, keep_io_types=True)
            onnx.save(graph, str(path), save_as_external_data=large, location=f"{path.name}.data")
    return path


def _not_quantised(graph: Any, flat: FlatModel, onnx: Any) -> list[str]:
    """Return the names of the matrix products that stay in float32.

    These are products with other weights than those of pretrained encoders, and layers that narrow, as the second one
    of a transformer's perceptron: a few of their inputs are so large that one scale for all of them loses the others.
    The exporter renames and transposes weights, so they are recognised by their bytes.
    """
    weights = [weight.detach() for weight in flat.model.encoders.parameters() if weight.ndim == 2]
    known = {_digest(part.contiguous().numpy()) for weight in weights for part in (weight, weight.T)}
    stored = {value.name: value for value in graph.graph.initializer}

    def is_quantised(node: Any) -> bool:
        name = node.input[1]
        if name not in stored:
            return False
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        inputs, outputs = stored[name].dims[0], stored[name].dims[-1]
        if transposed:
            inputs, outputs = outputs, inputs
        return inputs <= outputs and _digest(onnx.numpy_helper.to_array(stored[name])) in known

    products = [node for node in graph.graph.node if node.op_type in (QUANTISED, AFFINE)]
    names = [node.name for node in products if not is_quantised(node)]
    return [*names, *(f"{name}_{QUANTISED}" for name in names)]  # what the quantiser calls an affine map's product


def _digest(values: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).digest()
