"""A re-ranker: what it learns from, how a search takes it, where it is saved, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from fusetune import api
from fusetune.cli.main import app
from fusetune.data.table import Table
from fusetune.deploy.search.rerank import Reranker
from fusetune.errors import UserError


@pytest.fixture(scope="module")
def questions(tmp_path_factory, write_csv):
    """Answers repeat a question's first word; several questions have the same answers."""
    folder, rng = tmp_path_factory.mktemp("questions"), np.random.default_rng(0)
    rows = []
    for _ in range(90):
        word = int(rng.integers(0, 12))
        question, answer = (f"w{word} w{rng.integers(20, 60)} w{rng.integers(20, 60)}" for _ in range(2))
        rows.append({"question": question, "answer": answer, "price": str(int(rng.integers(0, 9)))})
    parts = {"train": rows[:50], "val": rows[50:70], "test": rows[70:]}
    return {name: write_csv(folder / f"{name}.csv", part) for name, part in parts.items()}


def tune(tables, tiny, out, **more):
    given = {name: str(tables[name]) for name in ("val", "test")}
    settings = {
        "query": "question",
        "document": "answer",
        "columns": {"question": "text", "answer": "text"},
        "text": tiny("bert"),
        "rerank": {"depth": 3, "negatives": 2},
        "report": {"bootstrap": 0, "errors": 0},
        "trainer": {"epochs": 1, "head_epochs": 1, "trackers": []},
    }
    return api.fit(str(tables["train"]), **given, out=out, config=settings | more, progress=False)


@pytest.fixture(scope="module")
def tuned(questions, tiny, tmp_path_factory):
    return tune(questions, tiny, tmp_path_factory.mktemp("rerank") / "model")


def test_the_report_says_what_it_changes(tuned):
    there, back = tuned.results.tasks
    (section,) = (section for section in there.sections if section.key == "rerank")
    assert section.figures["before"] == pytest.approx(there.main(there.systems[-1]).value)
    assert section.figures["seconds"] > 0 and not [part for part in back.sections if part.key == "rerank"]
    settings = json.loads((tuned.folder / "reranker" / "rerank.json").read_text())
    assert (settings["query"], settings["document"], settings["depth"]) == ("question", "answer", 3)
    assert (tuned.folder / "reranker" / "report.html").is_file()
    assert not list(tuned.folder.glob("**/checkpoints"))


def test_it_learned_from_right_pairs_and_near_wrong_ones(tuned):
    report = json.loads((tuned.folder / "reranker" / "report.json").read_text())
    rows = {table["split"]: table["rows_used"] for table in report["tables"]}
    assert rows["train"] == 50 + 2 * 50 and rows["test"] == 20 + 2 * 20


def test_a_search_sorts_the_nearest_anew(tuned, questions):
    index, asked = tuned.index(str(questions["test"])), Table.read(str(questions["val"])).cells("question")[:4]
    plain = index.search(asked, k=5, rerank=False).table.to_pylist()
    anew = index.search(asked, k=5, rerank=True).table.to_pylist()
    for query in range(4):
        before, after = ([row for row in rows if row["row"] == query] for rows in (plain, anew))
        assert [row["rank"] for row in after] == [1, 2, 3, 4, 5]
        assert {row["document_row"] for row in after[:3]} == {row["document_row"] for row in before[:3]}
        assert [row["document_row"] for row in after[3:]] == [row["document_row"] for row in before[3:]]
        relevance = [row["relevance"] for row in after]
        assert relevance[:3] == sorted(relevance[:3], reverse=True) and relevance[3:] == [None, None]
        wanted = index.reranker.probabilities([asked[query]] * 3, [row["answer"] for row in after[:3]])
        assert np.allclose(wanted, relevance[:3], atol=1e-6)
        scores = {row["document_row"]: row["score"] for row in before}
        assert all(row["score"] == pytest.approx(scores[row["document_row"]], abs=1e-5) for row in after)
    few = index.search(asked[:1], k=5, where="price == 3", rerank=True).table.to_pylist()
    assert [row["price"] for row in few] == ["3"] * len(few)
    assert len(index.search(asked[:1], k=1, rerank=True)["row"]) == 1


def test_validation_rows_choose_whether_it_is_used(tuned, questions):
    index = tuned.index(str(questions["test"]))
    for preferred in (True, False):
        index.reranker.preferred = preferred
        assert ("relevance" in index.search(["w1 w2"], k=2).table.column_names) is preferred
    found = tuned.index(str(questions["test"]), find="query")
    with pytest.raises(UserError, match=r"no re-ranker of what is found(.|\n)*find=query"):
        found.search(["w1 w2"], rerank=True)


def test_it_goes_with_the_folder_and_with_its_weights_alone(tuned, questions, tmp_path):
    copied = api.load(tuned.save(tmp_path / "copy"))
    copied.save_index(copied.index(str(questions["test"])))
    done = CliRunner().invoke(app, ["search", str(copied.folder), "--query", "w1 w2", "--rerank", "-k", "3"])
    assert done.exit_code == 0 and "read together" in done.output.replace("\n", " ")
    settings = copied.folder / "reranker" / "rerank.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model": "0" * 64}))
    assert copied.index().reranker is None
    settings.write_text("{")
    with pytest.raises(UserError, match="re-ranker cannot be read"):
        copied.index()


def test_pairs_that_cannot_be_read_come_last():
    class Known(Reranker):
        def probabilities(self, queries, documents):
            return np.array([np.nan if text == "?" else float(text or 1) for text in documents])

    reranker = Known(None, "q", "d", 4, preferred=True)
    order, relevance = reranker.order(
        ["a", "b"], [["0.1", "0.9", "?", "0.5", "0.99"], ["0.3", "0.2", "0.4"] + [None] * 2]
    )
    assert order.tolist() == [[1, 3, 0, 2, 4], [2, 0, 1, 3, 4]]
    assert np.isnan(relevance[:, 3:]).all() and relevance[0, :3].tolist() == [0.9, 0.5, 0.1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"document": ["answer", "price"]}, "each of which is one text"),
        ({"query": [], "document": []}, "query not given"),
        ({"columns": {"question": "text", "answer": "category"}}, "rerank reads texts together"),
        ({"rerank": {"depths": 3}}, "no such setting(.|\n)*depth"),
    ],
)
def test_what_is_refused(questions, tiny, tmp_path, more, said):
    with pytest.raises(UserError, match=said):
        tune(questions, tiny, tmp_path / "model", **more)
