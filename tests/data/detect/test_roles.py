"""Columns that only number rows, name what rows belong to, or hold codes."""

import random

import pytest

from fusetune.data.schema import Schema
from fusetune.data.table import Table

NUM = 200
DRAW = random.Random(1)


def detect(name, cells):
    records = [{name: cell, "x": DRAW.random(), "y": DRAW.choice("ab")} for cell in cells]
    schema = Schema.detect(Table.from_records(records), ["y"])
    return schema, schema.columns[name]


INDEXES = {
    "Unnamed: 0": list(range(NUM)),
    "Unnamed: 0.1": [place * 3 % 101 for place in range(NUM)],
    "level_0": [place // 2 for place in range(NUM)],
    "rownames": [f"Mazda RX{place}" for place in range(NUM)],
    "row.names": DRAW.sample(range(10_000), NUM),
    "__index_level_0__": list(range(0, 2 * NUM, 2)),
    "Sr No.": DRAW.sample(range(10_000), NUM),
    "S.No": DRAW.sample(range(10_000), NUM),
    "Serial Number": DRAW.sample(range(10_000), NUM),
    "Utterance_ID": [place % 12 for place in range(NUM)],
    "message_id": [str(place % 31) for place in range(NUM)],
    "sender_id": [f"u{place * 7919 % 190}" for place in range(NUM)],
}


@pytest.mark.parametrize("name", INDEXES)
@pytest.mark.parametrize("as_text", [False, True])
def test_indexes_and_running_numbers_are_left_out_with_the_reason(name, as_text):
    cells = [str(cell) for cell in INDEXES[name]] if as_text else INDEXES[name]
    _, spec = detect(name, cells)
    assert spec.role in ("id", "group") and spec.reason


GROUPS = {
    "speaker": [f"s{place % 25}" for place in range(NUM)],
    "sender_id": [place % 25 for place in range(NUM)],
    "Dialogue_ID": [place // 8 for place in range(NUM)],
    "document_id": [f"d{place // 5}" for place in range(NUM)],
    "userId": [place % 40 for place in range(NUM)],
}


@pytest.mark.parametrize("name", GROUPS)
def test_many_owners_are_the_group(name):
    assert detect(name, GROUPS[name])[1].role == "group"


@pytest.mark.parametrize("name", ["speaker", "patient_id", "session_id", "Actor"])
def test_few_owners_are_proposed_as_the_group(name):
    schema, spec = detect(name, [place % 6 for place in range(NUM)])
    assert spec.role == "input"
    assert repr(name) in schema.warnings[0] and f"columns.{name}=group" in schema.warnings[0]
    records = [{name: place % 6, "y": DRAW.choice("ab")} for place in range(60)]
    told = Schema.detect(Table.from_records(records), ["y"], {name: "input"})
    assert told.warnings == []


CODES = ["zip", "ZipCode", "postal_code", "dept", "Department", "SKU", "area_code"]


@pytest.mark.parametrize("name", CODES)
def test_integers_that_are_codes_by_name_are_categories(name):
    _, spec = detect(name, [10_000 + place % 40 * 7 for place in range(NUM)])
    assert spec.kind == "category" and "codes" in spec.reason


PLAIN = {
    "code": DRAW.sample(range(10**6), NUM),  # nearly all differ: nothing to learn as names
    "number": [DRAW.randrange(50) for _ in range(NUM)],
    "document": [f"text number {place % 30} of the document" for place in range(NUM)],
    "zip": [DRAW.random() for _ in range(NUM)],
    "message": [f"message {place} says something" for place in range(NUM)],
    "No": ["yes" if place % 3 else "no" for place in range(NUM)],
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_inputs_stay(name):
    schema, spec = detect(name, PLAIN[name])
    assert spec.role == "input", spec.reason
    assert "group" not in "".join(schema.warnings)
