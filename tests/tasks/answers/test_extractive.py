import collections
import json
import re
import string

import numpy as np
import pytest
import torch

from fusetune.data.schema import ColumnSpec, Schema
from fusetune.errors import BadCell, ConfigError, TableError
from fusetune.modalities.passages import text_tokens
from fusetune.tasks.answers.cells import Gold
from fusetune.tasks.answers.squad import best_spans, best_threshold, normalise, scores
from fusetune.tasks.answers.task import PADDING, AnswerTask

CONTEXT = "Ada met Bo in Rome, and Bo left."
CELL = ["Where?", CONTEXT]


def tokens_of(*texts):
    """Words as tokens, after one that stands for no answer."""
    spans = []
    for text in texts:
        words = [(0, found.start(), found.end()) for found in re.finditer(r"\w+", text)]
        spans.append(np.array([(-1, 0, 0), *words], dtype=np.int32))
    return text_tokens(spans, [("", text) for text in texts])


def fitted(**options):
    task = AnswerTask("answer", **options)
    task.fit([Gold(("Bo in Rome",), ((8, 18),)), Gold((), ()), None])
    return task


def logits_of(tokens, starts, ends, height=9.0):
    logits = torch.zeros(*tokens.real.shape, 2)
    for row, places in enumerate(zip(starts, ends, strict=True)):
        for side, place in enumerate(places):
            logits[row, place, side] = height
    return logits


class Official:
    """SQuAD 2.0's evaluation script, as published."""

    @staticmethod
    def normalize_answer(s):
        def remove_articles(text):
            return re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text)

        def remove_punc(text):
            return "".join(ch for ch in text if ch not in set(string.punctuation))

        return " ".join(remove_articles(remove_punc(s.lower())).split())

    @classmethod
    def get_tokens(cls, s):
        return cls.normalize_answer(s).split() if s else []

    @classmethod
    def compute_exact(cls, a_gold, a_pred):
        return int(cls.normalize_answer(a_gold) == cls.normalize_answer(a_pred))

    @classmethod
    def compute_f1(cls, a_gold, a_pred):
        gold_toks, pred_toks = cls.get_tokens(a_gold), cls.get_tokens(a_pred)
        num_same = sum((collections.Counter(gold_toks) & collections.Counter(pred_toks)).values())
        if len(gold_toks) == 0 or len(pred_toks) == 0:
            return int(gold_toks == pred_toks)
        if num_same == 0:
            return 0
        precision, recall = 1.0 * num_same / len(pred_toks), 1.0 * num_same / len(gold_toks)
        return (2 * precision * recall) / (precision + recall)

    @classmethod
    def scores(cls, answer, right):
        golds = [gold for gold in right if cls.normalize_answer(gold)] or [""]
        return (
            max(cls.compute_exact(gold, answer) for gold in golds),
            max(cls.compute_f1(gold, answer) for gold in golds),
        )


TEXTS = [
    "",
    "the",
    "The cat",
    "a cat's  hat",
    "cats hat",
    "An apple, a day!",
    "apple day day",
    "$5.00",
    "500",
    "—",
    "A-1",
]


@pytest.mark.parametrize("answer", TEXTS)
def test_scores_are_those_of_the_official_script(answer):
    for right in ([], *([text] for text in TEXTS), ["the cat", "day apple"], ["the", "cat"]):
        assert scores(answer, right) == pytest.approx(Official.scores(answer, right)), right


def test_articles_are_left_out_by_language():
    assert normalise("Das Haus, «groß»", "de") == "haus groß"
    assert normalise("Das Haus", "en") == "das haus"
    assert scores("la casa", ["casa"], "es")[0] == 1 and scores("la casa", ["casa"], "none")[0] == 0
    with pytest.raises(ConfigError, match="en, de, es, none"):
        AnswerTask("answer", language="xx")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Rome", Gold(("Rome",), ((14, 18),))),
        ("Bo", Gold(("Bo",), ((8, 10),), repeated=True)),
        ({"text": ["Bo"], "answer_start": [24]}, Gold(("Bo",), ((24, 26),))),
        ('{"text": "Bo", "start": 24}', Gold(("Bo",), ((24, 26),))),
        ({"text": ["Rome", "in Rome"], "answer_start": [14, 11]}, Gold(("Rome", "in Rome"), ((14, 18), (11, 18)))),
        ([{"text": "Rome", "answer_start": 14}, "Ada"], Gold(("Rome", "Ada"), ((14, 18), (0, 3)))),
        ({"text": [], "answer_start": []}, Gold((), ())),
        ({"text": "", "start": -1}, Gold((), ())),
        ([], Gold((), ())),
    ],
)
def test_cells_in_several_forms(value, expected):
    assert AnswerTask("answer").resolve(value, CELL, row=0) == expected
    if not isinstance(value, str):
        assert AnswerTask("answer").resolve(json.dumps(value), CELL, row=0) == expected


