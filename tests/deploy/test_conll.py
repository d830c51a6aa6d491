"""Predicted spans as CoNLL columns."""

import pyarrow as pa
import pytest

from fusetune.data.table import Table
from fusetune.deploy.conll import Spans, conll_block
from fusetune.deploy.predictions import Predictions, check_ending
from fusetune.errors import ConfigError
from fusetune.tasks.entities.task import EntitiesTask


def span(start, end, label, score=0.5):
    return {"start": start, "end": end, "label": label, "score": score, "text": ""}


TEXTS = ["Ada-Lou met Bo.", ["Bo", "in", "New York"], None, "Élodie 😀 left"]
ANSWERS = [
    [span(0, 7, "PER"), span(12, 14, "PER", 0.75)],
    [span(0, 2, "PER"), span(6, 14, "LOC")],
    None,
    [span(0, 6, "PER"), span(7, 8, "FUN")],
]


@pytest.fixture
def predictions():
    columns = {"row": [0, 1, 2, 3], "tags": ANSWERS, "error": [None, None, "no input\ncolumn", None]}
    return Predictions(pa.table(columns), spans=Spans(("tags",), TEXTS))


def test_what_is_written_is_read_as_the_same_entities(predictions, tmp_path):
    predictions.to_conll(tmp_path / "out.conll")
    table = Table.read(tmp_path / "out.conll")
    task = EntitiesTask("tags")
    found = [
        [(" ".join(tokens)[start:end], label) for start, end, label in task.resolve(tags, tokens, row=0)]
        for tokens, tags in zip(table.cells("tokens"), table.cells("tags"), strict=True)
    ]
    assert found == [
        [("Ada - Lou", "PER"), ("Bo", "PER")],
        [("Bo", "PER"), ("New York", "LOC")],
        [("Élodie", "PER"), ("😀", "FUN")],
    ]


def test_lines_have_offsets_and_scores_and_a_row_without_prediction_its_error(predictions, tmp_path):
    predictions.to_conll(tmp_path / "out.conll")
    blocks = (tmp_path / "out.conll").read_text(encoding="utf-8").split("\n\n")[:-1]
    assert len(blocks) == 4 and blocks[2] == "# row = 2\n# error = no input column"
    lines = [line.split("\t") for line in blocks[0].split("\n")]
    assert lines[0] == ["Ada", "0", "3", "0.5000", "B-PER"] and lines[2] == ["Lou", "4", "7", "0.5000", "I-PER"]
    assert all(TEXTS[0][int(start) : int(end)] == word for word, start, end, *_ in lines)


def test_a_word_is_cut_where_a_span_ends_and_an_overlapping_span_is_a_comment():
    block = conll_block("unhappy Bo", {"tags": [span(2, 7, "A"), span(4, 5, "B"), span(8, 10, "C")]}, None, 0)
    assert block.split("\n") == [
        "# tags = 4 5 B 0.5000",
        "un\t0\t2\t_\tO",
        "happy\t2\t7\t0.5000\tB-A",
        "Bo\t8\t10\t0.5000\tB-C",
    ]


def test_two_targets_are_columns_beside_each_other():
    block = conll_block("Ada", {"one": [span(0, 3, "A")], "two": []}, None, 0)
    assert block == "Ada\t0\t3\t0.5000\tB-A\t_\tO"


def test_predictions_without_spans_are_refused(tmp_path):
    plain = Predictions(pa.table({"row": [0], "label": ["a"], "error": [None]}))
    with pytest.raises(ConfigError, match="spans"):
        plain.to_conll(tmp_path / "out.conll")
    with pytest.raises(ConfigError, match="spans"):
        check_ending("out.conll", [])
    with pytest.raises(ConfigError, match=r"\.csv"):
        check_ending("out.xlsx")
    assert not list(tmp_path.iterdir())
