import itertools
import json
import random

import numpy as np
import pytest

from fusetune.data.schema import ColumnSpec, Schema
from fusetune.errors import ConfigError, TableError
from fusetune.tasks.infer import infer_task
from fusetune.tasks.panels.kinds import Evidence, SpansPanel, TablePanel
from fusetune.tasks.panels.triples import outcomes_of
from fusetune.tasks.triples.cells import Triples
from fusetune.tasks.triples.task import TriplesTask

TEXT = "Ada met Bo in Rome"
SPANS = [(0, 3, "person"), (8, 10, "person"), (14, 18, "town")]
GRAPH = {"entities": SPANS, "relations": [{"head": 0, "label": "met", "tail": 1}]}


def resolved(task, relations, text=TEXT, spans=SPANS):
    cell = {"entities": spans, "relations": [{"head": h, "label": r, "tail": t} for h, r, t in relations]}
    return task.resolve(cell, text, row=0)


def fitted(relations=((0, "met", 1), (1, "in", 2)), **options):
    task = TriplesTask("graph", **options)
    task.fit([resolved(task, relations), None])
    return task


@pytest.mark.parametrize(
    "cells",
    [
        [GRAPH, {"entities": [], "relations": []}],
        [json.dumps(GRAPH)],
        [[{"head": [0, 3], "label": "met", "tail": [8, 10]}], []],
        ['[{"head": {"start": 0, "end": 3}, "label": "met", "tail": {"start": 8, "end": 10}}]', "[]"],
    ],
)
def test_triples_are_detected(cells):
    assert infer_task(cells)[0] == "triples"


@pytest.mark.parametrize("bad", [{"ents": []}, '{"entities": [', "Ada", 3])
def test_a_few_cells_that_are_broken_do_not_hide_what_the_others_are(bad):
    assert infer_task([json.dumps(GRAPH)] * 19 + [bad])[0] == "triples"
    spans = json.dumps([{"start": 0, "end": 3, "label": "person"}])
    assert infer_task([spans] * 19 + [bad])[0] == "entities"
    assert TriplesTask.detect([json.dumps(GRAPH)] * 8 + [bad] * 2).confidence == 0


@pytest.mark.parametrize("cells", [[[], []], ["[]"], [{"entities": [], "relations": []}], [[{"head": 1, "tail": 2}]]])
def test_cells_without_a_relation_are_not_taken_for_triples(cells):
    assert TriplesTask.detect(cells).confidence == 0


def test_metrics_are_those_of_sets_of_triples():
    draw, task = random.Random(0), fitted()
    spans = [(0, 3, "person"), (0, 3, "town"), (8, 10, "person"), (14, 18, "town")]
    triples = [(h, r, t) for h, t in itertools.permutations(spans, 2) for r in ("met", "in", "rare")]

    def one(score):
        chosen = draw.sample(triples, draw.randrange(8))
        entities = sorted({end for head, _, tail in chosen for end in (head, tail)} | {*draw.sample(spans, 1)})
        number = {span: index for index, span in enumerate(entities)}
        return Triples(tuple(entities), tuple((number[h], number[t], r) for h, r, t in chosen))

    truth, guesses = (task.truth([one(draw) for _ in range(30)]) for _ in range(2))
    found = task.evaluate(task.perfect(guesses), truth)
    right = sum(len(t.triples & g.triples) for t, g in zip(truth, guesses, strict=True))
    true, guessed = (sum(len(value.triples) for value in values) for values in (truth, guesses))
    assert found["precision"] == pytest.approx(right / guessed) and found["recall"] == pytest.approx(right / true)
    assert found["triple_f1"] == pytest.approx(2 * right / (true + guessed))
    both = [sum(len({*v.entities}) for v in values) for values in (truth, guesses)]
    shared = sum(len({*t.entities} & {*g.entities}) for t, g in zip(truth, guesses, strict=True))
    assert found["entity_f1"] == pytest.approx(2 * shared / sum(both))
    of_met = [[{t for t in v.triples if t[1] == "met"} for v in values] for values in (truth, guesses)]
    hits = sum(len(t & g) for t, g in zip(*of_met, strict=True))
    assert found["f1_met"] == pytest.approx(2 * hits / sum(len(own) for values in of_met for own in values))
    assert task.evaluate(task.perfect(truth), truth)["triple_f1"] == 1.0


@pytest.mark.parametrize("change", ["direction", "relation", "type", "boundary"])
def test_a_triple_with_anything_wrong_is_wrong(change):
    task = fitted()
    truth = task.truth([resolved(task, [(0, "met", 1)])])
    answers = task.perfect(truth)
    (triple,) = answers[0]["triples"]
    if change == "direction":
        triple["head"], triple["tail"] = triple["tail"], triple["head"]
    elif change == "relation":
        triple["label"] = "in"
    else:
        triple["head"] = {**triple["head"], **({"label": "town"} if change == "type" else {"end": 2})}
    found = task.evaluate(answers, truth)
    assert found["triple_f1"] == 0.0 and found["entity_f1"] == 1.0


def test_no_relation_at_all_cannot_be_learned():
    task = TriplesTask("graph")
    with pytest.raises(TableError, match="no train row has a relation"):
        task.fit([resolved(task, [])])


