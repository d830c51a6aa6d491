"""The Open Inference Protocol: tensors in JSON and in Triton's binary form, metadata, and errors as texts."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from fusetune.deploy.serve.options import Limits

NOTE = {"name": "note", "shape": [2], "datatype": "BYTES", "data": ["w1 w2", None]}
PRICE = {"name": "price", "shape": [2, 1], "datatype": "FP32", "data": [[1.5], [2.5]]}
PATH = "/v2/models/rating/infer"


@pytest.fixture(scope="module")
def client(plain, make_serving, client_of) -> Any:
    return client_of(make_serving(plain, name="rating", limits=Limits(body_bytes=300_000)))


@pytest.fixture(scope="module")
def rows(client) -> list[dict[str, Any]]:
    """What /predict answers to the same rows."""
    body = {"rows": [{"note": "w1 w2", "price": 1.5}, {"note": None, "price": 2.5}]}
    return list(client.post("/predict", json=body).json()["predictions"])


def outputs(answer: Any) -> dict[str, list[Any]]:
    assert answer.status_code == 200, answer.text
    return {tensor["name"]: tensor["data"] for tensor in answer.json()["outputs"]}


def test_answers_are_those_of_predict(client, rows) -> None:
    answer = client.post(PATH, json={"id": "7", "inputs": [NOTE, PRICE]})
    tensors = {tensor["name"]: tensor for tensor in answer.json()["outputs"]}
    assert (answer.json()["model_name"], answer.json()["id"]) == ("rating", "7")
    assert tensors["label"] == {
        "name": "label",
        "datatype": "BYTES",
        "shape": [2],
        "data": [row["label"] for row in rows],
    }
    assert tensors["label:yes"]["datatype"] == "FP64"
    assert tensors["label:yes"]["data"] == pytest.approx([row["label:yes"] for row in rows], abs=1e-5)
    assert tensors["error"]["data"] == ["", ""]


def test_outputs_may_be_chosen_and_columns_left_out(client, rows) -> None:
    asked = {"inputs": [NOTE, PRICE], "outputs": [{"name": "label:no"}]}
    assert outputs(client.post(PATH, json=asked)).keys() == {"label:no"}
    left = {"inputs": [NOTE], "parameters": {"missing_columns": "price"}}
    assert outputs(client.post(PATH, json=left))["error"] == ["", "no input column has a value"]


def test_tensors_in_binary_form(client, rows) -> None:
    texts = [b"w1 w2", b""]
    note = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    price = np.array([1.5, 2.5], "<f4").tobytes()
    tensors = [
        {"name": "note", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(note)}},
        {"name": "price", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": len(price)}},
    ]
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    answer = client.post(PATH, content=head + note + price, headers=headers)
    assert outputs(answer)["label:yes"] == pytest.approx([row["label:yes"] for row in rows], abs=1e-5)
    for end in (1, len(price), len(price) + len(note)):
        broken = client.post(PATH, content=(head + note + price)[:-end], headers=headers)
        assert broken.status_code == 422
    wrong = {**headers, "inference-header-content-length": "99999"}
    assert client.post(PATH, content=head, headers=wrong).status_code == 400


def test_pictures_may_be_the_bytes_of_their_file(fitted, shop, make_serving, client_of) -> None:
    from fusetune.deploy.serve.open_inference import rows_of

    model = make_serving(fitted).service.live.model
    file = (shop[0] / "red0.png").read_bytes()
    data = struct.pack("<I", len(file)) + file
    tensor = {"name": "photo", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    assert rows_of({"inputs": [tensor]}, data, model) == [{"photo": file}]


def test_metadata_and_health(client) -> None:
    assert client.get("/v2").json()["name"] == "fusetune"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    metadata = client.get("/v2/models/rating").json()
    assert metadata["inputs"] == [
        {"name": "note", "datatype": "BYTES", "shape": [-1]},
        {"name": "price", "datatype": "FP64", "shape": [-1]},
    ]
    (version,) = metadata["versions"]
    assert client.get(f"/v2/models/rating/versions/{version}/ready").json()["ready"] is True
    assert outputs(client.post(f"/v2/models/rating/versions/{version}/infer", json={"inputs": [NOTE, PRICE]}))


@pytest.mark.parametrize(
    ("path", "status"), [("/v2/models/other", 404), ("/v2/models/rating/versions/0", 404), ("/v2/nowhere", 404)]
)
def test_errors_are_texts(client, path, status) -> None:
    answer = client.get(path)
    assert answer.status_code == status and isinstance(answer.json()["error"], str)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"name": None},
        {"shape": [3]},
        {"shape": [2, 2]},
        {"shape": []},
        {"shape": [-1]},
        {"shape": "2"},
        {"shape": [True, 1]},
        {"datatype": "STRING"},
        {"datatype": None},
        {"datatype": ["BYTES"]},
        {"datatype": "INT64"},
        {"datatype": "BOOL"},
        {"data": [1, 2]},
        {"data": ["a"]},
        {"data": None},
        {"data": [["a", "b"], ["c", "d"]]},
        {"parameters": {"binary_data_size": 5}},
        {"parameters": {"binary_data_size": "x"}},
    ],
)
def test_broken_tensors_are_refused(client, changes) -> None:
    answer = client.post(PATH, json={"inputs": [{**NOTE, **changes}, PRICE]})
    assert answer.status_code == 422 and isinstance(answer.json()["error"], str)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": []},
        {"inputs": [1]},
        {"inputs": [NOTE, NOTE, PRICE]},
        {"inputs": [NOTE]},
        {"inputs": [NOTE, {**PRICE, "datatype": "INT8", "data": [1, 300]}]},
        {"inputs": [NOTE, PRICE], "outputs": [{"name": "x"}]},
        {"inputs": [NOTE, PRICE], "outputs": [1]},
        {"inputs": [NOTE, PRICE], "outputs": [{"name": ["label"]}]},
        {"inputs": [NOTE, PRICE], "outputs": "label"},
        {"inputs": [NOTE, {**PRICE, "name": ["price"]}]},
        {"inputs": [NOTE, {**PRICE, "shape": [1], "data": [1]}]},
    ],
)
def test_broken_requests_are_refused(client, body) -> None:
    assert client.post(PATH, json=body).status_code == 422
