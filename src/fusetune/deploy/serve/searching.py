"""`POST /search`: the rows of the model's catalogue that are nearest to queries."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from fusetune.deploy.search.index import SearchIndex, raw_columns
from fusetune.deploy.serve.bodies import json_object
from fusetune.deploy.serve.inputs import Inputs, Record, table_of
from fusetune.deploy.serve.loaded import Loaded
from fusetune.deploy.serve.predicting import read_records
from fusetune.deploy.serve.problems import Problem
from fusetune.deploy.serve.service import Service
from fusetune.deploy.serve.web import Request, Response, json_response

MOST = 1000
"""Most rows a query."""
_PARAMETERS = ("query", "queries", "k", "filter", "rerank")


async def search(request: Request, service: Service) -> Response:
    """Return the nearest rows of the catalogue: `{"query": TEXT or ROW, "k": 10, "filter": "price < 50"}`."""
    model, limits = service.live.model, service.options.limits
    index = _index(model)
    with service.worker.expecting() as expected:
        body = await json_object(request, limits)
        if unknown := [name for name in body if name not in _PARAMETERS]:
            raise _wrong(f"there is no parameter {unknown[0][:80]!a}; expected {', '.join(_PARAMETERS)}")
        if ("query" in body) == ("queries" in body):
            raise _wrong("give query, a text or a row, or queries, a list of them")
        queries = body["queries"] if "queries" in body else [body["query"]]
        inputs = query_inputs(model, index)
        rows = [{_text_column(inputs): query} if isinstance(query, str) else query for query in _listed(queries)]
        k, where, rerank = _settings(body)
        records = await read_records(inputs, rows, limits, list(inputs.kinds), num_bytes=len(await request.body()))
        request.state.log = {"rows": len(records), "version": model.version}
        compute = functools.partial(_search, index, k, where, rerank)
        hits = await service.compute(records, compute, None, expected)
    results = [_result(list(group)) for _, group in groupby(hits, key=lambda hit: hit["row"])]
    return json_response({"results": results, "model": {"name": model.name, "version": model.version}})


def _search(
    index: SearchIndex, k: int, where: str | None, rerank: bool | None, records: Sequence[Record]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = index.search(table_of(records), k=k, where=where, rerank=rerank).table.to_pylist()
    return rows


def query_inputs(model: Loaded, index: SearchIndex) -> Inputs:
    """Return the columns of a query: those of the sides that are not found."""
    compared = model.bundle.model.compared
    columns = [column for side, names in compared.items() if side != index.find for column in names]
    return Inputs({name: model.inputs.kinds.get(name, "text") for name in raw_columns(model.bundle, columns)})


def _index(model: Loaded) -> SearchIndex:
    if model.index is None:
        message = "the model has no search index; `fusetune index` builds one in its folder"
        raise Problem(404, "no_index", message)
    return model.index


def _text_column(inputs: Inputs) -> str:
    """Return the column that a query in a text is for."""
    texts = [name for name, kind in inputs.kinds.items() if kind == "text"]
    if not texts:
        raise _wrong(f"a query is a row with {', '.join(inputs.kinds)}")
    return texts[0]


def _listed(queries: Any) -> list[Any]:
    if not isinstance(queries, list) or not queries:
        raise _wrong("queries is a list of texts or rows")
    return queries


def _settings(body: dict[str, Any]) -> tuple[int, str | None, bool | None]:
    k, where, rerank = body.get("k", 10), body.get("filter"), body.get("rerank")
    if type(k) is not int or not 1 <= k <= MOST:
        raise _wrong(f"k is a number from 1 to {MOST}")
    if where is not None and not isinstance(where, str):
        raise _wrong("filter is a text")
    if rerank is not None and not isinstance(rerank, bool):
        raise _wrong("rerank is true or false")
    return k, where, rerank


def _result(hits: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the hits of a query, or why there is none."""
    rows = [{name: cell for name, cell in hit.items() if name not in ("row", "error")} for hit in hits]
    return {"hits": [row for row in rows if row["rank"] is not None], "error": hits[0]["error"]}


def _wrong(message: str) -> Problem:
    return Problem(422, "invalid_request", message)
