"""The bodies of requests: JSON, or one row as a form with uploads, which stay in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fusetune._optional import optional_import
from fusetune.deploy.serve.options import Limits
from fusetune.deploy.serve.problems import Problem
from fusetune.deploy.serve.strict_json import parse
from fusetune.deploy.serve.web import Request

INLINE_BYTES = 64 * 1024
"""Larger bodies are parsed in a thread, so that other requests are answered in the meantime."""
MAX_PARTS = 256


async def json_body(request: Request, limits: Limits) -> Any:
    """Return a request's JSON.

    Raises:
        Problem: 415, it is of another type; 400, it is no standard JSON; 413 or 408 by the guard.
    """
    media_type, parameters = content_type(request)
    if media_type != "application/json":
        raise _wrong_type(media_type, "application/json")
    if parameters.get("charset", "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
        raise _wrong_type(f"charset {parameters['charset'][:40]}", "application/json in UTF-8")
    body = await request.body()
    if len(body) <= INLINE_BYTES:
        return parse(body, depth=limits.depth)
    return await asyncio.to_thread(parse, body, depth=limits.depth)


async def json_object(request: Request, limits: Limits) -> dict[str, Any]:
    """Return a request's JSON object; the errors are those of `json_body`, and 422 for other JSON."""
    data = await json_body(request, limits)
    if not isinstance(data, dict):
        raise Problem(422, "invalid_request", "the body is no JSON object")
    return data


async def form_row(request: Request) -> dict[str, Any]:
    """Return the row that a form has: its fields by column as texts, its uploads as lists of bytes.

    Raises:
        Problem: 400, it is no valid form.
    """
    formparsers: Any = optional_import("starlette.formparsers", "to read uploads")
    body = await request.body()

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    parser = formparsers.MultiPartParser(
        request.headers, chunks(), max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=len(body) + 1
    )
    parser.spool_max_size = len(body) + 1  # an upload of this size would go to the disk
    try:
        form = await parser.parse()
    except Exception as error:  # python-multipart and starlette raise errors of several kinds
        raise Problem(400, "invalid_form", f"the body is no valid form: {str(error)[:200]}") from None
    try:
        return await _row_of(form)
    finally:
        await form.close()


async def _row_of(form: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, part in form.multi_items():
        if isinstance(part, str):
            if name in row:
                raise Problem(400, "invalid_form", f"the field {name[:80]!a} is given twice")
            row[name] = _text(name, part)
            continue
        files = row.setdefault(name, [])
        if not isinstance(files, list):
            raise Problem(400, "invalid_form", f"the field {name[:80]!a} is given twice")
        files.append(await part.read())
    return row


def _text(name: str, part: str) -> str:
    try:
        part.encode("utf-8")
    except UnicodeEncodeError:
        raise Problem(400, "invalid_form", f"the field {name[:80]!a} is not UTF-8") from None
    return part


def content_type(request: Request) -> tuple[str, Mapping[str, str]]:
    """Return a request's media type in lower case, and its parameters."""
    media_type, *parts = request.headers.get("content-type", "").split(";")
    pairs = [part.partition("=") for part in parts]
    return media_type.strip().lower(), {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}


def _wrong_type(came: str, expected: str) -> Problem:
    return Problem(415, "wrong_type", f"the body is of type {came[:80]!a}; send {expected}")
