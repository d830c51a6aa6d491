"""Numbers, dates and missing cells as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusetune.data.reading.cell_forms import CellForm
from fusetune.data.table import Table

MARKS = [(".", ""), (".", ","), (",", ""), (",", "."), (",", " "), (".", "'"), (".", "_")]


def written(value, decimal, thousands):
    text = f"{value:,.2f}"
    return text.replace(",", "\0").replace(".", decimal).replace("\0", thousands)


@given(
    value=st.floats(-1e9, 1e9, allow_nan=False),
    marks=st.sampled_from(MARKS),
    affix=st.sampled_from(["", "$", "€", "%"]),
    behind=st.booleans(),
)
def test_numbers_come_back_from_every_form(value, marks, affix, behind):
    text = written(abs(value), *marks)
    sign = "-" if value < 0 else ""
    text = f"{sign}{text} {affix}".strip() if behind else f"{sign}{affix}{text}"
    form = CellForm(decimal=marks[0], thousands=marks[1], affixes=(affix,) if affix else ())
    assert float(form.read(text)) == pytest.approx(float(f"{value:.2f}"))


@given(cell=st.text(max_size=12) | st.integers() | st.none() | st.lists(st.text(max_size=3), max_size=2))
def test_the_plain_form_changes_nothing(cell):
    assert CellForm().read(cell) == cell


@given(cell=st.text(max_size=12), marks=st.sampled_from(MARKS))
def test_what_is_no_number_stays_as_it_is(cell, marks):
    form = CellForm(decimal=marks[0], thousands=marks[1], affixes=("€",))
    read = form.read(cell)
    assert read == cell or float(read) is not None


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("(1.234,50 €)", "-1234.50"),
        ("−3,5", "-3.5"),
        ("€ -7", "-7"),
        ("1.5", "1.5"),  # no group of three: a plain number
        ("1.234", "1234"),
        ("1,2,3", "1,2,3"),
        ("n/a", None),
        ("12 kg", "12 kg"),
    ],
)
def test_one_form(text, read):
    assert CellForm(missing=("n/a",), decimal=",", thousands=".", affixes=("€",)).read(text) == read


def test_dates():
    assert CellForm(dates="%d.%m.%Y").read("14.03.2020") == "2020-03-14"
    assert CellForm(dates="%d.%m.%Y %H:%M").read("14.03.2020 08:30") == "2020-03-14 08:30:00"
    assert CellForm(dates="%d.%m.%Y").read("soon") == "soon"


FORMS = st.builds(
    CellForm,
    missing=st.lists(st.text(min_size=1, max_size=4), max_size=2).map(tuple),
    decimal=st.just(","),
    thousands=st.sampled_from(["", ".", " "]),
    affixes=st.sampled_from([(), ("$",)]),
    dates=st.none() | st.just("%Y"),
)


@given(FORMS)
def test_forms_come_back_from_json(form):
    assert CellForm.from_dict(form.to_dict()) == form


@pytest.mark.parametrize(
    "wrong", [{"decimals": ","}, {"decimal": ";"}, {"missing": [None]}, {"decimal": ",", "thousands": ","}]
)
def test_forms_that_cannot_be(wrong):
    with pytest.raises(ValueError):
        CellForm.from_dict(wrong)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_table_reads_its_cells_in_their_forms_everywhere(mixed):
    cells = ["1,5", "NA", "1,50", 7 if mixed else "7", None]
    table = Table.from_records([{"x": cell, "y": "NA"} for cell in cells])
    read = table.read_as({"x": CellForm(missing=("NA",), decimal=","), "gone": CellForm(decimal=",")})
    assert read.cells("x") == ["1.5", None, "1.50", cells[3], None]
    assert read.missing("x").tolist() == [False, True, False, False, True]
    assert read.distinct("x")[0].tolist() == [0, -1, 1, 2, -1]
    assert list(read.lazy("x")) == read.cells("x")
    part = read.select([4, 1, 0])
    assert part.cells("x") == [None, None, "1.5"] and part.missing("x").tolist() == [True, True, False]
    assert read.cells("y") == ["NA"] * 5 and table.cells("x") == cells
