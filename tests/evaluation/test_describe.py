"""What a run says of itself."""

import pytest

from fusetune.data.examples import Examples
from fusetune.data.schema import Schema
from fusetune.data.table import Table
from fusetune.evaluation.report.describe import _look_alike, warnings
from fusetune.modalities.number import NumberModality


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


def test_cells_that_were_cut_are_counted() -> None:
    modality = NumberModality("n")
    examples = Examples(Table.from_records([{"n": 1.0}]), {"n": modality})
    assert not warnings(Schema({}), {"train": examples})
    modality.num_truncated = 3  # type: ignore[attr-defined]
    (said,) = warnings(Schema({}), {"train": examples})
    assert "3 different cells of 'n'" in said
