import numpy as np
import pytest

from fusetune.data.schema import ColumnSpec, Schema
from fusetune.errors import ConfigError
from fusetune.modalities.markers import without_tags
from fusetune.tasks.panels.kinds import Evidence
from fusetune.tasks.relation import RelationTask

LABELS = ["Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)", "Content-Container(e1,e2)", "Other"]


def fitted(**options):
    task = RelationTask("relation", **options)
    task.fit(LABELS)
    return task


def official(guesses, truth):
    """The SemEval-2010 task 8 scorer's (9+1)-way macro-averaged F1 with directionality, from its description."""
    strip = lambda label: label.split("(")[0]  # noqa: E731
    scores = []
    for relation in sorted({strip(label) for label in LABELS} - {"Other"}):
        right = sum(guess == true and strip(true) == relation for guess, true in zip(guesses, truth, strict=True))
        guessed = sum(strip(guess) == relation for guess in guesses)
        real = sum(strip(true) == relation for true in truth)
        precision, recall = right / guessed if guessed else 0, right / real if real else 0
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0)
    return sum(scores) / len(scores)


def test_the_score_is_the_official_one():
    task, rng = fitted(), np.random.default_rng(0)
    for _ in range(20):
        truth = rng.choice(LABELS, 30).tolist()
        guesses = [label if rng.random() < 0.6 else str(rng.choice(LABELS)) for label in truth]
        scores = np.eye(4)[[task.classes.index(label) for label in guesses]]
        found = task.evaluate(scores, task.truth(truth))["relation_f1"]
        assert found == pytest.approx(official(guesses, truth))
        assert task.main_value(scores, task.truth(truth)) == pytest.approx(found)


def test_weights_count_rows():
    task = fitted()
    truth, scores = task.truth(LABELS[:2]), np.eye(4)[[0, 0]]
    twice = task.evaluate(scores[[0, 0, 1]], truth[[0, 0, 1]])["relation_f1"]
    assert task.evaluate(scores, truth, np.array([2.0, 1.0]))["relation_f1"] == pytest.approx(twice)


def test_the_label_of_no_relation_is_found_or_named():
    assert fitted().no_relation == "Other" and fitted(none=LABELS[0]).no_relation == LABELS[0]
    with pytest.raises(ConfigError, match="which no train row has"):
        fitted(none="nothing")


def test_directed_labels_are_detected():
    assert RelationTask.detect(LABELS).confidence > 0.9
    assert RelationTask.detect(["cat", "dog"]).confidence == 0
    again = RelationTask.from_state("relation", fitted(none="Other").state())
    assert again.none == "Other" and again.classes == sorted(LABELS)


def schema(**kinds):
    return Schema({name: ColumnSpec(name, kind, "input", "") for name, kind in kinds.items()}, [])


@pytest.mark.parametrize(
    ("columns", "entities"),
    [
        ({"sentence": "text"}, ()),
        ({"sentence": "text", "e1": "text", "e2": "category"}, (("e1",), ("e2",))),
        ({"sentence": "text", "Subject": "text", "Object": "text"}, (("Subject",), ("Object",))),
        (
            {"sentence": "text", **dict.fromkeys(["head_start", "head_end", "tail_start", "tail_end"], "number")},
            (("head_start", "head_end"), ("tail_start", "tail_end")),
        ),
        (
            {"sentence": "text", "e1": "text", "e2": "text", "e1_type": "category", "e2_type": "category"},
            (("e1", "e1_type"), ("e2", "e2_type")),
        ),
        ({"sentence": "text", "e1": "category", "price": "number"}, ()),
    ],
)
def test_the_columns_of_the_entities_are_found_by_their_names(columns, entities):
    reading = RelationTask("relation").reading(schema(**columns))
    assert reading.columns == ("sentence",) and reading.entities == entities and not reading.by_token


def test_the_columns_of_the_entities_are_named():
    task = RelationTask("relation", text="a", head=["c", "d"], tail="b")
    reading = task.reading(schema(a="text", b="text", c="number", d="number"))
    assert reading.entities == (("c", "d"), ("b",)) and reading.name == "a + c + d + b"
    again = RelationTask("relation", head="x", tail="y")
    again.fit(LABELS)
    assert RelationTask.from_state("relation", again.state()).tail == "y"
    with pytest.raises(ConfigError, match="'x'"):
        again.reading(schema(a="text", b="text"))
    with pytest.raises(ConfigError, match="tail=COLUMN"):
        RelationTask("relation", head="x")


def test_the_report_shows_both_entities_with_the_true_and_the_predicted_relation():
    task = RelationTask("relation")
    labels = ["Part(e1,e2)", "Part(e2,e1)", "Use(e1,e2)", "Other"]
    task.fit(labels)
    truth = task.truth(["Part(e1,e2)", "Part(e1,e2)", "Use(e1,e2)", "Use(e1,e2)", "Other", "Other"])
    guesses = ["Part(e1,e2)", "Part(e2,e1)", "Part(e1,e2)", "Other", "Use(e1,e2)", "Other"]
    answers = np.full((6, 4), 0.1)
    answers[np.arange(6), [task.classes.index(guess) for guess in guesses]] = 0.7
    text = "The <e2 thing>car</e2> with a <e1>wheel</e1>."
    assert all(section.key != "texts" for section in task.panels(Evidence(answers, truth)))
    section = task.panels(Evidence(answers, truth, texts=lambda at: [text], ids=np.arange(6)))[-1]
    wrong, rest = section.panels
    outcomes = {text.row: text.predicted_lines[0].outcome for text in (*wrong.texts, *rest.texts)}
    assert outcomes == dict(enumerate(["right", "wrong direction", "wrong relation", "missed", "invented", "right"]))
    shown = next(text for text in wrong.texts if text.row == 1)
    assert shown.text == "The car with a wheel."
    assert [(shown.text[span.start : span.end], span.label) for span in shown.true] == [
        ("wheel", "e1"),
        ("car", "e2 thing"),
    ]
    assert shown.true_lines[0].text == "Part(e1,e2)" and shown.predicted_lines[0].text == "Part(e2,e1), 0.70"


def test_entities_within_others_keep_their_places_without_tags():
    assert without_tags("a <e1>b <e2 x>c</e2></e1> d") == ("a b c d", [(2, 5, None), (4, 5, "x")])
    assert without_tags("a <e1>b") == ("a b", []) and without_tags("a</e1>") == ("a", [])