def test_a_column_of_starts():
    task = AnswerTask("answer")
    task.second = "start"
    assert task.resolve(("Bo", 24), CELL, row=0) == Gold(("Bo",), ((24, 26),))
    assert task.resolve(("Bo", "24.0"), CELL, row=0) == Gold(("Bo",), ((24, 26),))
    assert task.resolve(("", -1), CELL, row=0) == task.resolve((None, -1), CELL, row=0) == Gold((), ())
    assert task.resolve(("Rome", None), CELL, row=0) == Gold(("Rome",), ((14, 18),))
    with pytest.raises(BadCell, match="no answer"):
        task.resolve(("", 3), CELL, row=0)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("Paris", "not in the context"),
        ({"text": "Bo", "start": 3}, "starts at 3"),
        ({"text": "Bo", "start": -2}, "starts at -2"),
        ({"text": "Bo", "start": "x"}, "no whole number"),
        ({"text": ["Bo", "Ada"], "answer_start": [8]}, "2 texts"),
        ({"answer": "Bo"}, "is no answer"),
    ],
)
def test_what_is_no_answer_is_refused_with_its_row(value, why):
    with pytest.raises(BadCell, match=why) as caught:
        AnswerTask("answer").resolve(value, CELL, row=7)
    assert caught.value.row == 7


def schema(**kinds):
    roles = {"answer": "target"}
    return Schema({name: ColumnSpec(name, kind, roles.get(name, "input"), "") for name, kind in kinds.items()})


def test_the_columns_are_found_or_asked_for():
    task = AnswerTask("answer")
    reading = task.reading(schema(review="text", question="text", start="number", price="number", answer="text"))
    assert (reading.columns, reading.also, task.second) == (("question", "review"), ("start",), "start")
    named = AnswerTask("answer", question="b", context="a", start="at")
    assert named.reading(schema(a="text", b="text", at="number", answer="text")).columns == ("b", "a")
    for kinds in ({"a": "text", "b": "text"}, {"question": "text"}, {"question": "text", "a": "text", "b": "text"}):
        with pytest.raises(ConfigError, match="question"):
            AnswerTask("answer").reading(schema(**kinds, answer="text"))
    with pytest.raises(ConfigError, match="names no column"):
        AnswerTask("answer", start="begin").reading(schema(question="text", context="text", answer="text"))


