"""The contract suite of tasks about pairs with a target: one test a rule.

@pytest.mark.parametrize("make", [MyTask])
@pytest.mark.parametrize("cells", usable_targets(MyTask).values(), ids=usable_targets(MyTask))
class TestMyTask(PairContract):
    pass
"""

from __future__ import annotations

import unittest
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune.tasks.abilities import Thresholded
from fusetune.tasks.pairs import PairTask
from fusetune.testing.targets import MakeTask, fitted
from fusetune.testing.tasks import TaskContract

WIDTH = 6


class PairContract(TaskContract):
    """What every task about pairs must do besides what `TaskContract` asks. Its head has nothing to learn."""

    def test_it_is_about_two_sides(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """Of the family match, with the columns of both sides, also after the state; an objective learns it."""
        task = _pair_task(make, cells)
        task.compare(["a", "b"], ["c"])
        again = type(task).from_state("target", task.state())
        assert task.family == "match" and task.learned_by, "no objective of the family match learns it"
        assert isinstance(again, PairTask), "the state gives another kind of task"
        for found in (task.sides, again.sides):
            assert found == {"query": ("a", "b"), "document": ("c",)}, f"the sides are {found}"

    def test_the_head_learns(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """The head passes gradients to both sides' vectors, which lower the loss; bf16 vectors are taken."""
        task = _pair_task(make, cells)
        head, target, ones = task.build_head(WIDTH), task.encode(cells), torch.ones(len(cells))
        vectors = _vectors(len(cells)).requires_grad_()
        optimizer, losses = torch.optim.Adam([vectors], lr=0.1), list[float]()
        for _ in range(20):
            optimizer.zero_grad()
            loss = task.loss(head(vectors), target, ones)
            torch.autograd.backward(loss)
            assert vectors.grad is not None and vectors.grad.isfinite().all(), "a vector has no finite gradient"
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0], f"the loss does not fall: {losses[0]} to {losses[-1]}"
        assert task.loss(head(vectors.bfloat16()), target, ones).isfinite(), "bf16 vectors give no finite loss"

    def test_only_the_angle_counts(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """Answers do not change with the vectors' lengths, nor when both sides are turned alike or change places."""
        task = _pair_task(make, cells)
        head, vectors = task.build_head(WIDTH), _vectors(len(cells))
        first, second = vectors.chunk(2, 1)
        turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0]
        plain = task.answers(head(vectors))
        for what, changed in {
            "lengths": torch.cat([first * 3, second * 0.5], 1),
            "a common rotation": torch.cat([first @ turn, second @ turn], 1),
            "the order of the sides": torch.cat([second, first], 1),
        }.items():
            assert np.allclose(plain, task.answers(head(changed)), atol=1e-5), f"{what} changes answers"
        alone = task.answers(head(torch.cat([first @ turn, second], 1)))
        assert not np.allclose(plain, alone, atol=1e-3), "turning one side changes nothing"

    def test_a_side_of_zeros_gives_0(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """A row without a side has a finite answer and a finite gradient."""
        task = _pair_task(make, cells)
        vectors = _vectors(len(cells))
        vectors[::2, :WIDTH] = 0
        vectors.requires_grad_()
        logits = task.build_head(WIDTH)(vectors)
        torch.autograd.backward(task.loss(logits, task.encode(cells), torch.ones(len(cells))))
        assert not logits[::2].any(), "a side of zeros has another cosine than 0"
        assert vectors.grad is not None and vectors.grad.isfinite().all(), "the gradient is not finite"

    def test_better_cosines_score_better(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """Cosines that follow the target score above noisy ones, these above chance, and the loss falls with them."""
        task = _pair_task(make, cells)
        right, truth = task.encode(cells).values.double().numpy() * 0.8, task.truth(cells)
        rng = np.random.default_rng(0)
        noisy, chance = right + rng.normal(size=len(right)) * right.std(), rng.uniform(0, 0.8, len(right))
        values = [task.evaluate(answers, truth)[task.main.name] for answers in (right, noisy, chance)]
        assert values[0] > values[1] > values[2], f"right, noisy and random cosines score {values}"
        target, ones = task.encode(cells), torch.ones(len(cells))
        losses = [float(task.loss(torch.from_numpy(cosines), target, ones)) for cosines in (right, chance)]
        assert losses[0] < losses[1], f"right and random cosines have the losses {losses}"

    def test_equal_cosines_are_no_better_than_chance(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """A model whose vectors are all equal does not look good; NaN is fine."""
        task, rng = _pair_task(make, cells), np.random.default_rng(1)
        truth = task.truth(cells)
        same = task.evaluate(np.full(len(truth), 0.9), truth)[task.main.name]
        best = max(task.evaluate(rng.uniform(-1, 1, len(truth)), truth)[task.main.name] for _ in range(10))
        assert np.isnan(same) or same <= best, f"equal cosines score {same}, random ones up to {best}"

    def test_tuned_thresholds_improve_a_metric(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """Of noisy cosines far from the first threshold, the decisions after tuning are better."""
        task = _pair_task(make, cells)
        if not isinstance(task, Thresholded):
            raise unittest.SkipTest("the task is not Thresholded")
        truth, rng = task.truth(cells), np.random.default_rng(2)
        answers = -0.6 + 0.2 * truth + 0.05 * rng.normal(size=len(truth))
        before = task.evaluate(answers, truth)
        task.tune(answers, truth)
        after = task.evaluate(answers, truth)
        assert sum(after.values()) > sum(before.values()), f"{before} became {after}"


def _pair_task(make: MakeTask, cells: Sequence[Any]) -> PairTask:
    task = fitted(make, cells)
    assert isinstance(task, PairTask), f"a {type(task).__name__} is not about pairs"
    return task


def _vectors(rows: int) -> Tensor:
    return torch.randn(rows, 2 * WIDTH, generator=torch.Generator().manual_seed(0))
