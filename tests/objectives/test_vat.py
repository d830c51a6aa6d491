"""Virtual adversarial training: the direction is the worst one, needs no targets, and dropout stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fusetune import api
from fusetune.config.adversarial import AdversarialConfig
from fusetune.config.backbone import BackboneConfig
from fusetune.config.config import Config
from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.errors import ConfigError
from fusetune.modalities.number import NumberModality
from fusetune.modalities.text import TextModality
from fusetune.models.build import Backbones, build_model
from fusetune.models.perturb import Ball
from fusetune.objectives.total import Total, build_objectives
from fusetune.objectives.vat import VirtualAdversarial
from fusetune.registry import TASKS
from fusetune.tasks.abilities import Probed
from fusetune.tasks.divergence import softmax_divergence
from fusetune.training.learner import Learner
from fusetune.training.updates.adversarial import Adversarial

PROBED = [name for name in TASKS if issubclass(TASKS.get(name), Probed)]

CELLS = {
    "binary": lambda x: "ab"[int(x > 0)],
    "multiclass": lambda x: "abc"[int(np.digitize(x, [-0.5, 0.5]))],
    "multilabel": lambda x: "p|q" if x > 0.5 else "q|r" if x > 0 else "r",
    "regression": lambda x: round(float(x), 4),
    "ordinal": lambda x: int(np.digitize(x, [-0.5, 0.5])),
    "relation": lambda x: f"in({['e1,e2', 'e2,e1'][int(x > 0)]})",
}


def make(source: str, *tasks: str, dropout: float = 0.0, unlabelled: bool = False):
    """A text and two number columns, and tasks of some kinds."""
    rng = np.random.default_rng(5)
    records = []
    for _ in range(16):
        x = float(rng.normal())
        words = " ".join(f"w{n}" for n in rng.integers(0, 30, int(rng.integers(1, 6))))
        records.append({"t": words, "x": x, "z": float(rng.normal()), **{task: CELLS[task](x) for task in tasks}})
    backbone = Backbones({"text": BackboneConfig(name=source)}).get("text", None)
    modalities = {
        "t": TextModality("t", backbone=backbone),
        "x": NumberModality("x", bins=0),
        "z": NumberModality("z", bins=0),
    }
    built = {task: TASKS.get(task)(task) for task in tasks}
    examples = Examples(Table.from_records(records), modalities, built)
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    if unlabelled:
        nothing = Table.from_records([dict.fromkeys(["x", *tasks])] * len(records))
        examples.targets = {task: nothing.lazy(task) for task in tasks}
    torch.manual_seed(0)
    model = build_model(modalities, built, NamedConfig(name="concat", dim=8, modality_dropout=0.0), dropout=dropout)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return model.train(), built, examples.batch(range(16))


def vat(model, tasks, batch, **settings) -> torch.Tensor:
    return VirtualAdversarial(model, tasks, **settings)(model, batch, model(batch))["vat"]


def make_linear(source: str):
    """A model whose logits are a known linear function of the two numbers, which no two rows share."""
    model, tasks, batch = make(source, "multiclass")
    for head in model.heads:
        nn.init.zeros_(head.weight)
    nn.init.normal_(model.linear[0].weight)
    model.linear[0].weight.data[:, :-4] = 0.0  # the text's block
    return model, tasks, batch


def test_the_power_method_finds_the_worst_direction_of_a_linear_model(tiny):
    model, tasks, batch = make_linear(tiny("bert"))
    # A row's numbers form two cells, each with a ball of its own; of one number, the worst change is +ε or -ε.
    clean = model(batch).logits["multiclass"].detach()
    for column in ("x", "z"):
        found = vat(model, tasks, batch, epsilon=0.1, columns=column)
        ball, apart = Ball(model, batch, [column]), []
        for sign in (1.0, -1.0):
            moved = {column: sign * 0.1 * torch.ones_like(ball.sites[column].values)}
            apart.append(softmax_divergence(clean, model(ball.perturbed(moved)).logits["multiclass"]))
        low, high = torch.stack(apart).amin(0).mean(), torch.stack(apart).amax(0).mean()
        assert 0 < low - 1e-7 <= float(found.detach()) <= high + 1e-7


def test_the_worst_direction_of_a_text_is_far_worse_than_a_random_one(tiny):
    model, tasks, batch = make(tiny("bert"), "binary", "regression")
    random, one, three = (float(vat(model, tasks, batch, num_steps=steps).detach()) for steps in (0, 1, 3))
    assert 0 < random * 3 < one <= three * 1.01


def test_its_gradient_is_that_of_the_divergence_with_the_clean_prediction_fixed(tiny):
    model, tasks, batch = make(tiny("bert"), "multiclass", "multilabel")
    torch.manual_seed(1)
    objective = VirtualAdversarial(model, tasks, num_steps=0, epsilon=0.3)
    objective(model, batch, model(batch))["vat"].backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.manual_seed(1)
    ball = Ball(model, batch, ["t"])
    delta = ball.directions({"t": torch.randn_like(ball.sites["t"].values)})["t"].detach() * 0.3
    clean, moved = model(batch).logits, model(ball.perturbed({"t": delta})).logits
    sum(task.divergence(clean[name].detach(), moved[name]).mean() for name, task in tasks.items()).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-7, rtol=1e-4)
    assert any(name.startswith("encoders") for name in found)


@pytest.mark.parametrize("task", PROBED)
def test_every_kind_of_task_without_targets(tiny, task):
    losses = []
    for unlabelled in (False, True):
        model, tasks, batch = make(tiny("bert"), task, unlabelled=unlabelled)
        torch.manual_seed(0)
        losses.append(float(vat(model, tasks, batch).detach()))
    assert losses[0] == losses[1] > 0
    assert batch.targets[task].labelled.any() == (not unlabelled)


def test_dropout_draws_the_same_masks_for_both_predictions(tiny):
    model, tasks, batch = make(tiny("bert"), "binary", dropout=0.5)
    apart = softmax_divergence(*(model(batch).logits["binary"] for _ in range(2))).mean()
    same = vat(model, tasks, batch, epsilon=1e-6, num_steps=1)
    assert float(same.detach()) < 1e-6 < 1e-3 < float(apart.detach())


def test_low_precision_keeps_every_gradient(tiny):
    model, tasks, batch = make(tiny("bert"), "binary")
    found = []
    for half in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss, _, _ = Learner(model, Total(tasks, [VirtualAdversarial(model, tasks, xi=0.1)]))(batch)
            loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    assert found[0].keys() == found[1].keys() and any(name.startswith("encoders") for name in found[0])
    one, two = (torch.cat([grad.flatten() for grad in part.values()]) for part in found)
    assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.95


def test_rows_without_the_column_and_columns_that_are_perturbed_already(tiny):
    model, tasks, batch = make(tiny("bert"), "binary")
    batch.cells["t"][:] = -1
    batch.inputs["t"] = {}
    nothing = vat(model, tasks, batch)
    assert nothing.detach() == 0
    nothing.backward()

    model, tasks, batch = make(tiny("bert"), "binary")
    ball = Ball(model, batch, ["t"])
    outer = {"t": ball.uniform(0.5)["t"].detach()}
    moved = ball.perturbed(outer)
    again = Ball(model, moved, ["t"])
    assert again.units == ball.units
    still = model(again.perturbed(again.zeros())).logits["binary"]
    torch.testing.assert_close(still, model(moved).logits["binary"])
    learner = Learner(model, Total(tasks, [VirtualAdversarial(model, tasks)]))
    from accelerate import Accelerator

    losses = Adversarial(model, AdversarialConfig(name="fgm"))(learner, [batch], Accelerator(cpu=True))
    assert set(losses) == {"binary", "objective/vat", "adversarial/binary", "adversarial/objective/vat"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epsilon": 0.0}, "objectives.vat.epsilon is out of range"),
        ({"xi": -1.0}, "objectives.vat.xi is out of range"),
        ({"num_steps": -1}, "objectives.vat.num_steps is out of range"),
        ({"columns": ["tt"]}, "objectives.vat.columns names 'tt'"),
        ({"weight": 0}, "objectives.vat.weight is out of range"),
        ({"steps": 1}, "objectives.vat has no setting 'steps'(.|\n)*num_steps"),
    ],
)
def test_wrong_settings(tiny, settings, said):
    model, tasks, _ = make(tiny("bert"), "binary")
    with pytest.raises(ConfigError, match=said):
        build_objectives(model, tasks, {"vat": settings})
    with pytest.raises(ConfigError, match="nothing is predicted"):
        VirtualAdversarial(model, {})


def test_a_fit_with_vat(tiny, shop_tables, tmp_path, quick):
    settings = Config.build({**quick, "text": tiny("bert"), "image": tiny("vit"), "audio": tiny("wav2vec2")})
    settings = settings.with_overrides(["objectives={vat: {epsilon: 0.05}}", "trainer.epochs=1"])
    tuned = api.fit(
        str(shop_tables["train"]), target="label", val=str(shop_tables["val"]), test=str(shop_tables["test"]),
        out=tmp_path / "model", config=settings.model_dump(exclude_defaults=True), progress=False,
    )  # fmt: skip
    assert tuned.results.tasks[0].attack is None
