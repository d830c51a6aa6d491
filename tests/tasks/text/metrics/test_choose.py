"""Each kind of text target has the metric that its field uses."""

import math

import pytest

from fusetune.tasks.text.metrics.choose import RELATED, SAMPLE, in_order, main_metric
from fusetune.tasks.text.metrics.table import NAMES, metrics_of, row_counts
from fusetune.tasks.text.metrics.tokens import num_words

SENTENCE = "the quick brown fox jumps over the lazy dog"
SOURCE = " ".join(f"{SENTENCE} and then number {n} rests." for n in range(4))
FUNCTION = "def double(x):\n    return 2 * x"


@pytest.mark.parametrize(
    ("values", "metric"),
    [
        (["red", "two", "an old bus", "no"], "exact_match"),
        ([["red"] * 7 + ["dark red"] * 3] * 4, "vqa_accuracy"),
        ([["UK", "United Kingdom", "Great Britain"]] * 4, "exact_match"),  # synonyms, not votes
        ([SENTENCE] * 4, "chrf"),
        ([SOURCE * 2] * 4, "rouge_lsum"),
        ([f"{SENTENCE}\n{SENTENCE}"] * 4, "rouge_lsum"),
        (["白い猫が椅子に座っている"] * 4, "chrf"),
        (["белая кошка сидит на стуле. " * 20] * 4, "chrf"),  # ROUGE reads no Cyrillic letters
        (["白い猫"] * 4, "exact_match"),
        ([FUNCTION] * 9 + ["no code here"], "chrf"),
        (["return x"] * 4, "chrf"),
        (["", "  "], "chrf"),
        ([], "chrf"),
    ],
)
def test_main_metric(values, metric):
    chosen, reason = main_metric(values)
    assert chosen == metric and chosen in NAMES and reason


def test_many_rows_are_sampled_over_the_table():
    """The first rows of a sorted table do not decide alone."""
    values = ["yes"] * SAMPLE + [SENTENCE] * 3 * SAMPLE
    assert main_metric(values)[0] == "chrf"


def test_characters_of_scripts_without_spaces_are_words():
    assert num_words("a cat 猫が 座る") == 6


@pytest.mark.parametrize("main", NAMES)
def test_related_metrics_come_first_and_undefined_ones_last(main):
    metrics = metrics_of(row_counts(["a very red bus", "no"], ["a red bus", "yes"]))
    ordered = in_order(metrics, main)
    names = list(ordered)
    assert sorted(names) == sorted(metrics) and names[0] == main
    undefined = {"vqa_accuracy", "parses"} - {main}
    assert undefined == set(names[-len(undefined) :])
    defined = [name for name in RELATED.get(main, ("chrf", "bleu")) if not math.isnan(metrics[name])]
    assert [name for name in names[1:] if name in defined] == [name for name in defined if name != main]
