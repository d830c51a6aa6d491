"""What retrieval is compared with, by another library and by hand; the queries that a report shows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.evaluation.measure.bm25 import Bm25, words
from fusetune.evaluation.measure.rankings import answer_counts, baselines, ranked_queries, tuning_section
from fusetune.evaluation.shown import Shown
from fusetune.modalities.category import CategoryModality
from fusetune.modalities.text import TextModality
from fusetune.models.build import Backbones
from fusetune.tasks.retrieval import pair_tasks

DOCUMENTS = ["the red lamp", "a blue lamp and a red lamp", "shoes", "", "coat of red wool, red and warm", "lamp Lamp"]


def test_words():
    assert list(words("Don't stop_now, Ärger 3.5")) == ["don", "t", "stop", "now", "ärger", "3", "5"]
    assert list(words("ab漢字 カナ한국어")) == ["ab", "漢", "字", "カ", "ナ", "한국어"]


def test_scores_are_those_of_bm25s():
    bm25s = pytest.importorskip("bm25s")
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in rng.zipf(1.5, rng.integers(1, 30)) % 50) for _ in range(40)]
    queries = [" ".join(f"w{word}" for word in rng.integers(0, 50, 4)) for _ in range(10)]
    oracle = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    oracle.index([list(words(text)) for text in texts], show_progress=False)
    own = Bm25(texts).scores(queries)
    for query, scores in zip(queries, own, strict=True):
        known = [word for word in words(query) if any(word in text.split() for text in texts)]
        assert np.allclose(scores, oracle.get_scores(known), atol=1e-5)


def test_scores_by_hand():
    scores = Bm25(DOCUMENTS).scores(["red red lamp", "nothing", ""])
    assert scores.shape == (3, 6) and not scores[1:].any() and not scores[0, [2, 3]].any()
    idf = math.log1p((6 - 3 + 0.5) / (3 + 0.5))
    norm = 1.2 * (1 - 0.75 + 0.75 * 3 / (3 + 7 + 1 + 0 + 7 + 2) * 6)
    assert scores[0, 0] == pytest.approx(3 * idf / (1 + norm))  # red twice, lamp once; both in 3 of 6
    assert Bm25(DOCUMENTS, k1=0).scores(["red"])[0].tolist() == pytest.approx([idf, idf, 0, 0, idf, 0])


@pytest.fixture(scope="module")
def examples(tiny):
    """Train rows, of which two have one answer, and test rows with other queries."""
    from fusetune.config.backbone import BackboneConfig

    train = [("red lamp", "lamps", "a"), ("big lamp", "lamps", "a"), ("a shoe", "shoes", "b")]
    test = [("old lamps", "lamps", "a"), ("warm coats", "coats", "b"), ("red shoes", "shoes", "b"), ("x", "lamps", "b")]
    backbones, made = Backbones({"text": BackboneConfig(name=tiny("bert"))}), []
    modalities = {name: TextModality(name, backbone=backbones.get("text", None)) for name in ("ask", "answer")}
    modalities["kind"] = CategoryModality("kind")
    for rows in (train, test):
        table = Table.from_records([dict(zip(("ask", "answer", "kind"), row, strict=True)) for row in rows])
        made.append(Examples(table, modalities))
        made[-1].prepare(on_bad_cell="mask")
    return made


def search_of(task, test):
    return task.search({name: column.codes for name, column in test.columns.items()}, ids=test.rows)


def test_rules_rank_without_a_model(examples):
    train, test = examples
    there, back = pair_tasks(["ask"], ["answer"]).values()
    search = search_of(there, test)
    assert answer_counts(there, search, train, test).tolist() == [2, 0, 1]
    frequent, bm25 = baselines(there, search, train, test)
    assert frequent.name == "most frequent answer" and frequent.answers["rank"].tolist() == [1, 3, 2, 1]
    assert bm25.name == "BM25" and bm25.answers["rank"].tolist() == [1, 1, 1, 2]  # x shares no word with any
    assert [system.name for system in baselines(back, search_of(back, test), train, test)] == ["BM25"]


def test_sides_without_text_have_no_bm25_and_new_answers_no_frequency(examples):
    train, test = examples
    there, _ = pair_tasks(["ask"], ["kind"]).values()
    assert [system.name for system in baselines(there, search_of(there, test), train, test)] == ["most frequent answer"]
    several, _ = pair_tasks(["ask"], ["kind", "answer"]).values()
    search = search_of(several, test)
    assert answer_counts(several, search, train, test).tolist() == [2, 0, 0, 1]  # lamps of the kind a, not b
    assert len(baselines(several, search, train, test)) == 2


def test_what_tuning_changed_is_counted():
    section = tuning_section(np.array([3.0, 1, 2, 4]), np.array([1.0, 2, 2, 3]))
    assert section.figures == {"better": 2, "equal": 1, "worse": 1}
    assert [row[1] for row in section.panels[0].rows] == [2, 1, 1, 1, 1]


def test_queries_are_shown_with_their_answers(examples):
    _, test = examples
    there, _ = pair_tasks(["ask"], ["answer"]).values()
    search = search_of(there, test)
    vectors = {"query": np.eye(4, 3), "document": np.eye(4, 3)[[0, 1, 2, 0]]}
    vectors["query"][1] = [0.6, 0, 0.8]
    after = there.answers(vectors, search)["rank"]
    shown = ranked_queries(
        there, search, vectors, (after, np.array([2.0, 1, 1, 3])), lambda at, names: [Shown(names[0], "text", str(at))]
    )
    assert [query.row for query in shown] == [0, 1, 3, 2] or {query.row for query in shown} == {0, 1, 2, 3}
    by_row = {query.row: query for query in shown}
    assert (by_row[0].outcome, by_row[0].rank, by_row[0].before) == ("won", 1, 2)
    assert by_row[1].outcome == "lost" and by_row[2].outcome == ""
    assert [answer.row for answer in by_row[1].answers] == [2, 0, 1]
    assert [answer.grade for answer in by_row[1].answers] == [0, 0, 1]
    assert by_row[1].answers[0].score == pytest.approx(0.8)
    assert by_row[1].cells[0].text == "1" and by_row[1].answers[0].cells[0].column == "answer"
    unknown = ranked_queries(there, search, vectors, (after, None), lambda at, names: [])
    assert {query.outcome for query in unknown} == {""} and math.isnan(unknown[0].before)
