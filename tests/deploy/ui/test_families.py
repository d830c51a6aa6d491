"""The pages of models that compare, recommend, write and chat, and the panels of each form of answer."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest

from fusetune import api
from fusetune.data.table import Table
from fusetune.deploy.ui.answers import ChoicePanel, ExtractedPanel, OtherPanel, SpansPanel, TriplesPanel, highlighted
from fusetune.deploy.ui.asking import Answered

QUIET = {"trackers": [], "epochs": 0, "head_epochs": 1}


def page_kinds(page: Any) -> list[str]:
    return [label for kind, label in page.labels if kind == "tabitem"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, tiny, write_csv):
    folder = tmp_path_factory.mktemp("pairs")
    rows = [{"title": f"w{n % 6}", "maker": ["lamp", "desk", "sofa"][n % 3], "price": n} for n in range(40)]
    settings = {
        "query": ["title"],
        "document": ["maker", "price"],
        "text": tiny("bert"),
        "fusion": {"name": "concat", "dim": 8},
        "columns": {"title": "text", "maker": "category", "price": "number"},
        "trainer": QUIET,
        "report": {"bootstrap": 0, "errors": 0},
    }
    tuned = api.fit(str(write_csv(folder / "t.csv", rows)), out=folder / "model", config=settings, progress=False)
    return tuned, folder


def test_sides_are_compared_where_there_is_no_index(run_page, pairs):
    tuned, _ = pairs
    page = run_page(tuned)
    assert page_kinds(page) == ["Compare", "Report"]
    table = page.ask("compare", "w1", "lamp", "3")
    row = tuned.embed([{"title": "w1", "maker": "lamp", "price": 3}]).table.to_pylist()[0]
    wanted = np.dot(row["query_vector"], row["document_vector"])
    assert float(table["data"][0][2]) == pytest.approx(wanted, abs=1e-3)
    assert "two sides" in page.refused("compare", "w1", None, None)


def test_a_catalogue_is_searched(run_page, pairs):
    tuned, folder = pairs
    tuned.save_index(tuned.index(folder / "t.csv"))
    page = run_page(tuned, Table.read(folder / "t.csv"))
    assert page_kinds(page)[:2] == ["Search", "Compare"]
    found = page.ask("search", "w2", 3, "price < 10")
    wanted = tuned.index().search("w2", k=3, where="price < 10").table.to_pylist()
    places = [found["headers"].index(name) for name in ("rank", "maker")]
    assert [[row[place] for place in places] for row in found["data"]] == [[r["rank"], r["maker"]] for r in wanted]
    assert "filter" in page.refused("search", "w2", 3, "price <")
    assert page.refused("search", "", 3, "") == "no input column has a value"


@pytest.fixture(scope="module")
def taster(tmp_path_factory):
    import pandas as pd

    rng = np.random.default_rng(0)
    rows = [{"user": f"u{u}", "film": f"f{i * 2 + u % 2}"} for u in range(60) for i in rng.permutation(20)[:9]]
    frame = pd.DataFrame(rows).sample(frac=1, random_state=0).reset_index(drop=True)
    frame["time"] = np.arange(len(frame))
    out = tmp_path_factory.mktemp("taste") / "model"
    config = {"trainer": {"epochs": 1, "head_epochs": 0, "trackers": []}, "report": {"bootstrap": 0, "errors": 0}}
    return api.fit(frame, user="user", item="film", out=out, config=config, progress=False)


def test_items_are_recommended(run_page, taster):
    page = run_page(taster)
    assert page_kinds(page)[0] == "Recommend"
    user = taster.bundle.interactions.users[0]
    found = page.ask("recommend", user, [], 3)
    wanted = taster.recommend(user_id=user, k=3).table.to_pylist()
    assert [row[found["headers"].index("film")] for row in found["data"]] == [row["film"] for row in wanted]
    liked = [key for key in taster.bundle.interactions.items if key][:2]
    assert page.ask("recommend", None, liked, 3)["data"]
    assert "name a user" in page.refused("recommend", None, [], 3)


@pytest.fixture(scope="module")
def writer(tmp_path_factory, tiny):
    rng = np.random.default_rng(0)
    rows = [{"en": " ".join(f"w{n}" for n in rng.integers(0, 40, 5)), "de": "w1 w2"} for _ in range(30)]
    config = {
        "text": tiny("llama_writer"),
        "tasks": {"de": "generate"},
        "prompt": {"template": "{en}", "max_answer_tokens": 4},
        "trainer": {"epochs": 1, "head_epochs": 0, "trackers": []},
        "report": {"bootstrap": 0, "errors": 0},
    }
    return api.fit(
        Table.from_records(rows),
        target="de",
        out=tmp_path_factory.mktemp("writer") / "m",
        config=config,
        progress=False,
    )


def test_a_text_is_written(run_page, writer):
    page = run_page(writer)
    assert page_kinds(page) == ["Write", "Table", "Report"]
    text, note, *_ = page.ask("predict", "w1 w2 w3")
    assert text == writer.predict([{"en": "w1 w2 w3"}])["de"][0]
    assert "log-probability" in (note["value"] if isinstance(note, dict) else note)


@pytest.fixture(scope="module")
def talker(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("talker")
    shutil.copytree(tiny("llama_writer"), folder / "language")
    (folder / "language" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ 'w1 ' if m.role == 'user' else 'w2 ' }}{{ m.content }} {% endfor %}"
    )
    chats = [
        {"messages": [{"role": "user", "content": f"w{n} w2"}, {"role": "assistant", "content": "w3 w4"}]}
        for n in range(30)
    ]
    config = {
        "text": str(folder / "language"),
        "prompt": {"max_answer_tokens": 4},
        "trainer": {"epochs": 1, "head_epochs": 0, "trackers": []},
        "report": {"bootstrap": 0, "errors": 0},
    }
    out = folder / "m"
    return api.fit(Table.from_records(chats), target="messages", out=out, config=config, progress=False), chats


def test_a_chat_is_answered_as_by_the_model(run_page, talker):
    tuned, chats = talker
    page = run_page(tuned, Table.from_records([*chats[:3], {"messages": [{"role": "oracle", "content": "w1"}]}]))
    assert page_kinds(page)[0] == "Chat"
    dataset = next(c for c in page.client.config["components"] if c["type"] == "dataset")
    assert {sample[0] for sample in dataset["props"]["samples"]} == {"w0 w2", "w1 w2", "w2 w2"}
    box, turns = page.ask("chat", "w5 w6", [])
    session = tuned.chat()
    first = "".join(session.reply("w5 w6"))
    assert box == "" and said(turns) == [("user", "w5 w6"), ("assistant", first)]
    _, turns = page.ask("chat", "w7", turns)
    assert said(turns)[2:] == [("user", "w7"), ("assistant", "".join(session.reply("w7")))]
    assert "no message" in page.refused("chat", " ", [])
    _, turns = page.ask("chat", "<b>w7</b> &amp;", [])
    assert said(turns)[0] == ("user", "&lt;b&gt;w7&lt;/b&gt; &amp;amp;")  # shown as text
    _, turns = page.ask("chat", "w8", turns)
    assert said(turns)[0] == ("user", "&lt;b&gt;w7&lt;/b&gt; &amp;amp;") and said(turns)[-2] == ("user", "w8")


def said(turns: Any) -> list[tuple[str, str]]:
    def text(content: Any) -> str:
        return content if isinstance(content, str) else "".join(part["text"] for part in content)

    return [(turn["role"], text(turn["content"])) for turn in turns]


class Task:
    """As a panel knows a task."""

    def __init__(self, target: str) -> None:
        self.target, self.labels = target, []


def answered(record: dict[str, Any], **columns: Any) -> Answered:
    return Answered(record, columns | {"error": None}, {}, {})


def test_spans_are_marked_and_listed():
    text = "Ada met Bob in Rome"
    spans = [
        {"start": 8, "end": 11, "label": "person", "score": 0.5},
        {"start": 0, "end": 3, "label": "person", "score": 0.91234},
    ]
    marked, rows = SpansPanel("t", Task("tags"), "text").values(answered({"text": text.split()}, tags=spans))
    assert marked == {
        "text": text,
        "entities": [{"entity": "person", "start": 0, "end": 3}, {"entity": "person", "start": 8, "end": 11}],
    }
    assert rows == [["Bob", "person", "0.500"], ["Ada", "person", "0.912"]]


def test_of_spans_that_overlap_the_first_and_longest_is_marked():
    spans = [{"start": s, "end": e, "label": f"{s}-{e}"} for s, e in ((2, 5), (0, 4), (0, 2), (4, 6))]
    assert [part["entity"] for part in highlighted("abcdef", spans)["entities"]] == ["0-4", "4-6"]


@pytest.mark.parametrize("start", [4, -1])
def test_an_answer_is_marked_in_its_text(start):
    columns = {"a": "met" if start >= 0 else "", "a_start": start, "a_end": 7 if start >= 0 else -1, "a_no_answer": 0.2}
    best = [{"text": "met", "score": 0.75}]
    answer, marked, rows = ExtractedPanel("a", Task("a"), "c").values(
        answered({"c": "Ada met Bob", "q": "?"}, **columns, a_best=best)
    )
    assert answer == ("met" if start >= 0 else "(no answer in the text)")
    assert [(e["start"], e["end"]) for e in marked["entities"]] == ([(4, 7)] if start >= 0 else [])
    assert rows == [["met", "0.750"], ["(no answer)", "0.200"]]


def test_choices_triples_and_other_answers():
    text, scores = ChoicePanel("c", Task("c")).values(
        answered({}, c="B", c_text="go home", c_probability=0.7, c_scores=[0.3, 0.7, None])
    )
    assert text == "B: go home" and scores == {"1": 0.3, "2": 0.7}
    ada, rome = (
        {"start": 0, "end": 3, "label": "person", "text": "Ada"},
        {"start": 7, "end": 11, "label": "place", "text": "Rome"},
    )
    triple = {"head": ada, "label": "in", "tail": rome, "score": 0.5}
    marked, rows = TriplesPanel("g", Task("g"), "t").values(
        answered({"t": "Ada in Rome"}, g=[triple], g_entities=[ada, rome])
    )
    assert rows == [["Ada", "in", "Rome", "0.500"]] and len(marked["entities"]) == 2
    assert OtherPanel("o", Task("o")).values(answered({}, o={"a": 1})) == [{"a": 1}]


def test_lists_are_typed_as_json():
    from fusetune.deploy.serve.inputs import Inputs
    from fusetune.deploy.serve.options import Limits
    from fusetune.deploy.ui.widgets import Widgets
    from fusetune.errors import TableError

    widgets = Widgets(Inputs({"question": "text", "choices": "text"}), [], frozenset({"choices"}))
    assert widgets.record(["Who?", json.dumps(["a", "b"])], Limits())["choices"] == ["a", "b"]
    with pytest.raises(TableError, match="JSON"):
        widgets.record(["Who?", "[a"], Limits())


def test_an_answer_of_a_model_that_reads_question_and_context_as_one(run_page, tmp_path, tiny):
    rows = [{"question": f"w{n} w2", "context": f"w1 w{n} w5 w6", "answer": f"w{n}"} for n in range(3, 33)]
    config = {
        "text": tiny("bert"),
        "tasks": {"answer": "answer"},
        "trainer": QUIET,
        "report": {"bootstrap": 0, "errors": 0},
    }
    tuned = api.fit(Table.from_records(rows), target="answer", config=config, out=tmp_path / "m", progress=False)
    page = run_page(tuned)
    answer, marked, best, *_ = page.ask("predict", "w7 w2", "w1 w7 w5 w6")
    assert "".join(part["token"] for part in marked) == "w1 w7 w5 w6"
    wanted = tuned.predict([{"question": "w7 w2", "context": "w1 w7 w5 w6"}])["answer"][0]
    assert answer == (wanted or "(no answer in the text)") and best["data"]
