"""The contract suite of tasks: one test a rule.

@pytest.mark.parametrize("make", [MyTask])
@pytest.mark.parametrize("cells", usable_targets(MyTask).values(), ids=usable_targets(MyTask))
class TestMyTask(TaskContract):
    pass
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fusetune.tasks.abilities import Thresholded
from fusetune.testing.abilities import AbilityContract
from fusetune.testing.rules import check
from fusetune.testing.targets import (
    DIM,
    ROWS,
    MakeTask,
    example_features,
    example_targets,
    fitted,
    head_logits,
    usable_targets,
)

__all__ = ["ROWS", "TaskContract", "check_task", "example_features", "example_targets", "usable_targets"]


def check_task(make: MakeTask, values: Sequence[Any] | None = None) -> list[str]:
    """Hold a task to every rule of `TaskContract`.

    Args:
        make: `make(target)` builds a task.
        values: 120 cells to check it with, learnable from `example_features()`. None: `usable_targets(make)`.

    Returns:
        The names of the targets it was checked with.

    Raises:
        AssertionError: rules are broken, or `fit` refuses all targets.
    """
    targets = usable_targets(make) if values is None else {"given": list(values)}
    assert targets, f"fit refuses every one of the example targets: {', '.join(example_targets())}"
    for cells in targets.values():
        check(TaskContract, make=make, cells=cells)
    return list(targets)


class TaskContract(AbilityContract):
    """What every task must do. The rules take `make` and `cells`, 120 of them, learnable from `example_features()`.

    What only some tasks can do is in `fusetune.testing.abilities`; its rules are skipped for the others.
    """

    def test_cells_that_were_fitted_are_accepted(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """`check` refuses no cell that `fit` saw."""
        task = fitted(make, cells)
        for row, cell in enumerate(cells):
            task.check(cell, row=row)

    def test_missing_cells_are_unlabelled(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """None and empty text give unlabelled rows whose values are finite and which change no other row."""
        task = fitted(make, cells)
        holes = [None if row % 3 == 0 else "" if row % 3 == 1 else cell for row, cell in enumerate(cells)]
        full, partly = task.encode(cells), task.encode(holes)
        assert full.labelled.all() and len(full.values) == len(cells), "a labelled row is encoded as unlabelled"
        assert partly.labelled.tolist() == [row % 3 == 2 for row in range(len(cells))], "unlabelled rows are labelled"
        assert torch.equal(full.values[2::3], partly.values[2::3]), "an encoded row depends on the other rows"
        assert partly.values.isfinite().all(), "an unlabelled row's value is not finite"

    def test_no_rows_are_encoded(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """`encode` and `truth` take any number of cells, none too."""
        task = fitted(make, cells)
        assert len(task.truth(cells)) == len(cells), "truth has other rows than came"
        assert not task.encode([]).labelled.numel() and not len(task.truth([])), "no rows cannot be encoded"

    def test_missing_cells_are_not_learned_from(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """`fit` skips them."""
        gaps = make("target")
        gaps.fit([*cells, None, "", float("nan")])
        assert gaps.state() == fitted(make, cells).state(), "missing cells change what is learned"

    def test_terms_are_a_finite_number_a_row(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """`terms` is (rows,), finite where a row is unlabelled too, and each row's is its own; sizes are 0 or more."""
        task = fitted(make, cells)
        logits, target = head_logits(task), task.encode([cell if row % 3 else None for row, cell in enumerate(cells)])
        terms = task.terms(logits, target)
        assert terms.shape == (len(cells),), f"terms have the shape {tuple(terms.shape)}, not {(len(cells),)}"
        assert terms.isfinite().all(), "a row's loss is not finite"
        some = torch.arange(len(cells)) % 2 == 1
        alone = task.terms(logits[some], target.take(some))
        assert torch.allclose(terms[some], alone, rtol=1e-5, atol=1e-7), "a row's loss depends on the other rows"
        if target.sizes is not None:
            assert target.sizes.shape == (len(cells),) and (target.sizes >= 0).all(), "sizes are not one a row"

    def test_the_loss_is_a_weighted_mean(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """A finite scalar of 0 or more that the weights' scale does not change; weight 2 is the row twice."""
        task = fitted(make, cells)
        logits, target, ones = head_logits(task), task.encode(cells), torch.ones(len(cells))
        loss = task.loss(logits, target, ones)
        assert loss.shape == () and loss.isfinite() and loss >= 0, f"the loss is {loss}"
        scaled = task.loss(logits, target, ones * 3)
        assert torch.allclose(loss, scaled, rtol=1e-5), "the weights' scale changes the mean"
        half = torch.arange(len(cells)) < len(cells) // 2
        again = torch.cat([torch.arange(len(cells)), torch.arange(len(cells))[half]])
        twice = task.loss(logits[again], target.take(again), torch.ones(len(again)))
        doubled = task.loss(logits, target, torch.where(half, 2.0, 1.0))
        assert torch.allclose(doubled, twice, rtol=1e-5), "weight 2 is not the row twice"

    def test_some_rows_have_no_part_in_the_loss(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """Neither unlabelled rows nor rows of weight 0."""
        task = fitted(make, cells)
        logits, target, ones = head_logits(task), task.encode(cells), torch.ones(len(cells))
        half = torch.arange(len(cells)) < len(cells) // 2
        first = task.loss(logits[half], target.take(half), ones[half])
        masked, weightless = task.loss(logits, target.where(half), ones), task.loss(logits, target, half.float())
        assert torch.allclose(first, masked, rtol=1e-5), "unlabelled rows have a part in the loss"
        assert torch.allclose(first, weightless, rtol=1e-5), "rows of weight 0 have a part in the loss"

    def test_no_labelled_row_gives_0(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """With a gradient, which is 0 too."""
        task = fitted(make, cells)
        target, leaf = task.encode(cells), head_logits(task).detach().requires_grad_()
        nothing = task.loss(leaf, target.where(torch.zeros_like(target.labelled)), torch.ones(len(cells)))
        torch.autograd.backward(nothing)
        assert nothing == 0 and leaf.grad is not None and not leaf.grad.any(), f"no labelled row gives {nothing}"

    def test_the_head_learns(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """Every parameter of the head receives a gradient, and 40 steps lower the loss; bf16 logits are taken."""
        task = fitted(make, cells)
        head, features = task.build_head(DIM), torch.from_numpy(example_features())
        target, ones = task.encode(cells), torch.ones(len(cells))
        optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
        losses: list[float] = []
        for _ in range(40):
            optimizer.zero_grad()
            loss = task.loss(head(features), target, ones)
            torch.autograd.backward(loss)
            for name, parameter in head.named_parameters():
                assert parameter.grad is not None and parameter.grad.isfinite().all(), f"{name} has no finite gradient"
                assert losses or parameter.grad.any(), f"{name}'s gradient is zero"
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0], f"the loss does not fall: {losses[0]} to {losses[-1]}"
        half = task.loss(head(features).to(torch.bfloat16), target, ones)
        assert half.isfinite(), "bf16 logits give a loss that is not finite"

    def test_answers_are_finite(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """A numpy array with a row for each row of logits, finite for extreme ones; of labels, probabilities."""
        task = fitted(make, cells)
        for logits in (head_logits(task), head_logits(task) * 1e4):
            answers = task.answers(logits)
            assert isinstance(answers, np.ndarray) and len(answers) == len(cells), (
                "answers are no array with these rows"
            )
            assert answers.dtype == object or np.isfinite(answers).all(), "answers are not finite"
            if task.labels and answers.dtype != object:
                assert ((answers >= 0) & (answers <= 1 + 1e-9)).all(), "answers of labels are not probabilities"

    def test_answers_keep_their_shape(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """(rows, labels), or (rows,) without labels, for any number of rows; a row's answer is its own."""
        task = fitted(make, cells)
        logits = head_logits(task)
        answers = task.answers(logits)
        shape = (len(task.labels),) if task.labels and answers.dtype != object else ()
        for rows in (0, 1, 2, len(cells)):
            some = task.answers(logits[:rows])
            assert some.shape == (rows, *shape), f"answers of {rows} rows have the shape {some.shape}"
            same = list(some) == list(answers[:rows]) if some.dtype == object else np.allclose(some, answers[:rows])
            assert same, "a row's answer depends on the other rows"

    def test_decisions_have_the_form_of_truth(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """So that they can be compared with it."""
        task = fitted(make, cells)
        decided, truth = task.decide(task.answers(head_logits(task))), task.truth(cells)
        assert decided.shape == truth.shape, f"decisions have the shape {decided.shape}, the truth {truth.shape}"

    def test_what_is_measured_is_a_row_of_figures(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """`measured` is (rows, k), and a row of it depends on that row alone: the bootstrap draws from its rows."""
        task = fitted(make, cells)
        answers, truth = task.answers(head_logits(task)), task.truth(cells)
        measured = task.measured(answers, truth)
        assert measured.ndim == 2 and len(measured) == len(cells), f"measured has the shape {measured.shape}"
        some = np.arange(len(cells)) % 3 == 1
        alone = task.measured(answers[some], truth[some])
        assert np.allclose(measured[some], alone, equal_nan=True), "what is measured of a row depends on the others"

    def test_metrics_are_named_numbers(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """The main one among them, of any number of rows; no metric is infinite."""
        task = fitted(make, cells)
        answers, truth = task.answers(head_logits(task)), task.truth(cells)
        found = task.evaluate(answers, truth)
        assert task.main.name in found, f"the main metric {task.main.name!r} is not among the metrics"
        assert all(isinstance(value, float) for value in found.values()), "a metric is not a float"
        alone = task.main_value(task.measured(answers, truth), truth)
        assert math.isclose(alone, found[task.main.name], rel_tol=1e-9), "main_value is not the main metric"
        for rows in (0, 1):
            few = task.evaluate(answers[:rows], truth[:rows])
            assert few.keys() == found.keys(), f"of {rows} rows there are other metrics"
            assert not any(map(math.isinf, few.values())), f"a metric of {rows} rows is infinite"

    def test_metrics_heed_weights(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """Weights of 1 change nothing, a row of weight 0 is as if it were not there, and weight 2 is the row twice."""
        task = fitted(make, cells)
        answers, truth = task.answers(head_logits(task)), task.truth(cells)
        plain, ones = task.evaluate(answers, truth), np.ones(len(cells))
        _assert_equal(plain, task.evaluate(answers, truth, ones), "weights of 1 change")
        some = np.arange(len(cells)) % 3 != 1
        _assert_equal(
            task.evaluate(answers[some], truth[some]), task.evaluate(answers, truth, ones * some), "weight 0 counts in"
        )
        twice = np.concatenate([np.arange(len(cells)), np.flatnonzero(some)])
        _assert_equal(
            task.evaluate(answers[twice], truth[twice]),
            task.evaluate(answers, truth, ones + some),
            "weight 2 is not the row twice in",
        )

    def test_the_constant_guess_is_constant(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """The same answer for every row, in the form of answers, and finite."""
        task = fitted(make, cells)
        answers, truth = task.answers(head_logits(task)), task.truth(cells)
        constant = task.constant(truth, 7)
        assert constant.shape == (7, *answers.shape[1:]), f"the constant guess has the shape {constant.shape}"
        assert all(np.array_equal(row, constant[0]) for row in constant), "the constant guess varies"
        assert constant.dtype == object or np.isfinite(constant).all(), "the constant guess is not finite"

    def test_columns_hold_the_prediction(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """First under the target's name; lists that are JSON, as long as there are rows."""
        task = fitted(make, cells)
        answers = task.answers(head_logits(task))
        columns = task.columns(answers)
        assert next(iter(columns)) == "target", "the prediction is not under the target's name"
        for name, column in columns.items():
            assert isinstance(column, list) and len(column) == len(cells), f"{name!r} is no list with these rows"
        json.dumps(columns)
        assert all(not column for column in task.columns(answers[:0]).values()), "no rows give output"

    def test_predictions_can_be_read_as_targets(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """What is written under the target's name passes `check`, and as a truth it is the decision."""
        task = fitted(make, cells)
        answers = task.answers(head_logits(task))
        predicted = task.columns(answers)["target"]
        for row, value in enumerate(predicted):
            task.check(value, row=row)
        written, decided = task.truth(predicted), task.decide(answers)
        same = list(written) == list(decided) if written.dtype == object else np.allclose(written, decided)
        assert same, "a prediction, read as a target, is another one"

    def test_the_state_restores_it(self, make: MakeTask, cells: Sequence[Any]) -> None:
        """`state` is JSON, and the task that is made from it has the same state, labels, answers and output."""
        task = fitted(make, cells)
        answers, truth = task.answers(head_logits(task)), task.truth(cells)
        if isinstance(task, Thresholded):
            task.tune(answers, truth)
        again = type(task).from_state("target", json.loads(json.dumps(task.state(), allow_nan=False)))
        assert again.state() == task.state() and again.labels == task.labels, "the state is not kept"
        same = _same(again.answers(head_logits(again)), task.answers(head_logits(task)))
        assert same, "answers differ after the state"
        assert again.columns(answers) == task.columns(answers), "output columns differ after the state"
        one, two = again.encode(cells), task.encode(cells)
        assert torch.equal(one.values, two.values) and torch.equal(one.labelled, two.labelled), "encoding differs"


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    return list(first) == list(second) if first.dtype == object else np.array_equal(first, second)


def _assert_equal(first: dict[str, float], second: dict[str, float], what: str) -> None:
    for name, value in first.items():
        other = second[name]
        same = math.isclose(value, other, rel_tol=1e-6, abs_tol=1e-9) or (math.isnan(value) and math.isnan(other))
        assert same, f"{what} {name}: {other}, not {value}"
