"""Columns of numbers are found however they are written, and what was done is said."""

import random

import pytest

from fusetune.config.read import ReadConfig
from fusetune.data.schema import Schema
from fusetune.data.table import Table

RNG = random.Random(0)


def detect(cells, *, read=None, overrides=None, target=False, **more):
    columns = {"v": cells, "y": [RNG.choice("ab") for _ in cells], **more}
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    schema = Schema.detect(Table.from_records(records), ["v" if target else "y"], overrides, read)
    return schema, schema.columns["v"]


def sometimes(word, other):
    return [word if place % 10 == 3 else other(place) for place in range(200)]


@pytest.mark.parametrize(
    "word", ["NA", "nan", "NaN", "NULL", "null", "None", "?", "-", "N/A", "#N/A", ".", "unknown", "\\N"]
)
@pytest.mark.parametrize(
    "other", [lambda place: str(20 + place % 50), lambda place: f"{place * 1.7:.2f}", lambda place: place]
)
def test_words_for_nothing_among_numbers_are_missing(word, other):
    schema, spec = detect(sometimes(word, other))
    assert (spec.kind, spec.read.missing) == ("number", (word,))
    assert repr(word) in schema.notes[0] and "20 of 200" in schema.notes[0]
    assert repr(word) in spec.reason


FORMS = {
    "decimal comma": (lambda: f"{RNG.uniform(1, 99):.2f}".replace(".", ","), "decimal ,"),
    "thousands": (lambda: f"{RNG.randint(1000, 9999999):,}", "thousands ,"),
    "European": (lambda: f"{RNG.uniform(1e3, 1e6):,.2f}".translate(str.maketrans(",.", ".,")), "decimal , thousands ."),
    "French": (
        lambda: f"{RNG.uniform(1e3, 1e6):,.2f}".replace(",", "\u202f").replace(".", ","),
        "decimal , thousands  ",
    ),
    "Swiss": (lambda: f"{RNG.uniform(1e3, 1e6):,.2f}".replace(",", "'"), "thousands '"),
    "dollars": (lambda: f"${RNG.uniform(1, 999):.2f}", "affixes $"),
    "euros": (lambda: f"{RNG.uniform(1, 999):.2f} EUR", "affixes EUR"),
    "percent": (lambda: f"{RNG.uniform(0, 100):.1f}%", "affixes %"),
    "a tenth percent": (lambda: f"{RNG.uniform(0, 100):.1f}" + RNG.choice(["%"] + [""] * 9), "affixes %"),
    "unit": (lambda: f"{RNG.uniform(1, 99):.1f} kg", "affixes kg"),
}


@pytest.mark.parametrize("name", FORMS)
def test_numbers_in_other_forms_are_numbers(name):
    make, expected = FORMS[name]
    schema, spec = detect([make() for _ in range(150)])
    told = " ".join(f"{key} {value[0]}" for key, value in spec.read.to_dict().items())
    assert (spec.kind, told) == ("number", expected)
    assert schema.notes and not schema.warnings


def test_three_digits_behind_a_comma_follow_the_other_columns():
    cells = [f"{place % 90 + 1},{place + 100}" for place in range(150)]
    assert detect(cells)[1].read.thousands == ","
    other = [f"{place / 7:.2f}".replace(".", ",") for place in range(150)]
    assert detect(cells, price=other)[1].read.decimal == ","
    groups = [f"{place % 9 + 1}.{place + 100}" for place in range(150)]
    assert detect(groups, price=other)[1].read.thousands == "."
    assert detect(groups)[1].read.to_dict() == {}
    assert detect(cells, read=ReadConfig(decimal=","))[1].read.decimal == ","


WORDS = {
    "ranges": [f"{place}-{place + 5}" for place in range(60)],
    "versions": [f"1.{place}.{place % 3}" for place in range(60)],
    "addresses": [f"10.0.{place}.7" for place in range(60)],
    "codes": [f"SKU{place}" for place in range(60)],
    "sizes": [f"{place % 3} kg" for place in range(60)],
    "lists": [f"{place},{place + 1},{place + 2}" for place in range(60)],
    "houses": [f"{place}{'abc'[place % 3]}" for place in range(60)],
    "pictures": [f"{place}.png" for place in range(60)],
    "more pictures": [f"{place}.5 .jpg" for place in range(60)],
    "mostly missing": ["none" if place % 3 else "2" for place in range(60)],
    "zip codes": [f"0{place % 20 + 1000}" if place % 9 else "NA" for place in range(60)],
}


@pytest.mark.parametrize("name", WORDS)
def test_what_is_no_quantity_keeps_its_text(name):
    _, spec = detect(WORDS[name])
    assert spec.kind != "number" and spec.read.to_dict() == {}


def test_columns_that_are_nearly_numbers_are_warned_about():
    cells = [str(place) if place % 5 else "see note" for place in range(100)]
    schema, spec = detect(cells)
    assert spec.kind != "number"
    assert "see note" in schema.warnings[0] and "columns.v=number" in schema.warnings[0]
    mixed = [f"{place} {'kg' if place % 2 else 'lb'}" for place in range(100)]
    assert "kg, lb" in detect(mixed)[0].warnings[0]
    assert detect(cells, overrides={"v": "category"})[0].warnings == []


def test_settings_name_what_is_missing():
    cells = [str(place) if place % 5 else "see note" for place in range(100)]
    _, spec = detect(cells, read=ReadConfig(missing=["see note"]))
    assert (spec.kind, spec.read.missing) == ("number", ("see note",))
    names = [["red", "NA", "blue"][place % 3] for place in range(90)]
    assert detect(names)[1].read.missing == ()
    assert detect(names, read=ReadConfig(missing=["NA"]))[1].read.missing == ("NA",)
    numbers = ["NA" if place % 5 == 0 else str(place) for place in range(100)]
    assert detect(numbers, read=ReadConfig(missing=[]))[1].kind != "number"
    nothing = ["null" if place % 5 == 0 else str(place) for place in range(100)]
    assert detect(nothing, read=ReadConfig(missing=[None]))[1].read.missing == ("null",)  # as YAML reads it


def test_a_column_may_be_told_how_it_is_read():
    cells = [f"{place},{place % 7}" for place in range(100)]
    _, spec = detect(cells, overrides={"v": {"kind": "number", "read": {"decimal": ","}}})
    assert (spec.kind, spec.read.decimal) == ("number", ",")
    _, spec = detect(cells, overrides={"v": {"read": {}}})
    assert spec.kind != "number"


def test_targets():
    prices = [f"${place * 1.5:,.2f}" for place in range(100)]
    assert detect(prices, target=True)[1].read.affixes == ("$",)
    bands = [f"${place % 3 * 10}" for place in range(100)]
    assert detect(bands, target=True)[1].read.affixes == ()
    labels = ["NA" if place % 9 == 0 else str(place % 3) for place in range(100)]
    assert detect(labels, target=True)[1].read.missing == ("NA",)


def test_a_schema_keeps_the_forms():
    schema, spec = detect([f"{place / 3:.2f}".replace(".", ",") + " €" for place in range(100)])
    again = Schema.from_yaml(schema.to_yaml())
    assert again.columns == schema.columns and again.forms() == {"v": spec.read}
