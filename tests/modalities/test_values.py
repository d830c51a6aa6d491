"""The same value is the same in every form."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusetune.modalities.category import CategoryModality
from fusetune.modalities.values import ValueIndex, canonical, merged


@given(st.integers(-(10**9), 10**9), st.integers(1, 6))
def test_whole_numbers_with_and_without_a_point(number, zeros):
    assert canonical(f"{number}.{'0' * zeros}") == canonical(str(number)) == str(number)


@given(st.text(max_size=10))
def test_the_form_is_found_once(text):
    assert canonical(canonical(text)) == canonical(text)


@pytest.mark.parametrize(
    ("first", "second"), [("01", "1"), ("1.10", "1.1"), ("1.5", "1"), ("yes", "Yes"), ("true", "yes")]
)
def test_what_differs_stays_different(first, second):
    assert canonical(first) != canonical(second)


def test_true_is_1_only_among_zeros_and_ones():
    assert ValueIndex(["0", "1"]).find("True") == 1
    assert ValueIndex(["False", "True"]).find("1") == 1
    assert ValueIndex(["0", "1", "2"]).find("true") is None
    assert ValueIndex(["true", "false", "maybe"]).find("1") is None


def test_counts_of_one_value_are_added_under_its_usual_text():
    assert merged({"1.0": 3, "1": 2, "2": 1, "x": 1}) == {"1.0": 5, "2": 1, "x": 1}
    assert merged({"1.0": 3, "2.0": 2}, numbers=True) == {"1": 3, "2": 2}
    assert merged({"1.0": 3, "2.5": 2}, numbers=True) == {"1.0": 3, "2.5": 2}


FORMS = {
    "ints": [1, 2, 3],
    "floats": [1.0, 2.0, 3.0],
    "numpy": [np.int64(1), np.float64(2), np.int8(3)],
    "text": ["1", "2", "3"],
    "text with points": ["1.0", "2.0", "3.00"],
}


@pytest.mark.parametrize("learned", FORMS)
@pytest.mark.parametrize("read", FORMS)
def test_a_category_is_known_in_every_form(learned, read, tmp_path):
    modality = CategoryModality("code")
    modality.fit([modality.decode(cell, row=0, base_dir=tmp_path) for cell in FORMS[learned] * 2])
    again = CategoryModality.from_state("code", modality.state())
    for which in (modality, again):
        examples = [which.decode(cell, row=0, base_dir=tmp_path) for cell in FORMS[read]]
        assert all(which.is_known(example) for example in examples)
        assert which.collate(examples)["values"].argmax(1).tolist() == [1, 2, 3]


@pytest.mark.parametrize("learned", [[True, False], ["True", "False"], ["true", "false"], [1, 0], ["1.0", "0.0"]])
@pytest.mark.parametrize("read", [True, "True", "TRUE", "true", 1, "1", 1.0])
def test_flags(learned, read, tmp_path):
    modality = CategoryModality("flag")
    modality.fit([modality.decode(cell, row=0, base_dir=tmp_path) for cell in learned * 3])
    first = modality.decode(learned[0], row=0, base_dir=tmp_path)
    values = modality.collate([first, modality.decode(read, row=0, base_dir=tmp_path)])["values"]
    assert values[0].tolist() == values[1].tolist() and values[0, 0] == 0
