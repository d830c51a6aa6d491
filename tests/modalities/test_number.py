"""Numbers: what is read, what is refused and why, and the features."""

import math
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from fusetune.errors import BadCell, ConfigError
from fusetune.modalities.features.number import MAX_DEVIATIONS
from fusetune.modalities.number import NumberModality

HERE = Path(".")


def decode(cell):
    return NumberModality("price").decode(cell, row=3, base_dir=HERE)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        *((" 42 ", 42.0), ("-.5", -0.5), ("+1.", 1.0), ("1E-3", 0.001), ("00501", 501.0)),
        *((7, 7.0), (True, 1.0), (np.int8(-3), -3.0), (np.float32(0.5), 0.5), (np.bool_(False), 0.0)),
        *((Decimal("1.25"), 1.25), ("9007199254740993", 9007199254740992.0)),
    ],
)
def test_reads(cell, value):
    assert decode(cell) == value


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        *(("nan", "not a finite"), ("-inf", "not a finite"), (float("nan"), "not finite"), (math.inf, "not finite")),
        *(("1e999", "too large"), (10**400, "too large"), (Decimal("NaN"), "not finite")),
        *(("\u22125", "minus"), ("1,234", "thousands"), ("1 234 567.5", "thousands"), ("3,5", "decimal comma")),
        *(("12 %", "percent"), ("$5", "currency"), ("5 €", "currency")),
        *(
            ("1_000", "underscores"),
            ("0x1F", "decimal digits"),
            ("٣", "digits other than"),
            ("1²", "digits other than"),
        ),
        *(("2007–2019", "range"), ("2007-", "range"), ("about 5", "not a number"), ("", "not a number")),
        *((b"5", "type bytes"), ([5], "type list"), (1j, "type complex"), (np.datetime64(5, "ns"), "datetime64")),
    ],
)
def test_refuses_with_the_reason(cell, why):
    with pytest.raises(BadCell, match=why) as caught:
        decode(cell)
    assert (caught.value.row, caught.value.column) == (3, "price")


@given(st.text(max_size=12) | st.text("0123456789+-.,eE_ ", max_size=12))
def test_strings_become_what_float_makes_of_them_or_bad_cells(cell):
    try:
        value = decode(cell)
    except BadCell:
        return
    assert value == float(cell) and math.isfinite(value)


@settings(max_examples=60)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=60),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_features_are_finite_and_rise_with_the_number(train, other):
    modality = NumberModality("x", bins=4)
    modality.fit(train)
    low, high = modality.collate(sorted([other, train[0]]))["values"].numpy()
    assert np.isfinite([low, high]).all() and (low <= high).all()
    assert np.abs(low).max() <= MAX_DEVIATIONS


def test_first_feature_is_the_standard_score():
    train = np.random.default_rng(0).lognormal(size=500)
    modality = NumberModality("x")
    modality.fit(train.tolist())
    expected = StandardScaler().fit_transform(train[:, None])[:, 0].clip(-MAX_DEVIATIONS, MAX_DEVIATIONS)
    features = modality.collate(train.tolist())["values"].numpy()
    assert np.allclose(features[:, 0], expected, atol=1e-5)
    # Bins of like shares: on average, train rows have as many full bins as the mean rank says.
    assert features.shape == (500, 17)
    assert abs(features[:, 1:].sum(1).mean() - 8) < 0.1


def test_piecewise_linear_encoding_is_that_of_the_paper_inside_the_bins():
    modality = NumberModality("x", bins=2)
    modality.fit([0.0, 1.0, 3.0])
    assert modality.edges.tolist() == [0, 1, 3]
    encoded = modality.collate([0.0, 0.5, 1.0, 2.0, 3.0, 9.0, -9.0])["values"].numpy()[:, 1:]
    assert encoded.tolist() == [[0, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 1], [1, 1], [0, 0]]


def test_constant_column_and_no_rows_give_finite_features():
    modality = NumberModality("x")
    modality.fit([0.1] * 10)
    assert modality.std == 1 and modality.collate([0.1, 5.0])["values"].numpy().shape == (2, 1)
    untouched = NumberModality("x")
    untouched.fit([])
    assert untouched.collate([2.0])["values"].numpy().tolist() == [[2.0]]


def test_heavy_tail_does_not_squeeze_the_rest_together():
    modality = NumberModality("x")
    modality.fit([*range(1000), 1e12])
    first, second = modality.collate([100.0, 900.0])["values"].numpy()
    assert abs(second[0] - first[0]) < 1e-3
    assert np.abs(second[1:] - first[1:]).sum() > 10


def test_option_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="bins of 0 or more"):
        NumberModality("x", bins=-1)
