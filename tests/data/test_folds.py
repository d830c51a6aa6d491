import numpy as np

from fusetune.data.folds import fold_of


def test_no_row_of_a_group_is_in_two_folds():
    groups = np.asarray([0, 0, 1, 1, 1, -1, -1, 2, 3, 4, 4, -1])
    parts = fold_of(groups, 4, seed=0)
    for group in range(5):
        assert len(set(parts[groups == group])) == 1
    assert set(parts) == {0, 1, 2, 3} and np.array_equal(parts, fold_of(groups, 4, seed=0))
    assert set(fold_of(np.asarray([-1, -1]), 9, seed=0)) == {0, 1}
