"""A fit of triples from an annotation file, beside a label and a number, with LoRA, R-Drop and gathered batches."""

import json

import numpy as np
import pytest

import fusetune as ft

NAMES, PLACES, OTHERS = ["w1", "w2", "w3", "w4"], ["w5", "w6", "w7", "w8"], ["w10", "w11", "w12"]


def lines(rows, seed):
    """Doccano's rows: a name and a place, related as the word between them says, or not at all."""
    rng, made = np.random.default_rng(seed), []
    for row in range(rows):
        name, place, other = (str(rng.choice(words)) for words in (NAMES, PLACES, OTHERS))
        verb = ("w20", "w21", "w22")[row % 3]
        words = [other, name, verb, place] if row % 2 else [name, verb, other, place]
        text, entities = " ".join(words), []
        for number, (word, label) in enumerate(((name, "person"), (place, "town")), 10 * row):
            start = text.index(word)
            entities.append({"id": number, "start_offset": start, "end_offset": start + 2, "label": label})
        ends = (10 * row, 10 * row + 1) if verb == "w20" else (10 * row + 1, 10 * row)
        relation = {"id": row, "from_id": ends[0], "to_id": ends[1], "type": "in" if verb == "w20" else "has"}
        relations = [] if verb == "w22" else [relation]
        more = {"size": round(float(rng.normal()), 3), "mood": "ab"[row % 3 == 0]}
        made.append(json.dumps({"text": text, "entities": entities, "relations": relations, **more}))
    return "\n".join(made) + "\n"


@pytest.fixture(scope="module")
def home(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("triples")
    for name, rows, seed in (("train", 120, 0), ("val", 30, 1), ("test", 30, 2)):
        (folder / f"{name}.jsonl").write_text(lines(rows, seed))
    settings = {
        "target": ["relations", "mood"],
        "columns": {"size": "number"},
        "text": {"name": tiny("bert"), "max_tokens": 12, "adapter": {"name": "lora", "rank": 2}},
        "fusion": {"name": "concat", "dim": 32},
        "objectives": {"rdrop": {}},
        "trainer": {
            **{"epochs": 1, "head_epochs": 20, "lr": 3e-3, "batch_size": 16, "accumulate": 2, "patience": None},
            "trackers": [],
        },
        "report": {"bootstrap": 20, "alone": "none"},
    }
    paths = [str(folder / f"{name}.jsonl") for name in ("train", "val", "test")]
    ft.fit(paths[0], val=paths[1], test=paths[2], config=settings, out=folder / "run", progress=False)
    return folder


def test_triples_are_learned_from_an_annotation_file(home):
    report = json.loads((home / "run" / "report.json").read_text())
    (task,) = (task for task in report["tasks"] if task["target"] == "relations")
    assert {"relations", "errors", "texts"} <= {section["key"] for section in task["sections"]}
    assert " — in → " in (home / "run" / "report.html").read_text()
    measured = {system["name"]: system["metrics"] for system in task["systems"]}
    assert measured["tuned"]["triple_f1"]["value"] > 0.35 and measured["tuned"]["entity_f1"]["value"] > 0.8


def test_a_loaded_model_is_measured_with_the_column_of_the_entities(home):
    report = json.loads((home / "run" / "report.json").read_text())
    evaluation = ft.load(home / "run").evaluate(str(home / "test.jsonl"))
    for task, again in zip(report["tasks"], evaluation.tasks, strict=True):
        tuned = next(system for system in task["systems"] if system["name"] == "tuned")
        for name, interval in again.first("after").metrics.items():
            assert interval.value == pytest.approx(tuned["metrics"][name]["value"], abs=1e-6), name


def test_predicted_triples_are_of_predicted_entities_and_their_texts(home):
    tuned = ft.load(home / "run")
    rows = [json.loads(line) for line in (home / "test.jsonl").read_text().splitlines()]
    table = tuned.predict([{"text": row["text"], "size": row["size"]} for row in rows]).table.to_pylist()
    triples = 0
    for row, answer in zip(rows, table, strict=True):
        entities = {(e["start"], e["end"], e["label"], e["text"]): e["score"] for e in answer["relations_entities"]}
        for triple in answer["relations"]:
            ends = [entities[tuple(triple[side].values())] for side in ("head", "tail")]
            assert 0 < triple["score"] <= min(ends) and triple["label"] in ("in", "has")
            assert row["text"][triple["head"]["start"] : triple["head"]["end"]] == triple["head"]["text"]
            triples += 1
    assert triples > 5 and all(answer["mood"] in ("a", "b") for answer in table)
