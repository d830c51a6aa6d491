"""Rows in and predictions out: JSON, uploads, errors of rows, and requests that are refused."""

from __future__ import annotations

import base64
import io
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fusetune.deploy.serve.loaded import load_version
from fusetune.deploy.serve.options import Limits

LIMITS = Limits(body_bytes=3_000_000, rows=8, chars=500, pixels=10_000, seconds=2.0, depth=8)
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def shop_client(fitted, make_serving, client_of) -> Any:
    return client_of(make_serving(fitted, limits=LIMITS))


@pytest.fixture(scope="module")
def client(plain, make_serving, client_of) -> Any:
    return client_of(make_serving(plain, limits=LIMITS, name="rating"))


def kind(answer: Any) -> str:
    return str(answer.json()["error"]["type"])


def test_answers_are_those_of_predict(fitted, shop, shop_client, encoded) -> None:
    rows = shop[1][100:106]
    paths = [{**row, "photo": str(shop[0] / row["photo"]), "voice": str(shop[0] / row["voice"])} for row in rows]
    expected = fitted.predict(paths).table.to_pylist()
    answer = shop_client.post("/predict", json={"rows": [encoded(row) for row in rows]})
    assert answer.status_code == 200
    for own, other in zip(answer.json()["predictions"], expected, strict=True):
        assert own.keys() == other.keys() and own["label"] == other["label"] and own["error"] is None
        assert own["label_probability"] == pytest.approx(other["label_probability"], abs=1e-5)


def test_a_form_with_uploads_is_a_row(shop, shop_client, encoded) -> None:
    row = shop[1][100]
    files = {name: (name, (shop[0] / row[name]).read_bytes()) for name in ("photo", "voice")}
    fields = {name: row[name] for name in ("note", "price", "plan")}
    own = shop_client.post("/predict", data=fields, files=files).json()["predictions"][0]
    other = shop_client.post("/predict", json={"rows": [encoded(row)]}).json()["predictions"][0]
    assert own["label_probability"] == pytest.approx(other["label_probability"], abs=1e-5) and own["error"] is None


def test_uploads_never_touch_the_disk(shop, shop_client, monkeypatch) -> None:
    import tempfile

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a file was made")

    row, picture = shop[1][100], io.BytesIO()
    Image.new("RGB", (90, 90)).save(picture, "PNG")
    large = picture.getvalue() + bytes(2_000_000)  # what follows a picture is not read
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refuse)
    fields = {name: row[name] for name in ("note", "price", "plan")} | {"missing_columns": "voice"}
    answer = shop_client.post("/predict", data=fields, files={"photo": large})
    assert answer.status_code == 200 and answer.json()["predictions"][0]["error"] is None


@pytest.mark.parametrize(
    "cell",
    [
        "{path}",
        "red0.png",
        "/etc/passwd",
        "file:///etc/passwd",
        "https://example.com/a.png",
        "s3://bucket/a.png",
        ["{path}"],
        {"path": "{path}"},
        {"bytes": "{path}"},
        {"path": "{path}", "bytes": None},
        "{path};{path}",
        "data:image/png;base64,",
        "data:text/plain,hello",
        7,
        True,
        [[]],
        "A" * 100,
    ],
)
def test_paths_and_addresses_are_refused_and_never_opened(shop, shop_client, encoded, monkeypatch, cell) -> None:
    path = str(shop[0] / "red0.png")
    cell = json.loads(json.dumps(cell).replace("{path}", path))
    opened: list[str] = []
    for name in ("read_bytes", "exists", "is_file", "open", "stat"):
        was = getattr(Path, name)
        monkeypatch.setattr(
            Path, name, lambda self, *a, was=was, **k: (opened.append(str(self)), was(self, *a, **k))[1]
        )
    answer = shop_client.post("/predict", json={"rows": [{**encoded(shop[1][0]), "photo": cell}]})
    assert answer.status_code == 422 and kind(answer) == "file_refused"
    assert answer.json()["error"]["column"] == "photo" and answer.json()["error"]["row"] == 0
    own = [name for name in opened if "red0.png" in name or "passwd" in name]
    assert own in ([], [path])  # the test's own reading of the picture


def test_a_table_of_a_strangers_rows_opens_nothing(fitted, shop) -> None:
    """Whatever a cell is, the table that the server builds does not lead to a file of this machine."""
    from fusetune.deploy.serve.inputs import table_of

    row = {"note": "w1", "photo": str(shop[0] / "red0.png"), "voice": "voice0.wav", "price": 1, "plan": "pro"}
    (error,) = fitted.predict(table_of([row]))["error"]
    assert "'photo': it is a path or an address" in error and "'voice': it is a path or an address" in error


