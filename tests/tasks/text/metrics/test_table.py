"""The metrics of written texts against the field's libraries, on ordinary and on wild texts."""

import string

import jiwer
import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import LCSseq, Levenshtein
from rouge_score import rouge_scorer

from fusetune.tasks.metrics import LOWER_IS_BETTER, MEANINGS
from fusetune.tasks.text.metrics.form import repeated
from fusetune.tasks.text.metrics.subsequences import MAX_SYMBOLS, common_indices, common_length, edit_distance
from fusetune.tasks.text.metrics.table import NAMES, WIDTH, metrics_of, row_counts

ROUGE = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeLsum"])
WORDS = [
    "the",
    "cat",
    "Cat",
    "sat",
    "a",
    "1,000.5",
    "it's",
    "well-known",
    "5-",
    "&amp;",
    "<skipped>",
    "-\n",
    "\n",
    "über",
]
ODD = ["🙂", "👩‍👩‍👧", "猫が座る", "«»…", "!?.,", "\u0000", "\u00a0", "\u2028", "e\u0301", "٣", "\r\n", "\t"]

prose = st.lists(st.sampled_from([*WORDS, "."]), max_size=14).map(" ".join)
wild = st.lists(st.sampled_from(WORDS + ODD) | st.text(max_size=4), max_size=8).map("".join)
texts = prose | wild | st.text(string.punctuation + " a1", max_size=12)
rows = st.tuples(texts, st.lists(texts, min_size=1, max_size=3))
corpora = st.lists(rows, min_size=1, max_size=4)
examples = settings(max_examples=100, deadline=None)


def metrics(corpus):
    return metrics_of(row_counts([answer for answer, _ in corpus], [right for _, right in corpus]))


def streams(corpus):
    """The references as sacreBLEU takes them: one list for each position, None where a row has fewer."""
    most = max(len(right) for _, right in corpus)
    return [[right[at] if at < len(right) else None for _, right in corpus] for at in range(most)]


@examples
@given(corpora)
def test_bleu_is_sacrebleus(corpus):
    theirs = sacrebleu.corpus_bleu([answer for answer, _ in corpus], streams(corpus), force=True)
    assert metrics(corpus)["bleu"] == pytest.approx(theirs.score, abs=1e-9)


@examples
@given(corpora)
def test_chrf_is_sacrebleus(corpus):
    theirs = sacrebleu.corpus_chrf([answer for answer, _ in corpus], streams(corpus))
    assert metrics(corpus)["chrf"] == pytest.approx(theirs.score, abs=1e-9)


@examples
@given(corpora)
def test_rouge_is_googles(corpus):
    ours, theirs = metrics(corpus), [ROUGE.score_multi(right, answer) for answer, right in corpus]
    for name, their_name in (("rouge1", "rouge1"), ("rouge2", "rouge2"), ("rouge_lsum", "rougeLsum")):
        mean = np.mean([score[their_name].fmeasure for score in theirs])
        assert ours[name] == pytest.approx(mean, abs=1e-12) or (np.isnan(ours[name]) and mean == 0)


@examples
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_error_rates_are_jiwers(pairs):
    pairs = [tuple(" ".join(text.split()) for text in pair) for pair in pairs]  # jiwer divides words at spaces only
    ours = metrics([(answer, [right]) for answer, right in pairs])
    given_texts, right_texts = [answer for answer, _ in pairs], [right for _, right in pairs]
    if any(right_texts):
        assert ours["wer"] == pytest.approx(jiwer.wer(right_texts, given_texts))
        assert ours["cer"] == pytest.approx(jiwer.cer(right_texts, given_texts))
    else:
        assert np.isnan(ours["wer"]) and np.isnan(ours["cer"])


@examples
@given(st.text("abc", max_size=80), st.text("abcd", max_size=80))
def test_distances_and_subsequences_are_rapidfuzzs(first, second):
    assert edit_distance(first, second) == Levenshtein.distance(first, second)
    assert common_length(first, second) == LCSseq.similarity(first, second)
    indices = common_indices(first, second)[::-1]
    assert len(indices) == LCSseq.similarity(first, second)
    assert LCSseq.similarity("".join(first[at] for at in indices), second) == len(indices)


