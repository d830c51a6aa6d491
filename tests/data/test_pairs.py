"""Detection of two text columns that are a pair."""

import pytest

from fusetune.data.detect.pairs import is_pair


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("premise", "hypothesis"),
        ("hypothesis", "premise"),
        ("Premise", "Hypothesis"),
        ("sentence_a", "sentence_b"),
        ("sentence1", "sentence2"),
        ("question1", "question2"),
        ("textA", "textB"),
        ("Text 1", "Text 2"),
        ("first_sentence", "second_sentence"),
        ("leftText", "rightText"),
        ("question", "passage"),
    ],
)
def test_pairs(first, second):
    assert is_pair(first, second) and is_pair(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("title", "body"),
        ("review", "summary"),
        ("home_team_1", "away_team_2"),
        ("a", "b"),
        ("text1", "note2"),
        ("", "b"),
    ],
)
def test_columns_that_say_different_things_are_none(first, second):
    assert not is_pair(first, second)
