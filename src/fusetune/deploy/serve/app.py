"""The application: which path is answered by what, and how failures are answered."""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable
from typing import Any

from fusetune import __version__
from fusetune._optional import optional_import
from fusetune.deploy.serve import open_inference, openai_chat, openai_models, searching
from fusetune.deploy.serve.describe import other_bodies, predict_body, schema_of
from fusetune.deploy.serve.guard import Guard
from fusetune.deploy.serve.logs import log
from fusetune.deploy.serve.predicting import predict
from fusetune.deploy.serve.problems import Problem
from fusetune.deploy.serve.service import Service
from fusetune.deploy.serve.versions import Versions
from fusetune.deploy.serve.web import FastAPI, Request, Response, json_response, problem_response

Handler = Callable[[Request, Service], Awaitable[Response]]


def build_guard(service: Service, versions: Versions) -> Guard:
    """Return the application of a service, behind its guard."""
    app = build_app(service, versions)
    known = {getattr(route, "path", "") for route in app.routes}

    def counted_path(path: str) -> str:
        return path if path in known else "/v2/models" if path.startswith("/v2/models/") else "other"

    outer: Any = app
    if service.options.access.origins:
        cors: Any = optional_import("starlette.middleware.cors", "to answer web pages")
        origins = list(service.options.access.origins)
        outer = cors.CORSMiddleware(app, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    return Guard(outer, service.options.access, service.options.limits, service.metrics, counted_path)


def build_app(service: Service, versions: Versions) -> FastAPI:
    """Return the application without its guard."""
    app = FastAPI(
        title="fusetune", version=__version__, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    add_failures(app)
    add = functools.partial(add_route, app, service)
    add("POST", "/predict", predict)
    add("GET", "/schema", _schema)
    add("GET", "/metrics", _metrics)
    add("POST", "/search", searching.search)
    add("GET", "/v1/models", openai_models.list_models)
    add("POST", "/v1/embeddings", openai_models.embeddings)
    add("POST", "/v1/chat/completions", openai_chat.chat_completions)
    add("GET", "/v2", open_inference.server_metadata)
    add("GET", "/v2/health/live", open_inference.live)
    add("GET", "/v2/health/ready", open_inference.ready)
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        add("GET", path, open_inference.model_metadata)
        add("GET", f"{path}/ready", open_inference.model_ready)
        add("POST", f"{path}/infer", open_inference.infer)
    add("GET", "/admin/versions", versions.listed)
    add("POST", "/admin/versions", versions.load_on_demand)
    add("GET", "/health/live", _live)
    add("GET", "/health/ready", _ready)
    app.add_api_route("/openapi.json", functools.partial(_openapi, app, service), include_in_schema=False)
    return app


def add_route(app: FastAPI, service: Service, method: str, path: str, handler: Handler) -> None:
    """Add a route whose handler gets the request and the service."""

    async def endpoint(request: Request) -> Response:
        return await handler(request, service)

    endpoint.__annotations__ = {"request": Request, "return": Response}
    summary = (handler.__doc__ or "").strip().splitlines()[0]
    name = handler.__name__.strip("_")
    app.add_api_route(
        path,
        endpoint,
        methods=[method],
        name=name,
        operation_id=f"{method.lower()}{path.translate(str.maketrans('/{}', '_  ')).replace(' ', '')}",
        summary=summary,
        response_class=Response,
    )


async def _schema(request: Request, service: Service) -> Response:
    """Return the model's columns, targets and limits."""
    return json_response(schema_of(service.live.model, service.options.limits))


async def _metrics(request: Request, service: Service) -> Response:
    """Return the server's counters for Prometheus."""
    return Response(service.metrics.text(), media_type=service.metrics.content_type)


async def _live(request: Request, service: Service) -> Response:
    """Answer 200 as long as the process answers."""
    return json_response({"status": "live"})


async def _ready(request: Request, service: Service) -> Response:
    """Answer 200 while requests are welcome, 503 once the server is about to end."""
    if not service.ready:
        raise Problem(503, "ending", "the server is about to end", retry_after=1)
    model = service.live.model
    return json_response({"status": "ready", "model": {"name": model.name, "version": model.version}})


async def _openapi(app: FastAPI, service: Service) -> Response:
    utils: Any = optional_import("fastapi.openapi.utils", "to describe the API")
    document = utils.get_openapi(title=app.title, version=app.version, routes=app.routes)
    model = service.live.model
    for path, body in {"/predict": predict_body(model), **other_bodies(model)}.items():
        document["paths"][path]["post"]["requestBody"] = body
    for path, entry in document["paths"].items():
        if names := re.findall(r"\{(\w+)\}", path):
            text = {"in": "path", "required": True, "schema": {"type": "string"}}
            entry["parameters"] = [{"name": name, **text} for name in names]
    return json_response(document)


def add_failures(app: FastAPI) -> None:
    """Answer problems, unknown paths and our own faults in JSON."""
    http: Any = optional_import("starlette.exceptions", "to serve a model")

    async def problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return problem_response(error, request.url.path)

    async def http_error(request: Request, error: Exception) -> Response:
        status, detail = getattr(error, "status_code", 500), str(getattr(error, "detail", ""))
        headers = getattr(error, "headers", None)
        kind = {404: "not_found", 405: "wrong_method"}.get(status, "refused")
        return json_response(Problem(status, kind, detail).body_for(request.url.path), status, headers)

    async def fault(request: Request, error: Exception) -> Response:
        request_id = request.scope.get("state", {}).get("request_id", "")
        log("failed", error=error, path=request.url.path[:200], request_id=request_id)
        message = f"the server failed; its log has the reason under the request id {request_id}"
        return problem_response(Problem(500, "fault", message, request_id=request_id), request.url.path)

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(http.HTTPException, http_error)
    app.add_exception_handler(Exception, fault)
