"""Labels are the same in every form, and lists of 0 and 1 name their places."""

import numpy as np
import pytest

from fusetune.errors import BadCell, ConfigError
from fusetune.tasks.classes.classification import BinaryTask, MulticlassTask
from fusetune.tasks.classes.multilabel import MultilabelTask
from fusetune.tasks.classes.ordinal import OrdinalTask
from fusetune.tasks.infer import infer_task

FORMS = [[0, 1, 2], [0.0, 1.0, 2.0], ["0", "1", "2"], ["0.0", "1.0", "2.0"], [np.int64(0), np.float32(1), "2"]]


@pytest.mark.parametrize("learned", FORMS)
@pytest.mark.parametrize("read", FORMS)
def test_numbers(learned, read):
    assert infer_task(learned * 30)[0] == "multiclass"
    task = MulticlassTask("y")
    task.fit(learned * 3)
    assert task.labels == ["0", "1", "2"]
    for which in (task, MulticlassTask.from_state("y", task.state())):
        for cell in read:
            which.check(cell, row=0)
        assert which.truth(read).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "learned", [[False, True], ["false", "true"], ["False", "True"], [0, 1], ["0", "1"], [0.0, 1.0]]
)
@pytest.mark.parametrize("read", [[False, True], ["false", "TRUE"], [0, 1], ["0.0", "1.0"]])
def test_flags(learned, read):
    task = BinaryTask("y")
    task.fit(learned * 5)
    assert task.truth(read).tolist() == [0, 1]
    with pytest.raises(BadCell):
        task.check("2", row=0)


def test_codes_and_decimals_keep_their_text():
    task = MulticlassTask("y")
    task.fit(["01", "02", "1.5"] * 3)
    assert task.labels == ["01", "02", "1.5"]
    with pytest.raises(BadCell):
        task.check("1", row=0)


@pytest.mark.parametrize(
    ("labels", "positive", "name"),
    [(["no", "yes"], False, "no"), (["01", "02"], 1, "01"), (["0.0", "1.0"], "0.0", "0")],
)
def test_a_positive_class_of_any_type(labels, positive, name):
    task = BinaryTask("y", positive=positive)
    task.fit(labels * 5)
    assert task.labels[1] == name
    assert BinaryTask.from_state("y", task.state()).labels == task.labels


def test_weights_and_orders_of_any_type():
    task = MulticlassTask("y", class_weights={True: 3, 2: 2.0, "x": 1})
    task.fit(["yes", "02", "x"] * 3)
    assert task.class_weights == {"yes": 3, "02": 2.0, "x": 1}
    levels = OrdinalTask("y", order=[False, "maybe", True])
    levels.fit(["no", "maybe", "yes"] * 3)
    assert levels.labels == ["no", "maybe", "yes"]
    with pytest.raises(ConfigError):
        OrdinalTask("y", order=[True, True])
    with pytest.raises(ConfigError, match="no train row has"):
        MulticlassTask("y", class_weights={"z": 1}).fit(["a", "b"] * 3)


HOT = [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    "form", [list, tuple, np.array, lambda cell: str(cell), lambda cell: [bool(part) for part in cell]]
)
def test_lists_of_zeros_and_ones_name_their_places(form):
    cells = [form(cell) for cell in HOT] * 5
    name, reason = infer_task(cells)
    assert name == "multilabel" and "3 labels" in reason
    task = MultilabelTask("y")
    task.fit(cells)
    assert task.labels == ["0", "1", "2"]
    again = MultilabelTask.from_state("y", task.state())
    assert again.truth(cells[:4]).tolist() == [[int(part) for part in cell] for cell in HOT]
    with pytest.raises(BadCell, match="3 zeros and ones"):
        task.check([1.0, 0.0], row=0)


def test_their_places_may_be_named():
    task = MultilabelTask("y", names=["cat", "dog", "fish"])
    task.fit(HOT * 3)
    assert task.labels == ["cat", "dog", "fish"]
    assert task.columns(np.array([[0.9, 0.1, 0.8]]))["y"] == ['["cat", "fish"]']
    with pytest.raises(ConfigError, match="names has 2 labels"):
        MultilabelTask("y", names=["cat", "dog"]).fit(HOT * 3)
    with pytest.raises(ConfigError, match="names has 2 labels"):
        MultilabelTask("y", names=["cat", "dog"]).fit([["a"], ["b"], ["a", "b"]])


def test_lists_of_labels_0_and_1_are_labels():
    task = MultilabelTask("y")
    task.fit([[0], [1], [0, 1]] * 3)
    assert task.labels == ["0", "1"] and not task.multi_hot
