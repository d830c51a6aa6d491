import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss

from fusetune.data.schema import ColumnSpec, Schema
from fusetune.data.table import Table
from fusetune.errors import BadCell, ConfigError, TableError
from fusetune.modalities.passages import text_tokens
from fusetune.tasks.choice.cells import letter
from fusetune.tasks.choice.columns import find_choices, find_context
from fusetune.tasks.choice.scores import Scores, measure
from fusetune.tasks.choice.task import PADDING, MultipleChoiceTask
from fusetune.tasks.infer import infer_task
from fusetune.tasks.panels.kinds import Evidence

CELLS = [["why", ["a cat", "a dog", "a cow"]], ["who", ["Ada", None, "Bo", "Cleo"]], ["when", ["now", "then"]]]


def resolved(task, values, cells=CELLS):
    return [
        None if value is None else task.resolve(value, cell, row=7) for value, cell in zip(values, cells, strict=True)
    ]


def fitted(values=("C", "D", "A"), cells=CELLS, **options):
    task = MultipleChoiceTask("right", **options)
    task.num_before, task.choice_columns = 1, ["a", "b", "c", "d"]
    task.fit(resolved(task, values, cells))
    return task


def tokens_of(cells=CELLS):
    """As the text modality gives them: a place for each choice that is not blank."""
    spans, texts = [], []
    for before, choices in cells:
        real = [place for place, choice in enumerate(choices) if choice]
        spans.append(np.array([(place, 0, 0) for place in real], dtype=np.int32))
        texts.append([before, *(choice or "" for choice in choices)])
    return text_tokens(spans, texts)


@pytest.mark.parametrize(
    ("values", "form"),
    [
        (("C", "D", "A"), "letter"),
        (("c)", "(d)", "a."), "letter"),
        ((2, 3, 0), "index0"),
        (("3", "4", "1"), "index1"),
        ((3.0, 4.0, 1.0), "index1"),
        (("a cow", "cleo", " now "), "text"),
        (("c", "d", "a"), "letter"),
    ],
)
def test_the_form_of_the_answers_is_found(values, form):
    task = fitted(values)
    assert task.form_used == form and task.why.startswith("3 of 3 answers are")
    rows = resolved(task, values)
    for row in rows:
        task.check(row, row=0)
    assert [right.position for right in task.truth(rows)] == [2, 3, 0]
    again = MultipleChoiceTask.from_state("right", task.state())
    assert again.state() == task.state()
    logits = torch.tensor([[0, 0, 9.0], [0, 0, 9.0], [9.0, 0, 0]]).unsqueeze(2)
    answers = again.answers(logits, tokens_of())
    written = again.columns(answers)["right"]
    assert [right.position for right in again.truth(resolved(again, written))] == [2, 3, 0]
    assert type(written[0]) is (int if form.startswith("index") else str)


def test_names_of_columns_are_answers():
    task = MultipleChoiceTask("right")
    task.choice_columns, task.num_before = ["one", "two"], 0
    task.fit([task.resolve(name, [["x", "y"]], row=0) for name in ("one", "two")])
    assert task.form_used == "column"
    answers = np.array([Scores(np.array([0.2, 0.8]), ("x", "y"))], dtype=object)
    assert task.columns(answers)["right"] == ["two"]


def test_numbers_are_choices_by_their_text():
    """Answers that are both an index and the text of a choice are read as text."""
    cells = [["q", ["2", "3", "1"]], ["q", ["1", "2", "3"]], ["q", ["3", "1", "2"]]]
    assert fitted((3, 1, 2), cells).form_used == "text"


def test_indices_that_may_be_counted_from_0_or_1_are_asked_about():
    cells = [["q", ["x", "y", "z"]]] * 3
    with pytest.raises(TableError, match=r"tasks\.right\.form=index0"):
        fitted((1, 2, 1), cells)
    assert fitted((1, 2, 1), cells, form="index1").form_used == "index1"


def test_a_few_wrong_answers_do_not_change_the_form():
    task = fitted(["A"] * 8 + ["Z", "hm"], [CELLS[0]] * 10)
    assert task.form_used == "letter" and task.counts == [8]


