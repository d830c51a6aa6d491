"""Fits of tasks that answer token by token, from a table to a report, with tiny models."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fusetune as ft
from fusetune.errors import UserError

NAMES, PLACES, OTHERS = ["w1", "w2", "w3", "w4"], ["w5", "w6", "w7", "w8"], ["w10", "w11", "w12", "w13", "w14"]


def sentences(rows, seed=0):
    """Words, tags that the words tell, and a label that the first word tells."""
    rng, table = np.random.default_rng(seed), []
    for _ in range(rows):
        words, tags = [], []
        for _ in range(int(rng.integers(3, 9))):
            kind = rng.choice(3, p=[0.25, 0.25, 0.5])
            words.append(str(rng.choice([NAMES, PLACES, OTHERS][kind])))
            tags.append(["B-name", "B-place", "O"][kind])
        table.append({"words": words, "tags": tags, "mood": "good" if words[0] in NAMES else "bad", "size": len(words)})
    return table


def config(tiny, **more):
    return {
        "target": ["tags"],
        "text": {"name": tiny("bert"), "max_tokens": 8},
        "trainer": {"epochs": 2, "head_epochs": 10, "lr": 1e-3, "batch_size": 16},
        **more,
    }


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    home = tmp_path_factory.mktemp("tables")
    for name, rows, seed in (("train", 120, 0), ("val", 40, 1), ("test", 40, 2)):
        lines = [json.dumps(row) for row in sentences(rows, seed)]
        (home / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return {name: str(home / f"{name}.jsonl") for name in ("train", "val", "test")}


@pytest.mark.parametrize("head", ["softmax", "crf"])
def test_entities_and_a_label_from_a_table_to_a_report(tiny, tables, tmp_path, head):
    settings = config(tiny, target=["tags", "mood"], tasks={"tags": {"name": "entities", "head": head}})
    tuned = ft.fit(tables["train"], val=tables["val"], test=tables["test"], config=settings, out=tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    found = {task["target"]: task for task in report["tasks"]}
    kinds = {system["kind"] for system in found["tags"]["systems"]}
    assert {"baseline", "before", "after"} <= kinds
    after = next(system for system in found["tags"]["systems"] if system["kind"] == "after")
    assert after["metrics"]["f1"]["value"] > 0.8
    again = ft.load(tmp_path / "run")
    one, two = tuned.predict(tables["test"]), again.predict(tables["test"])
    assert one.table.equals(two.table) and len(one.table) == 40
    entity = next(cell for cell in one.table["tags"].to_pylist() if cell)[0]
    assert entity["text"] in NAMES + PLACES and entity["label"] in ("name", "place")
    measured = again.evaluate(tables["test"]).metrics()
    assert measured["tags"]["f1"] == pytest.approx(after["metrics"]["f1"]["value"], abs=1e-6)


def nested(rows, seed):
    """Texts of which every name and every place is an entity, and a name with a place after it another."""
    table = []
    for row in sentences(rows, seed):
        words, tags = row["words"], [tag[2:] for tag in row["tags"]]
        starts = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1].tolist()
        ends = [start + len(word) for start, word in zip(starts, words, strict=True)]
        spans = [(start, end, tag) for start, end, tag in zip(starts, ends, tags, strict=True) if tag]
        pairs = zip(tags, tags[1:], starts, ends[1:], strict=False)
        spans += [(start, end, "pair") for one, two, start, end in pairs if (one, two) == ("name", "place")]
        cells = [{"start": start, "end": end, "label": label} for start, end, label in spans]
        table.append({"text": " ".join(words), "spans": cells, "size": row["size"]})
    return table


def test_nested_entities_from_a_table_to_a_report(tiny, tmp_path):
    train, val, test = (
        written(tmp_path / f"{name}.jsonl", nested(rows, seed))
        for name, rows, seed in (("train", 160, 0), ("val", 40, 1), ("test", 40, 2))
    )
    settings = config(tiny, target=["spans"])
    settings["trainer"] |= {"epochs": 4, "head_epochs": 20}
    tuned = ft.fit(train, val=val, test=test, config=settings, out=tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    (task,) = report["tasks"]
    found = {system["kind"]: system["metrics"]["f1"]["value"] for system in task["systems"]}
    assert found["after"] > 0.8 and found["before"] > found["baseline"]
    assert any("head span" in warning for warning in task["warnings"])
    again = ft.load(tmp_path / "run")
    one, two = tuned.predict(test).table, again.predict(test).table
    assert one.equals(two) and len(one) == 40
    entities = [entity for cell in one["spans"].to_pylist() for entity in cell]
    assert {entity["label"] for entity in entities} == {"name", "place", "pair"}
    assert again.evaluate(test).metrics()["spans"]["f1"] == pytest.approx(found["after"], abs=1e-6)


def test_long_texts_lose_no_label(tiny, tables, tmp_path):
    """With windows of 8 tokens the model finds what it finds in windows of 32, as the words alone tell the tags."""
    tuned = ft.fit(tables["train"], val=tables["val"], test=tables["test"], config=config(tiny), out=tmp_path / "run")
    text = " ".join([*OTHERS, *NAMES, *OTHERS, *PLACES, *OTHERS])
    cells = tuned.predict([{"words": text, "size": 3, "mood": "bad"}]).table["tags"].to_pylist()[0]
    assert {entity["text"] for entity in cells} >= {*NAMES, *PLACES}


def relations(rows, seed):
    """Sentences whose relation is told by the words of both entities, in their order."""
    rng, table = np.random.default_rng(seed), []
    for _ in range(rows):
        pair = [str(rng.choice(NAMES)), str(rng.choice(PLACES))]
        swapped = bool(rng.random() < 0.5)
        one, two = reversed(pair) if swapped else pair
        other = str(rng.choice(OTHERS))
        table.append(
            {"text": f"{other} <e1>{one}</e1> {other} <e2>{two}</e2>", "relation": f"in(e{1 + swapped},e{2 - swapped})"}
        )
    return table


def test_relations_with_a_direction_from_a_table_to_a_report(tiny, tmp_path):
    frames = {
        name: pd.DataFrame(relations(rows, seed)) for name, rows, seed in (("a", 120, 0), ("b", 40, 1), ("c", 40, 2))
    }
    tuned = ft.fit(
        frames["a"], val=frames["b"], test=frames["c"], out=tmp_path / "run", config=config(tiny, target=["relation"])
    )
    found = tuned.evaluate(frames["c"]).metrics()["relation"]
    assert found["relation_f1"] > 0.9
    again = ft.load(tmp_path / "run")
    assert again.predict(frames["c"]).table.equals(tuned.predict(frames["c"]).table)
    bad = again.predict([{"text": "no entity"}]).table["error"].to_pylist()[0]
    assert "tags in the text" in bad


def test_relations_of_entities_in_columns_are_those_of_tags(tiny, tmp_path):
    """The same texts, once with tags, once with the entities' words or characters, give the same model and report."""
    tagged = [pd.DataFrame(relations(rows, seed)) for rows, seed in ((60, 0), (20, 1), (20, 2))]
    settings = config(tiny, target=["relation"], trainer={"epochs": 1, "head_epochs": 2, "probe": "columns"})
    answers, texts = [], []
    for number, form in enumerate((lambda frame: frame, in_words, in_characters)):
        train, val, test = (form(frame) for frame in tagged)
        ft.fit(train, val=val, test=test, out=tmp_path / str(number), config=settings)
        tuned = ft.load(tmp_path / str(number))
        answers.append(tuned.predict(test.drop(columns="relation")).table["relation"].to_pylist())
        sections = json.loads((tmp_path / str(number) / "report.json").read_text())["tasks"][0]["sections"]
        texts.append(
            [text for s in sections if s["key"] == "texts" for panel in s["panels"] for text in panel["texts"]]
        )
    assert answers[0] == answers[1] == answers[2] and None not in answers[0]
    assert texts[0] == texts[1] == texts[2] and len(texts[0]) >= 16
    assert all([span["label"] for span in text["true"]] == ["e1", "e2"] for text in texts[0])
    bad = tuned.predict([{"text": "one two", "e1_start": 0, "e1_end": 99, "e2_start": 0, "e2_end": 3}])
    assert "not in a text of 7" in bad.table["error"].to_pylist()[0]


