import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fusetune.errors import BadCell, ConfigError, TableError
from fusetune.tasks.cells import label_text
from fusetune.tasks.classes.classification import BinaryTask, MulticlassTask

WORDS = ["cat", "dog", "cat", "eel", "dog", "cat"]


def fitted(values, make=MulticlassTask, **options):
    task = make("animal", **options)
    task.fit(values)
    return task


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, {"cat": 0.5, "eel": 4.0}])
def test_the_loss_is_torchs(smoothing, weights):
    task = fitted(WORDS, label_smoothing=smoothing, class_weights=weights)
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    target = task.encode(WORDS)
    by_class = None if weights is None else torch.tensor([0.5, 1.0, 4.0])
    expected = F.cross_entropy(logits, target.values, weight=by_class, label_smoothing=smoothing)
    assert torch.allclose(task.loss(logits, target, torch.ones(6)), expected)


def test_balanced_class_weights_are_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    task = fitted(WORDS, class_weights="balanced")
    expected = compute_class_weight("balanced", classes=np.array(task.labels), y=np.array(WORDS))
    assert task._class_weights(torch.float64, torch.device("cpu")).tolist() == pytest.approx(list(expected))


def test_the_head_starts_at_the_rates():
    torch.manual_seed(0)
    head = fitted(WORDS).build_head(4)
    assert head(torch.zeros(1, 4)).softmax(1)[0].tolist() == pytest.approx([3 / 6, 2 / 6, 1 / 6])


def test_labels_keep_their_spelling_and_order():
    assert fitted(["NA", "null", "00501", " x", "NA"]).labels == [" x", "00501", "NA", "null"]
    assert fitted(["10", "9", "-1"]).labels == ["-1", "9", "10"]
    assert fitted([3.0, 1.0, 2.0]).labels == ["1", "2", "3"]
    assert fitted([True, False, np.int64(3)]).labels == ["3", "False", "True"]
    assert fitted(["9007199254740993", "9007199254740992"]).labels == ["9007199254740992", "9007199254740993"]


def test_numbers_from_another_reader_are_the_same_labels():
    task = fitted(["1.0", "2.0", "3.0"])
    assert task.truth([1.0, 3.0]).tolist() == [0, 2]
    assert fitted(["1", "2"]).truth([2.0, 1]).tolist() == [1, 0]


@settings(deadline=None)
@given(
    st.lists(st.text(min_size=1).filter(lambda label: not label.isspace()), min_size=2).filter(
        lambda labels: len(set(labels)) > 1
    )
)
def test_any_text_is_a_label_and_comes_back_as_it_was(labels):
    task = fitted(labels)
    assert sorted(task.labels) == sorted(set(labels))
    assert [task.labels[place] for place in task.truth(labels)] == labels
    certain = np.eye(len(task.labels))[task.truth(labels)]
    again = MulticlassTask.from_state("animal", task.state())
    assert again.columns(certain)["animal"] == labels


@settings(deadline=None)
@given(st.one_of(st.integers(), st.booleans(), st.floats(allow_nan=False), st.text(min_size=1)))
def test_a_label_is_its_own_label(cell):
    assert label_text(label_text(cell)) == label_text(cell)


def test_an_unseen_label_is_refused_with_its_row():
    with pytest.raises(BadCell, match=r"row 7, column 'animal': a label that no train row has.*\n.*'cow'") as caught:
        fitted(WORDS).check("cow", row=7)
    assert caught.value.row == 7
    with pytest.raises(BadCell, match="did you mean 'cat'"):
        fitted(WORDS).check("catt", row=0)


def test_one_class_is_refused_by_name():
    with pytest.raises(TableError, match=r"(?s)one class only.*'spam' in all 3"):
        fitted(["spam", "spam", "", "spam"])
    with pytest.raises(TableError, match="no train row has a value"):
        fitted(["", None])


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        (["yes", "no"], {}, ["no", "yes"]),
        (["0", "1"], {}, ["0", "1"]),
        (["Positive", "unclear"], {}, ["unclear", "Positive"]),
        ([True, False], {}, ["False", "True"]),
        (["ham", "spam"], {}, ["ham", "spam"]),
        (["ham", "spam"], {"positive": "ham"}, ["spam", "ham"]),
    ],
)
def test_the_positive_class_is_the_second(values, options, expected):
    task = fitted(values, BinaryTask, **options)
    assert task.labels == expected
    assert BinaryTask.from_state("animal", task.state()).labels == expected


def test_binary_refuses_three_values_and_an_unknown_positive_class():
    with pytest.raises(TableError, match="multiclass"):
        fitted(WORDS, BinaryTask)
    with pytest.raises(ConfigError, match="positive class"):
        fitted(["a", "b"], BinaryTask, positive="c")


@pytest.mark.parametrize(
    "options", [{"label_smoothing": 1.0}, {"class_weights": "even"}, {"class_weights": {"cat": 0.0}}]
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ConfigError):
        MulticlassTask("animal", **options)


def test_a_weight_for_an_unknown_label_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'cat'"):
        fitted(WORDS, class_weights={"catt": 2.0})


def test_output_columns():
    task = fitted(WORDS)
    columns = task.columns(np.array([[0.2, 0.7, 0.1]]))
    assert columns == {
        "animal": ["dog"],
        "animal_probability": [0.7],
        "animal:cat": [0.2],
        "animal:dog": [0.7],
        "animal:eel": [0.1],
    }
    many = fitted([str(number) for number in range(21)])
    assert list(many.columns(np.eye(21))) == ["animal", "animal_probability"]
