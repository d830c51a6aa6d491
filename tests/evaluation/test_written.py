"""Answers without a language model: rules and the nearest train row."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from fusetune.evaluation.measure import written
from fusetune.evaluation.measure.written import copies, first_sentence, guesses, leads, nearest
from fusetune.tasks.panels.written import most_frequent


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One. Two.", "One."),
        ("  No end at all ", "No end at all"),
        ("We use Smith et al. (2020), e.g. For this. Next.", "We use Smith et al. (2020), e.g. For this."),
        ("J. R. Tolkien wrote it! Really?", "J. R. Tolkien wrote it!"),
        ("It costs 1.50 euros. Cheap.", "It costs 1.50 euros."),
        ("Das ist z.B. Berlin. Ja.", "Das ist z.B. Berlin."),
        ("He said “stop.” Then he left.", "He said “stop.”"),
        ("猫が座る。犬が走る。", "猫が座る。"),
        ("A title\nand a body. More.", "A title"),
        ("What?! Yes.", "What?!"),
        ("", ""),
        (".", "."),
    ],
)
def test_first_sentence(text, first):
    assert first_sentence(text) == first


def test_rules():
    assert list(most_frequent(["a", ["b", "a"], "b"], 2)) == ["b", "b"]
    assert list(most_frequent([], 1)) == [""]
    assert list(copies(["x", None])) == ["x", ""] and list(leads(["A bus. C d.", None])) == ["A bus.", ""]


@pytest.mark.parametrize("chunk", [1, 64, 1 << 24])
def test_nearest_is_scikit_learns(monkeypatch, chunk):
    monkeypatch.setattr(written, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    train, rows = rng.normal(size=(40, 5)), rng.normal(size=(30, 5)) * 100
    truth = [f"answer {at}" if at % 2 else [f"answer {at}", "alias"] for at in range(40)]
    theirs = NearestNeighbors(n_neighbors=1, metric="cosine").fit(train).kneighbors(rows, return_distance=False)[:, 0]
    assert list(nearest(train, rows, truth)) == [f"answer {at}" for at in theirs]


def test_rows_without_a_vector_have_the_most_frequent_answer():
    train = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.1]])
    answers = nearest(train, np.array([[0.0, 0.0], [-1.0, 0.0]]), ["zero", "often", "often"])
    assert list(answers) == ["often", "often"], "a train row without a vector is no neighbour, however far the others"
    assert list(nearest(train[:1], np.ones((1, 2)), ["only"])) == ["only"]


def test_systems_that_need_no_model():
    long = ["First one. Second one.", "Third. Fourth.", None]
    names = [system.name for system in guesses(["x", "y", "y"], {"title": ["a", "b", "c"], "body": long}, 3)]
    assert names == ["most frequent", "copy of body", "first sentence of body"]
    short = guesses(["x"], {"title": ["one sentence", "another"]}, 2)
    assert [list(system.answers) for system in short] == [["x", "x"], ["one sentence", "another"]]
    assert [system.name for system in guesses(["x"], {}, 2)] == ["most frequent"]
    assert all(system.kind == "baseline" and len(system.answers) == 2 for system in short)