def test_damaged_files_are_errors_of_their_row(shop, shop_client, encoded) -> None:
    rows = [encoded(row) for row in shop[1][:2]]
    rows[0]["photo"] = base64.b64encode(base64.b64decode(rows[0]["photo"])[:200]).decode()
    first, second = shop_client.post("/predict", json={"rows": rows}).json()["predictions"]
    assert "corrupt or cut off" in first["error"] and first["label"] is not None
    assert second["error"] is None


def test_limits_of_pictures_and_sounds(shop, shop_client, encoded) -> None:
    picture, row = io.BytesIO(), encoded(shop[1][0])
    Image.new("RGB", (200, 100)).save(picture, "PNG")
    large = {**row, "photo": "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()}
    answer = shop_client.post("/predict", json={"rows": [large]})
    assert answer.status_code == 422 and kind(answer) == "too_large" and "20,000 pixels" in answer.text
    import wave

    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(2000)
        file.writeframes(bytes(2 * 2000 * 3))
    answer = shop_client.post(
        "/predict", json={"rows": [{**row, "voice": base64.b64encode(sound.getvalue()).decode()}]}
    )
    assert answer.status_code == 422 and kind(answer) == "too_large" and "3.0 seconds" in answer.text


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        (b'{"rows": [{"note": "w1", "price": NaN}]}', 400, "invalid_json"),
        (b'{"rows": [{"note": "w1", "price": 1e999}]}', 400, "invalid_json"),
        (b'{"rows": [{"note": "w1", "price": -Infinity}]}', 400, "invalid_json"),
        (b'{"rows": [{"note": "\\ud800", "price": 1}]}', 400, "invalid_json"),
        (b'{"rows": [{"note": "w1", "price": 1, "\\udc00": 1}]}', 400, "invalid_json"),
        (b'{"rows": [{"note": "\xff", "price": 1}]}', 400, "invalid_json"),
        (b'{"rows": [{"note": "w1", "note": "w2", "price": 1}]}', 400, "invalid_json"),
        (b'{"rows": [{"note": "w1", "price": ' + b"9" * 6000 + b"}]}", 400, "invalid_json"),
        (b"[" * 100_000, 400, "invalid_json"),
        (b'{"rows": ' + b"[" * 50 + b"]" * 50 + b"}", 400, "invalid_json"),
        (b"", 400, "invalid_json"),
        (b"\xef\xbb\xbf{}", 400, "invalid_json"),
        (b"[]", 422, "invalid_request"),
        (b"{}", 422, "invalid_request"),
        (b'{"rows": [], "extra": 1}', 422, "invalid_request"),
        (b'{"rows": []}', 422, "invalid_rows"),
        (b'{"rows": {}}', 422, "invalid_rows"),
        (b'{"rows": [1]}', 422, "invalid_rows"),
        (b'{"rows": [null]}', 422, "invalid_rows"),
        (b'{"rows": [{"note": "w1"}]}', 422, "missing_column"),
        (b'{"rows": [{"note": "w1"}], "missing_columns": ["prise"]}', 422, "unknown_column"),
        (b'{"rows": [{"note": "w1"}], "missing_columns": "price"}', 422, "invalid_request"),
        (b'{"rows": [' + b",".join([b'{"note": "w1", "price": 1}'] * 9) + b"]}", 413, "too_large"),
        (b'{"rows": [{"note": "' + b"w" * 501 + b'", "price": 1}]}', 413, "too_large"),
        (b'{"rows": [{"note": ["' + b"w" * 501 + b'"], "price": 1}]}', 413, "too_large"),
        (b" " * 3_000_001, 413, "too_large"),
    ],
)
def test_requests_that_are_refused(client, body, status, expected) -> None:
    answer = client.post("/predict", content=body, headers=JSON)
    assert (answer.status_code, kind(answer)) == (status, expected), answer.text
    assert answer.json()["error"]["message"]


def test_a_chunked_body_is_counted(client) -> None:
    answer = client.post("/predict", content=(b" " * 65_536 for _ in range(50)), headers=JSON)
    assert answer.status_code == 413 and kind(answer) == "too_large"


@pytest.mark.parametrize(
    "media_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16"]
)
def test_other_types_are_refused(client, media_type) -> None:
    answer = client.post(
        "/predict", content=b'{"rows": [{"note": "w1", "price": 1}]}', headers={"content-type": media_type}
    )
    assert answer.status_code == 415


