"""The rules of what only some tasks can do, one test each; `fusetune.testing.tasks.TaskContract` includes them.

A rule of an ability that a task lacks is skipped.
"""

from __future__ import annotations

import json
import unittest
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune.tasks.abilities import Boosted, Divergent, Probed, Thresholded
from fusetune.tasks.base import LinearModel
from fusetune.tasks.metrics import LOWER_IS_BETTER
from fusetune.testing.rules import Contract
from fusetune.testing.targets import DIM, MakeTask, example_features, fitted, head_logits

TRAIN, LEARN = 2 / 3, 3 / 4
"""The share of the rows that are train rows, and the share of these that are not validation rows."""


def _able(make: MakeTask, cells: Sequence[Any], ability: Any) -> Any:
    """Return the fitted task, skipped where it lacks the ability."""
    task = fitted(make, cells)
    if not isinstance(task, ability):
        raise unittest.SkipTest(f"the task is not {ability.__name__}")
    return task


def _linear(task: Probed, cells: Sequence[Any]) -> tuple[LinearModel, int]:
    """Return a linear model of two thirds of the rows, a quarter of them validation rows; where the test rows begin."""
    truth, features = task.truth(cells), example_features()
    cut = int(len(cells) * TRAIN)
    mid = int(cut * LEARN)  # fewer rows say too little of numbers as skewed as some of the examples
    return task.linear(features[:mid], truth[:mid], features[mid:cut], truth[mid:cut]), cut