def in_words(frame):
    """The table with columns of the entities' words in the place of tags."""
    entities = {name: frame["text"].str.extract(f"<{name}>(.*?)</{name}>")[0] for name in ("e1", "e2")}
    return frame.assign(text=frame["text"].str.replace("</?e[12]>", "", regex=True), **entities)


def in_characters(frame):
    """The table with columns of the entities' characters in the place of tags."""
    frame = in_words(frame)
    for name in ("e1", "e2"):
        padded = zip(" " + frame["text"] + " ", frame[name], strict=True)
        frame[f"{name}_start"] = [text.index(f" {word} ") for text, word in padded]
        frame[f"{name}_end"] = frame[f"{name}_start"] + frame[name].str.len()
    return frame.drop(columns=["e1", "e2"])


def pairs(rows, seed):
    """Two texts, and whether they begin with the same word."""
    rng, table = np.random.default_rng(seed), []
    for _ in range(rows):
        first = str(rng.choice(NAMES))
        second = first if rng.random() < 0.5 else str(rng.choice(NAMES))
        rest = [" ".join(rng.choice(OTHERS, 3)) for _ in range(2)]
        table.append({"one": f"{first} {rest[0]}", "two": f"{second} {rest[1]}", "same": str(first == second)})
    return pd.DataFrame(table)


