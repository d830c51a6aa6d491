"""Python is told from prose and parsed; nothing that is parsed can harm."""

import warnings

import numpy as np
import pytest

from fusetune.tasks.text.metrics.code import MAX_CHARACTERS, is_python, parses
from fusetune.tasks.text.metrics.table import metrics_of, row_counts

BODY = "    total = 0\n    for x in values:\n        total += x\n    return total"


@pytest.mark.parametrize("text", [BODY, "return a + b", "x = 1\nprint(x)", "import os", "raise ValueError(name)"])
def test_code_is_told(text):
    assert is_python(text) and parses(text)


@pytest.mark.parametrize(
    "text", ["", "yes", "yes\nno", "red, green", "well-known", "Ada: 7", "x = 5", "sin(x)", "a cat sat", "猫", "10/12"]
)
def test_prose_is_told(text):
    assert not is_python(text)


@pytest.mark.parametrize(
    "text",
    [
        *("(" * 9_000, "-" * 9_000 + "1", "a" + ".a" * 9_000, "1" + "**1" * 3_000, "not " * 4_000 + "1"),
        *("\0", "\ud800", "9" * 5_000, "f'{" * 3_000, "x = 1\n" * MAX_CHARACTERS),
    ],
    ids=range(10),
)
def test_hostile_texts_do_not_parse(text):
    assert not parses(text)


def test_warnings_of_answers_are_their_own():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parses("x = '\\d'\nassert (x, 1)")


def test_share_of_parsing_answers_where_references_are_code():
    counts = row_counts([BODY, "for x in", "an answer", "..."], [BODY, BODY, "a reference", ["prose", BODY]])
    assert metrics_of(counts)["parses"] == pytest.approx(2 / 3)
    assert metrics_of(counts[:2])["parses"] == 0.5
    assert np.isnan(metrics_of(np.concatenate([counts[[0]], counts[[2]], counts[[2]]]))["parses"])
