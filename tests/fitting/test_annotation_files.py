"""Fits from annotation files to predictions, with tiny models."""

import json

import annotation_files as files
import numpy as np
import pytest
from annotation_files import Sentence
from typer.testing import CliRunner

import fusetune as ft
from fusetune.cli.main import app
from fusetune.data.table import Table
from fusetune.errors import ConfigError

NAMES, PLACES, OTHERS = ["w1", "w2", "w3", "w4"], ["w5", "w6", "w7", "w8"], ["w10", "w11", "w12", "w13", "w14"]


def sentences(rows, seed):
    """Sentences with a name and a place, among other words."""
    rng, result = np.random.default_rng(seed), []
    for _ in range(rows):
        words = [str(rng.choice(OTHERS)) for _ in range(int(rng.integers(4, 8)))]
        first, second = sorted(rng.choice(len(words), 2, replace=False))
        words[first], words[second] = str(rng.choice(NAMES)), str(rng.choice(PLACES))
        result.append(
            Sentence(tuple(words), ((int(first), int(first) + 1, "PER"), (int(second), int(second) + 1, "LOC")))
        )
    return result


def tables(folder, ending, write):
    paths = {}
    for name, rows, seed in (("train", 80, 0), ("val", 20, 1), ("test", 20, 2)):
        paths[name] = folder / f"{name}{ending}"
        paths[name].write_text(write(sentences(rows, seed)), encoding="utf-8")
    return paths


def fit(tiny, paths, out, *targets):
    settings = {
        "target": list(targets),
        "text": {"name": tiny("bert"), "max_tokens": 32},
        "trainer": {"epochs": 2, "head_epochs": 10, "lr": 1e-3, "batch_size": 16},
    }
    return ft.fit(paths["train"], val=paths["val"], test=paths["test"], config=settings, out=out)


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_entities_from_conll_files_to_conll_files(tiny, tmp_path):
    paths = tables(tmp_path, ".conll", lambda texts: files.conll(texts, "IOB1"))
    fit(tiny, paths, tmp_path / "run", "tags")
    words = tmp_path / "new.conll"
    words.write_text(
        files.conll(sentences(20, 2)).replace("\tO\n", "\n").replace("\tB-PER\n", "\n").replace("\tB-LOC\n", "\n")
    )
    for name in ("out.conll", "out.csv", "out.jsonl"):
        result = run("predict", tmp_path / "run", words, "-o", tmp_path / name)
        assert result.exit_code == 0, result.output
    table = Table.read(tmp_path / "out.conll")
    assert len(table) == 20 and table.column_names == ["tokens", "tags"]
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    cells = Table.read(tmp_path / "out.csv").cells("tags")
    assert [json.loads(cell) for cell in cells] == [row["tags"] for row in rows]
    for tokens, tags, row in zip(table.cells("tokens"), table.cells("tags"), rows, strict=True):
        found = [token for token, tag in zip(tokens, tags, strict=True) if tag != "O"]
        assert found == [entity["text"] for entity in row["tags"]]
        assert all(entity.keys() == {"start", "end", "label", "score", "text"} for entity in row["tags"])
    measured = json.loads(run("evaluate", tmp_path / "run", paths["test"], "--json").output)
    assert "f1" in json.dumps(measured)
    shown = run("schema", paths["train"], "-t", "tags", "--json")
    assert "(IO)" in shown.output and '"entities"' in shown.output


def test_entities_and_a_choice_from_label_studio(tiny, tmp_path):
    def write(texts):
        tasks = json.loads(files.label_studio(texts))
        for task, sentence in zip(tasks, texts, strict=True):
            mood = "good" if sentence.words[sentence.entities[0][0]] in NAMES[:2] else "bad"
            task["annotations"][0]["result"][-1]["value"]["choices"] = [mood]
        return json.dumps(tasks)

    tuned = fit(tiny, tables(tmp_path, ".json", write), tmp_path / "run", "label", "mood")
    found = tuned.predict([{"text": "w10 w1 w11 w5"}])
    assert {"label", "mood"} <= set(found.table.column_names)
    assert tuned.evaluate(tmp_path / "test.json").metrics()["label"]["f1"] > 0.8


def test_answers_from_squad(tiny, tmp_path):
    def write(texts):
        data = json.loads(files.squad(texts))
        for paragraph in data["data"][0]["paragraphs"]:
            paragraph["qas"][0]["answers"] = paragraph["qas"][0]["answers"][:1]
            paragraph["qas"][0]["question"] = f"w{9 + len(paragraph['context']) % 5}"
        return json.dumps(data)

    tuned = fit(tiny, tables(tmp_path, ".json", write), tmp_path / "run", "answer")
    assert tuned.evaluate(tmp_path / "test.json").metrics()["answer"]["f1"] > 0.5


def test_relations_from_semeval_files(tiny, tmp_path):
    def write(texts):
        blocks = []
        for number, sentence in enumerate(texts):
            text = files.semeval([sentence]).split("\n")[0].split("\t")[1]
            swapped = sentence.words[sentence.entities[0][0]] in NAMES[:2]
            blocks.append(f"{number}\t{text}\nIn(e{1 + swapped},e{2 - swapped})\nComment:\n")
        return "\n".join(blocks)

    tuned = fit(tiny, tables(tmp_path, ".txt", write), tmp_path / "run", "relation")
    assert tuned.evaluate(tmp_path / "test.txt").metrics()["relation"]["relation_f1"] > 0.8
    with pytest.raises(ConfigError, match="spans"):
        tuned.predict_to(tmp_path / "test.txt", tmp_path / "out.conll")
