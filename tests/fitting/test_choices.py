"""Fits of multiple-choice questions, from a table to a report, with tiny models."""

import json

import numpy as np
import pandas as pd
import pytest

import fusetune as ft
from fusetune.errors import UserError

RIGHT, WRONG = ["w1", "w2", "w3", "w4"], ["w10", "w11", "w12", "w13", "w14"]


def questions(rows, seed=0, *, most=4):
    """Choices in columns, 2 to 4 a row; the right one has a word that no wrong one has."""
    rng, table = np.random.default_rng(seed), []
    for _ in range(rows):
        num = int(rng.integers(2, most + 1))
        texts = [" ".join(rng.choice(WRONG, size=int(rng.integers(1, 4)))) for _ in range(num)]
        place = int(rng.integers(num))
        texts[place] += f" {rng.choice(RIGHT)}"
        own = dict.fromkeys("ABCD"[:most]) | dict(zip("ABCD", texts, strict=False))
        row = {"context": " ".join(rng.choice(WRONG, 4)), **{f"answer{key}": text for key, text in own.items()}}
        table.append({**row, "size": int(rng.integers(9)), "correct": "ABCD"[place]})
    return table


def config(tiny, **more):
    return {
        "target": ["correct"],
        "text": {"name": tiny("bert"), "max_tokens": 16},
        "trainer": {"epochs": 2, "head_epochs": 10, "lr": 1e-3, "batch_size": 16},
        **more,
    }


@pytest.fixture(scope="module")
def tables():
    return {
        name: pd.DataFrame(questions(rows, seed)) for name, rows, seed in (("a", 140, 0), ("b", 50, 1), ("c", 50, 2))
    }


