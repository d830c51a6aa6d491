"""Penalties chosen by cross-validation over train and validation rows: against scikit-learn, groups held together."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.inference.features import fill_features
from fusetune.modalities.number import NumberModality
from fusetune.models.build import build_model
from fusetune.tasks.linear import RIDGE_PENALTIES
from fusetune.tasks.regression import RegressionTask
from fusetune.training.probes import probe as probes
from fusetune.training.probes.cross_validation import FOLDS, Pool, best_penalty
from fusetune.training.probes.probe import Probe, SplitRows
from fusetune.training.probes.selection import _WeightedRidge, block_r2, held_out_errors

WIDTH, TRAIN, VAL = 12, 60, 10


def make_splits(sizes=(TRAIN, VAL), *, grouped=False, seed=0):
    """A task and its splits: a target that follows the first of twelve numbers; with groups, rows come in pairs."""
    rng = np.random.default_rng(seed)
    total = sum(sizes)
    values = rng.normal(size=(total, WIDTH))
    target = values[:, 0] + rng.normal(size=total)
    if grouped:
        values, target = np.repeat(values, 2, 0)[:total], np.repeat(target, 2)[:total]
    records = [
        {**{f"x{place}": float(x) for place, x in enumerate(row)}, "y": float(y), "pair": f"p{at // 2}"}
        for at, (row, y) in enumerate(zip(values, target, strict=True))
    ]
    modalities = {f"x{place}": NumberModality(f"x{place}", bins=0) for place in range(WIDTH)}
    task, table, start, examples = RegressionTask("y"), Table.from_records(records), 0, []
    for size in sizes:
        part = table.select(range(start, start + size))
        examples.append(Examples(part, modalities, {"y": task}, group="pair" if grouped else None))
        examples[-1].prepare(on_bad_cell="reject")
        start += size
    examples[0].fit()
    model = build_model(modalities, {"y": task}, NamedConfig(name="concat", dim=4))
    return task, [SplitRows.of("y", rows, fill_features(model, rows)) for rows in examples]


def test_the_penalty_is_that_of_scikit_learns_cross_validation():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 30)).astype(np.float32)
    truth = features[:, 0] + rng.normal(size=80)
    folds = np.arange(80) % 4
    task = RegressionTask("y")
    task.fit(truth.tolist())
    place, score = best_penalty(task, lambda rows: features, truth, np.ones(80), folds)
    errors = []
    for penalty in RIDGE_PENALTIES:
        predicted = cross_val_predict(Ridge(penalty * 60), features, truth, cv=PredefinedSplit(folds))
        errors.append(float(((predicted - truth) ** 2).mean()))
    assert place == int(np.argmin(errors))
    assert score == pytest.approx(-min(errors), rel=1e-3)


def test_features_are_chosen_without_the_rows_that_are_held_out():
    task, folds, seen = RegressionTask("y"), np.arange(20) % 5, []
    truth = np.arange(20.0)
    task.fit(truth.tolist())

    def features(rows):
        seen.append(set(rows.tolist()))
        return np.ones((20, 1), dtype=np.float32)

    best_penalty(task, features, truth, np.ones(20), folds)
    assert seen == [set(np.flatnonzero(folds != fold).tolist()) for fold in range(5)]


def test_rows_of_a_group_are_held_out_together_and_groups_of_two_splits_are_different():
    _, splits = make_splits((20, 11), grouped=True)
    pool = Pool.of(splits)
    assert pool.grouped and pool.held_together is not None and len(pool.folds) == 31
    for place in range(0, 30, 2):
        assert pool.folds[place] == pool.folds[place + 1]
    assert len(set(pool.folds)) == FOLDS
    _, alone = make_splits()
    assert Pool.of(alone).held_together is None


@pytest.mark.parametrize("folds", [None, np.arange(40) // 2 % 7])
def test_held_out_errors_are_those_of_fitting_without_the_rows(folds):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5))
    y = x @ rng.normal(size=(5, 2)) + rng.normal(size=(40, 2))
    x, y = x - x.mean(0), y - y.mean(0)
    held = np.arange(40) if folds is None else folds
    wanted = np.zeros((40, 2))
    for fold in np.unique(held):
        inside = held != fold
        # As in the closed form, all rows set the weight of the penalty; the mean is that of the rows that are learned.
        model = Ridge(0.01 * 40).fit(x[inside], y[inside])
        wanted[~inside] = (y[~inside] - model.predict(x[~inside])) ** 2
    found = held_out_errors(np.linalg.inv(x @ x.T + 0.01 * 40 * np.eye(40)), y, 0.01, folds)
    np.testing.assert_allclose(found, (wanted / (y**2).sum(0)).mean(1), rtol=1e-4)
    assert block_r2(x, y, folds) >= 1 - found.sum() - 1e-6


def test_another_weight_is_tried_as_if_the_ridge_were_fitted_anew():
    rng = np.random.default_rng(0)
    blocks = {name: rng.normal(size=(40, width)) for name, width in (("narrow", 3), ("wide", 30))}
    blocks = {name: values - values.mean(0) for name, values in blocks.items()}
    y = blocks["narrow"].sum(1, keepdims=True) + rng.normal(size=(40, 1))
    y -= y.mean(0)
    ridge = _WeightedRidge(blocks, {"narrow": 1.0, "wide": 0.5}, y, None)
    for name, weight in (("narrow", 0.0), ("narrow", 2.0), ("wide", 0.0), ("wide", 1.0)):
        gram = sum((weight if key == name else ridge.weights[key]) ** 2 * x @ x.T for key, x in blocks.items())
        wanted = held_out_errors(np.linalg.inv(gram + ridge.penalty * 40 * np.eye(40)), y, ridge.penalty)
        np.testing.assert_allclose(ridge.errors_with(name, weight), wanted, rtol=1e-6)


def test_groups_that_hold_copies_do_not_look_told():
    rng = np.random.default_rng(0)
    x, y = np.repeat(rng.normal(size=(30, 60)), 2, 0), np.repeat(rng.normal(size=(30, 1)), 2, 0)
    assert block_r2(x, y) > 0.5
    assert block_r2(x, y, np.arange(60) // 2 % 5) < 0.1


def test_coefficients_are_learned_from_train_rows_alone(monkeypatch):
    task, (train, val) = make_splits()
    other = SplitRows(val.examples, val.features, val.indices, val.truth[::-1].copy())
    monkeypatch.setattr(probes, "best_penalty", lambda *args: (8, 1.0))
    monkeypatch.setattr(probes, "column_weights", lambda blocks, *args: dict.fromkeys(blocks, 1.0))
    one, two = (
        Probe._fit(task, Pool.of([train, rows]), rows, list(train.features), select=False)[0] for rows in (val, other)
    )
    np.testing.assert_array_equal(one.linear.coefficients()[0], two.linear.coefficients()[0])


def test_from_so_many_rows_on_validation_rows_choose(monkeypatch):
    task, (train, val) = make_splits()
    called, learn = [], probes.best_penalty
    monkeypatch.setattr(probes, "best_penalty", lambda *args: called.append(args) or learn(*args))
    assert r2_score(val.truth, Probe.fit(task, train, val, list(train.features), select=True).scores(val)) > 0
    empty = SplitRows(val.examples, val.features, val.indices[:0], val.truth[:0])
    assert len(Probe.fit(task, train, empty, list(train.features), select=True).scores(val)) == VAL
    assert len(called) >= 2
    called.clear()
    Probe.fit(task, train, val, list(train.features))
    monkeypatch.setattr(probes, "MAX_ROWS", TRAIN + VAL)
    Probe.fit(task, train, val, list(train.features), select=True)
    assert not called


def test_cross_validation_beats_a_tiny_validation_split():
    """On average over tables, the squared error on new rows is no larger than when ten rows choose the penalty."""
    errors = {True: 0.0, False: 0.0}
    for seed in range(8):
        task, (train, val, test) = make_splits((TRAIN, VAL, 300), seed=seed)
        for pooled in errors:
            pool = Pool.of([train, val] if pooled else [train])
            probe, _ = Probe._fit(task, pool, val, list(train.features), select=False)
            errors[pooled] += float(((probe.scores(test) - test.truth) ** 2).mean())
    assert errors[True] < errors[False]