class ProbedContract(Contract):
    """Rules of tasks that a linear model can learn."""

    def test_the_linear_model_beats_the_constant(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """On rows that it never saw, by the main metric; its scores have the form of answers."""
        task: Probed = _able(make, cells, Probed)
        linear, cut = _linear(task, cells)
        assert isinstance(linear, LinearModel), f"linear gives a {type(linear).__name__}"
        truth, scores = task.truth(cells), linear.scores(example_features()[cut:])
        constant = task.constant(truth[:cut], len(cells) - cut)
        assert scores.shape == constant.shape and np.isfinite(scores).all(), "the linear model's scores differ in shape"
        name, sign = task.main.name, 1 if task.main.greater_is_better else -1
        learned, guessed = (task.evaluate(answers, truth[cut:])[name] for answers in (scores, constant))
        assert sign * learned > sign * guessed, f"its {name} is {learned}, the constant's {guessed}"

    def test_coefficients_agree_with_scores(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """`answers(features @ weight + bias)` are the linear model's scores: a network starts from these weights."""
        task: Probed = _able(make, cells, Probed)
        linear, cut = _linear(task, cells)
        features = example_features()[cut:]
        weight, bias = linear.coefficients()
        logits = features.astype(np.float64) @ weight + bias
        shape = (len(features), *head_logits(task).shape[1:])
        answers = task.answers(torch.from_numpy(logits).reshape(shape))
        scores = linear.scores(features)
        scale = max(1.0, float(np.abs(scores).max()))
        assert np.allclose(answers, scores, rtol=1e-3, atol=1e-3 * scale), "coefficients and scores disagree"

    def test_the_linear_model_needs_no_validation_rows(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """Without validation rows to choose its strength on, it still gives finite scores."""
        task: Probed = _able(make, cells, Probed)
        truth, features = task.truth(cells), example_features()
        blind = task.linear(features, truth, features[:0], truth[:0])
        assert np.isfinite(blind.scores(features)).all(), "scores are not finite"

    def test_the_linear_model_heeds_weights(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """Rows of weight 0 are not learned from: with false targets in them it is still better than the constant."""
        task: Probed = _able(make, cells, Probed)
        truth, features = task.truth(cells), example_features()
        cut = int(len(cells) * TRAIN)
        false = np.arange(cut) % 2 == 0
        wrong = truth[:cut].copy()
        wrong[false] = truth[np.argsort(-features[:, :3].sum(1))][: int(false.sum())]  # of the opposite end
        results = [
            task.linear(features[:cut], target, features[:0], truth[:0], weights).scores(features[cut:])
            for target, weights in ((truth[:cut], 1.0 - false), (wrong, 1.0 - false))
        ]
        scale = max(1e-3, float(np.abs(results[0]).max()))
        assert np.allclose(results[0], results[1], rtol=1e-2, atol=1e-2 * scale), "rows of weight 0 are learned from"


class DivergentContract(Contract):
    """Rules of tasks that tell how far two predictions are apart."""

    def test_divergence_is_a_finite_number_a_row(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """It is 0 or more, above 0 for different predictions, finite for extreme ones, and a row's own."""
        task: Divergent = _able(make, cells, Divergent)
        logits, other = _two(task)
        apart = task.divergence(logits, other)
        assert apart.shape == (len(cells),) and apart.isfinite().all(), f"the divergence has the shape {apart.shape}"
        assert (apart >= -1e-6).all() and apart.mean() > 1e-4, "different predictions do not diverge"
        row = task.divergence(logits[3:4], other[3:4])
        assert torch.allclose(row, apart[3:4], rtol=1e-5), "a row's divergence depends on the other rows"
        extreme = task.divergence(logits.detach() * 1e4, -logits.detach() * 1e4)
        assert extreme.isfinite().all(), "extreme logits give a divergence that is not finite"

    def test_divergence_of_equal_predictions_is_0(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """And that is its minimum: there is no gradient."""
        task: Divergent = _able(make, cells, Divergent)
        logits, _ = _two(task)
        same = task.divergence(logits, logits.detach())
        assert torch.allclose(same, torch.zeros_like(same), atol=1e-6), "equal predictions diverge"
        (grad,) = torch.autograd.grad(same.sum(), logits)
        assert torch.allclose(grad, torch.zeros_like(grad), atol=1e-5), "it is not least where predictions are equal"

    def test_divergence_has_gradients_to_both(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """Both predictions receive a gradient."""
        task: Divergent = _able(make, cells, Divergent)
        pair = _two(task)
        for leaf, grad in zip(
            pair, torch.autograd.grad(task.divergence(*pair).sum(), pair, allow_unused=True), strict=True
        ):
            assert grad is not None and grad.shape == leaf.shape and grad.any(), "a prediction receives no gradient"

    def test_divergence_is_float32(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """bf16 logits are compared as float32."""
        task: Divergent = _able(make, cells, Divergent)
        half = task.divergence(*(logits.detach().to(torch.bfloat16) for logits in _two(task)))
        assert half.isfinite().all() and half.dtype == torch.float32, f"bf16 logits give a divergence in {half.dtype}"


def _two(task: Divergent) -> tuple[Tensor, Tensor]:
    """Return two predictions for the same rows, leaves of a graph."""
    logits, other = head_logits(task).detach(), head_logits(task).detach().flip(0)
    return logits.clone().requires_grad_(), (logits + 0.5 * other).requires_grad_()


class BoostedContract(Contract):
    """Rules of tasks that gradient-boosted trees can learn."""

    def test_boosters_learn_a_number_a_row(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """Each booster has parameters that are JSON, and finite labels, (rows,); of no rows too."""
        task: Boosted = _able(make, cells, Boosted)
        truth = task.truth(cells)
        assert task.num_boosters >= 1 and task.trees_per_round >= 1, "there is no booster"
        for booster in range(task.num_boosters):
            parameters, labels = task.boosting(truth, booster)
            json.dumps(parameters)
            assert labels.shape == (len(cells),) and np.isfinite(labels).all(), f"labels have the shape {labels.shape}"
            assert len(task.boosting(truth[:0], booster)[1]) == 0, "no rows give labels"

    def test_boosted_logits_have_the_heads_form(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """Raw scores become logits of the shape that the head gives, finite."""
        task: Boosted = _able(make, cells, Boosted)
        size = (len(cells),) if task.trees_per_round == 1 else (len(cells), task.trees_per_round)
        raw = [np.random.default_rng(booster).normal(size=size) for booster in range(task.num_boosters)]
        logits, expected = task.boosted_logits(raw), tuple(head_logits(task).shape)
        assert logits.shape == expected, f"boosted logits have the shape {logits.shape}, the head's {expected}"
        assert np.isfinite(logits).all(), "boosted logits are not finite"

    def test_row_losses_prefer_the_truth(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """One finite score a row, (rows,), and lower for a learned model's answers than for these in another order."""
        task: Boosted = _able(make, cells, Boosted)
        truth, features = task.truth(cells), example_features()
        losses = task.row_losses(task.constant(truth, len(cells)), truth)
        assert losses.shape == (len(cells),) and np.isfinite(losses).all(), f"row losses have the shape {losses.shape}"
        if isinstance(task, Probed):
            learned = task.linear(features, truth, features[:0], truth[:0]).scores(features)
            right, wrong = task.row_losses(learned, truth).mean(), task.row_losses(np.roll(learned, 1, 0), truth).mean()
            assert right < wrong, f"the loss of a row's own answer is {right}, of another's {wrong}"


class ThresholdedContract(Contract):
    """Rules of tasks that choose on validation rows how answers become decisions."""

    def test_tuned_thresholds_improve_a_metric(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """Where they change metrics of the rows that they were chosen on, one of these is better than before."""
        task: Thresholded = _able(make, cells, Thresholded)
        truth, features = task.truth(cells), torch.from_numpy(example_features())
        head = task.build_head(DIM)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
        for _ in range(10):
            optimizer.zero_grad()
            torch.autograd.backward(task.loss(head(features), task.encode(cells), torch.ones(len(cells))))
            optimizer.step()
        answers = task.answers(head(features))
        before = task.evaluate(answers, truth)
        task.tune(answers, truth)
        after = task.evaluate(answers, truth)
        gains = [(-1 if name in LOWER_IS_BETTER else 1) * (after[name] - value) for name, value in before.items()]
        changes = [gain for gain in gains if abs(gain) > 1e-9]
        assert not changes or max(changes) > 0, f"every metric that changed is worse: {before} became {after}"

    def test_the_decisions_are_measured(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """What is measured holds the decisions: metrics of another system's rows do not depend on the thresholds."""
        task: Thresholded = _able(make, cells, Thresholded)
        truth = task.truth(cells)
        answers = task.answers(head_logits(task))
        measured = task.measured(answers, truth)
        before = task.metrics(measured, truth)
        task.tune(np.zeros_like(answers), truth)
        after = task.metrics(measured, truth)
        same = np.allclose([*before.values()], [*after.values()], equal_nan=True)
        assert same, f"metrics went from {before} to {after} as the thresholds changed"

    def test_tuning_without_rows_changes_nothing(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """Where there are no validation rows, decisions stay as they were."""
        task: Thresholded = _able(make, cells, Thresholded)
        answers, truth = task.answers(head_logits(task)), task.truth(cells)
        before = task.decide(answers)
        task.tune(answers[:0], truth[:0])
        assert np.array_equal(before, task.decide(answers)), "thresholds were chosen on no rows"


class AbilityContract(ProbedContract, DivergentContract, BoostedContract, ThresholdedContract):
    """Rules of everything that only some tasks can do."""