def test_answers_of_which_few_are_choices_are_refused():
    with pytest.raises(TableError, match="none of the choices") as error:
        fitted(("no", "yes", "A"))
    assert "tasks.right.choices" in str(error.value)


@pytest.mark.parametrize(
    ("value", "cell", "why"),
    [
        ("E", CELLS[0], "none of the choices"),
        ("B", CELLS[1], "none of the choices"),
        ("A", ["q", ["only one", None]], "one choice only"),
        ("A", ["q", ["the same", "The  Same"]], "A and B are the same"),
    ],
)
def test_rows_without_a_right_choice_are_named(value, cell, why):
    task = fitted()
    with pytest.raises(BadCell, match=why) as error:
        task.check(task.resolve(value, cell, row=7), row=7)
    assert error.value.row == 7 and error.value.column == "right"


@pytest.mark.parametrize("cell", [None, ["q", []], ["q", [None, " "]]])
def test_rows_without_choices_are_named(cell):
    with pytest.raises(BadCell, match="no choices") as error:
        fitted().resolve("A", cell, row=3)
    assert error.value.row == 3


def test_two_choices_with_the_answers_text_are_refused():
    task = fitted(("a cow", "Bo", "now"))
    with pytest.raises(BadCell, match="several of the choices"):
        task.check(task.resolve("x", ["q", ["X", "X", "y"]], row=0), row=0)


def test_targets_mark_the_right_choice_among_those_that_are_not_blank():
    task, tokens = fitted(), tokens_of()
    target = task.encode([*resolved(task, ("C", "D", None))], tokens)
    assert target.values.tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, PADDING]]
    assert target.labelled.tolist() == [True, True, False]


def test_the_loss_is_the_cross_entropy_over_the_rows_own_choices():
    task, tokens = fitted(), tokens_of()
    target = task.encode(resolved(task, ("C", "D", "B")), tokens)
    logits = torch.randn(3, 3, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[2, 2] = 0
    expected = [
        torch.nn.functional.cross_entropy(logits[row, :num, 0], torch.tensor(right)).item()
        for row, num, right in ((0, 3, 2), (1, 3, 2), (2, 2, 1))
    ]
    torch.testing.assert_close(task.terms(logits, target), torch.tensor(expected, dtype=torch.float64))
    padded = torch.nn.functional.pad(logits, (0, 0, 0, 2))
    wide = task.encode(resolved(task, ("C", "D", "B")), tokens)
    wide.values = torch.nn.functional.pad(wide.values, (0, 2), value=PADDING)
    torch.testing.assert_close(task.terms(padded, wide), task.terms(logits, target))


def test_answers_have_a_probability_for_each_choice_that_is_not_blank():
    task = fitted()
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0], [2.0, 0.0, 0.0]]).unsqueeze(2)
    answers = task.answers(logits, tokens_of())
    assert np.isnan(answers[1].probabilities).tolist() == [False, True, False, False]
    assert [float(np.nansum(answer.probabilities)) for answer in answers] == pytest.approx([1, 1, 1])
    columns = task.columns(answers)
    assert columns["right"] == ["C", "C", "A"] and columns["right_text"] == ["a cow", "Bo", "now"]
    assert columns["right_scores"][1][1] is None and len(columns["right_scores"][2]) == 2
    assert columns["right_probability"][2] == pytest.approx(1 / (1 + np.exp(-2)))


def test_a_row_without_choices_has_no_answer():
    task = fitted()
    answers = task.answers(torch.zeros(2, 1, 1), text_tokens([None, None], [(), ()]))
    assert task.columns(answers)["right"] == [None, None]
    measured = measure(answers, task.truth(resolved(task, ("C", "A"), [CELLS[0], CELLS[2]])))
    assert measured[:, 0].tolist() == pytest.approx([1 / 3, 1 / 2]), "as good as a random choice"