def test_joined_columns_are_read_as_one_text(tiny, tmp_path):
    settings = config(tiny, target=["same"])
    settings["text"] = {"name": tiny("bert"), "join": [["one", "two"]]}
    tuned = ft.fit(pairs(80, 0), val=pairs(30, 1), test=pairs(30, 2), out=tmp_path / "run", config=settings)
    assert list(tuned.bundle.modalities) == ["one + two"]
    again = ft.load(tmp_path / "run")
    rows = pairs(5, 3).to_dict("records")
    assert again.predict(rows).table.equals(tuned.predict(rows).table)
    assert again.predict([{"one": "w1", "two": None}]).table["error"].to_pylist() == [None]
    with pytest.raises(UserError, match="'two'"):
        again.predict([{"one": "w1"}])


@pytest.mark.parametrize(
    ("join", "why"),
    [([["one", "same2"]], "same2"), ([["one"]], "two columns or more"), ([["one", "n"]], "no text column")],
)
def test_joins_that_cannot_be_read_are_refused(tiny, tmp_path, join, why):
    settings = config(tiny, target=["same"])
    settings["text"] = {"name": tiny("bert"), "join": join}
    rows = pairs(60, 0).assign(n=range(60))
    with pytest.raises(UserError, match=why):
        ft.fit(rows, out=tmp_path / "run", config=settings)


