"""What the report draws of entities: outcomes of spans, counts by type, texts."""

import math

import numpy as np

from fusetune.tasks.entities.task import EntitiesTask
from fusetune.tasks.panels.entities import compare
from fusetune.tasks.panels.kinds import Evidence, SpansPanel, TablePanel
from fusetune.tasks.panels.texts import MAX_TEXT

TEXT = "Ada Lovelace met Bo in Rome near Oslo"
TRUE = [(0, 12, "person"), (17, 19, "person"), (23, 27, "place"), (33, 37, "place")]


def outcomes(true, predicted):
    return [[span.outcome for span in side] for side in compare(true, predicted)]


def test_every_span_has_the_outcome_of_its_kind_of_error():
    predicted = [(0, 3, "person"), (17, 19, "place"), (28, 32, "place"), (33, 37, "place")]
    assert outcomes(TRUE, predicted) == [
        ["wrong boundary", "wrong type", "missed", "right"],
        ["wrong boundary", "wrong type", "invented", "right"],
    ]


def test_a_span_is_compared_with_one_other_the_most_alike():
    assert outcomes([(0, 9, "a")], [(0, 4, "a"), (0, 9, "a"), (5, 9, "b")]) == [
        ["right"],
        ["invented", "right", "invented"],
    ]
    assert outcomes([(0, 9, "a")], [(0, 6, "b"), (7, 9, "a")]) == [["wrong boundary"], ["invented", "wrong boundary"]]
    assert outcomes([(0, 4, "a"), (0, 9, "a")], [(0, 9, "a")]) == [["missed", "right"], ["right"]]
    assert outcomes([], []) == [[], []]


def entities(spans, text=TEXT):
    return [{"start": s, "end": e, "label": label, "score": 0.9, "text": text[s:e]} for s, e, label in spans]


def evidence(predicted, texts, truth):
    answers = np.empty(len(predicted), dtype=object)
    answers[:] = [entities(spans, text) for spans, text in zip(predicted, texts, strict=True)]
    task = EntitiesTask("tags")
    task.fit(truth)
    intervals = {"f1_person": (0.5, 0.2, 0.8)}
    ids = np.arange(len(texts)) + 100
    found = Evidence(answers, task.truth(truth), ids=ids, texts=lambda at: [texts[at]], intervals=intervals)
    return task, found


def test_counts_add_up_and_examples_are_quoted():
    predicted = [(0, 3, "person"), (17, 19, "place"), (28, 32, "place"), (33, 37, "place")]
    task, found = evidence([predicted, []], [TEXT, "nothing"], [TRUE, []])
    sections = {section.key: section for section in task.panels(found)}
    rows = {row[0]: row[1:] for row in sections["types"].panels[0].rows}
    assert rows["person"][:3] == [2, 1, 0] and rows["person"][5:] == [0.5, "0.200 to 0.800"]
    assert rows["place"][:5] == [2, 3, 1, 1 / 3, 1 / 2] and math.isnan(rows["place"][5])
    errors = {row[0]: row[1:] for row in sections["errors"].panels[0].rows}
    assert errors == {"person": [0, 0, 0, 1, 1], "place": [1, 1, 1, 0, 0], "all": [1, 1, 1, 1, 1]}
    assert sections["errors"].figures == {"missed": 1, "invented": 1, "wrong_type": 1, "wrong_boundary": 1}
    examples = dict(sections["examples"].panels[0].rows)
    assert examples["missed"] == "“Rome” (place)" and examples["invented"] == "“near” (place)"
    assert examples["wrong type"] == "“Bo” (place, not person)"
    assert examples["wrong boundary"] == "“Ada” for “Ada Lovelace” (person)"
    assert sections["examples"].panels[1].rows == [["person", "place", 1]]
    (panel,) = sections["texts"].panels
    assert isinstance(panel, SpansPanel) and [text.row for text in panel.texts] == [100]


def test_texts_with_every_kind_of_error_come_first_and_long_ones_are_cut_around_it():
    long = "x" * 2000 + " Rome " + "y" * 2000
    texts = [*["Ada"] * 30, long]
    truth = [*[[(0, 3, "person")]] * 30, [(2001, 2005, "place")]]
    task, found = evidence([*[[(0, 3, "person")]] * 30, []], texts, truth)
    wrong, more = {section.key: section for section in task.panels(found)}["texts"].panels
    (shown,) = wrong.texts
    assert len(shown.text) <= MAX_TEXT + 2 and shown.text[shown.true[0].start : shown.true[0].end] == "Rome"
    assert more.folded and all(text.true[0].outcome == "right" for text in more.texts)


def test_without_texts_there_are_counts_only():
    task, found = evidence([[(0, 3, "person")]], [TEXT], [TRUE])
    sections = task.panels(Evidence(found.answers, found.truth))
    assert [section.key for section in sections] == ["types", "errors"]


def test_the_target_by_split_counts_entities_and_rows_without():
    task = EntitiesTask("tags")
    task.fit([TRUE])
    (panel,) = task.target_panels({"train": task.truth([TRUE, []]), "test": task.truth([TRUE[:1]])})
    assert isinstance(panel, TablePanel)
    assert panel.rows == [["person", 2, 1], ["place", 2, 0], ["(rows without entities)", 1, 0]]


def test_labels_that_no_train_row_has_are_missed():
    task, found = evidence([[(0, 12, "person")]], [TEXT], [TRUE[:1]])
    truth = task.truth([[*TRUE[:1], (23, 27, "unheard of")]])
    sections = {section.key: section for section in task.panels(Evidence(found.answers, truth, texts=found.texts))}
    assert sections["errors"].panels[0].rows[1] == ["unheard of", 0, 1, 0, 0, 0]
    (panel,) = task.target_panels({"test": truth})
    assert ["unheard of", 1] in panel.rows
