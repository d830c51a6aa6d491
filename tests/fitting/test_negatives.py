"""Named negatives: which are used, what they do to the loss and to the catalogue, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fusetune import api
from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.negatives import common_keys, with_negatives, without_right_answers
from fusetune.data.table import Table
from fusetune.errors import UserError
from fusetune.modalities.text import TextModality
from fusetune.models.build import build_model
from fusetune.objectives.contrastive import ContrastiveObjective
from fusetune.objectives.gather import gather_rows
from fusetune.tasks.retrieval import pair_tasks

SIDES = {"query": "question", "document": "answer", "negative": ["wrong", "worse"]}


@pytest.fixture(scope="module")
def questions(tmp_path_factory, write_csv):
    """Answers repeat a question's first word; row 3 names its own answer as a negative, row 4 an equal question's."""
    folder, rng = tmp_path_factory.mktemp("questions"), np.random.default_rng(0)

    def text(word):
        return " ".join([f"w{word}", *(f"w{number}" for number in rng.integers(20, 60, 4))])

    rows = []
    for place in range(90):
        word = int(rng.integers(0, 20))
        row = {
            "question": text(word),
            "answer": text(word),
            "wrong": text((word + 1) % 20),
            "worse": text((word + 2) % 20),
        }
        rows.append(row | ({"worse": ""} if place % 3 == 0 else {}))
    rows[3]["wrong"] = rows[3]["answer"]
    rows[4]["question"], rows[4]["worse"] = rows[5]["question"], rows[5]["answer"]
    parts = {"train": rows[:50], "val": rows[50:70], "test": rows[70:]}
    return {name: write_csv(folder / f"{name}.csv", part) for name, part in parts.items()}


def tune(tables, tiny, out, **more):
    given = {name: str(tables[name]) for name in ("val", "test")}
    columns = dict.fromkeys(["question", "answer"], "text")
    settings = {**SIDES, "text": tiny("bert"), "columns": columns, "report": {"bootstrap": 0, "errors": 3}}
    settings["trainer"] = {"epochs": 1, "head_epochs": 1, "trackers": []}
    return api.fit(str(tables["train"]), **given, out=out, config=settings | more, progress=False)


@pytest.fixture(scope="module")
def tuned(questions, tiny, tmp_path_factory):
    objectives = {"contrastive": {"mine": 1, "dims": [8]}}
    return tune(questions, tiny, tmp_path_factory.mktemp("negatives") / "model", objectives=objectives)


def test_negatives_are_searched_among_and_counted_where_they_are_right(tuned, questions):
    there, back = tuned.results.tasks
    test = Table.read(str(questions["test"]))
    documents = {cell for name in ("answer", "wrong", "worse") for cell in test.cells(name) if cell}
    assert 40 < len(documents) <= 54
    assert (
        f"among {len(documents)}" in there.sections[0].panels[0].title
        and "among 20" in back.sections[0].panels[0].title
    )
    assert (there.rows, back.rows) == (20, 20)
    assert any(note.startswith("2 negatives of train rows equal a right answer") for note in tuned.results.warnings)
    used = {table.split: (table.rows_in, table.rows_used) for table in tuned.results.tables}
    assert used == {"train": (50, 50), "val": (20, 20), "test": (20, 20)}


def test_the_folder_needs_no_negatives(tuned, questions, tmp_path):
    loaded = api.load(tuned.folder)
    assert sorted(loaded.bundle.modalities) == ["answer", "question"]
    alone = [{"question": "w1 w2", "answer": "w1 w3"}]
    for model in (tuned, loaded):
        assert model.predict(alone).table.column_names == ["row", "query_vector", "document_vector", "error"]
    assert np.allclose(tuned.predict(alone)["query_vector"], loaded.predict(alone)["query_vector"], atol=1e-6)
    measured = loaded.evaluate(str(questions["test"]))
    assert (measured.rows_in, measured.rows_rejected) == (20, 0)
    for task in tuned.results.tasks:
        values = measured.metrics()[task.target]
        assert values["mrr"] == pytest.approx(task.main(task.systems[-1]).value, abs=1e-6)
    fewer = loaded.evaluate([{"question": f"w{n} w3", "answer": f"w{n} w4"} for n in range(5)])
    assert fewer.rows_in == 5


def test_negatives_are_mined_besides(tuned):
    notes = [note for note in tuned.results.warnings if "hard negatives were mined once" in note]
    assert len(notes) == 2 and all("for 50 train rows" in note for note in notes)  # of the stages head and tune
    assert sorted(tuned.bundle.model.columns) == ["answer", "question", "worse", "wrong"]
    assert set(api.load(tuned.folder).bundle.model.read_columns) == {"answer", "question"}


def test_vectors_can_be_cut_where_they_were_trained_for_it(tuned, questions, recwarn):
    width = tuned.bundle.model.dim
    for task in tuned.results.tasks:
        (section,) = (section for section in task.sections if section.key == "dims")
        assert list(section.figures) == [str(width), "8"]
        assert section.figures[str(width)] == pytest.approx(task.main(task.systems[-1]).value)
    rows = str(questions["test"])
    whole, cut = (np.stack(tuned.embed(rows, dim=dim)["document_vector"]) for dim in (None, 8))
    wanted = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    assert cut.shape == (20, 8) and np.allclose(cut, wanted, atol=1e-6)
    asked = np.stack(tuned.embed(rows, dim=8)["query_vector"])
    index = tuned.index(rows, dim=8)
    best = (asked @ cut.T).max(1)
    for _ in range(2):
        found = index.search(questions["test"], k=1)
        assert np.allclose(found["score"], best, atol=1e-5)
        tuned.save_index(index)
        index = tuned.index()
    assert not [warning for warning in recwarn if "cut to" in str(warning.message)]
    with pytest.warns(UserWarning, match="cut to 5 numbers, and the model was not tuned for 8"):
        tuned.embed(rows, dim=5)
    for dim in (0, width + 1):
        with pytest.raises(UserError, match=f"dim is out of range(.|\n)*1 to {width}"):
            tuned.index(rows, dim=dim)


def parts(tiny, *, tied=False, **settings):
    """Five rows; row 1 lacks a negative, row 2's equals the document of row 0."""
    from fusetune.backbones.load import load_backbone

    texts = {"q": "abcde", "d": "fghij", "n": "klmno"}
    records = [{name: f"w{ord(cells[row]) - 90} w7" for name, cells in texts.items()} for row in range(5)]
    records[1]["n"], records[2]["n"] = None, records[0]["d"]
    backbone = load_backbone(tiny("bert"), "text")
    modalities = {name: TextModality(name, backbone=backbone) for name in texts}
    examples = Examples(Table.from_records(records), modalities)
    examples.prepare(on_bad_cell="reject")
    examples = examples.given(keys=common_keys(examples, ["d", "n"]))
    torch.manual_seed(0)
    fusion = NamedConfig(name="none", dim=8, tied=tied)
    model = build_model(modalities, pair_tasks(["q"], ["d"], ["n"]), fusion, dropout=0.0).double().eval()
    return model, ContrastiveObjective(model, {}, **settings).double(), examples.batch(range(5))


