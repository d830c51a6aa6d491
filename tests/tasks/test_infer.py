import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusetune.errors import TableError
from fusetune.registry import TASKS
from fusetune.tasks.infer import infer_task

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["yes", "no"] * 10, "binary"),
        ([0, 1] * 10, "binary"),
        (["0.5", "1.5"] * 10, "binary"),
        (["red", "green", "blue"] * 5, "multiclass"),
        (["1", "2", "3", "4", "5"] * 10, "multiclass"),
        (["00501", "10001", "94110"] * 4, "multiclass"),
        (["NA", "null", "none", ""] * 5, "multiclass"),
        (["a|b", "b", "a|c", "c"] * 3, "multilabel"),
        (['["a"]', "[]", '["a", "b"]'], "multilabel"),
        ([["a"], ["b", "c"]], "multilabel"),
        ([str(value) for value in RNG.normal(size=50)], "regression"),
        ([str(value) for value in range(50)], "regression"),
        (["1", "2", "3", "4", "5"], "regression"),
        ([*map(str, RNG.normal(size=50)), "n/a"], "regression"),
        (RNG.normal(size=50).tolist(), "regression"),
        (["only"] * 5, "binary"),
    ],
)
def test_the_task_follows_from_the_cells(values, task):
    name, reason = infer_task(values)
    assert name == task and reason


def test_no_task_fits_and_the_setting_that_names_one_is_said():
    with pytest.raises(TableError, match=r"tasks\.colour=multiclass"):
        infer_task([f"k{place}" for place in range(12)], "colour")


def test_few_whole_numbers_are_classes_and_the_reason_says_so():
    assert "only 5 distinct values in 50 rows" in infer_task(["1", "2", "3", "4", "5"] * 10)[1]


def test_free_text_is_written_and_nothing_is_refused():
    assert infer_task([f"a sentence about {number}" for number in range(50)], "review")[0] == "generate"
    with pytest.raises(TableError, match="column 'review': the target column is empty"):
        infer_task(["", None, float("nan")], "review")


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(min_size=1),
            st.integers(),
            st.floats(),
            st.booleans(),
            st.none(),
            st.lists(st.text(max_size=3), max_size=3),
        ),
        min_size=1,
    )
)
def test_any_cells_get_a_registered_task_or_a_table_error(values):
    try:
        name, _ = infer_task(values)
    except TableError:
        return
    assert name in TASKS