@examples
@given(corpora, st.data())
def test_counts_are_summed_over_any_selection_with_weights(corpus, data):
    """Rows drawn several times, integer weights and repeated rows give the same metrics."""
    counts = row_counts([answer for answer, _ in corpus], [right for _, right in corpus])
    assert counts.shape == (len(corpus), WIDTH) and counts.dtype == np.float64
    times = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(corpus), max_size=len(corpus))))
    repeated_rows = [row for row, num in zip(corpus, times, strict=True) for _ in range(num)]
    weighted, drawn = metrics_of(counts, times), metrics_of(np.repeat(counts, times, axis=0))
    written_out = metrics(repeated_rows) if repeated_rows else dict.fromkeys(NAMES, np.nan)
    for name in NAMES:
        assert weighted[name] == pytest.approx(drawn[name], nan_ok=True)
        assert written_out[name] == pytest.approx(drawn[name], nan_ok=True)


def test_right_answers_are_best_and_wrong_ones_worse():
    truths = ["the cat sat on the mat today", ["a dog barked at us all night", "the dog barked all night"]]
    best = metrics_of(row_counts(["the cat sat on the mat today", "the dog barked all night"], truths))
    hundred, one, zero = ("bleu", "chrf"), ("rouge1", "rouge2", "rouge_lsum", "exact_match", "token_f1"), ("wer", "cer")
    assert [best[name] for name in hundred] == pytest.approx([100, 100])
    assert [best[name] for name in one] == [1] * 5 and best["length_ratio"] == 1
    assert [best[name] for name in zero] == [0, 0] and best["repetition"] == 0
    worse = metrics_of(row_counts(["the cat", "no idea"], truths))
    for name in hundred + one + zero:
        assert (worse[name] > best[name]) if name in LOWER_IS_BETTER else (worse[name] < best[name]), name


def test_votes_of_several_people():
    """min(1, votes / 3), only for rows with three or more short references."""
    votes = ["two"] * 2 + ["2"] * 7 + ["The two!"]
    counts = row_counts(["two", "2", "3", "blue"], [votes, votes, votes, "blue"])
    assert metrics_of(counts[[0]])["vqa_accuracy"] == 1
    assert metrics_of(row_counts(["no"], [["no", "yes", "yes"]]))["vqa_accuracy"] == pytest.approx(1 / 3)
    assert metrics_of(counts)["vqa_accuracy"] == pytest.approx(2 / 3)
    captions = [["a man rides a horse on a beach", "a man on a brown horse", "a horse with a man by the sea"]]
    assert np.isnan(metrics_of(row_counts([captions[0][0]], captions))["vqa_accuracy"])
    assert np.isnan(metrics_of(counts[[3]])["vqa_accuracy"])


def test_repetition_counts_four_words_that_come_again():
    assert repeated("a b c d a b c d") == pytest.approx(1 / 5)
    assert repeated("猫が座る猫が座る") == pytest.approx(1 / 5)
    assert np.isnan(repeated("a b c")) and np.isnan(repeated("猫が座"))
    loop = row_counts(["yes " * 50, "a b c d e", "no"], ["x", "x", "x"])
    assert metrics_of(loop)["repetition"] == pytest.approx((1 - 1 / 47) / 2)


def test_undefined_metrics_are_nan():
    assert set(metrics_of(row_counts([], []))) == set(NAMES) == set(metrics_of(np.ones((2, WIDTH))))
    assert all(np.isnan(value) for value in metrics_of(row_counts([], [])).values())
    empty = metrics_of(row_counts(["words"], [[]]))
    assert all(np.isnan(empty[name]) for name in ("wer", "cer", "length_ratio", "rouge1", "rouge_lsum", "vqa_accuracy"))
    assert np.isnan(metrics_of(row_counts(["猫が座る"], ["猫が座る"]))["rouge2"])
    assert empty["exact_match"] == empty["chrf"] == empty["bleu"] == 0


def test_every_metric_is_explained():
    assert set(NAMES) <= set(MEANINGS)
    assert {name for name in NAMES if name in LOWER_IS_BETTER} == {"wer", "cer", "repetition"}


def test_long_texts_take_bounded_work():
    """The comparisons of two texts of 100,000 characters are done in parts; a quadratic table would take hours."""
    rng = np.random.default_rng(0)
    answer, right = (" ".join(rng.choice(WORDS[:6], 25_000)) for _ in range(2))
    counts = row_counts([answer, answer], [right, right.replace(" the ", "\n")])
    assert 0.3 < metrics_of(counts)["wer"] < 1
    long, longer = "ab" * MAX_SYMBOLS, "cab" + "ab" * MAX_SYMBOLS
    assert Levenshtein.distance(long, longer) <= edit_distance(long, longer) <= len(longer)
    assert edit_distance(long, long + "c") == 1
