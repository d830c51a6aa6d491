"""What a run says of itself."""

import pytest

from fusetune.evaluation.report.describe import _look_alike


@pytest.mark.parametrize(
    ("labels", "alike"),
    [
        (["1", " 1", "1.0", "0", "a"], [["1", " 1", "1.0"]]),
        (["yes", "Yes ", "no"], [["yes", "Yes "]]),
        (["007", "7", "nan", "NaN x"], []),
    ],
)
def test_labels_that_look_alike(labels: list[str], alike: list[list[str]]) -> None:
    assert _look_alike(labels) == alike
