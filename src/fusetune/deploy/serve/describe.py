"""What a server says of its model: `/schema`, and the description of the API with an example."""

from __future__ import annotations

from typing import Any

from fusetune.deploy.serve.loaded import Loaded
from fusetune.deploy.serve.media import MEDIA
from fusetune.deploy.serve.options import Limits

_FILE = ["string", "array", "object", "null"]
_ANY = ["string", "number", "boolean", "array", "object", "null"]
_JSON_TYPES = {"number": ["number", "string", "null"], "image": _FILE, "audio": _FILE}
"""The JSON types of a cell by its column's kind; `_ANY` for other kinds."""


def schema_of(model: Loaded, limits: Limits) -> dict[str, Any]:
    """Return the columns that rows have to have, what is predicted, and the limits."""
    specs = model.bundle.schema.columns
    return {
        "model": {"name": model.name, "version": model.version},
        "columns": [
            {
                "name": name,
                "kind": kind,
                "required": True,
                **({"encoding": "base64, a data: URL, or an upload"} if kind in MEDIA else {}),
                **({"reason": specs[name].reason} if name in specs and specs[name].reason else {}),
            }
            for name, kind in model.inputs.kinds.items()
        ]
        + [{"name": name, "kind": "id", "required": False} for name in model.inputs.extra],
        "targets": [
            {"name": task.target, "task": task.name, **({"labels": list(task.labels)} if task.labels else {})}
            for task in model.bundle.targets.values()
        ],
        "outputs": [{"name": name, "type": kind} for name, kind in model.output_columns().items()],
        "limits": {
            "body_bytes": limits.body_bytes,
            "rows": limits.rows,
            "chars": limits.chars,
            "pixels": limits.pixels,
            "seconds": limits.seconds,
            "depth": limits.depth,
        },
        "example": {"rows": [model.example]},
    }


def predict_body(model: Loaded) -> dict[str, Any]:
    """Return the OpenAPI description of the body of `/predict`, with a row of the train table."""
    cells = {
        name: {"type": _JSON_TYPES.get(kind, _ANY), "description": kind} for name, kind in model.inputs.kinds.items()
    }
    files = {name: {"type": "string", "format": "binary"} for name, kind in model.inputs.kinds.items() if kind in MEDIA}
    row = {"type": "object", "properties": cells}
    rows = {"type": "array", "items": row, "minItems": 1}
    missing = {"type": "array", "items": {"type": "string"}, "description": "columns that all rows lack"}
    body = {"type": "object", "required": ["rows"], "properties": {"rows": rows, "missing_columns": missing}}
    form = {"type": "object", "properties": {name: files.get(name, {"type": "string"}) for name in cells}}
    example = {"rows": [model.example]}
    return {
        "required": True,
        "content": {"application/json": {"schema": body, "example": example}, "multipart/form-data": {"schema": form}},
    }


def other_bodies(model: Loaded) -> dict[str, dict[str, Any]]:
    """Return the OpenAPI descriptions of the other bodies by path, each with an example."""
    text = next((cell for cell in model.example.values() if isinstance(cell, str)), "text")
    tensors = [
        {"name": name, "shape": [1], "datatype": "FP64" if isinstance(cell, float) else "BYTES", "data": [cell]}
        for name, cell in model.example.items()
    ]
    examples: dict[str, dict[str, Any]] = {
        "/search": {"query": text, "k": 10},
        "/v1/embeddings": {"model": model.name, "input": [text]},
        "/v1/chat/completions": {"model": model.name, "messages": [{"role": "user", "content": text}], "stream": False},
        "/v2/models/{model}/infer": {"inputs": tensors},
        "/v2/models/{model}/versions/{version}/infer": {"inputs": tensors},
        "/admin/versions": {"version": model.version},
    }
    return {
        path: {"required": True, "content": {"application/json": {"schema": {"type": "object"}, "example": example}}}
        for path, example in examples.items()
    }
