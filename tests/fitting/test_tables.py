"""Where fusetune splits a table, rows that ask about one text stay in one split."""

import numpy as np
import pandas as pd
import pytest

from fusetune.config.config import Config
from fusetune.fitting.tables import SPLITS, Tables

WORDS = [f"word{number}" for number in range(200)]


def text(rng, words=12):
    return " ".join(rng.choice(WORDS, words))


def relation(rng, passage):
    one, two = rng.choice(sorted(set(passage.split())), 2, replace=False)
    return {"text": passage, "e1": one, "e2": two, "target": str(rng.choice(["left(e1,e2)", "right(e1,e2)"]))}


def answer(rng, passage):
    return {"question": f"where is {text(rng, 4)}?", "context": passage, "target": str(rng.choice(passage.split()))}


def choice(rng, passage):
    choices = {f"answer{letter}": text(rng, 3) for letter in "ABC"}
    return {"context": passage, "question": text(rng, 5), **choices, "target": str(rng.choice(["A", "B", "C"]))}


def entities(rng, passage):
    end = len(passage.split()[0])
    return {"text": passage, "note": text(rng, 5), "target": [{"start": 0, "end": end, "label": "first"}]}


@pytest.mark.parametrize(
    ("task", "make", "column"),
    [
        ("relation", relation, "text"),
        ("answer", answer, "context"),
        ("choice", choice, "context"),
        ("entities", entities, "text"),
    ],
)
def test_rows_about_one_text_stay_in_one_split(task, make, column):
    rng = np.random.default_rng(0)
    passages = [text(rng) for _ in range(40)]
    frame = pd.DataFrame([make(rng, passage) for passage in passages for _ in range(3)])
    more = {"text": column} if task == "entities" else {}
    settings = Config.build({"target": "target", "tasks": {"target": {"name": task, **more}}})
    splits = Tables(settings, {"train": frame}).splits
    parts = [{table.cells(column, [row])[0] for row in range(len(table))} for table in splits.values()]
    assert len(parts) == len(SPLITS) and all(parts)
    assert sum(map(len, parts)) == len(passages), f"a {column} is in several splits"
