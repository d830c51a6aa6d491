"""OpenAI's forms: embeddings of texts and chats, whole and in pieces; and searches."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from typing import Any

import numpy as np
import pytest

from fusetune import api
from fusetune.data.table import Table

MARKS = "{'system': 'w1', 'user': 'w2', 'assistant': 'w3'}[m.role]"
TEMPLATE = (
    "{% for m in messages %}{{ " + MARKS + " ~ ' ' ~ m.content ~ ' [SEP] ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'w3 ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def pairs(tiny, tmp_path_factory) -> Any:
    """A model of pairs of a text each, with an index of six documents."""
    rng = np.random.default_rng(0)
    words = [" ".join(f"w{word}" for word in rng.integers(0, 40, 4)) for _ in range(50)]
    rows = [{"title": text, "body": f"{text} w{number % 40}"} for number, text in enumerate(words)]
    config = {
        "query": ["title"],
        "document": ["body"],
        "text": tiny("bert"),
        "fusion": {"name": "concat", "dim": 8},
        "columns": {"title": "text", "body": "text"},
        "trainer": {"epochs": 0, "head_epochs": 1, "trackers": []},
        "report": {"bootstrap": 0, "errors": 0, "alone": "none"},
    }
    folder = tmp_path_factory.mktemp("pairs") / "products"
    tuned = api.fit(Table.from_records(rows), config=config, out=folder, progress=False)
    items = [{"body": row["body"], "price": number} for number, row in enumerate(rows[:6])]
    tuned.save_index(tuned.index(items))
    return tuned


@pytest.fixture(scope="module")
def pair_client(pairs, make_serving, client_of) -> Any:
    return client_of(make_serving(pairs))


@pytest.fixture(scope="module")
def writer(tiny, tmp_path_factory) -> Any:
    """A model that writes, tuned with a chat template."""
    folder = tmp_path_factory.mktemp("writer")
    shutil.copytree(tiny("llama_writer"), folder / "backbone")
    (folder / "backbone" / "chat_template.jinja").write_text(TEMPLATE)
    rng = np.random.default_rng(0)
    words = [" ".join(f"w{word}" for word in rng.integers(4, 20, 4)) for _ in range(60)]
    rows = [{"question": text, "answer": " ".join(text.split()[:3])} for text in words]
    config = {
        "tasks": {"answer": "generate"},
        "text": str(folder / "backbone"),
        "trainer": {"epochs": 1, "backbone_lr": 1e-2, "checkpoint_minutes": None, "trackers": []},
        "report": {"bootstrap": 0, "zero_shot": False, "alone": "none"},
        "generation": {"val_rows": 2},
    }
    table = Table.from_records(rows)
    return api.fit(table, target="answer", config=config, out=folder / "talk", progress=False)


@pytest.fixture(scope="module")
def writing(writer, make_serving) -> Any:
    return make_serving(writer)


@pytest.fixture(scope="module")
def chat_client(writing, client_of) -> Any:
    return client_of(writing)


def chat(client: Any, *messages: tuple[str, str], **more: Any) -> Any:
    body = {"messages": [{"role": role, "content": text} for role, text in messages], "max_tokens": 6, **more}
    return client.post("/v1/chat/completions", json=body)


def test_embeddings_are_those_of_embed(pairs, pair_client) -> None:
    texts = ["w1 w2", "w3"]
    rows = [{"title": text, "body": text} for text in texts]
    table = pairs.embed(rows).table
    for side, column in (("query", "query_vector"), ("document", "document_vector")):
        answer = pair_client.post("/v1/embeddings", json={"model": f"products/{side}", "input": texts}).json()
        vectors = [entry["embedding"] for entry in answer["data"]]
        np.testing.assert_allclose(vectors, table.column(column).to_pylist(), atol=1e-5)
        assert answer["usage"]["total_tokens"] > 2
    default = pair_client.post("/v1/embeddings", json={"input": "w1 w2", "encoding_format": "base64"}).json()
    coded = np.frombuffer(base64.b64decode(default["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(coded, table.column("query_vector").to_pylist()[0], atol=1e-5)
    names = [entry["id"] for entry in pair_client.get("/v1/models").json()["data"]]
    assert names == ["products", "products/query", "products/document"]


def test_a_model_that_predicts_embeds_its_column_of_text(plain, make_serving, client_of) -> None:
    client = client_of(make_serving(plain))
    (entry,) = client.post("/v1/embeddings", json={"input": "w1 w2"}).json()["data"]
    expected = plain.embed([{"note": "w1 w2"}], missing_columns=["price"])["vector"][0]
    np.testing.assert_allclose(entry["embedding"], expected, atol=1e-5)
    assert client.post("/v1/chat/completions", json={"messages": []}).status_code == 422


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"input": []}, 422),
        ({"input": [1, 2]}, 422),
        ({"input": ["w1", ""]}, 422),
        ({"input": "w1", "encoding_format": "hex"}, 422),
        ({"input": "w1", "dimensions": 0}, 422),
        ({"input": "w1", "dimensions": True}, 422),
        ({"input": "w1", "dims": 2}, 422),
        ({"input": "w1", "model": 1}, 422),
        ({"input": "w1", "model": "other"}, 404),
        ({"input": ["w1"] * 1001}, 413),
    ],
)
def test_embeddings_that_are_refused(pair_client, body, status) -> None:
    assert pair_client.post("/v1/embeddings", json=body).status_code == status


def test_searches_are_those_of_the_index(pairs, pair_client) -> None:
    expected = pairs.index().search(["w1 w2"], k=3, where="price < 4").table.to_pylist()
    answer = pair_client.post("/search", json={"query": "w1 w2", "k": 3, "filter": "price < 4"}).json()
    (result,) = answer["results"]
    assert [hit["body"] for hit in result["hits"]] == [row["body"] for row in expected]
    assert [hit["score"] for hit in result["hits"]] == pytest.approx([row["score"] for row in expected], abs=1e-5)
    several = pair_client.post("/search", json={"queries": [{"title": "w3"}, "w4.png", {}], "k": 2}).json()["results"]
    assert [len(result["hits"]) for result in several] == [2, 2, 0] and several[2]["error"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"query": "w1", "queries": ["w1"]},
        {"queries": []},
        {"query": "w1", "k": 0},
        {"query": "w1", "k": True},
        {"query": "w1", "k": 10**9},
        {"query": "w1", "filter": "__import__('os')"},
        {"query": "w1", "filter": 1},
        {"query": "w1", "filter": "colour == 1"},
        {"query": "w1", "rerank": True},
        {"query": "w1", "catalogue": "/etc/passwd"},
    ],
)
def test_searches_that_are_refused(pair_client, body) -> None:
    assert pair_client.post("/search", json=body).status_code == 422


def test_search_without_an_index(plain, make_serving, client_of) -> None:
    assert client_of(make_serving(plain)).post("/search", json={"query": "w1"}).status_code == 404


def test_chats_are_those_of_a_session(writer, chat_client) -> None:
    session = writer.chat(system="w9", max_tokens=6)
    first = "".join(session.reply("w4 w5"))
    second = "".join(session.reply("w6"))
    answer = chat(chat_client, ("system", "w9"), ("user", "w4 w5"), ("assistant", first), ("user", "w6")).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": second}
    assert answer["choices"][0]["finish_reason"] == ("length" if session.was_cut else "stop")
    assert answer["usage"]["prompt_tokens"] == session.num_read > 8
    assert answer["usage"]["completion_tokens"] == len(session.written) <= 6
    parts = [{"role": "user", "content": [{"type": "text", "text": "w4 w5"}]}]
    body = {"messages": [{"role": "developer", "content": "w9"}, *parts], "max_completion_tokens": 6, "model": "talk"}
    same = chat_client.post("/v1/chat/completions", json=body).json()
    assert same["choices"][0]["message"]["content"] == first


def test_streams_are_the_whole_answer_in_pieces(chat_client) -> None:
    whole = chat(chat_client, ("user", "w4 w5")).json()
    answer = chat(chat_client, ("user", "w4 w5"), stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, end = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    chunks = [json.loads(event) for event in events]
    assert end == "[DONE]" and chunks[-1]["usage"] == whole["usage"]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1])
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_chats_at_once_are_those_one_after_another(chat_client) -> None:
    texts = [f"w{number} w{number + 1}" for number in range(4, 12)]
    alone = [chat(chat_client, ("user", text)).json()["choices"][0]["message"]["content"] for text in texts]
    answers: dict[int, Any] = {}

    def ask(number: int) -> None:
        answers[number] = chat(chat_client, ("user", texts[number])).json()["choices"][0]["message"]["content"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[number] for number in range(len(texts))] == alone


def test_settings_of_chats(chat_client) -> None:
    drawn = [
        chat(chat_client, ("user", "w4"), temperature=2.0, seed=seed, stop=["w30"]).json() for seed in (1, 1, 2, 3, 4)
    ]
    texts = [answer["choices"][0]["message"]["content"] for answer in drawn]
    assert texts[0] == texts[1] and len(set(texts)) > 1
    assert chat(chat_client, ("user", "w4"), n=1, user="x", tools=[], top_p=None).status_code == 200


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2},
        {"tools": [{"type": "function"}]},
        {"temperature": "hot"},
        {"temperature": -1},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": 10**9},
        {"seed": True},
        {"stop": [1]},
        {"stream": "yes"},
        {"response_format": {"type": "xml"}},
        {"columns": {"other": "x"}},
        {"unknown": 1},
        {"model": 1},
        {"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]},
        {"messages": [{"role": "tool", "content": "w1"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}
            ]
        },
        {"messages": ["w1"]},
        {"messages": [{"role": "user", "content": "w1 " * 500}]},
    ],
)
def test_chats_that_are_refused(chat_client, more) -> None:
    body = {"messages": [{"role": "user", "content": "w1"}], "max_tokens": 6, **more}
    answer = chat_client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 422 and answer.json()["error"]["message"], answer.text


def test_a_model_that_writes_predicts_too(writer, chat_client) -> None:
    expected = writer.predict([{"question": "w4 w5"}])["answer"]
    (row,) = chat_client.post("/predict", json={"rows": ["w4 w5"]}).json()["predictions"]
    assert row["answer"] == expected[0]
    assert chat_client.post("/v1/embeddings", json={"input": "w1"}).status_code == 422
