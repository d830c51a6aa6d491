"""Versions that are swapped in, on demand or by the folder, candidates in the shadow, and captured inputs."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fusetune import api
from fusetune.deploy.serve.options import Access, Capture
from fusetune.errors import ConfigError, UserError

TOKEN = "a-secret-token"
ROW = {"rows": [{"note": "w1", "price": 1}]}


@pytest.fixture
def versions(plain, tmp_path) -> Path:
    """A folder with two versions of a model, v2 with other weights, and a pointer to v1."""
    import torch

    shutil.copytree(plain.folder, tmp_path / "v1")
    other = api.load(tmp_path / "v1")
    with torch.no_grad():
        for parameter in other.bundle.model.parameters():
            parameter.mul_(1.1)
    other.save(tmp_path / "v2")
    (tmp_path / "current").write_text("v1\n")
    return tmp_path


@pytest.fixture
def serving(plain, make_serving, versions) -> Any:
    return make_serving(plain, load=api.load, folder=versions, access=Access(token=TOKEN), name="rating")


def served(client: Any) -> tuple[str, float]:
    answer = client.post("/predict", json=ROW).json()
    return answer["model"]["version"], answer["predictions"][0]["label:yes"]


def test_versions_on_demand(serving, client_of, versions) -> None:
    client = client_of(serving, authorization=f"Bearer {TOKEN}")
    first = served(client)
    assert first[0] == "v1" and client.get("/admin/versions").json() == {"versions": ["v1", "v2"], "served": "v1"}
    assert client.post("/admin/versions", json={"version": "v2"}).json() == {"served": "v2"}
    second = served(client)
    assert second[0] == "v2" and second[1] != first[1]
    client.post("/admin/versions", json={"version": "v1"})
    assert served(client) == first


@pytest.mark.parametrize("version", ["v3", "", ".", "..", "../v1", "/etc", "v1/backbones", "v1\0", 1, None])
def test_other_names_are_refused(serving, client_of, version) -> None:
    client = client_of(serving, authorization=f"Bearer {TOKEN}")
    assert client.post("/admin/versions", json={"version": version}).status_code == 422
    assert served(client)[0] == "v1"


def test_versions_need_a_token(plain, make_serving, client_of) -> None:
    client = client_of(make_serving(plain))
    assert client.get("/admin/versions").status_code == 403
    assert client.post("/admin/versions", json={"version": "v1"}).status_code == 403


def test_the_pointer_is_followed_and_broken_versions_are_not_served(serving, client_of, versions) -> None:
    client = client_of(serving, authorization=f"Bearer {TOKEN}")
    assert not serving.versions.check()
    for text in ("nowhere", "", "../v2"):
        (versions / "current").write_text(text)
        assert not serving.versions.check() and served(client)[0] == "v1"
    shutil.copytree(versions / "v2", versions / "v3")
    (versions / "v3" / "model.safetensors").write_bytes(b"broken")
    (versions / "current").write_text("v3")
    assert not serving.versions.check() and served(client)[0] == "v1"
    assert 'fusetune_swaps_total{outcome="failed"} 1.0' in client.get("/metrics").text
    (versions / "current").write_text("v2")
    assert serving.versions.check() and served(client)[0] == "v2"
    assert 'fusetune_model{name="rating",version="v2"} 1.0' in client.get("/metrics").text


def test_a_pointer_to_nothing_is_a_mistake(plain, make_serving, tmp_path) -> None:
    (tmp_path / "current").write_text("v1")
    with pytest.raises(UserError, match="no version 'v1'"):
        make_serving(plain, load=api.load, folder=tmp_path)


def test_no_request_is_lost_by_a_swap(serving, client_of, versions) -> None:
    client = client_of(serving, authorization=f"Bearer {TOKEN}")
    ended, statuses, seen = threading.Event(), [], {}

    def ask() -> None:
        while not ended.is_set():
            answer = client.post("/predict", json=ROW)
            statuses.append(answer.status_code)
            body = answer.json()
            seen.setdefault(body["model"]["version"], set()).add(round(body["predictions"][0]["label:yes"], 5))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for version in ("v2", "v1", "v2"):
        (versions / "current").write_text(version)
        assert serving.versions.check()
    ended.set()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200} and seen.keys() == {"v1", "v2"}
    assert [len(values) for values in seen.values()] == [1, 1]  # each version's answers are its own


def test_a_candidate_in_the_shadow_is_compared(plain, make_serving, client_of, versions) -> None:
    serving = make_serving(plain, load=api.load, folder=versions, shadow=versions / "v2")
    client = client_of(serving)
    rows = [{"note": f"w{number} w{number + 3}", "price": number} for number in range(12)]
    own = [row["label"] for row in client.post("/predict", json={"rows": rows}).json()["predictions"]]
    other = api.load(versions / "v2").predict([{**row, "id": None} for row in rows])["label"]
    agree = sum(a == b for a, b in zip(own, other, strict=True))
    serving.service.shadow.close(10)
    text = client.get("/metrics").text
    counts = {
        word: float(line.rsplit(" ", 1)[1])
        for word in ("yes", "no")
        for line in text.splitlines()
        if line.startswith(f'fusetune_shadow_rows_total{{agrees="{word}",column="label"}}')
    }
    assert counts.get("yes", 0) == agree and counts.get("no", 0) == 12 - agree


def test_inputs_are_captured_without_redacted_columns(plain, make_serving, client_of, tmp_path) -> None:
    file = tmp_path / "inputs.jsonl"
    serving = make_serving(plain, capture=Capture(file, ("note", "id")))
    rows = [{"note": "w1 secret", "price": 1, "id": "secret"}, {"note": None, "price": 2, "id": "secret"}]
    assert client_of(serving).post("/predict", json={"rows": rows}).status_code == 200
    serving.service.capture.close(10)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["row"]["price"] for line in lines] == [1, 2] and "secret" not in file.read_text()
    assert lines[0]["row"]["note"] == "[redacted]" and lines[1]["row"]["note"] is None
    assert lines[0]["prediction"]["label"] in ("yes", "no") and lines[0]["model"] == "model"
    assert file.stat().st_mode & 0o077 == 0


def test_redacted_columns_must_exist(plain, make_serving, tmp_path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'note'"):
        make_serving(plain, capture=Capture(tmp_path / "x.jsonl", ("notes",)))


def test_a_folder_that_changes_is_watched(plain, make_serving, client_of, tmp_path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(plain.folder, folder)
    serving = make_serving(plain, load=api.load, folder=folder)
    serving.versions.watch(0.05)
    client = client_of(serving)
    before = served(client)[0]
    api.load(folder).save(folder)
    until = time.monotonic() + 10
    while served(client)[0] == before and time.monotonic() < until:
        time.sleep(0.05)
    assert served(client)[0] != before
