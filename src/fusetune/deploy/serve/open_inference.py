"""The Open Inference Protocol (`/v2`), which clients of KServe, Triton and Seldon speak: columns as tensors.

https://github.com/kserve/open-inference-protocol, with Triton's binary form of inputs. Answers are JSON.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusetune import __version__
from fusetune.deploy.serve.bodies import json_object
from fusetune.deploy.serve.loaded import Loaded
from fusetune.deploy.serve.media import MEDIA
from fusetune.deploy.serve.options import Limits
from fusetune.deploy.serve.predicting import read_records
from fusetune.deploy.serve.problems import Problem
from fusetune.deploy.serve.service import Service
from fusetune.deploy.serve.strict_json import parse
from fusetune.deploy.serve.web import Request, Response, json_response

DTYPES: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(name.lower()) for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32")},
    **{"UINT64": np.dtype("uint64"), "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8")},
    "BOOL": np.dtype("bool"),
}
"""Datatypes with a fixed size; BYTES is the other."""
_OUTPUTS = {"string": "BYTES", "double": "FP64", "float": "FP32", "int64": "INT64", "bool": "BOOL"}
"""The datatype of an output column by its Arrow type; lists of numbers are FP32, anything else is JSON as BYTES."""
HEADER_LENGTH = "inference-header-content-length"


async def server_metadata(request: Request, service: Service) -> Response:
    """Return the server's name and version."""
    extensions = ["binary_tensor_data"]
    return json_response({"name": "fusetune", "version": __version__, "extensions": extensions})


async def live(request: Request, service: Service) -> Response:
    """Answer that the process is alive."""
    return json_response({"live": True})


async def ready(request: Request, service: Service) -> Response:
    """Answer whether requests are welcome."""
    return json_response({"ready": service.ready}, 200 if service.ready else 503)


async def model_metadata(request: Request, service: Service) -> Response:
    """Return a model's inputs and outputs."""
    model = _asked_model(request, service)
    inputs = [
        {"name": name, "datatype": "FP64" if kind == "number" else "BYTES", "shape": [-1]}
        for name, kind in model.inputs.kinds.items()
    ]
    outputs = [
        {"name": name, "datatype": _datatype(kind), "shape": [-1, -1] if _is_vector(kind) else [-1]}
        for name, kind in _output_types(model).items()
    ]
    head = {"name": model.name, "versions": [model.version], "platform": "fusetune"}
    return json_response({**head, "inputs": inputs, "outputs": outputs})


async def model_ready(request: Request, service: Service) -> Response:
    """Answer whether a model is served."""
    model = _asked_model(request, service)
    return json_response({"name": model.name, "ready": service.ready}, 200 if service.ready else 503)


async def infer(request: Request, service: Service) -> Response:
    """Answer rows that are given as a tensor a column."""
    model, limits = _asked_model(request, service), service.options.limits
    with service.worker.expecting() as expected:
        body, rest = await _body(request, limits)
        rows = rows_of(body, rest, model)
        missing = (
            body.get("parameters", {}).get("missing_columns", "") if isinstance(body.get("parameters"), dict) else ""
        )
        names = [name.strip() for name in str(missing).split(",") if name.strip()]
        length = len(rest) + int(request.headers.get("content-length", 2**20))
        records = await read_records(model.inputs, rows, limits, names, num_bytes=length)
        request.state.log = {"rows": len(records), "version": model.version}
        wanted = _wanted(body, _output_types(model))
        answers = await service.predict(model, records, expected)
    head = {"model_name": model.name, "model_version": model.version}
    if isinstance(body.get("id"), str):
        head["id"] = body["id"]
    return json_response({**head, "outputs": [_tensor(name, kind, answers) for name, kind in wanted.items()]})


def _asked_model(request: Request, service: Service) -> Loaded:
    """Return the model that the path names.

    Raises:
        Problem: 404, there is none, or not in this version.
    """
    model = service.model(request.path_params["model"])
    version = request.path_params.get("version", model.version)
    if version != model.version:
        raise Problem(404, "unknown_version", f"version {version[:80]!a} is not served; {model.version!r} is")
    return model


