import json

import pytest

from fusetune.errors import BadCell
from fusetune.tasks.triples.cells import read_triples

TEXT = "Ada met Bo in Rome"
ADA, BO, ROME = (0, 3, "person"), (8, 10, "person"), (14, 18, "town")
ENTITIES = [dict(zip(("start", "end", "label"), span, strict=True)) for span in (ROME, ADA, BO)]
TRIPLES = {(ADA, "met", BO), (BO, "in", ROME)}


def read(value, listed=None, text=TEXT):
    return read_triples(value, listed, text, row=7, column="graph")


def spans(*numbers):
    return [ENTITIES[number] for number in numbers]


BY_NUMBER = [{"head": 1, "label": "met", "tail": 2}, {"head": 2, "label": "in", "tail": 0}]
BY_SPAN = [
    {"head": ENTITIES[1], "label": "met", "tail": {"start": 8, "end": 10}},
    {"head": [8, 10, "person"], "label": "in", "tail": [14, 18, "town"]},
]
BY_ID = [{"head": "T2", "label": "met", "tail": "T3"}, {"head": "T3", "label": "in", "tail": "T1"}]
WITH_IDS = [{**span, "id": f"T{number}"} for number, span in enumerate(ENTITIES, 1)]


@pytest.mark.parametrize(
    ("value", "listed"),
    [
        ({"entities": ENTITIES, "relations": BY_NUMBER}, None),
        ({"entities": WITH_IDS, "relations": BY_ID}, None),
        (BY_SPAN, None),
        (BY_SPAN, ENTITIES),
        (BY_NUMBER, ENTITIES),
        (BY_NUMBER, [[14, 18, "town"], [0, 3, "person"], [8, 10, "person"]]),
        ({"relations": BY_ID, "entities": None}, WITH_IDS),
        ({"entities": [{**span, "id": None} for span in ENTITIES], "relations": BY_NUMBER * 2}, None),
    ],
    ids=["numbers", "ids", "spans", "spans-listed", "numbers-listed", "lists-listed", "ids-listed", "twice"],
)
def test_cells_in_several_forms_are_the_same_triples(value, listed):
    for form in (lambda cell: cell, lambda cell: None if cell is None else json.dumps(cell)):
        found = read(form(value), form(listed))
        assert found.triples == TRIPLES and found.entities == (ADA, BO, ROME)
    assert found.positions == (0, 2, 4) and found.num_words == 5


def test_a_text_without_relations_keeps_its_entities():
    for value, listed in (({"entities": ENTITIES, "relations": []}, None), ([], ENTITIES), (None, ENTITIES)):
        found = read(value, listed)
        assert found.entities == (ADA, BO, ROME) and not found.triples
    assert read([]).entities == read({"entities": [], "relations": []}, None).entities == ()


def test_entities_without_a_label_are_called_entity_unless_another_triple_names_them():
    unnamed = [{"head": [0, 3], "label": "met", "tail": [8, 10]}]
    assert read(unnamed).triples == {((0, 3, "entity"), "met", (8, 10, "entity"))}
    assert read([*unnamed, {"head": [0, 3, "person"], "label": "in", "tail": [14, 18]}]).entities[0] == ADA


def test_a_pair_may_have_several_relations_and_both_directions():
    relations = [
        {"head": h, "label": label, "tail": t} for h, label, t in [(1, "met", 2), (1, "saw", 2), (2, "met", 1)]
    ]
    found = read({"entities": ENTITIES, "relations": relations})
    assert found.triples == {(ADA, "met", BO), (ADA, "saw", BO), (BO, "met", ADA)}


def relation(**more):
    return {"entities": ENTITIES, "relations": [{"head": 1, "label": "met", "tail": 2, **more}]}


def entity(**more):
    return {"entities": [{**ENTITIES[0], **more}], "relations": []}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (entity(start=14, end=19), "14 to 19 does not lie in the text of 18"),
        (entity(start=-1), "-1 to 18 does not lie in the text"),
        (entity(start=18), "18 to 18 does not lie in the text"),
        (entity(start=14.5), "start is 14.5, no whole number"),
        (entity(end=True), "end is True, no whole number"),
        (entity(end=float("inf")), "end is inf, no whole number"),
        (entity(end=None), "end is None, no whole number"),
        (entity(label=5), "label is 5, no text"),
        (entity(label=" "), "no text"),
        (entity(text="Rom"), "characters 14 to 18 of the text are 'Rome', not 'Rom'"),
        (entity(kind="town"), "the entity has the key 'kind'"),
        (entity(id=[1]), r"the id \[1\] is no number"),
        ({"entities": [*ENTITIES, {"start": 9, "end": 12, "label": "x"}], "relations": []}, "overlap"),
        ({"entities": [*ENTITIES, {**ENTITIES[0], "label": "x"}], "relations": []}, "14 to 18 is 'town' and 'x'"),
        ({"entities": [{**span, "id": 1} for span in ENTITIES], "relations": []}, "two entities have the id 1"),
        ({"entities": WITH_IDS, "relations": BY_NUMBER}, "head is 1, and no entity has this id"),
        ({"entities": ENTITIES, "links": [1]}, "the cell has the key 'links'"),
        ({"entities": ENTITIES, "relations": "none"}, "relations are no list"),
        ({"entities": 3, "relations": []}, "entities are no list"),
        ({"entities": ["Rome"], "relations": []}, "'Rome' is no entity"),
        (relation(head=3), "head is entity 3, and there are 3, counted from 0"),
        (relation(tail=-1), "tail is entity -1"),
        (relation(tail="T1"), "tail is 'T1', no entity"),
        (relation(tail=True), "tail is True, no entity"),
        (relation(tail=None), "tail is None, no entity"),
        (relation(tail={"start": 4, "end": 7}), "tail, 4 to 7, is not among the entities"),
        (relation(tail=1), "'met' is of an entity with itself"),
        (relation(label=""), "label is '', no text"),
        (relation(label=None), "label is None, no text"),
        (relation(sure=1), "the relation has the key 'sure'"),
        ([7], "7 is no relation"),
        ([BY_NUMBER[0]], "head is entity 1, and there are 0"),
        ([{"head": [0, 3], "label": "met", "tail": [0, 30]}], "0 to 30 does not lie"),
        ("Ada met Bo", "relations are no list"),
        ("[" * 100_000, "relations are no list"),
        (3, "relations are no list"),
    ],
)
def test_cells_that_do_not_fit_are_refused_with_row_and_reason(value, why):
    with pytest.raises(BadCell, match=why) as raised:
        read(value)
    assert (raised.value.row, raised.value.column) == (7, "graph")


def test_entities_given_twice_are_refused():
    with pytest.raises(BadCell, match="and so has the column"):
        read({"entities": ENTITIES, "relations": []}, ENTITIES)