def test_metrics_are_those_of_scikit_learn():
    rng, task, num = np.random.default_rng(0), fitted(), 200
    cells = [["q", ["w", "x", "y", "z"]]] * num
    truth = task.truth(resolved(task, ["ABCD"[place] for place in rng.integers(0, 4, num)], cells))
    shares = rng.dirichlet(np.ones(4), num)
    answers = np.array([Scores(own, ("w", "x", "y", "z")) for own in shares], dtype=object)
    weights, places = rng.random(num), [right.position for right in truth]
    found = task.metrics(task.measured(answers, truth), truth, weights)
    assert found["accuracy"] == pytest.approx(accuracy_score(places, shares.argmax(1), sample_weight=weights))
    assert found["log_loss"] == pytest.approx(log_loss(places, shares, sample_weight=weights))
    even = task.truth(resolved(task, list("ABCD") * 50, cells))
    adjusted = task.evaluate(answers, even)["adjusted_accuracy"]
    assert adjusted == pytest.approx(balanced_accuracy_score([0, 1, 2, 3] * 50, shares.argmax(1), adjusted=True))


def test_chance_counts_each_rows_own_choices():
    task = fitted()
    truth = task.truth(resolved(task, ("C", "D", "A")))
    uniform = np.array([Scores(np.full(4, 0.25), ())] * 3, dtype=object)
    found = task.evaluate(uniform, truth)
    assert found["accuracy"] == pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3) and found[
        "adjusted_accuracy"
    ] == pytest.approx(0)
    assert task.evaluate(task.perfect(truth), truth)["adjusted_accuracy"] == pytest.approx(1)


def test_the_constant_guess_is_the_commonest_position():
    task = fitted()
    train = task.truth(resolved(task, ("C", "C", "A"), [CELLS[0]] * 3))
    guess = task.constant(train, 3)
    assert task.metrics(measure(guess, train), train)["accuracy"] == pytest.approx(2 / 3)
    short = task.truth(resolved(task, ("A", "B"), [CELLS[2]] * 2))
    assert measure(task.constant(train, 2), short)[:, 0].tolist() == [1, 0], "C is no choice there"


def test_the_longest_choice_is_a_rule():
    task = fitted()
    cells = [["q", ["long one", "x", "y"]], ["q", ["x", "longer", None]]]
    truth = task.truth(resolved(task, ("A", "A"), cells))
    (guess,) = task.guesses(truth, truth)
    assert [answer.chosen for answer in guess.answers] == [0, 1]
    assert np.isfinite(task.evaluate(guess.answers, truth)["log_loss"])


def test_panels_show_errors_with_all_choices():
    task = fitted()
    truth = task.truth(resolved(task, ("C", "D", "A")))
    answers = task.answers(torch.tensor([[9.0, 0, 0], [0, 0, 9.0], [9.0, 0, 0]]).unsqueeze(2), tokens_of())
    sections = {section.key: section for section in task.panels(Evidence(answers, truth, None, (answers, truth)))}
    (row,) = sections["errors"].panels[0].rows
    assert row[:2] == ["C", "A"] and "a cat" in row[2] and "a cow" in row[4]
    by_num = sections["choices"].panels[1].rows
    assert [line[:2] for line in by_num] == [[2, 1], [3, 2]]
    assert sections["calibration"].figures["ece"] < 0.5 and np.isfinite(sections["calibration"].figures["temperature"])
    assert task.worst(answers, truth, 5).rows[0].prediction == "A: a cat"
    (panel,) = task.target_panels({"train": truth})
    assert panel.rows == [["train", 1, 0, 1, 1]] and task.why in panel.caption
    shown = task.panels(Evidence(answers, truth, texts=lambda at: [CELLS[at][0], *truth[at].choices]))[1].panels[0]
    assert shown.rows[0][:3] == ["why", "C", "A"] and [head.name for head in shown.heads][:3] == [
        "context",
        "right",
        "chosen",
    ]
    perfect = task.panels(Evidence(task.perfect(truth), truth))
    assert "errors" not in {section.key for section in perfect}


def schema_of(**columns):
    roles = {"right": "target"}
    return Schema({name: ColumnSpec(name, kind, roles.get(name, "input")) for name, kind in columns.items()})