@pytest.mark.parametrize("form", ["infonce", "decoupled"])
def test_the_loss_by_hand(tiny, form):
    model, objective, batch = parts(tiny, form=form, within=False, temperature=0.5, lam=0.4)
    outputs = model(batch)
    x, y = (torch.nn.functional.normalize(outputs.sides[name].mean().detach(), dim=1) for name in ("query", "document"))
    n = torch.nn.functional.normalize(outputs.negatives["n"].mean().detach(), dim=1)
    assert torch.allclose(n[2], y[0])  # equal cells have equal vectors: the negatives are read as documents are
    pull = push = 0.0
    for i in range(5):
        for anchors, others, named in ((x, y, True), (y, x, False)):
            logits = [float(anchors[i] @ others[j]) / 0.5 for j in range(5) if j != i or form == "infonce"]
            if named:
                logits += [float(anchors[i] @ n[j]) / 0.5 for j in range(5) if j != 1 and not (i == 0 and j == 2)]
            push += math.log(sum(map(math.exp, logits))) / 10
            pull -= float(anchors[i] @ others[i]) / 0.5 / 10
    losses = objective(model, batch, outputs)
    assert float(losses["contrastive"].detach()) == pytest.approx(0.4 * pull + 0.6 * push, abs=1e-9)
    assert float(objective.figures["L_s"]) == pytest.approx(pull) and float(objective.figures["L_d"]) == pytest.approx(
        push
    )
    losses["contrastive"].backward()
    assert model.projection("d").linear.weight.grad.abs().sum() > 0