def test_choices_in_columns_from_a_table_to_a_report(tiny, tables, tmp_path):
    tuned = ft.fit(tables["a"], val=tables["b"], test=tables["c"], config=config(tiny), out=tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    (task,) = report["tasks"]
    assert task["name"] == "choice" and task["rows"] == 50
    systems = {system["name"]: system for system in task["systems"]}
    assert {"constant guess", "longest choice", "frozen probe", "cosine of embeddings", "tuned"} <= systems.keys()
    assert systems["tuned"]["metrics"]["accuracy"]["value"] > 0.9
    assert {"choices", "calibration"} <= {section["key"] for section in task["sections"]}
    column = tuned.bundle.schema.columns["context + answerA + answerB + answerC + answerD"]
    assert "by their names" in column.reason
    again = ft.load(tmp_path / "run")
    one, two = tuned.predict(tables["c"]).table, again.predict(tables["c"]).table
    assert one.equals(two)
    for row, choice, text, scores in zip(
        tables["c"].to_dict("records"),
        *(one[name].to_pylist() for name in ("correct", "correct_text", "correct_scores")),
        strict=True,
    ):
        assert row[f"answer{choice}"] == text
        real = [score for score in scores if score is not None]
        assert sum(real) == pytest.approx(1) and len(real) == sum(
            isinstance(row[f"answer{key}"], str) for key in "ABCD"
        )
    measured = again.evaluate(tables["c"]).metrics()["correct"]
    assert measured["accuracy"] == pytest.approx(systems["tuned"]["metrics"]["accuracy"]["value"], abs=1e-6)


def test_choices_in_lists_beside_a_label(tiny, tables, tmp_path):
    """The same questions with lists, as JSON, and texts as answers; beside them a label, in one run."""
    frames = {}
    for name, frame in tables.items():
        rows = [
            {
                "context": row["context"],
                "options": json.dumps([row[f"answer{key}"] for key in "ABCD" if isinstance(row[f"answer{key}"], str)]),
                "mood": "good" if row["context"].startswith("w10") else "bad",
                "correct": row[f"answer{row['correct']}"],
            }
            for row in frame.to_dict("records")
        ]
        frames[name] = pd.DataFrame(rows)
    settings = config(tiny, target=["correct", "mood"])
    tuned = ft.fit(frames["a"], val=frames["b"], test=frames["c"], config=settings, out=tmp_path / "run")
    measured = tuned.evaluate(frames["c"]).metrics()
    assert measured["correct"]["accuracy"] > 0.9 and measured["mood"]["accuracy"] > 0.5
    predicted = ft.load(tmp_path / "run").predict(frames["c"]).table
    lists = [json.loads(cell) for cell in frames["c"]["options"]]
    assert all(choice in texts for choice, texts in zip(predicted["correct"].to_pylist(), lists, strict=True))


def test_the_order_of_the_choices_does_not_matter(tiny, tables, tmp_path):
    tuned = ft.fit(tables["a"], val=tables["b"], test=tables["c"], config=config(tiny), out=tmp_path / "run")
    choices = {"answerA": "w12 w1", "answerB": "w13", "answerC": "w14 w10", "answerD": None}
    row = {"context": "w10 w11", **choices, "size": 3}
    turned = row | {"answerA": row["answerC"], "answerC": row["answerA"]}
    one, two = tuned.predict([row, turned])["correct_scores"]
    assert one[:3] == pytest.approx(two[2::-1], abs=1e-6) and one[3] is two[3] is None
    shifted = row | {"answerB": None, "answerD": row["answerB"]}
    (moved,) = tuned.predict([shifted])["correct_scores"]
    assert [moved[0], moved[3], moved[2]] == pytest.approx(one[:3], abs=1e-6)


def test_another_column_tells_which_choice_is_right(tiny, tmp_path):
    """Both choices are right for one of two kinds; from the texts alone it is even odds."""
    frames = []
    for rows, seed in ((240, 0), (60, 1), (60, 2)):
        rng, table = np.random.default_rng(seed), []
        for _ in range(rows):
            kind, order = str(rng.choice(["person", "town"])), rng.permutation(2)
            texts = [f"{rng.choice(RIGHT)}", f"{rng.choice(WRONG)}"]
            place = int(np.flatnonzero(order == (kind == "town"))[0])
            own = {f"option{n + 1}": texts[which] for n, which in enumerate(order)}
            table.append({"question": "w20 w21", **own, "kind": kind, "right": place + 1})
        frames.append(pd.DataFrame(table))
    settings = config(tiny, target=["right"])
    settings["trainer"] |= {"head_epochs": 40}
    tuned = ft.fit(frames[0], val=frames[1], test=frames[2], config=settings, out=tmp_path / "run")
    assert tuned.evaluate(frames[2]).metrics()["right"]["accuracy"] > 0.9
    assert set(tuned.predict(frames[2]).table["right"].to_pylist()) == {1, 2}


def test_rows_that_cannot_be_used_are_rejected_by_row(tiny, tmp_path):
    rows = questions(100)
    rows[3] |= {"correct": "D", "answerD": None}
    rows[5] |= {f"answer{key}": None for key in "ABCD"}
    rows[7] |= {"answerA": "w1", "answerB": "w1", "correct": "B"}
    settings = config(tiny)
    settings["trainer"] |= {"epochs": 0, "head_epochs": 0}
    frame = pd.DataFrame(questions(40, 1))
    ft.fit(pd.DataFrame(rows), val=frame, test=frame, config=settings, out=tmp_path / "run")
    rejected = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rejected] == [3, 5, 7]


def test_a_row_without_choices_has_an_error_slot(tiny, tables, tmp_path):
    settings = config(tiny)
    settings["trainer"] |= {"epochs": 0, "head_epochs": 0}
    tuned = ft.fit(tables["a"], val=tables["b"], test=tables["c"], config=settings, out=tmp_path / "run")
    row = dict(tables["c"].iloc[0]) | {f"answer{key}": None for key in "ABCD"}
    result = tuned.predict([dict(tables["c"].iloc[0]), row])
    assert result["correct"][1] is None and result["correct"][0] is not None
    assert result["error"][0] is None and "no choice" in result["error"][1]


@pytest.mark.parametrize("objective", ["mixup", "unimodal"])
def test_what_makes_no_sense_for_choices_is_refused_before_training(tiny, tables, tmp_path, objective):
    with pytest.raises(UserError, match=f"objectives.{objective}.*(correct|choice)|objectives.{objective} needs"):
        ft.fit(tables["a"], val=tables["b"], config=config(tiny, objectives={objective: {}}), out=tmp_path / "run")
