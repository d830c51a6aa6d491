"""`POST /predict`: rows in, predictions out."""

from __future__ import annotations

import asyncio
from typing import Any

from fusetune.deploy.serve.bodies import INLINE_BYTES, content_type, form_row, json_object
from fusetune.deploy.serve.inputs import Inputs, Record
from fusetune.deploy.serve.options import Limits
from fusetune.deploy.serve.problems import Problem
from fusetune.deploy.serve.service import Service
from fusetune.deploy.serve.web import Request, Response, json_response

ROWS, MISSING = "rows", "missing_columns"


async def predict(request: Request, service: Service) -> Response:
    """Answer rows in JSON, or a row as a form with uploads.

    Raises:
        Problem: the request is refused, or there is no answer in time.
    """
    model, limits = service.model(), service.options.limits
    with service.worker.expecting() as expected:
        rows, missing = await _rows(request, limits)
        records = await read_records(model.inputs, rows, limits, missing, num_bytes=_length(request))
        request.state.log = {"rows": len(records), "version": model.version}
        answers = await service.predict(model, records, expected)
    return json_response({"predictions": answers, "model": {"name": model.name, "version": model.version}})


async def read_records(
    inputs: Inputs, rows: Any, limits: Limits, missing: list[str], *, num_bytes: int
) -> list[Record]:
    """Return a request's rows as records; large requests in a thread. See `Inputs.records`."""
    if num_bytes <= INLINE_BYTES:
        return inputs.records(rows, limits, missing=missing)
    return await asyncio.to_thread(inputs.records, rows, limits, missing=missing)


async def _rows(request: Request, limits: Limits) -> tuple[Any, list[str]]:
    """Return a request's rows, and the columns that they may lack."""
    media_type, _ = content_type(request)
    if media_type == "multipart/form-data":
        row = await form_row(request)
        missing = row.pop(MISSING, "")
        if not isinstance(missing, str):
            raise Problem(422, "invalid_request", f"{MISSING} is no upload")
        return [row], [name.strip() for name in missing.split(",") if name.strip()]
    body = await json_object(request, limits)
    unknown = [name for name in body if name not in (ROWS, MISSING)]
    if unknown or ROWS not in body:
        came = f"{unknown[0][:80]!a}" if unknown else "no rows"
        message = f'expected {{"rows": [...]}} and, if need be, "missing_columns": [...]; came {came}'
        raise Problem(422, "invalid_request", message)
    return body[ROWS], names_of(body.get(MISSING, []))


def names_of(value: Any) -> list[str]:
    """Return the columns that a request's rows may lack.

    Raises:
        Problem: 422, it is no list of names.
    """
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise Problem(422, "invalid_request", f"{MISSING} is no list of names")
    return value


def _length(request: Request) -> int:
    """Return a body's announced length; that of a chunked one is not known, so that it counts as large."""
    length = request.headers.get("content-length")
    return int(length) if length is not None else INLINE_BYTES + 1
