"""Knowledge distillation, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch.nn import functional as F

from fusetune.errors import ConfigError
from fusetune.objectives.distill import Distillation
from fusetune.tasks.classes.classification import MulticlassTask
from fusetune.tasks.classes.multilabel import MultilabelTask
from fusetune.tasks.regression import RegressionTask
from fusetune.testing.objectives import ROWS, make_parts

NAN = math.nan


def multiclass(labels):
    task = MulticlassTask("k")
    task.fit([label for label in labels for _ in range(2)])
    return task


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_classes_are_compared_by_the_softened_kl_divergence(temperature):
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 7, 4)) * 3
    found = multiclass("abcd").distillation(torch.tensor(student), torch.tensor(teacher), temperature)
    p, log_p = softmax(teacher / temperature, 1), log_softmax(teacher / temperature, 1)
    wanted = temperature**2 * (p * (log_p - log_softmax(student / temperature, 1))).sum(1)
    assert found.numpy() == pytest.approx(wanted, rel=1e-5)


def test_classes_that_the_teacher_does_not_know_have_no_part():
    """The student's mass on a new class is not taken from it: only the old classes among each other are compared."""
    task, logits = multiclass("abcd"), torch.tensor([[1.0, 2.0, 9.0, 0.0]], requires_grad=True)
    reference = torch.tensor([[1.5, 0.5, NAN, 0.0]])
    loss = task.distillation(logits, reference, 2.0)
    old = [0, 1, 3]
    wanted = multiclass("abd").distillation(logits[:, old].detach(), reference[:, old], 2.0)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient[0, 2] == 0 and gradient.abs().sum() > 0.1


def test_the_loss_is_zero_where_both_agree_and_for_rows_that_the_teacher_did_not_read():
    task = multiclass("abc")
    logits = torch.tensor([[1.0, 0.0, -1.0], [3.0, 1.0, 0.0]], requires_grad=True)
    reference = torch.tensor([[2.0, 1.0, 0.0], [NAN, NAN, NAN]])  # of a softmax, a constant has no part
    loss = task.distillation(logits, reference, 3.0)
    assert loss.detach().abs().max() < 1e-5
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.isfinite().all() and gradient[1].abs().max() < 1e-6


def test_a_multiclass_teachers_probabilities_are_put_in_the_students_order():
    teacher, student = multiclass("bca"), multiclass("abcd")
    answers = np.array([[0.2, 0.3, 0.5]])  # a, b, c: labels are sorted
    assert teacher.labels == ["a", "b", "c"]
    reference = student.reference(teacher, answers)
    assert np.exp(reference[0, :3]) == pytest.approx([0.2, 0.3, 0.5]) and np.isnan(reference[0, 3])


def test_label_sets_are_compared_label_by_label():
    student, teacher = MultilabelTask("k"), MultilabelTask("k")
    student.fit(["a|b", "b|c", "a", "c", "[]"])
    teacher.fit(["a|c", "c", "a", "c|x", "[]"])
    answers = np.array([[0.9, 0.2, 0.6]])  # a, c, x
    reference = torch.from_numpy(student.reference(teacher, answers))
    assert reference.sigmoid()[0, [0, 2]].numpy() == pytest.approx([0.9, 0.2]) and reference[0, 1].isnan()
    logits = torch.tensor([[0.3, -1.0, 0.7]], requires_grad=True)
    found = student.distillation(logits, reference, 1.0)
    true, mine = torch.tensor([0.9, 0.2]), logits[:, [0, 2]][0]
    entropy = -(true * true.log() + (1 - true) * (1 - true).log())
    wanted = (F.binary_cross_entropy_with_logits(mine, true, reduction="none") - entropy).mean()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient[0, 1] == 0 and gradient.isfinite().all()


def test_numbers_are_compared_on_the_students_scale():
    student, teacher = RegressionTask("y"), RegressionTask("y")
    student.fit(["10", "20", "30", "40"])
    teacher.fit(["0", "1000"])
    reference = torch.from_numpy(student.reference(teacher, np.array([20.0, 40.0])))
    logits = torch.tensor([0.0, 0.5])
    scaled = student.transform.forward(np.array([20.0, 40.0]))
    assert student.distillation(logits, reference, 2.0).numpy() == pytest.approx((scaled - logits.numpy()) ** 2)
    assert student.distillation(logits, torch.full((2, 1), NAN), 2.0).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("student", "teacher", "came"),
    [
        (multiclass("abc"), RegressionTask("k"), "regression"),
        (multiclass("abc"), multiclass("axy"), "1 of these labels"),
        (RegressionTask("k"), multiclass("abc"), "multiclass"),
    ],
)
def test_a_teacher_that_answers_otherwise_is_refused(student, teacher, came):
    with pytest.raises(ConfigError) as caught:
        student.reference(teacher, np.zeros((2, 3)))
    assert caught.value.came == came


def test_rows_that_the_teacher_did_not_read_do_not_enter_the_mean():
    model, tasks, examples = make_parts()
    objective, batch = Distillation(model, tasks), examples.batch(range(ROWS))
    outputs = model(batch)
    whole = sum(
        task.distillation(outputs.logits[name], batch.targets[name].reference, 2.0)
        for name, task in objective.tasks.items()
    )
    for target in batch.targets.values():
        target.reference[: ROWS // 2] = NAN
    assert objective(model, batch, outputs)["distill"].item() == pytest.approx(
        whole[ROWS // 2 :].mean().item(), rel=1e-5
    )
    assert objective.counts(batch).tolist() == [0.0] * (ROWS // 2) + [1.0] * (ROWS // 2)


def test_without_a_teachers_answers_there_is_nothing_to_learn():
    model, tasks, examples = make_parts()
    batch = examples.given(references={}).batch(range(6))
    loss = Distillation(model, tasks)(model, batch, model(batch))["distill"]
    assert loss.item() == 0 and loss.requires_grad


def test_settings_out_of_range_and_tasks_without_answers():
    model, tasks, _ = make_parts()
    with pytest.raises(ConfigError, match="temperature"):
        Distillation(model, tasks, temperature=0.0)
    with pytest.raises(ConfigError, match="no target that a teacher can teach"):
        Distillation(model, {})
