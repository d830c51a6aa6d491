"""Every objective with every task that answers by token: it learns, or it is refused by name before training."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, kl_divergence

from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.errors import ConfigError
from fusetune.modalities.number import NumberModality
from fusetune.models.build import build_model
from fusetune.models.perturb import Ball
from fusetune.objectives.rdrop import RDrop
from fusetune.objectives.vat import VirtualAdversarial
from fusetune.registry import OBJECTIVES, TASKS
from fusetune.tasks.abilities import Divergent
from fusetune.tasks.answers.task import AnswerTask
from fusetune.tasks.choice.task import MultipleChoiceTask
from fusetune.tasks.token_task import TokenTask
from fusetune.testing.token_tables import WINDOW, TokenCase, usable_tables

TOKEN_TASKS = {name: TASKS.get(name) for name in TASKS if issubclass(TASKS.get(name), TokenTask)}
NEEDS_ROW_ANSWERS = {"mixup", "unimodal", "supcon", "similarity"}
"""Objectives of one answer a row, or a pair: nothing to learn from where all targets are answered by token."""


def parts(make, *, dropout=0.0, max_tokens=WINDOW):
    """A model of a text in windows of 12 tokens and a number, both missing in some rows; task, batch of 12 rows."""
    records = next(iter(usable_tables(make).values())).records()
    case = TokenCase(make, records, max_tokens=max_tokens)
    rng = np.random.default_rng(0)
    for row, record in enumerate(records):
        record["size"] = float(rng.normal())
        if row % 5 == 3:
            record.update({name: None for name in record if name != "size"})
        if row % 7 == 6:
            record["size"] = None
    table = TokenCase(make, records, max_tokens=max_tokens, task=case.task).examples.table
    modalities = {case.reads: case.examples.columns[case.reads].modality, "size": NumberModality("size", bins=4)}
    examples = Examples(table, modalities, {"target": case.task})
    examples.prepare(on_bad_cell="reject")
    examples.columns["size"].learn(examples.columns["size"].codes)
    torch.manual_seed(0)
    fusion = NamedConfig.model_validate({"name": "concat", "dim": 8, "modality_dropout": 0.0, "input_dropout": dropout})
    model = build_model(modalities, {"target": case.task}, fusion, dropout=dropout)
    for parameter in model.heads.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model, {"target": case.task}, examples.batch(np.arange(12))


def real_tokens(task, batch, outputs):
    mask = outputs.columns[task.reads].mask
    assert mask.any(1).tolist() == (batch.cells[task.reads] >= 0).tolist() and not mask.all()
    return mask


def row_kl(logits, other, real):
    """Each row's mean KL by torch.distributions, of positions over its tokens."""
    found = []
    for row in range(len(logits)):
        one, two = logits[row, real[row]], other[row, real[row]]
        apart = (
            kl_divergence(Categorical(logits=one.T), Categorical(logits=two.T)).mean() if real[row].any() else one.sum()
        )
        found.append(apart)
    return torch.stack(found)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize("name", list(TOKEN_TASKS))
def test_an_objective_learns_from_a_token_task_or_is_refused(name, objective):
    model, tasks, batch = parts(TOKEN_TASKS[name], dropout=0.1)
    make = partial(OBJECTIVES.get(objective), model, tasks)
    lacks = objective in ("semi", "distill") or (
        objective in ("rdrop", "vat") and not isinstance(tasks["target"], Divergent)
    )
    if objective in NEEDS_ROW_ANSWERS or lacks:
        with pytest.raises(ConfigError, match=f"objectives?.{objective}|objective {objective}"):
            make()
        return
    built = make().train()
    model.train()
    weights = [*model.parameters(), *built.parameters()]

    def loss():
        torch.manual_seed(1)
        losses = built(model, batch, model(batch))
        assert all(loss.isfinite() for loss in losses.values())
        return torch.stack(list(losses.values())).sum()

    before = loss()
    grads = torch.autograd.grad(before, weights, allow_unused=True)
    assert all(grad.isfinite().all() for grad in grads if grad is not None)
    reached = {id(weight) for weight, grad in zip(weights, grads, strict=True) if grad is not None and grad.any()}
    encoder = model.encoders[model.routes[tasks["target"].reads]]
    assert any(id(weight) in reached for weight in encoder.parameters()), "the text's encoder does not learn"
    square = sum(float(grad.square().sum()) for grad in grads if grad is not None)
    with torch.no_grad():
        for weight, grad in zip(weights, grads, strict=True):
            if grad is not None:
                weight -= 0.05 * before.item() / square * grad  # lowers the loss by 5 %, to first order
    assert loss().item() < before.item(), "a step down the gradient does not lower the loss"


@pytest.mark.parametrize("make", [AnswerTask, MultipleChoiceTask])
def test_rdrop_is_the_kl_between_two_passes_over_the_rows_own_tokens(make):
    model, tasks, batch = parts(make, dropout=0.3)
    task = tasks["target"]
    batch.weights = torch.linspace(0, 2, len(batch))
    model.train()
    torch.manual_seed(5)
    outputs = model(batch)
    found = RDrop(model, tasks)(model, batch, outputs)["rdrop"]
    torch.manual_seed(5)
    first, second = model(batch).logits["target"], model(batch).logits["target"]
    real = real_tokens(task, batch, outputs)
    rows = (row_kl(first, second, real) + row_kl(second, first, real)) / 2
    assert float(found) == pytest.approx(float((rows * batch.weights).sum() / batch.weights.sum()), rel=1e-5)
    assert found > 1e-5


@pytest.mark.parametrize("make", [AnswerTask, MultipleChoiceTask])
def test_vat_is_the_kl_to_the_perturbed_texts_over_the_rows_own_tokens(make):
    model, tasks, batch = parts(make)
    task = tasks["target"]
    model.eval()
    objective = VirtualAdversarial(model, tasks, epsilon=0.5, num_steps=0)
    ball = Ball(model, batch, [task.reads])
    torch.manual_seed(5)
    drawn = {name: torch.randn_like(zero) for name, zero in ball.zeros().items()}
    moved = {name: 0.5 * delta for name, delta in ball.directions(drawn).items()}
    torch.manual_seed(5)
    outputs = model(batch)
    found = objective(model, batch, outputs)["vat"]
    other = model(ball.perturbed(moved)).logits["target"]
    wanted = row_kl(outputs.logits["target"], other, real_tokens(task, batch, outputs)).mean()
    assert float(found) == pytest.approx(float(wanted), rel=1e-4) and found > 1e-6
    towards = VirtualAdversarial(model, tasks, epsilon=0.5, num_steps=3)(model, batch, outputs)["vat"]
    assert towards > found, "the power method finds no direction that changes predictions more than a random one"