def test_columns_are_found_by_name_with_the_reason():
    schema = schema_of(
        question="text", context="text", answerB="text", answerA="category", photo="image", right="category"
    )
    reading = MultipleChoiceTask("right").reading(schema)
    assert reading.columns == ("context", "question") and reading.choices == ("answerA", "answerB")
    assert reading.read == "choices" and "answerA, answerB" in reading.reason


def test_named_columns_are_taken():
    schema = schema_of(a="text", b="text", c="text", d="text", right="category")
    reading = MultipleChoiceTask("right", choices=["c", "d"], context="a").reading(schema)
    assert (reading.columns, reading.choices) == (("a",), ("c", "d"))
    assert MultipleChoiceTask("right", choices="c", context=[]).reading(schema).columns == ()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "no columns of choices"),
        ({"choices": ["left", "rigth"]}, "right"),
        ({"choices": ["left", "right"]}, "the target|target"),
        ({"choices": []}, "names no column"),
        ({"choices": ["left", "middle"]}, "which texts are read"),
        ({"choices": ["left", "middle"], "context": ["left"]}, "among the choices and the context"),
        ({"form": "word"}, "form"),
    ],
)
def test_columns_that_are_not_clear_are_asked_about(options, why):
    schema = schema_of(left="text", middle="text", one="text", two="text", right="category")
    with pytest.raises(ConfigError, match=why):
        MultipleChoiceTask("right", **options).reading(schema)


@pytest.mark.parametrize(
    ("columns", "choices", "context"),
    [
        (["context", "question", "answerA", "answerB", "answerC"], "answerA answerB answerC", "context question"),
        (["sentence", "option1", "option2"], "option1 option2", "sentence"),
        (["ctx", "endings"], "endings", "ctx"),
        (["question", "A", "B", "C", "D", "subject"], "A B C D", "question"),
        (["question", "opa", "opb", "opc", "opd"], "opa opb opc opd", "question"),
        (["goal", "sol1", "sol2"], "sol1 sol2", "goal"),
        (["sent1", "sent2", "ending0", "ending1", "ending2"], "ending0 ending1 ending2", "sent1 sent2"),
        (["premise", "Choice_1", "Choice_2", "choices"], "Choice_1 Choice_2", "premise"),
        (["prompt", "choice.a", "choice.b"], "choice.a choice.b", "prompt"),
        (["x0", "x1", "x2"], None, None),
        (["a", "b", "c"], None, None),
        (["option1", "option3"], None, None),
    ],
)
def test_usual_names_of_choices(columns, choices, context):
    found = find_choices(columns)
    assert (None if found is None else " ".join(found.names)) == choices
    if found is not None:
        rest = {name: "text" for name in columns if name not in found.names and name != "choices"}
        assert " ".join(find_context(rest)) == context


def records(answers, **more):
    return Table.from_records(
        [
            {"question": f"q{n}", "optionA": f"x {n}", "optionB": f"y {n}", "right": a, **more}
            for n, a in enumerate(answers)
        ]
    )


def test_the_task_is_inferred_from_columns_beside_the_target():
    table = records(["A", "B"] * 20)
    assert infer_task(table.cells("right"), "right", table)[0] == "choice"
    assert infer_task(table.cells("right"), "right")[0] == "binary"
    by_text = records([f"x {n}" for n in range(40)])
    assert infer_task(by_text.cells("right"), "right", by_text)[0] == "choice"


@pytest.mark.parametrize("answers", [["good", "bad"] * 20, ["A", "B", "C", "D"] * 10])
def test_other_targets_beside_such_columns_stay_labels(answers):
    table = records(answers)
    assert infer_task(table.cells("right"), "right", table)[0] in ("binary", "multiclass")


def test_numbers_called_options_are_no_choices():
    table = Table.from_records([{"option1": n, "option2": n + 1, "right": 1 + n % 2} for n in range(40)])
    assert infer_task(table.cells("right"), "right", table)[0] == "binary"


def test_letters_go_on_after_z():
    assert [letter(place) for place in (0, 25, 26, 52)] == ["A", "Z", "AA", "BA"]