async def _body(request: Request, limits: Limits) -> tuple[dict[str, Any], bytes]:
    """Return a request's JSON, and the bytes of its binary tensors."""
    if HEADER_LENGTH not in request.headers:
        return await json_object(request, limits), b""
    length, body = request.headers[HEADER_LENGTH], await request.body()
    if not (length.isascii() and length.isdecimal()) or len(length) > 9 or int(length) > len(body):
        raise Problem(400, "invalid_length", f"{HEADER_LENGTH} is no length within the body")
    data = parse(body[: int(length)], depth=limits.depth)
    if not isinstance(data, dict):
        raise Problem(422, "invalid_request", "the body is no JSON object")
    return data, body[int(length) :]


def rows_of(body: Mapping[str, Any], rest: bytes, model: Loaded) -> list[dict[str, Any]]:
    """Return the rows of a request's tensors.

    Args:
        body: the request.
        rest: bytes of binary tensors, in the order of the inputs.
        model: whose columns they are.

    Raises:
        Problem: 422, a tensor is broken or of no column, or they differ in their number of rows.
    """
    tensors = body.get("inputs")
    if not isinstance(tensors, list) or not tensors or not all(isinstance(tensor, dict) for tensor in tensors):
        raise _wrong("expected inputs, a list of tensors")
    columns: dict[str, list[Any]] = {}
    for tensor in tensors:
        name = tensor.get("name")
        known = (*model.inputs.kinds, *model.inputs.extra)
        if name not in known or name in columns:
            raise _wrong(f"{str(name)[:80]!a} is no input column, or given twice; columns: {', '.join(known)}")
        size = (tensor.get("parameters") or {}).get("binary_data_size") if _is_object(tensor, "parameters") else None
        if size is None:
            columns[name] = _json_cells(tensor, name)
            continue
        if type(size) is not int or not 0 <= size <= len(rest):
            raise _wrong(f"the binary_data_size of {name!r} is not within the body")
        columns[name] = _binary_cells(tensor, name, rest[:size], is_file=model.inputs.kinds.get(name) in MEDIA)
        rest = rest[size:]
    sizes = {name: len(cells) for name, cells in columns.items()}
    if len(set(sizes.values())) > 1:
        raise _wrong(f"the tensors have different numbers of rows: {sizes}")
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _is_object(tensor: Mapping[str, Any], key: str) -> bool:
    return isinstance(tensor.get(key), dict)


def _num_rows(tensor: Mapping[str, Any], name: str) -> int:
    shape = tensor.get("shape")
    fits = isinstance(shape, list) and all(type(side) is int and 0 <= side < 2**31 for side in shape)
    if not fits or not shape or len(shape) > 2 or shape[1:] not in ([], [1]):
        raise _wrong(f"the shape of {name!r} is not [rows] or [rows, 1]")
    rows: int = shape[0]
    return rows


def _json_cells(tensor: Mapping[str, Any], name: str) -> list[Any]:
    """Return the cells of a tensor in JSON; null is a missing cell."""
    rows, datatype, data = _num_rows(tensor, name), str(tensor.get("datatype")), tensor.get("data")
    if not isinstance(data, list):
        raise _wrong(f"the tensor {name!r} has no list of data")
    if data and all(isinstance(entry, list) and len(entry) == 1 for entry in data):
        data = [entry[0] for entry in data]
    if len(data) != rows:
        raise _wrong(f"the tensor {name!r} has {len(data)} entries and not those of its shape, {rows}")
    if datatype != "BYTES" and datatype not in DTYPES:
        raise _wrong(f"the datatype of {name!r} is none of BYTES, {', '.join(DTYPES)}")
    for value in data:
        if value is not None and not _is_of(value, datatype):
            raise _wrong(f"the tensor {name!r} has an entry that is no {datatype}: {str(value)[:60]!a}")
    return data