@pytest.mark.parametrize("boundary", ["", "; boundary=", "; boundary=x", "; boundary=" + "x" * 300])
def test_broken_forms_are_refused(client, boundary) -> None:
    headers = {"content-type": "multipart/form-data" + boundary}
    for body in (b"", b"--x\r\n", b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--\r\n", b"\x00" * 100):
        assert client.post("/predict", content=body, headers=headers).status_code in (400, 422)


def test_odd_cells_are_errors_of_their_row(client) -> None:
    rows = [{"note": "w1", "price": cell} for cell in ("dear", [1], {"a": 1}, True)] + [{"note": "w1", "price": 2}]
    answers = client.post("/predict", json={"rows": rows}).json()["predictions"]
    assert "price" in answers[0]["error"] and answers[-1]["error"] is None
    assert [answer["row"] for answer in answers] == [0, 1, 2, 3, 4]


def test_identifiers_are_repeated_if_they_are_sent(client) -> None:
    row = {"note": "w1", "price": 1}
    assert client.post("/predict", json={"rows": [{**row, "id": "x"}]}).json()["predictions"][0]["id"] == "x"
    assert "id" not in client.post("/predict", json={"rows": [row]}).json()["predictions"][0]


def test_columns_may_be_missing_if_it_is_declared(client) -> None:
    answer = client.post("/predict", json={"rows": [{"note": "w1"}], "missing_columns": ["price"]})
    assert answer.status_code == 200 and answer.json()["predictions"][0]["error"] is None


def test_unknown_paths_and_methods(client) -> None:
    assert kind(client.get("/nowhere")) == "not_found" and client.get("/predict").status_code == 405


def test_schema_and_description(client, shop_client, shop) -> None:
    schema = client.get("/schema").json()
    assert {column["name"]: column["kind"] for column in schema["columns"]} == {
        "note": "text",
        "price": "number",
        "id": "id",
    }
    assert schema["targets"] == [{"name": "label", "task": "binary", "labels": ["no", "yes"]}]
    assert [column["name"] for column in schema["outputs"]][:2] == ["label", "label_probability"]
    document = shop_client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    (row,) = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]["rows"]
    assert row["note"] == shop[1][0]["note"] and "base64" in row["photo"]
    posts = {path: entry["post"] for path, entry in document["paths"].items() if "post" in entry}
    assert all(entry["requestBody"]["content"]["application/json"]["example"] for entry in posts.values())
    parameters = document["paths"]["/v2/models/{model}/versions/{version}/infer"]["parameters"]
    assert [parameter["name"] for parameter in parameters] == ["model", "version"]
    assert len({entry["operationId"] for entry in posts.values()}) == len(posts)


@pytest.mark.parametrize("shows_rows", [False, True])
def test_rows_of_the_train_table_are_shown_at_loopback_alone(fitted, shop, shows_rows) -> None:
    model = load_version(lambda folder: fitted, fitted.folder, name=None, precision="float32", shows_rows=shows_rows)
    assert (model.example["note"] == shop[1][0]["note"]) is shows_rows


def test_examples_of_the_description_are_answered(client) -> None:
    document = client.get("/openapi.json").json()
    for path in ("/predict", "/v1/embeddings", "/v2/models/{model}/infer"):
        example = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
        answer = client.post(path.replace("{model}", "rating"), json=example)
        assert answer.status_code == 200, answer.text


def test_counters(client) -> None:
    client.post("/predict", json={"rows": [{"note": "w1", "price": 1}]})
    text = client.get("/metrics").text
    assert 'fusetune_requests_total{path="/predict",status="200"}' in text
    assert "fusetune_batch_rows_bucket" in text and 'fusetune_model{name="rating"' in text


def test_our_own_faults_are_answered_without_details(plain, make_serving, client_of, monkeypatch) -> None:
    from fusetune.deploy.serve.loaded import Loaded

    serving = make_serving(plain)

    def broken(self: Any, records: Any) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(Loaded, "predict", broken)
    answer = client_of(serving).post("/predict", json={"rows": [{"note": "w1", "price": 1}]})
    assert answer.status_code == 500 and kind(answer) == "fault" and "secret" not in answer.text


def test_answers_do_not_depend_on_who_shares_the_batch(plain, make_serving, client_of) -> None:
    """Rows whose cells differ in type, sent at once by several clients, are answered as alone."""
    serving = make_serving(plain, limits=replace(LIMITS, rows=100))
    client = client_of(serving)
    notes = ["w1 w2", "w3 " * 12, "w5", 7, 1.5, None, ["w1", "w2"], "w9 w8 w7 w6"]
    rows = [{"note": note, "price": price} for note in notes for price in (1, 2.5, "3", None)]
    alone = [client.post("/predict", json={"rows": [row]}).json()["predictions"][0] for row in rows]
    answers: dict[int, Any] = {}

    def ask(number: int) -> None:
        answers[number] = client.post("/predict", json={"rows": [rows[number]]}).json()["predictions"][0]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(rows))]
    with serving.service.worker.expecting():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, answer in enumerate(alone):
        assert answers[number]["error"] == answer["error"]
        for name, value in answer.items():
            same = pytest.approx(value, abs=1e-5) if isinstance(value, float) else value
            assert answers[number][name] == same
    batches = serving.service.metrics.batch_rows
    total = {s.name: s.value for m in batches.collect() for s in m.samples if not s.labels}
    assert total["fusetune_batch_rows_count"] < 2 * len(rows)  # some were together