def test_a_row_alone_learns_from_its_own_negative(tiny):
    model, objective, _ = parts(tiny)
    batch = parts(tiny)[2]
    vectors = {name: value[3:4] for name, value in objective.vectors(batch, model(batch)).items()}
    assert float(objective.of_vectors(gather_rows(vectors))["contrastive"].detach()) != 0
    vectors["negative code/n"] = torch.tensor([-1])
    assert float(objective.of_vectors(vectors)["contrastive"].detach()) == 0


def test_negatives_have_no_parameters(tiny):
    for tied in (False, True):
        model, _, _ = parts(tiny, tied=tied)
        assert model.projection("n") is model.projection("d")
        assert (model.projection("d") is model.projection("q")) is tied
        before = model.projection("d").shift.clone()
        model.set_scale("n", torch.ones_like(before), torch.ones_like(before))
        assert torch.equal(model.projection("d").shift, before)
        assert list(model.compared) == ["query", "document"]


def test_right_answers_are_no_negatives():
    records = [
        {"q": "a", "d": "one", "n": "two", "g": "x"},
        {"q": "a", "d": "two", "n": "three", "g": None},
        {"q": "b", "d": "three", "n": "one", "g": "x"},  # of a group with row 0
        {"q": "c", "d": "four", "n": "one", "g": None},
        {"q": "d", "d": "five", "n": None, "g": None},
    ]
    table = Table.from_records(records)
    for group, left, wrong in ((None, ["three", "one", "one"], 1), ("g", ["three", "one"], 2)):
        cleaned, count = without_right_answers(table, ["q"], "d", ["n"], group)
        assert count == wrong and [cell for cell in cleaned.cells("n") if cell] == left
        assert cleaned.cells("d") == table.cells("d")
    searched = with_negatives(table, "d", ["n"], reserved=9)
    assert searched.cells("d") == [*table.cells("d"), "two", "three", "one", "one"]
    assert searched.missing("q").tolist() == [False] * 5 + [True] * 4 and searched.missing("n").all()
    assert [searched.file_and_row(int(row))[1] for row in searched.rows] == [0, 1, 2, 3, 4, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"query": [], "document": []}, "negatives are for pairs"),
        ({"target": "worse", "negative": "wrong"}, "negatives and a target"),
        ({"document": ["answer", "worse"], "negative": "wrong"}, "document of one column"),
        ({"negative": "answer"}, "'answer' is named twice"),
        ({"objectives": {"contrastive": {"form": "sigmoid"}}}, "negatives do not go with form=sigmoid"),
        ({"objectives": {"contrastive": {"dims": [8, 99]}}}, r"dims is out of range(.|\n)*Came: 99"),
        ({"target": "worse", "negative": [], "objectives": {"contrastive": {"mine": 1}}}, "mine finds documents for"),
        ({"columns": {"answer": "category"}}, "negatives are texts, images or sounds"),
        ({"negative": "wrongs"}, "wrongs(.|\n)*wrong"),
    ],
)
def test_what_is_refused(questions, tiny, tmp_path, more, said):
    with pytest.raises(UserError, match=said):
        tune(questions, tiny, tmp_path / "model", **more)