def test_loss_is_the_mean_cross_entropy_of_start_and_end():
    task, tokens = fitted(), tokens_of(CONTEXT, "Bo sat", CONTEXT, "Bo")
    values = [Gold(("Bo in Rome",), ((8, 18),)), Gold((), ()), None, Gold(("Bo",), ((0, 2),))]
    target = task.encode(values, tokens)
    assert target.labelled.tolist() == [True, True, False, True]
    assert target.values[0].argmax(0).tolist() == [3, 5] and target.values[1].argmax(0).tolist() == [0, 0]
    assert (target.values[1, 3:] == PADDING).all()
    logits = torch.randn(4, 9, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    terms = task.terms(logits, target)
    for row, (start, end), num in ((0, (3, 5), 9), (1, (0, 0), 3), (3, (1, 1), 2)):
        expected = sum(
            torch.nn.functional.cross_entropy(logits[row, :num, side], torch.tensor(place)) / 2
            for side, place in enumerate((start, end))
        )
        torch.testing.assert_close(terms[row], expected)
    terms.sum().backward()
    assert logits.grad.isfinite().all() and not logits.grad[1, 3:].any() and not logits.grad[2].any()


def test_several_right_answers_share_their_probability():
    task, tokens = fitted(), tokens_of("Bo Ada")
    target = task.encode([Gold(("Bo", "Ada"), ((0, 2), (3, 6)))], tokens)
    assert float(task.terms(logits_of(tokens, [1], [1]), target)[0]) == pytest.approx(
        float(task.terms(logits_of(tokens, [2], [2]), target)[0])
    )
    assert float(task.terms(torch.zeros(1, 3, 2), target)[0]) == pytest.approx(np.log(3 / 2))


def test_the_best_span_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    spans = np.array([(4 * place, 4 * place + 3) for place in range(12)])
    for _ in range(20):
        logs = rng.normal(size=(12, 2))
        found = best_spans(logs, spans, longest=15, num=3)
        pairs = [(first, last) for first in range(12) for last in range(first, min(first + 4, 12))]
        pairs.sort(key=lambda pair: -(logs[pair[0], 0] + logs[pair[1], 1]))
        assert [span[1:] for span in found] == [(spans[a, 0], spans[b, 1]) for a, b in pairs[:3]]


def test_answers_decisions_and_columns():
    task, tokens = fitted(), tokens_of(CONTEXT, "Bo sat", "", CONTEXT)
    tokens.real[3], tokens.spans[3] = False, (-1, 0, 0)  # a row without the text
    answers = task.answers(logits_of(tokens, [3, 0, 0, 0], [5, 0, 0, 0]), tokens)
    assert list(task.decide(answers)) == ["Bo in Rome", "", "", ""]
    columns = task.columns(answers)
    assert columns["answer_start"] == [8, -1, -1, -1] and columns["answer_end"] == [18, -1, -1, -1]
    assert columns["answer_score"][0] > 0.9 and columns["answer_no_answer"][1] > 0.9
    assert columns["answer_best"][1][0]["text"] in ("Bo", "sat", "Bo sat")
    truth = task.truth([Gold(("Rome",), ((14, 18),)), Gold((), ()), Gold((), ()), Gold(("Bo",), ((8, 10),))])
    metrics = task.evaluate(answers, truth)
    assert metrics["f1_unanswerable"] == 1 and metrics["exact_match"] == 0.5
    assert metrics["f1_answerable"] == pytest.approx((2 / 4 + 0) / 2)
    assert task.evaluate(task.perfect(truth), truth)["exact_match"] == 1
    assert task.evaluate(task.constant(truth, 4), truth)["f1"] == 0.5


def test_the_threshold_is_the_best_of_all():
    rng = np.random.default_rng(1)
    for _ in range(20):
        margins, answered = rng.normal(size=15).round(1), rng.random(15)
        silent = (rng.random(15) < 0.4).astype(float)
        tried = [
            np.where(margins > threshold, silent, answered).sum() for threshold in [*np.arange(-5, 5, 0.05), -9, 9]
        ]
        best = best_threshold(margins, answered, silent)
        assert np.where(margins > best, silent, answered).sum() == pytest.approx(max(tried))


def test_the_threshold_is_tuned_on_rows_and_kept():
    task, tokens = fitted(), tokens_of(CONTEXT, CONTEXT, CONTEXT)
    logits = logits_of(tokens, [3, 3, 3], [5, 5, 5], height=6.0)
    logits[0, 0] = 7.0
    logits[1, 0] = 9.0
    answers = task.answers(logits, tokens)
    truth = task.truth([Gold(("Bo in Rome",), ((8, 18),)), Gold((), ()), Gold(("Bo in Rome",), ((8, 18),))])
    assert task.evaluate(answers, truth)["f1"] == pytest.approx(2 / 3)
    task.tune(answers, truth)
    assert task.evaluate(answers, truth)["f1"] == 1
    again = AnswerTask.from_state("answer", json.loads(json.dumps(task.state())))
    assert list(again.decide(answers)) == list(task.decide(answers)) and again.state() == task.state()
    fixed = fitted(threshold=-100.0)
    fixed.tune(answers, truth)
    assert list(fixed.decide(answers)) == ["", "", ""]


def test_without_unanswerable_rows_all_are_answered():
    task, tokens = AnswerTask("answer"), tokens_of(CONTEXT)
    task.fit([Gold(("Bo in Rome",), ((8, 18),))])
    answers = task.answers(logits_of(tokens, [0], [0]), tokens)
    assert task.decide(answers)[0] != ""
    assert list(task.evaluate(answers, task.truth([Gold(("Bo",), ((8, 10),))]))) == ["f1", "exact_match"]


def test_a_table_without_answers_is_refused():
    with pytest.raises(TableError, match="no train row has an answer"):
        AnswerTask("answer").fit([Gold((), ()), None])


def test_squad_cells_are_detected_and_texts_are_not():
    assert AnswerTask.detect([{"text": ["a"], "answer_start": [0]}, {"text": [], "answer_start": []}]).confidence > 0.9
    assert AnswerTask.detect(["Rome", "Ada"]).confidence == 0
    assert AnswerTask.detect([[{"start": 0, "end": 1, "label": "x"}]]).confidence == 0
