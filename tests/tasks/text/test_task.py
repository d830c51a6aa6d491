"""`GenerateTask`: cells, encoding, losses, answers."""

import numpy as np
import pytest
import torch

from fusetune.errors import BadCell, ConfigError
from fusetune.tasks.infer import infer_task
from fusetune.tasks.text.task import GenerateTask

SENTENCES = [
    f"a {colour} {thing} stands in the {place}"
    for colour in ("red", "blue")
    for thing in ("man", "dog")
    for place in ("park", "street")
]


def task(**options) -> GenerateTask:
    made = GenerateTask("out", **options)
    made.write_with(lambda text: [ord(letter) for letter in text] + [3], 8)
    return made


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (SENTENCES, "generate"),
        ([[text, text.upper()] for text in SENTENCES], "generate"),
        (["red", "blue"] * 10, "binary"),
        (list(range(100)), "regression"),
        (["very good indeed", "not good at all"] * 20, "binary"),
    ],
)
def test_texts_that_differ_are_written(values, name):
    assert infer_task(values)[0] == name


def test_values_are_ids_with_an_end_cut_to_the_limit():
    made = task()
    made.fit(["abc", "de"])
    assert made.max_tokens == 4 and "cut" not in made.choice
    long = task()
    long.fit(["abc", "a" * 30])
    assert long.max_tokens == 8 and "1 answers have more than 8 tokens" in long.choice
    target = made.encode(["abc", None, "abcdef", ["xy", "z"]])
    assert target.values.tolist() == [[97, 98, 99, 3], [-1] * 4, [97, 98, 99, 100], [120, 121, 3, -1]]
    assert target.labelled.tolist() == [True, False, True, True] and target.sizes.tolist() == [4, 0, 4, 3]


def test_losses_are_sums_over_tokens_with_label_smoothing():
    logits = torch.log(torch.tensor([[[0.5, 0.2], [0.25, 0.1]], [[0.5, 0.2], [1.0, 1.0]]]))
    made = task(label_smoothing=0.1)
    target = made.candidates(["ab", "a"])
    expected = -(0.9 * logits[..., 0] + 0.1 * logits[..., 1]).sum(1)
    torch.testing.assert_close(made.terms(logits, target), expected)
    with pytest.raises(ConfigError, match="label_smoothing"):
        GenerateTask("out", label_smoothing=1.0)


@pytest.mark.parametrize("cell", ["", "   ", [], [" "], {"a": 1}, float("nan"), [1, 2]])
def test_cells_without_text_are_refused(cell):
    with pytest.raises(BadCell):
        task().check(cell, row=3)


def test_numbers_and_booleans_are_written_as_words():
    assert task().truth([3.0, True, "x ", ["a", "b"]]).tolist() == ["3", "yes", "x", ["a", "b"]]
    assert task().truth([float("inf"), 0.5]).tolist() == ["inf", "0.5"]


def test_the_main_metric_and_what_goes_with_it_come_first():
    made = task()
    made.fit(["red", "two", "a bus"])
    truth = made.truth(["red", "two", "a bus"])
    names = list(made.metrics(made.measured(truth, truth), truth))
    assert names[:2] == ["exact_match", "token_f1"] == [made.main.name, names[1]]
    made.measure_by("wer", truth)
    names = list(made.metrics(made.measured(truth, truth), truth))
    assert names[:2] == ["wer", "cer"] and not made.main.greater_is_better


def test_metrics_and_constant():
    made = task()
    truth = made.truth(["a red dog sits", "a red dog sits", ["a cat sits there", "the cat sits there"]])
    assert list(made.constant(truth, 2)) == ["a red dog sits"] * 2
    found = made.evaluate(np.array(["a red dog sits", "", "the cat sits there"], dtype=object), truth)
    assert found["exact_match"] == pytest.approx(2 / 3) and found["chrf"] < 100
    assert made.evaluate(made.perfect(truth), truth)["bleu"] == pytest.approx(100)


def test_state_is_restored():
    made = task(template="{a}", label_smoothing=0.2)
    made.fit(SENTENCES)
    made.prompt = "prompt"
    again = GenerateTask.from_state("out", made.state())
    assert again.state() == made.state() and again.template == "{a}"
