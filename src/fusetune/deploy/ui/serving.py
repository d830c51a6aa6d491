"""Serve the page: behind the guard of `fusetune serve`, without a call to any other machine."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from fusetune._optional import optional_import
from fusetune.deploy.serve.connections import DrainingServer, make_server, run_server
from fusetune.deploy.serve.guard import App, Guard, Message, Receive, Scope, Send
from fusetune.deploy.serve.metrics import Metrics
from fusetune.deploy.serve.options import ServeOptions
from fusetune.deploy.serve.problems import Problem
from fusetune.deploy.serve.web import FastAPI, Request, Response, problem_response

PURPOSE = "to show a page"
API = "/gradio_api"
TEMP = "GRADIO_TEMP_DIR"
"""The variable that names the folder of uploads; one that is set is the user's, and stays."""
GET = re.compile(
    rf"/|/(config|theme\.css|manifest\.json|favicon\.ico|robots\.txt)/?|/(assets|static|svelte)/.*"
    rf"|{API}/(info|app_id|startup-events|upload_progress|queue/data|theme\.css)/?"
    rf"|{API}/heartbeat/\w+|{API}/call/\w+/\w+|{API}/file=/.*"
)
"""The paths that may be got. Not among them is what fetches addresses, edits the page or shows who asked what."""
POST = re.compile(rf"{API}/(queue/join|upload|cancel|reset)/?|{API}/(call|run|api)/\w+/?")
HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-src 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Of every answer: a browser asks no other machine for anything, whatever the page holds."""


class PageGuard(Guard):
    """The guard of a page: people give the token as the password that their browser asks for."""

    def check_token(self, headers: Mapping[str, str]) -> None:
        """Accept the token as a password of Basic authentication too.

        Raises:
            Problem: 401, it is missing or wrong.
        """
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            try:
                password = base64.b64decode(given.strip(), validate=True).partition(b":")[2]
            except binascii.Error:
                password = b""
            if self.access.token is not None and hmac.compare_digest(password, self.access.token.encode("latin-1")):
                return
        try:
            super().check_token(headers)
        except Problem as problem:
            message = "give the token of fusetune ui as the password; any name will do"
            raise Problem(problem.status, problem.kind, message, challenge='Basic realm="fusetune"') from None


def only_known(app: App) -> App:
    """Answer 404 for other paths than the page's, and add headers that keep browsers on this machine."""

    async def known(scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        if scope["type"] == "http":
            paths = {"GET": GET, "HEAD": GET, "POST": POST}.get(scope["method"])
            if paths is None or not paths.fullmatch(scope["path"]):
                body = b'{"detail": "not found"}'
                start = {
                    "type": "http.response.start",
                    "status": 404,
                    "headers": [(b"content-type", b"application/json")],
                }
                await with_headers(start)
                await send({"type": "http.response.body", "body": body})
                return
        await app(scope, receive, with_headers)

    return known


def refuse_addresses() -> None:
    """Have Gradio take no file of an address, which it would fetch, and none but those that were uploaded to it."""
    blocks: Any = optional_import("gradio.blocks", PURPOSE)
    if getattr(blocks.Block, "takes_own_files_only", False):
        return
    utils: Any = optional_import("gradio.utils", PURPOSE)
    move: Callable[..., Awaitable[Any]] = blocks.Block.async_move_resource_to_block_cache

    async def own_files(self: Any, path: Any) -> Any:
        if path is not None and not Path(path).resolve().is_relative_to(Path(utils.get_upload_folder()).resolve()):
            raise ValueError("a file is uploaded; no path and no address is opened")
        return await move(self, path)

    blocks.Block.async_move_resource_to_block_cache = own_files
    blocks.Block.takes_own_files_only = True


class PageServer:
    """A page and its server, before it runs.

    Attributes:
        title: of the page.
        guard: the application.
    """

    def __init__(self, options: ServeOptions, build: Callable[[], Any]) -> None:
        """Build the page.

        Args:
            options: what the user decided.
            build: returns the page as `gradio.Blocks`; called when it is settled where its files go.

        Raises:
            UserError: it cannot be built.
        """
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        self._home: Path | None = None
        if TEMP not in os.environ:
            self._home = Path(tempfile.mkdtemp(prefix="fusetune-ui-")).resolve()
            os.environ[TEMP] = str(self._home)
        self.options = options
        try:
            page = build()
            self.title = str(page.title)
            app = only_known(_mounted(page, options))
        except BaseException:
            self.close()
            raise
        self.guard = PageGuard(app, options.access, options.limits, Metrics(), lambda path: "page")

    def server(self) -> DrainingServer:
        """Return the server that answers at the port of the options."""
        return make_server(self.guard, self.options, lambda: None, lifespan="on")

    def run(self, bound: socket.socket) -> None:
        """Serve at a socket until Ctrl-C or SIGTERM; then delete what was uploaded."""
        try:
            run_server(self.server(), bound)
        finally:
            self.close()

    def close(self) -> None:
        """Delete what was uploaded."""
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            os.environ.pop(TEMP, None)
            self._home = None


def _mounted(page: Any, options: ServeOptions) -> App:
    """Return the page as an application, without what Gradio offers for its own site."""
    gr: Any = optional_import("gradio", PURPOSE)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    gr.mount_gradio_app(
        app, page, path="/", theme=gr.themes.Soft(primary_hue="blue", **fonts), show_error=False, footer_links=[],
        run_history=False, ssr_mode=False, mcp_server=False, pwa=False, enable_monitoring=False,
        max_file_size=options.limits.body_bytes,
    )  # fmt: skip
    page.has_launched = page.is_running = True  # it checks where files come from only then
    refuse_addresses()

    async def problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return problem_response(error, request.url.path)

    for route in app.routes:
        if isinstance(inner := getattr(route, "app", None), FastAPI):
            inner.add_exception_handler(Problem, problem)
    mounted: Any = app
    return mounted  # type: ignore[no-any-return]