def questions(rows, seed=0, *, places=40):
    """Contexts of which a name is the answer, unless there is none; long enough for several windows of 16 tokens."""
    rng, table = np.random.default_rng(seed), []
    for _ in range(rows):
        words = [str(word) for word in rng.choice(OTHERS, size=int(rng.integers(4, places)))]
        start, answer = -1, ""
        if rng.random() < 0.7:
            at = int(rng.integers(0, len(words)))
            words[at] = answer = str(rng.choice(NAMES))
            start = len(" ".join([*words[:at], ""]))
        table.append({"question": "who", "context": " ".join(words), "answer": answer, "start": start, "size": 1})
    return table


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_answers_from_a_table_to_a_report(tiny, tmp_path):
    train, val, test = (
        written(tmp_path / f"{name}.jsonl", questions(rows, seed))
        for name, rows, seed in (("train", 120, 0), ("val", 40, 1), ("test", 40, 2))
    )
    settings = config(
        tiny, target=["answer"], tasks={"answer": "answer"}, text={"name": tiny("bert"), "max_tokens": 16}
    )
    settings["trainer"] |= {"epochs": 4, "head_epochs": 20}
    tuned = ft.fit(train, val=val, test=test, config=settings, out=tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    (task,) = report["tasks"]
    assert task["rows"] == 40, "rows without an answer count"
    after = next(system for system in task["systems"] if system["kind"] == "after")
    assert after["metrics"]["f1_answerable"]["value"] > 0.8
    again = ft.load(tmp_path / "run")
    one, two = tuned.predict(test).table, again.predict(test).table
    assert one.equals(two) and len(one) == 40
    rows = [json.loads(line) for line in Path(test).read_text().splitlines()]
    for row, text, start, end in zip(
        rows, *(one[name].to_pylist() for name in ("answer", "answer_start", "answer_end")), strict=True
    ):
        assert (text, start, end) == ("", -1, -1) or row["context"][start:end] == text
    measured = again.evaluate(test).metrics()
    assert measured["answer"]["f1"] == pytest.approx(after["metrics"]["f1"]["value"], abs=1e-6)


def test_answers_at_wrong_places_are_rejected_by_row(tiny, tmp_path):
    rows = questions(60)
    rows[3] |= {"answer": "w1", "start": 999}
    train, val = written(tmp_path / "train.jsonl", rows), written(tmp_path / "val.jsonl", questions(30, 1))
    settings = config(tiny, target=["answer"], tasks={"answer": "answer"})
    settings["trainer"] |= {"epochs": 0}
    ft.fit(train, val=val, test=val, config=settings, out=tmp_path / "run")
    rejected = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert [(row["row"], row["column"]) for row in rejected] == [(3, "answer")]


def test_a_text_read_in_two_ways_has_two_places_in_the_cache(tiny, tables, tmp_path):
    """Plain vectors and those of two markers differ in width, and one encoder gives both."""
    cache = {"data": {"cache": str(tmp_path / "cache")}}
    for number, target in enumerate((["tags"], ["mood"])):
        settings = config(tiny, target=target, **cache)
        ft.fit(tables["train"], val=tables["val"], test=tables["test"], config=settings, out=tmp_path / str(number))
    frame = pd.DataFrame(relations(60, 0))
    ft.fit(frame, out=tmp_path / "relations", config=config(tiny, target=["relation"], **cache))


@pytest.mark.parametrize("objective", ["mixup", "unimodal", "supcon"])
def test_what_makes_no_sense_for_tokens_is_refused_before_training(tiny, tables, tmp_path, objective):
    settings = config(tiny, objectives={objective: {}}, columns={"size": "number"})
    with pytest.raises(UserError, match=rf"objectives.{objective}[\s\S]*tags"):
        ft.fit(tables["train"], val=tables["val"], test=tables["test"], config=settings, out=tmp_path / "run")


def test_another_column_tells_what_the_words_do_not(tiny, tmp_path):
    """Whether a word is a name or a place is told by the row's category alone; from the text it is even odds."""
    frames = {}
    for name, rows, seed in (("train", 160, 0), ("val", 50, 1), ("test", 50, 2)):
        rng, table = np.random.default_rng(seed), []
        for row in sentences(rows, seed):
            kind = str(rng.choice(["person", "town"]))
            tags = ["O" if tag == "O" else {"person": "B-name", "town": "B-place"}[kind] for tag in row["tags"]]
            table.append({"words": row["words"], "tags": tags, "kind": kind})
        frames[name] = pd.DataFrame(table)
    tuned = ft.fit(frames["train"], val=frames["val"], test=frames["test"], config=config(tiny), out=tmp_path / "run")
    assert tuned.evaluate(frames["test"]).metrics()["tags"]["f1"] > 0.85


@pytest.mark.parametrize(
    ("columns", "freeze", "stages"),
    [(["words"], "none", {"tune"}), (["words", "size"], "none", {"head", "tune"}), (["words"], "all", {"head"})],
)
def test_a_text_alone_is_tuned_from_its_linear_start(tiny, tmp_path, columns, freeze, stages):
    """A head stage would fit the frozen features of tokens by heart; other columns' fusion has to be learned."""
    table = pd.DataFrame(sentences(60))[[*columns, "tags"]]
    settings = config(tiny, text={"name": tiny("bert"), "freeze": freeze}, trainer={"epochs": 0.5, "patience": 1})
    tuned = ft.fit(table, config=settings, out=tmp_path / "run")
    assert {point.stage for point in tuned.results.curve.points} == stages
