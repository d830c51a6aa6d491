"""Texts with marked spans in the report: nested and crossing spans, hostile texts."""

import re
from html.parser import HTMLParser

import pytest

from fusetune.evaluation.report.panels import draw
from fusetune.evaluation.report.spans import marked
from fusetune.evaluation.results import plain
from fusetune.tasks.panels.kinds import MarkedSpan, MarkedText, SpansPanel


class Marks(HTMLParser):
    """Collects the characters of each mark, and checks that marks are closed in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.texts, self.text, self.label = [], [], "", False
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.label = tag == "span"
        if tag == "mark":
            self.open.append(len(self.text))

    def handle_endtag(self, tag):
        self.label = False
        if tag == "mark":
            self.texts.append(self.text[self.open.pop() :])

    def handle_data(self, data):
        self.text += "" if self.label else data


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(0, 3), (4, 7)], ["abc", "efg"]),
        ([(0, 9), (2, 4)], ["abcdefghi", "cd"]),
        ([(2, 4), (0, 9)], ["abcdefghi", "cd"]),
        ([(0, 5), (3, 8)], ["abcde", "de", "fgh"]),
        ([(0, 5), (0, 5)], ["abcde", "abcde"]),
        ([(-3, 2), (8, 99), (4, 4)], ["ab", "ij"]),
    ],
)
def test_marks_lie_around_their_characters(spans, expected):
    text = "abcdefghij"
    drawn = Marks(str(marked(text, [MarkedSpan(*span, "x") for span in spans])))
    assert drawn.text == text and sorted(drawn.texts) == sorted(expected)


def test_texts_and_labels_are_escaped():
    hostile = '<script>alert("x")</script>'
    panel = SpansPanel([MarkedText(hostile, [MarkedSpan(0, 8, hostile, hostile)], [])], hostile, hostile)
    drawn = str(draw(panel))
    assert "<script" not in drawn and drawn.count("&lt;script") >= 5


def test_a_crossing_span_has_its_label_once():
    drawn = str(marked("abcdefghij", [MarkedSpan(0, 5, "one"), MarkedSpan(3, 8, "two", "missed")]))
    assert re.findall(r'class="label">([^<]*)<', drawn) == ["one", "two, missed"]


def test_many_nested_spans_are_drawn():
    spans = [MarkedSpan(place, 2000 - place, "x") for place in range(900)]
    assert "<mark" in str(marked("a" * 2000, spans))


def test_a_panel_is_plain_data():
    panel = SpansPanel([MarkedText("Ada", [MarkedSpan(0, 3, "person")], [], 4)])
    assert plain(panel)["texts"][0]["true"][0] == {"start": 0, "end": 3, "label": "person", "outcome": "right"}
