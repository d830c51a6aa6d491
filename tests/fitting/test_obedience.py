"""Obedience to categories: the share of texts that a classifier of the train rows' texts gives the asked label."""

import numpy as np
import pytest

from fusetune.evaluation.measure.judge import EvaluatedRows
from fusetune.fitting.obedience import TRUE, USUAL, Attribute, obedience_section

WORDS = {"formal": "sir madam regards", "casual": "hey dude cheers", "angry": "never again refund"}


def texts(labels, seed):
    rng = np.random.default_rng(seed)
    return [
        " ".join(rng.permutation([*WORDS[label].split(), *rng.choice(["a", "b", "c", "d"], 3)])) for label in labels
    ]


def section(train, asked, answers, texts_of=texts, weights=None):
    rows = EvaluatedRows(np.zeros(len(asked)), np.arange(len(asked)), weights=weights)
    systems = {TRUE: texts_of(["formal" if label is None else label for label in asked], 1), "tuned": answers}
    attribute = Attribute("tone", train, asked)
    return obedience_section([attribute], texts_of(train, 0), systems, rows, num=100, seed=0)


def test_it_is_the_share_of_texts_with_the_asked_label():
    train, asked = list(WORDS) * 20, list(WORDS) * 10
    answered = [asked[at] if at < 21 else "angry" for at in range(30)]
    right = sum(one == other for one, other in zip(asked, answered, strict=True))
    figures = section(train, asked, texts(answered, 2)).figures
    assert figures["tone: tuned"] == pytest.approx(right / 30) and figures[f"tone: {TRUE}"] == 1.0
    assert figures[f"tone: {USUAL}"] == pytest.approx(1 / 3)


def test_rows_without_the_category_or_with_an_unseen_one_are_left_out_and_weights_count():
    train, asked = ["formal", "casual"] * 20, ["formal", "casual", None, "angry"] * 5
    answered = ["formal", "formal", "formal", "formal"] * 5
    weights = np.array([3.0, 1.0, 5.0, 5.0] * 5)
    figures = section(train, asked, texts(answered, 2), weights=weights).figures
    assert figures["tone: tuned"] == pytest.approx(0.75)


def test_a_category_that_texts_do_not_show_is_called_that():
    rng = np.random.default_rng(0)

    def noise(labels, seed):
        return [" ".join(rng.choice(["a", "b", "c", "d"], 6)) for _ in labels]

    train, asked = ["formal", "casual"] * 30, ["formal", "casual"] * 15
    found = section(train, asked, noise(asked, 0), noise)
    assert any("say nothing" in note for note in found.notes)
    assert not any("say nothing" in note for note in section(train, asked, texts(asked, 2)).notes)


def test_there_is_none_without_two_labels():
    assert section(["formal"] * 40, ["formal"] * 10, texts(["formal"] * 10, 2)) is None
    assert (
        section(
            [f"label {at}" for at in range(40)], ["formal"] * 10, texts(["formal"] * 10, 2), lambda own, _: list(own)
        )
        is None
    )
