"""What notebooks show."""

from html.parser import HTMLParser

import pandas as pd
import pytest

from fusetune.evaluation.report.notebook import html_table
from fusetune.evaluation.report.verdict import verdict


class Cells(HTMLParser):
    """The texts of a page's cells, and whether its tags are balanced."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def cells(page: str) -> list[str]:
    parsed = Cells(page)
    assert parsed.open == []
    return parsed.texts


def test_cells_are_escaped_and_cut():
    page = str(html_table(["<b>"], [["<script>alert(1)</script>"], ["x" * 500], [None], [0.25]]))
    assert "<script>" not in page and "<b>" not in page
    texts = cells(page)
    assert texts[0] == "<b>" and texts[1] == "<script>alert(1)</script>"
    assert texts[2] == "x" * 79 + "…" and texts[3] == "0.250"


def test_a_tuned_model_shows_its_verdict_and_systems(fitted):
    texts = cells(fitted._repr_html_())
    (task,) = fitted.results.tasks
    assert any(verdict(task).headline in text for text in texts)
    assert {"tuned", "frozen probe", "constant guess"} <= set(texts)
    assert "note, photo, voice, price, plan" in texts


def test_a_model_without_a_report_shows_its_columns(fitted):
    from fusetune.deploy.fine_tuned import FineTuned

    bare = FineTuned(fitted.bundle, folder=None, results=None)
    assert cells(bare._repr_html_()) == [
        "tuned model",
        "not saved",
        "reads",
        "note, photo, voice, price, plan",
        *("predicts", "label"),
    ]


def test_predictions_show_the_first_rows_with_the_frames_index(fitted, shop_tables):
    frame = pd.read_csv(shop_tables["test"]).set_index(pd.Index([f"row-{i}" for i in range(20)]))
    predictions = fitted.predict(frame.drop(columns=["photo", "voice"]), missing_columns=["photo", "voice"])
    texts = cells(predictions._repr_html_())
    assert "row-9" in texts and "row-10" not in texts
    assert texts[-1] == "20 rows, 0 with an error"


@pytest.mark.parametrize("slices", [[], ["plan"]])
def test_an_evaluation_shows_metrics_and_slices(fitted, shop_tables, slices):
    evaluation = fitted.evaluate(str(shop_tables["test"]), slices=slices)
    texts = cells(evaluation._repr_html_())
    assert {"accuracy", "log_loss"} <= set(texts)
    assert any(text.startswith("plan = ") for text in texts) is bool(slices)
    assert "20 rows in, 0 rejected, 0 cells not readable" in texts
