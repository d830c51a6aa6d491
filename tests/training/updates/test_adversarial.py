"""Adversarial gradients: against autograd by hand, with fixed dropout, accumulated, wrapped and in low precision."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from fusetune import api
from fusetune.config.adversarial import AdversarialConfig
from fusetune.config.backbone import BackboneConfig
from fusetune.config.section import NamedConfig
from fusetune.config.trainer import TrainerConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.errors import ConfigError
from fusetune.modalities.number import NumberModality
from fusetune.modalities.text import TextModality
from fusetune.models.build import Backbones, build_model
from fusetune.models.perturb import Ball
from fusetune.objectives.total import Total
from fusetune.tasks.classes.classification import BinaryTask
from fusetune.tasks.regression import RegressionTask
from fusetune.training.learner import Learner
from fusetune.training.recipe import BackboneRule, Recipe
from fusetune.training.updates import adversarial
from fusetune.training.updates.adversarial import Adversarial, Ascent
from fusetune.training.updates.grad_cache import cached
from fusetune.training.updates.update import plain

CPU = Accelerator(cpu=True)


def make(source: str, *, dropout: float = 0.0, rows: int = 12) -> tuple[Learner, Examples]:
    """A class and a number from texts of different lengths and a number that no two rows share."""
    rng = np.random.default_rng(5)
    records = []
    for _ in range(rows):
        words, x = [f"w{n}" for n in rng.integers(0, 30, int(rng.integers(1, 6)))], float(rng.normal())
        records.append({"t": " ".join(words), "x": x, "k": "ab"[int(x > 0)], "y": x + len(words)})
    records[1]["k"] = None
    backbone = Backbones({"text": BackboneConfig(name=source)}).get("text", None)
    modalities = {"t": TextModality("t", backbone=backbone), "x": NumberModality("x", bins=3)}
    tasks = {"k": BinaryTask("k"), "y": RegressionTask("y")}
    examples = Examples(Table.from_records(records), modalities, tasks)
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    torch.manual_seed(0)
    model = build_model(modalities, tasks, NamedConfig(name="concat", dim=8, modality_dropout=0.0), dropout=dropout)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return Learner(model, Total(tasks)).train(), examples


@pytest.fixture
def parts(tiny) -> tuple[Learner, Examples]:
    return make(tiny("bert"))


def grads(learner: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    learner.zero_grad()
    return found


def by(learner: Learner, batches, accelerator=CPU, wrapped=None, **settings):
    """The losses and the weights' gradients by a method's settings; None: plain."""
    strategy = Adversarial(learner.model, AdversarialConfig(**settings)) if settings else plain
    losses = strategy(wrapped or learner, batches, accelerator)
    return {name: float(value) for name, value in losses.items()}, grads(learner)


def close(one, other, *, rtol=1e-4, atol=1e-6):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=rtol, atol=atol, msg=lambda said, n=name: f"{n}: {said}")


def hand(learner, batch, points, shares):
    """Σ share · gradient of the loss at each perturbed batch, by autograd."""
    for delta, share in zip(points, shares, strict=True):
        (learner(delta)[0] * share).backward()
    return grads(learner)


def gradient_at(learner, ball, deltas):
    found = torch.autograd.grad(learner(ball.perturbed(deltas))[0], list(deltas.values()))
    return dict(zip(deltas, found, strict=True))


def rms(values: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """(cells, 1, ...) of (cells, ...), written out."""
    real = real.expand(values.shape)
    found = [values[cell][real[cell]].square().mean().sqrt() for cell in range(len(values))]
    return torch.stack(found).view(-1, *[1] * (values.ndim - 1))


@pytest.mark.parametrize("weight", [0.5, 0.3, 1.0])
def test_fgm_is_the_clean_loss_and_that_one_normalised_gradient_away(parts, weight):
    learner, examples = parts
    batch = examples.batch(range(12))
    ball = Ball(learner.model, batch, ["t", "x"])
    g = gradient_at(learner, ball, ball.zeros())
    delta = {name: 0.2 * g[name] / rms(g[name], ball.sites[name].real) for name in g}
    wanted = hand(learner, batch, [ball.perturbed(ball.zeros()), ball.perturbed(delta)], [1 - weight, weight])
    losses, found = by(learner, [batch], name="fgm", epsilon=0.2, weight=weight, columns=["t", "x"])
    close(found, wanted)
    clean, there = (learner(each)[1] for each in (batch, ball.perturbed(delta)))
    assert losses["adversarial/k"] == pytest.approx(weight * float(there["k"].detach()), rel=1e-4)
    assert losses.get("k", 0.0) == pytest.approx((1 - weight) * float(clean["k"].detach()), rel=1e-4)
    assert float(there["k"].detach() + there["y"].detach()) > float(clean["k"].detach() + clean["y"].detach())


def test_pgd_climbs_on_the_ball_and_the_last_gradients_count(parts):
    learner, examples = parts
    batch = examples.batch(range(12))
    ball = Ball(learner.model, batch, ["t", "x"])
    deltas, epsilon, alpha = ball.zeros(), 0.1, 0.07
    for _ in range(3):
        g = gradient_at(learner, ball, deltas)
        moved = {n: deltas[n].detach() + alpha * g[n] / rms(g[n], ball.sites[n].real) for n in g}
        sizes = {n: rms(moved[n], ball.sites[n].real) for n in g}
        deltas = {n: (moved[n] * (epsilon / sizes[n]).clamp(max=1)).requires_grad_() for n in g}
    assert all(size.max() > epsilon for size in sizes.values()), "the projection has work to do"
    wanted = hand(learner, batch, [ball.perturbed(ball.zeros()), ball.perturbed(deltas)], [0.5, 0.5])
    same = {"name": "pgd", "epsilon": epsilon, "steps": 3, "step_size": alpha, "columns": ["t", "x"]}
    close(by(learner, [batch], **same)[1], wanted)
    alone = hand(learner, batch, [ball.perturbed(deltas)], [1.0])
    losses, found = by(learner, [batch], **same, weight=1.0)
    close(found, alone)
    assert set(losses) == {"adversarial/k", "adversarial/y"}


def test_pgd_of_one_whole_step_is_fgm(parts):
    learner, examples = parts
    batches = [examples.batch(range(12))]
    one = by(learner, batches, name="fgm", epsilon=0.2)
    two = by(learner, batches, name="pgd", epsilon=0.2, steps=1, step_size=0.2)
    assert one[0] == two[0]
    close(one[1], two[1], rtol=0, atol=0)


def test_freelb_is_the_mean_of_the_gradients_on_the_way_up(parts):
    learner, examples = parts
    batch = examples.batch(range(12))
    ball = Ball(learner.model, batch, ["t"])
    deltas, points = ball.zeros(), []
    for _ in range(3):
        points.append(ball.perturbed({name: value.detach() for name, value in deltas.items()}))
        deltas = ball.climb(deltas, gradient_at(learner, ball, deltas), step=0.05, size=0.1)
    losses, found = by(
        learner, [batch], name="freelb", epsilon=0.1, steps=3, step_size=0.05, random_start=False, columns=["t"]
    )
    close(found, hand(learner, batch, points, [1 / 3] * 3))
    mean = np.mean([float(learner(point)[1]["k"].detach()) for point in points])
    assert losses["k"] == pytest.approx(mean, rel=1e-4) and set(losses) == {"k", "y"}


def test_freelb_of_one_step_from_nothing_is_plain(parts):
    learner, examples = parts
    batches = [examples.batch(range(6)), examples.batch(range(6, 12))]
    one, two = by(learner, batches), by(learner, batches, name="freelb", steps=1, random_start=False)
    assert one[0] == pytest.approx(two[0])
    close(one[1], two[1], atol=1e-7)


def test_a_random_start_lies_in_the_ball_and_follows_the_seed(parts):
    learner, examples = parts
    batches = [examples.batch(range(12))]
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(by(learner, batches, name="freelb", epsilon=0.3, steps=1, columns=["t"])[1])
    close(runs[0], runs[1], rtol=0, atol=0)
    name = "model.fusion.out.weight" if "model.fusion.out.weight" in runs[0] else next(iter(runs[0]))
    assert not torch.equal(runs[0][name], runs[2][name])


METHODS = [
    {"name": "fgm"},
    {"name": "pgd", "steps": 3},
    {"name": "pgd", "random_start": True, "weight": 1.0},
    {"name": "freelb"},
]


@pytest.mark.parametrize("settings", METHODS, ids=lambda s: "-".join(map(str, s.values())))
def test_dropout_draws_the_same_masks_in_every_pass(tiny, settings):
    learner, examples = make(tiny("bert"), dropout=0.4)
    masks: list[list[torch.Tensor]] = []
    learner.register_forward_pre_hook(lambda *_: masks.append([]))
    for module in learner.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda m, args, out: masks[-1].append((out == 0) & (args[0] != 0)))
    batches = [examples.batch(range(6)), examples.batch(range(6, 12))]
    torch.manual_seed(3)
    by(learner, batches, **settings)
    passes, after = len(masks) // 2, torch.rand(3)
    assert passes == {"fgm": 2, "pgd": 4, "freelb": 3}[settings["name"]]
    for first, later in ((0, range(1, passes)), (passes, range(passes + 1, 2 * passes))):
        assert len(masks[first]) > 3 and all(mask.any() for mask in masks[first])
        for number in later:
            assert all(torch.equal(one, two) for one, two in zip(masks[first], masks[number], strict=True))
    assert not torch.equal(masks[0][-1], masks[passes][-1]), "micro-batches have masks of their own"
    if not Adversarial(learner.model, AdversarialConfig(**settings)).random_start:
        torch.manual_seed(3)
        by(learner, batches)
        assert torch.equal(torch.rand(3), after), "what is drawn later is drawn as in plain training"


@pytest.mark.parametrize("settings", [*METHODS[:2], {"name": "freelb", "random_start": False}], ids=lambda s: s["name"])
@pytest.mark.parametrize("cut", [3, 9])
def test_micro_batches_add_up_to_the_whole(tiny, settings, cut):
    learner, examples = make(tiny("bert"))
    whole, cuts = [examples.batch(range(12))], [examples.batch(range(cut)), examples.batch(range(cut, 12))]
    one = by(learner, whole, columns=["x"], **settings)
    two = by(learner, cuts, columns=["x"], **settings)
    assert one[0] == pytest.approx(two[0], rel=1e-4)
    close(one[1], two[1], atol=1e-5)


def test_a_column_that_no_row_has_is_left_to_plain_training(parts):
    learner, examples = parts
    examples.columns["t"].codes[:4] = -1
    batches = [examples.batch(range(4))]
    one, two = by(learner, batches), by(learner, batches, name="pgd", columns=["t"])
    assert one[0] == pytest.approx(two[0])
    close(one[1], two[1], atol=1e-7)


class Distributed(Accelerator):
    """Does what accelerate does where there are several processes, and counts it."""

    def no_sync(self, model):
        self.alone = getattr(self, "alone", 0) + 1
        return model.no_sync()


@pytest.mark.parametrize("settings", METHODS, ids=lambda s: "-".join(map(str, s.values())))
def test_data_parallelism_brings_gradients_together_once_and_keeps_them(tiny, settings, tmp_path):
    learner, examples = make(tiny("bert"))
    batches = [examples.batch(range(6)), examples.batch(range(6, 12))]
    torch.manual_seed(0)
    wanted = by(learner, batches, **settings)
    accelerator = Distributed(cpu=True)
    passes = []
    learner.register_forward_pre_hook(lambda *_: passes.append(1))
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/sync", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(learner)
        reduced = []

        def reduce(state, bucket):
            reduced.append(bucket.is_last())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        wrapped.register_comm_hook(None, reduce)
        torch.manual_seed(0)
        losses, found = by(learner, batches, accelerator, wrapped, **settings)
    finally:
        distributed.destroy_process_group()
    assert losses == pytest.approx(wanted[0], rel=1e-4)
    close(found, wanted[1], atol=1e-5)
    assert sum(reduced) == 1 and accelerator.alone == len(passes) - 1


@pytest.mark.parametrize("settings", METHODS[1:], ids=lambda s: "-".join(map(str, s.values())))
def test_low_precision_and_checkpointing_give_nearly_the_same(tiny, settings):
    learner, examples = make(tiny("bert"))
    batches = [examples.batch(range(12))]
    torch.manual_seed(0)
    wanted = by(learner, batches, **settings)
    assert learner.model.encoders[learner.model.routes["t"]].enable_checkpointing()
    torch.manual_seed(0)
    again = by(learner, batches, **settings)
    assert again[0] == pytest.approx(wanted[0], rel=1e-5)
    close(again[1], wanted[1], atol=1e-6)

    class Half:
        device, scaler, num_processes = torch.device("cpu"), None, 1
        no_sync, backward = staticmethod(CPU.no_sync), staticmethod(CPU.backward)
        unwrap_model = staticmethod(CPU.unwrap_model)

        def autocast(self):
            return torch.autocast("cpu", dtype=torch.bfloat16)

    torch.manual_seed(0)
    losses, found = by(learner, batches, Half(), **settings)
    assert losses == pytest.approx(wanted[0], rel=0.05) and found.keys() == wanted[1].keys()
    one, two = (torch.cat([g.flatten() for g in part.values()]) for part in (found, wanted[1]))
    assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.98


def test_default_steps():
    assert Ascent.of(AdversarialConfig(name="fgm", epsilon=0.3)) == Ascent(0.3, 1, 0.3)
    assert Ascent.of(AdversarialConfig(name="pgd", epsilon=0.3, steps=5)) == Ascent(0.3, 5, pytest.approx(0.15))
    assert Ascent.of(AdversarialConfig(name="freelb", step_size=0.01)) == Ascent(0.02, 3, 0.01)


def test_a_column_that_is_not_there_is_refused(parts):
    learner, _ = parts
    with pytest.raises(ConfigError, match=r"trainer.adversarial.columns names 'tt'"):
        Adversarial(learner.model, AdversarialConfig(name="fgm", columns=["tt"]))


@pytest.mark.parametrize(
    ("rule", "settings", "head", "tune"),
    [
        ("none", {}, False, True),
        ("all", {}, True, True),
        ("only:heads", {}, True, True),
        ("none", {"epochs": 0}, True, True),
        ("none", {"head_epochs": 0}, False, True),
    ],
)
def test_the_stage_with_the_last_word_is_adversarial(parts, rule, settings, head, tune):
    learner, _ = parts
    given = TrainerConfig(adversarial={"name": "fgm"}, **settings)
    rules = {learner.model.routes["t"]: BackboneRule(rule)}
    recipe = Recipe(learner.model, [], given, rules, 0, starts_linear=False)
    before = [p.requires_grad for p in learner.parameters()]
    recipe.tunes()
    assert [p.requires_grad for p in learner.parameters()] == before
    assert isinstance(recipe.head_stage(10).gradients, Adversarial) == head
    assert isinstance(recipe.tune_stage().gradients, Adversarial) == tune
    assert Recipe(
        learner.model, [], TrainerConfig(), rules, 0, starts_linear=False
    ).tune_stage().gradients is cached  # fmt: skip


def test_a_fit_trains_on_every_kind_of_column(tiny, shop_tables, tmp_path, quick, monkeypatch):
    seen = []
    ball = Ball

    class Watched(ball):
        def climb(self, deltas, gradients, **how):
            found = super().climb(deltas, gradients, **how)
            seen.append({column: float(size.min()) for column, size in self.sizes(found).items()})
            return found

    monkeypatch.setattr(adversarial, "Ball", Watched)
    settings = {
        **quick,
        "text": tiny("bert"),
        "image": tiny("vit"),
        "audio": tiny("wav2vec2"),
        "trainer": {
            "epochs": 1,
            "head_epochs": 1,
            "trackers": [],
            "probe": "columns",  # a probe that leaves a column out gives it no gradient at first
            "adversarial": {"name": "fgm", "epsilon": 0.05, "columns": ["note", "photo", "voice", "price", "plan"]},
        },
    }
    tuned = api.fit(
        str(shop_tables["train"]), target="label", val=str(shop_tables["val"]), test=str(shop_tables["test"]),
        out=tmp_path / "model", config=settings, progress=False,
    )  # fmt: skip
    assert len(seen) == 3 and all(set(found) == {"note", "photo", "voice", "price", "plan"} for found in seen)
    assert all(size == pytest.approx(0.05, rel=1e-3) for found in seen for size in found.values())
    task = json.loads((tmp_path / "model" / "report.json").read_text())["tasks"][0]
    assert task["attack"]["name"] == "FGM" and task["attack"]["epsilon"] == 0.05
    assert [s["name"] for s in task["systems"] if s["kind"] == "attack"] == [
        "frozen probe, attacked",
        "tuned, attacked",
    ]
    assert tuned.results is not None
