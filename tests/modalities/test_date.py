"""Dates and times become the days that have passed and the parts of the calendar."""

from datetime import UTC, date, datetime, time, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusetune.errors import BadCell
from fusetune.modalities.date import DateModality
from fusetune.modalities.features.date import seconds_of

MOMENTS = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30))


@given(MOMENTS, st.integers(-14 * 60, 14 * 60))
def test_every_iso_form_is_read_as_the_moment_it_is(moment, minutes):
    expected = (moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
    zone = timezone(timedelta(minutes=minutes))
    for cell in (moment, str(moment), moment.isoformat(), moment.isoformat() + "Z", f" {moment.isoformat(sep=' ')} "):
        assert seconds_of(cell) == pytest.approx(expected)
    assert seconds_of(moment.replace(tzinfo=zone).isoformat()) == pytest.approx(expected - 60 * minutes)
    assert seconds_of(moment.date()) == seconds_of(moment.date().isoformat()) == np.floor(expected / 86400) * 86400


@given(st.text(max_size=12))
def test_other_text_is_no_date_or_a_finite_one(text):
    seconds = seconds_of(text)
    assert seconds is None or np.isfinite(seconds)


@pytest.mark.parametrize(
    "cell", ["2020-02-30", "2020-13-01", "25:00", "20200314", "3.14", "2020", "", "10:61", 7, None, b"2020-01-01"]
)
def test_what_is_no_date_is_refused(cell, tmp_path):
    with pytest.raises(BadCell, match="date or time"):
        DateModality("day").decode(cell, row=3, base_dir=tmp_path)


def features(modality, *cells):
    return modality.collate([seconds_of(cell) for cell in cells])["values"].numpy()


def test_parts_that_do_not_differ_are_left_out():
    modality = DateModality("day", bins=0)
    modality.fit([seconds_of(date(2020, 3, day)) for day in range(1, 29)])
    assert modality.parts == ["day", "weekday"]
    assert modality.build_encoder().dim == 1 + 2 + 7
    modality.fit([seconds_of(time(hour)) for hour in range(24)])
    assert modality.parts == ["hour"]


def test_the_calendar_comes_back():
    modality = DateModality("day", bins=0)
    modality.fit([seconds_of(datetime(2020, 1, 1) + timedelta(hours=7 * step)) for step in range(2000)])
    assert modality.parts == ["month", "day", "weekday", "hour"]
    monday, next_monday, tuesday = features(modality, "2020-03-02 08:00", "2020-03-09 08:00", "2020-03-03 08:00")
    weekdays = slice(1 + 12 + 2, 1 + 12 + 2 + 7)
    assert monday[weekdays].tolist() == [1, 0, 0, 0, 0, 0, 0] == next_monday[weekdays].tolist()
    assert tuesday[weekdays].argmax() == 1
    late, early, noon = features(modality, "2020-03-02 23:00", "2020-03-02 01:00", "2020-03-02 12:00")[:, -4:]
    assert np.linalg.norm(late - early) < np.linalg.norm(late - noon)
    assert monday[0] < next_monday[0]


def test_moments_before_1970_have_the_right_parts():
    modality = DateModality("day", bins=0)
    modality.fit([seconds_of(date(1969, month, 15)) for month in range(1, 13)])
    assert modality.parts == ["month", "weekday"]
    assert features(modality, "1969-12-31")[0, 1:13].argmax() == 11


def test_parts_are_those_of_the_calendar():
    day = date(1899, 12, 25)
    modality = DateModality("day", bins=0)
    modality.parts = ["month", "weekday"]
    for step in range(0, 60_000, 97):
        moment = day + timedelta(days=step)
        row = features(modality, moment)[0]
        assert (row[1:13].argmax() + 1, row[13:].argmax()) == (moment.month, moment.weekday())