def _is_of(value: Any, datatype: str) -> bool:
    if datatype == "BYTES":
        return isinstance(value, str)
    if datatype == "BOOL":
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if datatype.startswith("FP"):
        return True
    limits = np.iinfo(DTYPES[datatype])
    return isinstance(value, int) and int(limits.min) <= value <= int(limits.max)


def _binary_cells(tensor: Mapping[str, Any], name: str, data: bytes, *, is_file: bool) -> list[Any]:
    """Return the cells of a tensor in Triton's binary form; those of pictures and sounds are their files."""
    rows, datatype = _num_rows(tensor, name), str(tensor.get("datatype"))
    if datatype in DTYPES:
        dtype = DTYPES[datatype]
        if len(data) != rows * dtype.itemsize:
            raise _wrong(f"the tensor {name!r} has {len(data)} bytes and not those of its shape")
        values = np.frombuffer(data, dtype)
        if dtype.kind == "f" and not np.isfinite(values).all():
            raise _wrong(f"the tensor {name!r} has NaN or infinite numbers")
        cells: list[Any] = values.tolist()
        return cells
    if datatype != "BYTES":
        raise _wrong(f"the datatype of {name!r} is none of BYTES, {', '.join(DTYPES)}")
    cells, start = [], 0
    while start < len(data):
        if start + 4 > len(data):
            raise _wrong(f"the tensor {name!r} is cut off")
        (size,) = struct.unpack_from("<I", data, start)
        part, start = data[start + 4 : start + 4 + size], start + 4 + size
        if len(part) < size:
            raise _wrong(f"the tensor {name!r} is cut off")
        cells.append(part if is_file else _utf8(part, name))
    if len(cells) != rows:
        raise _wrong(f"the tensor {name!r} has {len(cells)} entries and not those of its shape, {rows}")
    return cells


def _utf8(part: bytes, name: str) -> str:
    try:
        return part.decode("utf-8")
    except UnicodeDecodeError:
        raise _wrong(f"the tensor {name!r} has a text that is not UTF-8") from None


def _wrong(message: str) -> Problem:
    return Problem(422, "invalid_request", message)


def _output_types(model: Loaded) -> dict[str, str]:
    return {**model.output_columns(), "error": "string"}


def _wanted(body: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, str]:
    """Return the outputs that a request asks for, with their Arrow types; all if it names none."""
    asked = body.get("outputs")
    if not asked:
        return dict(known)
    names = (
        [entry.get("name") if isinstance(entry, dict) else None for entry in asked] if isinstance(asked, list) else []
    )
    for name in names or [None]:
        if not isinstance(name, str) or name not in known:
            raise _wrong(f"{str(name)[:80]!a} is no output; outputs: {', '.join(known)}")
    return {str(name): known[str(name)] for name in names}


def _is_vector(kind: str) -> bool:
    return kind.startswith("list<") and ("float" in kind or "double" in kind)


def _datatype(kind: str) -> str:
    return "FP32" if _is_vector(kind) else _OUTPUTS.get(kind, "BYTES")


def _tensor(name: str, kind: str, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a column of the answers as a tensor. A text that is missing is "", a number null."""
    values = [answer.get(name) for answer in answers]
    datatype, shape = _datatype(kind), [len(values)]
    if _is_vector(kind):
        widths = {len(value) for value in values if value is not None}
        if len(widths) == 1:
            (width,) = widths
            flat = [number for value in values for number in ([None] * width if value is None else value)]
            return {"name": name, "datatype": datatype, "shape": [len(values), width], "data": flat}
        datatype = "BYTES"
    if datatype == "BYTES":
        texts = ["" if value is None else value if isinstance(value, str) else _as_json(value) for value in values]
        return {"name": name, "datatype": datatype, "shape": shape, "data": texts}
    if datatype in ("INT64", "BOOL") and None in values:
        datatype, values = "FP64", [None if value is None else float(value) for value in values]
    return {"name": name, "datatype": datatype, "shape": shape, "data": values}


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
