"""OpenAI's `/v1/models` and `/v1/embeddings`: vectors of texts, of a side of pairs or of a model that predicts."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusetune.deploy.outputs import EMBEDDINGS, Output, VectorColumns
from fusetune.deploy.search.index import cut_to, raw_columns
from fusetune.deploy.serve.bodies import json_object
from fusetune.deploy.serve.inputs import table_of
from fusetune.deploy.serve.loaded import Loaded
from fusetune.deploy.serve.problems import Problem
from fusetune.deploy.serve.service import Service
from fusetune.deploy.serve.web import Request, Response, json_response
from fusetune.deploy.tuned import predict_parts
from fusetune.errors import BadCell
from fusetune.modalities.media.cells import NO_FILES

STARTED = int(time.time())
_PARAMETERS = ("model", "input", "encoding_format", "dimensions", "user")


async def list_models(request: Request, service: Service) -> Response:
    """Return the served model; a model of pairs also once a side, which embeds that side's texts."""
    model = service.live.model
    names = [model.name, *(f"{model.name}/{side}" for side in sides(model))]
    entries = [{"id": name, "object": "model", "created": STARTED, "owned_by": "fusetune"} for name in names]
    return json_response({"object": "list", "data": entries})


async def embeddings(request: Request, service: Service) -> Response:
    """Return a vector for each text."""
    with service.worker.expecting() as expected:
        body = await json_object(request, service.options.limits)
        if unknown := [name for name in body if name not in _PARAMETERS]:
            raise _wrong(f"there is no parameter {unknown[0][:80]!a}; expected {', '.join(_PARAMETERS)}")
        model, side = asked_side(body.get("model"), service)
        texts = _texts(body.get("input"), service)
        as_base64 = body.get("encoding_format", "float") == "base64"
        if body.get("encoding_format", "float") not in ("float", "base64"):
            raise _wrong('encoding_format is "float" or "base64"')
        dim = body.get("dimensions")
        if dim is not None and (type(dim) is not int or not 1 <= dim <= model.bundle.model.dim):
            raise _wrong(f"dimensions is no number from 1 to {model.bundle.model.dim}")
        embedder = TextEmbedder(model, side, dim)
        request.state.log = {"rows": len(texts), "version": model.version}
        vectors = await service.compute(texts, embedder, ("embed", id(model), side, dim), expected)
    data = []
    for number, (vector, _) in enumerate(vectors):
        if vector is None:
            raise Problem(422, "invalid_rows", f"input {number} is empty or cannot be read", row=number)
        coded = base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode() if as_base64 else vector
        data.append({"object": "embedding", "index": number, "embedding": coded})
    tokens = sum(size for _, size in vectors)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_response({"object": "list", "data": data, "model": body.get("model", model.name), "usage": usage})


def sides(model: Loaded) -> list[str]:
    """Return the sides of a model of pairs, or its columns if each has a vector; none for another model."""
    return list(model.bundle.model.compared) if model.matches else []


def asked_side(name: Any, service: Service) -> tuple[Loaded, str | None]:
    """Return the model and the side that a request's `model` names, as in "products/query"; by default the first.

    Raises:
        Problem: 404, there is no such model; 422, it gives no vectors.
    """
    model = service.live.model
    if name is not None and not isinstance(name, str):
        raise _wrong("model is a text")
    by_name: dict[str, str | None] = {f"{model.name}/{side}": side for side in sides(model)}
    by_name = {model.name: next(iter(sides(model)), None), **by_name}
    if name is not None and name not in by_name:
        message = f"there is no model {name[:80]!a}; this server has {', '.join(map(repr, by_name))}"
        raise Problem(404, "unknown_model", message)
    if model.bundle.model.name not in EMBEDDINGS:
        raise _wrong("this model writes texts and gives no vectors; see /v1/chat/completions")
    return model, by_name[name or model.name]


class TextEmbedder:
    """Computes the vectors of texts, which fill a column of text of a side.

    Attributes:
        column: that the texts fill.
    """

    def __init__(self, model: Loaded, side: str | None, dim: int | None) -> None:
        """
        Args:
            model: gives the vectors.
            side: of pairs, or a column that has a vector; None for a model that predicts.
            dim: how many of a vector's first numbers are taken; None takes all.

        Raises:
            Problem: 422, the side has no column of text, or several.
        """
        self.model, self.side, self.dim = model, side, dim
        inputs = list(model.inputs.kinds) if side is None else list(model.bundle.model.compared[side])
        names = raw_columns(model.bundle, inputs)
        texts = [name for name in names if model.inputs.kinds.get(name) == "text"]
        if len(texts) != 1:
            raise _wrong(f"texts fill one column of text, and {side or 'the model'} has {len(texts)}; see /predict")
        (self.column,) = texts
        if dim is not None and side is None:
            raise _wrong("the vectors of this model cannot be cut; leave dimensions out")

    def __call__(self, texts: Sequence[str]) -> list[tuple[list[float] | None, int]]:
        """Return each text's vector, None where there is none, and its number of tokens."""
        empty = dict.fromkeys(self.model.inputs.kinds)
        table = table_of([{**empty, self.column: text} for text in texts])
        bundle, output = self.model.bundle, EMBEDDINGS[self.model.bundle.model.name]
        cut: Output = output if cut_to(bundle, self.dim) is None else VectorColumns(self.dim)
        (part,) = predict_parts(bundle, table, precision=self.model.precision, output=cut, rows=len(texts))
        name = "vector" if self.side is None else f"{self.side}_vector"
        return list(zip(part[name], map(self._num_tokens, texts), strict=True))

    def _num_tokens(self, text: str) -> int:
        modality = self.model.bundle.modalities.get(self.column)
        if modality is None or not text.strip():
            return 0
        try:
            return int(modality.size(modality.decode(text, row=0, base_dir=NO_FILES)))
        except BadCell:
            return 0


def _texts(value: Any, service: Service) -> list[str]:
    """Return the texts of a request's `input`.

    Raises:
        Problem: 422, it is no text or list of texts; 413, there are too many, or one is too long.
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise _wrong("input is a text or a list of texts; token ids are not read")
    limits = service.options.limits
    if len(texts) > limits.rows or max(map(len, texts)) > limits.chars:
        message = f"at most {limits.rows:,} texts of {limits.chars:,} characters are read"
        raise Problem(413, "too_large", message)
    return texts


def _wrong(message: str) -> Problem:
    return Problem(422, "invalid_request", message)