def test_the_window_leaves_pairs_out_and_says_how_many():
    task = fitted([(0, "met", 1), (2, "in", 0)], window=2)
    (warning,) = task.warnings(task.constant(np.empty(0), 1), task.truth([resolved(task, [])]))
    assert "1 of 2 train relations" in warning and "more than 2 words apart: such pairs, 2 in train" in warning
    assert task.weight == 5 / 4 and fitted().weight == 5 / 6 and not fitted().left_out
    for window in (0, True, 1.5):
        with pytest.raises(ConfigError, match="1 or more"):
            TriplesTask("graph", window=window)


def test_texts_with_very_many_entities_are_paired_as_far_as_train_relations_reach():
    task, words = TriplesTask("graph"), [f"w{number}" for number in range(100, 140)]
    spans = [(5 * place, 5 * place + 4, "word") for place in range(40)]
    far = resolved(task, [(0, "next", 3), (9, "next", 8)], " ".join(words), spans)
    task.fit([far])
    assert task.window_used == 3 and "1,560 pairs" in task.choice and task.far == 0
    assert task.left_out == 40 * 39 - 2 * (39 + 38 + 37)
    again = TriplesTask.from_state("graph", json.loads(json.dumps(task.state())))
    assert again.window_used == 3 and again.choice == task.choice


def test_relations_that_no_train_row_has_count_as_missed_and_are_named():
    task = fitted()
    truth = task.truth([resolved(task, [(0, "saw", 1), (0, "met", 1)])])
    answers = task.perfect(task.truth([resolved(task, [(0, "met", 1)])]))
    found = task.evaluate(answers, truth)
    assert found["recall"] == 0.5 and found["precision"] == found["f1_met"] == 1.0
    (warning,) = task.warnings(answers, truth)
    assert "'saw' (1)" in warning


def test_entities_may_have_a_column_of_their_own():
    def schema(*names):
        specs = {name: ColumnSpec(name, "text", "input") for name in ("text", *names)}
        return Schema(specs | {"graph": ColumnSpec("graph", "text", "target")})

    task = TriplesTask("graph")
    assert task.reading(schema()).also == () and task.second is None
    with pytest.raises(ConfigError, match="names no column"):
        TriplesTask("graph", entities="spans").reading(schema())
    assert TriplesTask("graph", entities="labels", text="text").reading(schema("labels")).also == ("labels",)
    assert TriplesTask("graph", text="text").reading(schema("entities")).also == ("entities",)
    task.second = "entities"
    found = task.resolve(([{"head": 0, "label": "met", "tail": 1}], SPANS), TEXT, row=0)
    assert found == resolved(TriplesTask("graph"), [(0, "met", 1)])


def test_errors_of_triples_have_their_kinds():
    ada, bo, rome = SPANS
    true = {(ada, "met", bo), (bo, "in", rome), (ada, "in", rome), (rome, "near", ada)}
    guessed = {(ada, "met", bo), (rome, "in", bo), (ada, "saw", rome), (bo, "near", ada)}
    right = outcomes_of(true, guessed, {ada, bo, rome}, "missed")
    assert right == {
        (ada, "met", bo): "right",
        (bo, "in", rome): "wrong direction",
        (ada, "in", rome): "wrong relation",
        (rome, "near", ada): "missed",
    }
    found = outcomes_of(guessed, true, {ada, bo, rome}, "invented")
    assert list(found.values()).count("right") == 1 and found[bo, "near", ada] == "invented"
    assert outcomes_of(true, set(), {ada, bo}, "missed")[bo, "in", rome] == "wrong entity"


def test_the_report_lists_triples_beside_the_marked_texts():
    task = fitted()
    truth = task.truth([resolved(task, [(0, "met", 1), (1, "in", 2)]), resolved(task, [(0, "met", 1)])])
    answers = task.perfect(
        task.truth([resolved(task, [(0, "met", 1), (1, "met", 2)]), resolved(task, [(0, "met", 1)])])
    )
    sections = {s.key: s for s in task.panels(Evidence(answers, truth, texts=lambda at: [TEXT], ids=np.arange(2)))}
    assert sections["errors"].figures == dict(wrong_relation=1, wrong_direction=0, missed=0, invented=0, wrong_entity=0)
    wrong, rest = sections["texts"].panels
    assert isinstance(wrong, SpansPanel) and [text.row for text in wrong.texts] == [0]
    (text,) = wrong.texts
    assert [(line.text, line.outcome) for line in text.true_lines] == [
        ("Ada — met → Bo", "right"),
        ("Bo — in → Rome", "wrong relation"),
    ]
    assert [line.text for line in text.predicted_lines] == ["Ada — met → Bo", "Bo — met → Rome"]
    assert [text.row for text in rest.texts] == [1]
    (figures,) = sections["relations"].panels
    assert isinstance(figures, TablePanel) and [row[:4] for row in figures.rows] == [["met", 2, 3, 2], ["in", 1, 0, 0]]
    (table,) = task.target_panels({"train": truth, "test": truth[:0]})
    assert table.rows == [["met", 2, 0], ["in", 1, 0], ["(rows without triples)", 0, 0]]
