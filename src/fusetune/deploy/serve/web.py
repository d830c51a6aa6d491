"""FastAPI's names, from the extra `serve`, and JSON answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fusetune._optional import optional_import
from fusetune.deploy.serve.problems import Problem
from fusetune.deploy.serve.strict_json import dump

PURPOSE = "to serve a model"

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response
    from starlette.responses import StreamingResponse
else:
    FastAPI, Request, Response = (
        getattr(optional_import("fastapi", PURPOSE), n) for n in ("FastAPI", "Request", "Response")
    )
    StreamingResponse = optional_import("starlette.responses", PURPOSE).StreamingResponse

Endpoint = Callable[[Request], Awaitable[Response]]

__all__ = ["Endpoint", "FastAPI", "Request", "Response", "StreamingResponse", "json_response", "problem_response"]


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return an answer in JSON; NaN and infinite numbers are null."""
    return Response(dump(value), status, headers=headers, media_type="application/json")


def problem_response(problem: Problem, path: str) -> Response:
    """Return the answer to a request for a path that is refused."""
    return json_response(problem.body_for(path), problem.status, problem.headers)
