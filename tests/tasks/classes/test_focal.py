"""Focal loss: the paper's formula, no change at γ = 0, kept in the folder."""

from __future__ import annotations

import pytest
import torch

from fusetune.errors import ConfigError
from fusetune.tasks.classes.classification import BinaryTask, MulticlassTask
from fusetune.tasks.classes.multilabel import MultilabelTask
from fusetune.types import Target

CELLS = {
    "multiclass": ["a", "b", "c", "a"],
    "binary": ["no", "yes", "no", "yes"],
    "multilabel": ["p|q", "q", "r", "p|r"],
}
TASKS = {"multiclass": MulticlassTask, "binary": BinaryTask, "multilabel": MultilabelTask}


def parts(name: str, **options):
    task = TASKS[name]("y", **options)
    task.fit(CELLS[name])
    torch.manual_seed(0)
    logits = torch.randn(4, len(task.labels), dtype=torch.float64, requires_grad=True)
    target = task.encode(CELLS[name])
    return task, logits, Target(target.values, torch.tensor([True, True, True, False]))


@pytest.mark.parametrize("name", list(TASKS))
def test_the_papers_formula(name):
    task, logits, target = parts(name, focal=2.0)
    wanted = 0.0
    for row in range(3):
        if name == "multilabel":
            terms = []
            for p, there in zip(logits[row].sigmoid(), target.values[row], strict=True):
                right = p if there else 1 - p
                terms.append(-((1 - right) ** 2) * right.log())
            wanted = wanted + torch.stack(terms).mean() / 3
        else:
            right = logits[row].softmax(0)[target.values[row]]
            wanted = wanted - (1 - right) ** 2 * right.log() / 3
    found = task.loss(logits, target, torch.ones(4))
    assert found.item() == pytest.approx(wanted.item(), abs=1e-9)
    grads = [torch.autograd.grad(loss, logits)[0] for loss in (found, wanted)]
    assert torch.allclose(*grads, atol=1e-9)


@pytest.mark.parametrize("name", list(TASKS))
def test_zero_changes_nothing_and_the_state_keeps_it(name):
    plain, logits, target = parts(name)
    zero, _, _ = parts(name, focal=0)
    assert torch.equal(plain.loss(logits, target, torch.ones(4)), zero.loss(logits, target, torch.ones(4)))
    task, _, _ = parts(name, focal=1.5)
    assert TASKS[name].from_state("y", task.state()).focal == 1.5
    older = task.state()
    older.get("options", older).pop("focal")
    assert TASKS[name].from_state("y", older).focal == 0


@pytest.mark.parametrize("value", [-1, float("inf"), "2", True])
def test_wrong_gamma(value):
    with pytest.raises(ConfigError, match="focal is out of range"):
        MulticlassTask("y", focal=value)
