"""Two entities of a text, as tags, words, or characters."""

import json

import pytest

from fusetune.errors import BadCell
from fusetune.modalities.markers import is_tagged, mark_entities, with_tags

TEXT = "Ann moved from Oslo to Rome"


def tagged(head, tail, text=TEXT):
    return with_tags(text, [head, tail], row=3, column="text")


@pytest.mark.parametrize(
    ("head", "tail"),
    [
        ("Ann", "Rome"),
        ({"start": 0, "end": 3}, {"start": 23, "end": 27}),
        ({"text": "Ann"}, {"text": "Rome", "start": 23}),
        ({"text": "Ann", "start": 0, "end": 3}, '{"start": 23, "end": 27}'),
        ([0, 3], ["23", "27.0"]),
        ([0.0, 3.0], json.dumps([23, 27])),
    ],
)
def test_every_form_of_an_entity_gives_the_same_tags(head, tail):
    assert tagged(head, tail) == "<e1>Ann</e1> moved from Oslo to <e2>Rome</e2>"


@pytest.mark.parametrize(
    "typed",
    [{"start": 15, "end": 19, "label": "city"}, {"text": "Oslo", "type": "city"}, [15, 19, "city"], ["Oslo", "city"]],
)
def test_types_stand_before_their_entities(typed):
    marked, places = mark_entities(tagged("Ann", typed))
    assert marked == "@ Ann @ moved from # ^ city ^ Oslo # to Rome"
    assert [marked[place] for place in places] == ["@", "#"]


def test_the_second_entity_may_come_first_or_lie_within_the_first():
    marked, places = mark_entities(tagged("Rome", "Ann"))
    assert marked == "# Ann # moved from Oslo to @ Rome @" and places == [27, 0]
    assert tagged("Ann moved", "Ann") == "<e1><e2>Ann</e2> moved</e1> from Oslo to Rome"
    assert tagged("Ann", "Ann moved") == "<e2><e1>Ann</e1> moved</e2> from Oslo to Rome"
    for both in (tagged("Ann", "Ann"), tagged([0, 9], [4, 14])):
        assert is_tagged(both) and len(mark_entities(both)[1]) == 2


def test_touching_entities_close_before_the_next_opens():
    assert tagged([0, 1], [1, 3]) == "<e1>A</e1><e2>nn</e2> moved from Oslo to Rome"


def test_whole_words_are_preferred():
    assert tagged("art", "Bob", "party art by Bob") == "party <e1>art</e1> by <e2>Bob</e2>"
    assert tagged("東京", "大阪", "東京から大阪へ") == "<e1>東京</e1>から<e2>大阪</e2>へ"


def test_a_tagged_text_is_taken_as_it_is():
    text = "<e1>Ann</e1> in <e2>Oslo</e2>"
    assert tagged("nobody", None, text) == text


@pytest.mark.parametrize(
    ("head", "text", "why"),
    [
        (None, TEXT, "missing"),
        ("", TEXT, "missing"),
        (7, TEXT, "names no entity"),
        ({"start": 3}, TEXT, "names no entity"),
        ("Eve", TEXT, "not in the text"),
        ("o", "t o and o", "2 times"),
        ("Ann", "Ann and Ann", "2 times"),
        ([5, 5], TEXT, "not in a text of 27"),
        ([0, 99], TEXT, "not in a text of 27"),
        ({"start": 1, "end": 4, "text": "Ann"}, TEXT, "not 'Ann'"),
        ("Ann", "<e1>Ann</e1> in Rome", "not all"),
    ],
)
def test_what_names_no_entity_is_refused_with_its_row(head, text, why):
    with pytest.raises(BadCell) as refused:
        tagged(head, [0, 1], text)
    assert refused.value.row == 3 and why.strip("'") in str(refused.value).replace('"', "'")
