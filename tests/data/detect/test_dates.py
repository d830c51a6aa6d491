"""Columns of dates are found however they are written."""

import random
from datetime import datetime, timedelta

import pytest

import fusetune as ft
from fusetune.config.read import ReadConfig
from fusetune.data.detect.dates import _FORMATS
from fusetune.data.schema import Schema
from fusetune.data.table import Table

DRAW = random.Random(0)
MOMENTS = [datetime(2001, 1, 1) + timedelta(minutes=DRAW.randrange(10_000_000)) for _ in range(120)]


def detect(cells, *, name="v", read=None):
    table = Table.from_records([{name: cell, "y": DRAW.choice("ab")} for cell in cells])
    schema = Schema.detect(table, ["y"], read=read)
    return schema, schema.columns[name], table.read_as(schema.forms()).cells(name)


@pytest.mark.parametrize("format", _FORMATS)
def test_every_format(format):
    schema, spec, cells = detect([moment.strftime(format) for moment in MOMENTS])
    assert (spec.kind, spec.role, spec.read.dates) == ("date", "input", format)
    assert [cell[:10] for cell in cells] == [f"{moment:%Y-%m-%d}" for moment in MOMENTS]
    assert schema.notes and not schema.warnings


@pytest.mark.parametrize("format", ["%Y-%m-%d", "%Y/%m/%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%MZ", "%H:%M"])
def test_iso_dates_need_no_form(format):
    _, spec, _ = detect([moment.strftime(format) for moment in MOMENTS])
    assert (spec.kind, spec.read.to_dict()) == ("date", {})


def test_eight_digits_are_a_date_where_the_name_says_so():
    cells = [f"{moment:%Y%m%d}" for moment in MOMENTS]
    assert detect(cells, name="visit_date")[1].read.dates == "%Y%m%d"
    assert detect(cells)[1].kind == "number"


def test_days_that_could_be_months_are_warned_about_and_may_be_settled():
    cells = [f"{1 + place % 12:02d}/{1 + place % 11:02d}/2020" for place in range(60)]
    schema, spec, _ = detect(cells)
    assert spec.read.dates == "%m/%d/%Y" and "%d/%m/%Y" in schema.warnings[0]
    schema, spec, read = detect(cells, read=ReadConfig(dates="%d/%m/%Y"))
    assert read[1] == "2020-02-02" and read[0] == "2020-01-01" and spec.read.dates == "%d/%m/%Y" and not schema.warnings


def test_words_for_nothing_among_dates_are_missing():
    cells = ["n/a" if place % 10 == 0 else f"{moment:%d.%m.%Y}" for place, moment in enumerate(MOMENTS)]
    _, spec, read = detect(cells)
    assert (spec.kind, spec.read.missing, read[0]) == ("date", ("n/a",), None)


@pytest.mark.parametrize(
    "cells", [["1.2.3", "1.2.4"] * 30, [f"10.0.{place}.1" for place in range(60)], ["may", "june"] * 30]
)
def test_what_is_no_date(cells):
    assert detect(cells)[1].kind != "date"


def test_a_fit_on_weekdays(tmp_path):
    days = [datetime(2020, 1, 1) + timedelta(days=DRAW.randrange(700)) for _ in range(300)]
    labels = ["weekend" if day.weekday() > 4 else "weekday" for day in days]
    lines = [
        f"{day:%d.%m.%Y};{place * 7 % 11};{label}" for place, (day, label) in enumerate(zip(days, labels, strict=True))
    ]
    (tmp_path / "t.csv").write_text("day;x;y\n" + "\n".join(lines) + "\n")
    quick = {
        "trainer": {"epochs": 0, "head_epochs": 30, "trackers": []},
        "report": {"bootstrap": 0, "alone": "none", "errors": 0},
        "data": {"cache": "none"},
    }
    ft.fit(tmp_path / "t.csv", target="y", config=quick, out=tmp_path / "m", progress=False)
    frame = pytest.importorskip("pandas").DataFrame({"day": days, "x": 3})
    found = ft.load(tmp_path / "m").predict(frame)["y"]
    assert sum(one == label for one, label in zip(found, labels, strict=True)) > 0.95 * len(labels)
