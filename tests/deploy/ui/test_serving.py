"""Who reaches the page, what it reads, and that it asks no other machine."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest

from fusetune.deploy.serve.options import Access, Limits


@pytest.fixture(scope="module")
def page(run_page, fitted):
    return run_page(fitted, limits=Limits(body_bytes=200_000))


def page_of(tuned: Any, examples: Any = lambda tuned: None, **options: Any) -> Any:
    """A page that does not listen."""
    from fusetune.deploy.serve.options import ServeOptions
    from fusetune.deploy.ui.page import load_page
    from fusetune.deploy.ui.serving import PageServer

    settings = ServeOptions(tuned.folder, **options)
    return PageServer(settings, lambda: load_page(settings, lambda folder: tuned, examples))


@pytest.fixture(scope="module")
def guarded(run_page, fitted):
    """The guard of a page with a token, asked without a socket."""
    from starlette.testclient import TestClient

    page = page_of(fitted, access=Access(token="secret"))
    return TestClient(page.guard, base_url="http://127.0.0.1")


def test_the_page_and_its_assets_are_answered_and_nothing_else(page):
    html = httpx.get(page.url)
    assert html.status_code == 200
    policy = html.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    for path in ("/config", "/theme.css", "/gradio_api/info"):
        assert httpx.get(page.url + path).status_code == 200
    for path in (
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/gradio_api/file=http://192.0.2.1/a.png",
        "/gradio_api/vibe-code",
        "/monitoring",
        "/monitoring/summary",
        "/docs",
        "/gradio_api/runs",
        "/gradio_api/deep_link",
        "/gradio_api/custom_component/x/client/component/a.js",
    ):
        assert httpx.get(page.url + path).status_code == 404, path
    assert httpx.post(page.url + "/gradio_api/vibe-edit", json={}).status_code == 404
    assert httpx.put(page.url + "/", content=b"").status_code == 404


def test_no_address_of_another_machine_is_in_the_page(page):
    html = httpx.get(page.url).text
    head = html[: html.index("window.gradio_config")]
    assert "https://fonts" not in html and "cdnjs" not in html and 'src="http' not in head
    config = httpx.get(page.url + "/config").json()
    assert config["analytics_enabled"] is False and config.get("is_space") is not True


def test_files_of_this_machine_are_not_given(page, fitted):
    for path in ("/etc/passwd", str(fitted.folder / "bundle.json"), "/etc/../etc/passwd"):
        assert httpx.get(f"{page.url}/gradio_api/file={path}").status_code in (403, 404)


def asked_for(page: Any, path: str, in_place_of: str = "photo") -> str:
    """What comes of naming a file in place of an upload, or of a text, whose widget takes none."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    data = [file, None, None, "1", "pro"] if in_place_of == "note" else ["w1", file, None, "1", "pro"]
    event = httpx.post(f"{page.url}/gradio_api/call/predict", json={"data": data})
    answer = httpx.get(f"{page.url}/gradio_api/call/predict/{event.json()['event_id']}", timeout=30)
    return answer.text


@pytest.mark.parametrize("path", ["http://192.0.2.1/a.png", "https://example.com/a.png", "/etc/passwd", "FOLDER"])
def test_no_path_and_no_address_is_read_as_an_upload(page, shop, path):
    said = asked_for(page, path.replace("FOLDER", str(shop[0] / "red0.png")))
    assert "event: error" in said and "confidence" not in said
    assert "event: error" in asked_for(page, path.replace("FOLDER", str(shop[0] / "red0.png")), in_place_of="note")


def test_large_uploads_are_refused_before_they_are_read(page):
    answer = httpx.post(f"{page.url}/gradio_api/upload", files={"files": ("a.png", b"0" * 300_000)})
    assert answer.status_code == 413

    def body():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        for _ in range(30):
            yield b"0" * 10_000

    kind = {"content-type": "multipart/form-data; boundary=x"}
    assert httpx.post(f"{page.url}/gradio_api/upload", content=body(), headers=kind).status_code == 413


def test_other_hosts_and_pages_are_refused(page):
    assert httpx.get(page.url, headers={"host": "evil.example"}).status_code == 403
    join = f"{page.url}/gradio_api/call/predict"
    headers = {"origin": "http://evil.example", "content-type": "text/plain"}
    assert httpx.post(join, content=json.dumps({"data": []}), headers=headers).status_code == 403


def test_a_browser_gives_the_token_as_a_password(guarded):
    answer = guarded.get("/")
    assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Basic")
    for user in ("", "anyone", "né"):
        given = base64.b64encode(f"{user}:secret".encode()).decode()
        assert guarded.get("/config", headers={"authorization": f"Basic {given}"}).status_code == 200
    assert guarded.get("/config", headers={"authorization": "Bearer secret"}).status_code == 200
    for wrong in ("Basic !", "Basic " + base64.b64encode(b"a:wrong").decode(), "Bearer wrong", "Basic", ""):
        assert guarded.get("/config", headers={"authorization": wrong}).status_code == 401


def test_rows_are_shown_to_this_machine_alone(fitted, monkeypatch):
    asked: list[Any] = []
    access = Access("0.0.0.0", "secret")
    page_of(fitted, asked.append, access=access).close()
    assert asked == []


def test_uploads_are_deleted_at_the_end(fitted, monkeypatch):
    import os
    from pathlib import Path

    users = Path(os.environ["GRADIO_TEMP_DIR"])
    page = page_of(fitted)
    page.close()
    assert users.is_dir()  # a folder that the user has named stays
    monkeypatch.delenv("GRADIO_TEMP_DIR")
    page = page_of(fitted)
    home = Path(os.environ["GRADIO_TEMP_DIR"])
    assert home.is_dir() and home.stat().st_mode & 0o077 == 0
    page.close()
    assert not home.exists() and "GRADIO_TEMP_DIR" not in os.environ


def test_importing_it_writes_no_files_beside_the_source():
    """Gradio writes a .pyi beside the file of every subclass of a component."""
    from pathlib import Path

    from fusetune.deploy.ui import page

    assert not list(Path(page.__file__).parent.glob("*.pyi"))
