"""The losses of scored pairs: by hand, by sentence-transformers, over processes and micro-batches; their settings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import multiprocessing

from fusetune.errors import ConfigError
from fusetune.objectives.contrastive import ContrastiveObjective
from fusetune.objectives.gather import gather_rows
from fusetune.objectives.similarity import SimilarityObjective
from fusetune.objectives.tasks import TaskLosses
from fusetune.testing.objectives import ROWS, make_pairs, make_parts
from fusetune.types import Batch

FORMS = ["cosent", "regression", "margin"]


def make(**settings) -> SimilarityObjective:
    model, tasks, _ = make_pairs()
    return SimilarityObjective(model, tasks, **settings).double()


def pairs(rows: int = 14, *, seed: int = 0, labels: bool = False, grad: bool = False) -> dict:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, rows) if labels else rng.integers(0, 6, rows) / 5
    return {
        "cosine": torch.tensor(rng.uniform(-1, 1, rows), requires_grad=grad),
        "target": torch.tensor(targets, dtype=torch.float64),
        "weight": torch.ones(rows, dtype=torch.float64),
    }


def loss(objective: SimilarityObjective, given: dict) -> float:
    return float(objective.of_vectors(given)["similarity"].detach())


@pytest.mark.parametrize("labels", [False, True])
def test_cosent_by_hand(labels):
    given, total, wrong, compared = pairs(labels=labels), 1.0, 0, 0
    cosines, targets = given["cosine"].tolist(), given["target"].tolist()
    for i in range(14):
        for j in range(14):
            if targets[i] > targets[j]:
                total += math.exp((cosines[j] - cosines[i]) / 0.1)
                wrong, compared = wrong + (cosines[j] >= cosines[i]), compared + 1
    objective = make(temperature=0.1)
    assert loss(objective, given) == pytest.approx(math.log(total), abs=1e-9)
    assert float(objective.figures["wrong_order"]) == pytest.approx(wrong / compared)


def test_weights_of_cosent_are_counts_of_rows():
    given = pairs()
    some = torch.arange(14) % 3 == 0
    twice = {name: torch.cat([values, values[some]]) for name, values in given.items()}
    weighted = given | {"weight": torch.where(some, 2.0, 1.0).double()}
    gap = 2 * math.log(float(weighted["weight"].mean()))  # weights are taken relative to their mean
    hand = math.log(1 + (math.exp(loss(make(), twice)) - 1) * math.exp(-gap))
    assert loss(make(), weighted) == pytest.approx(hand, abs=1e-9)


def test_regression_by_hand():
    given = pairs() | {"weight": torch.arange(14).double()}
    for lowest in (0.0, -1.0):
        wanted = lowest + (1 - lowest) * given["target"].numpy()
        errors = (given["cosine"].numpy() - wanted) ** 2
        hand = float(np.average(errors, weights=np.arange(14)))
        assert loss(make(form="regression", lowest=lowest), given) == pytest.approx(hand, abs=1e-9)


@pytest.mark.parametrize("hard", [True, False])
def test_margin_by_hand(hard):
    given = pairs(labels=True)
    distances, related = 1 - given["cosine"].numpy(), given["target"].numpy() == 1
    pull = push = 0.0
    for distance, is_related in zip(distances, related, strict=True):
        if is_related and (not hard or distance > distances[~related].min()):
            pull += distance**2 / 14
        if not is_related and (not hard or distance < distances[related].max()):
            push += max(0.0, 0.7 - distance) ** 2 / 14
    objective = make(form="margin", margin=0.7, hard=hard)
    assert loss(objective, given) == pytest.approx(pull + push, abs=1e-9)
    assert [float(objective.figures[name]) for name in ("L_s", "L_d")] == pytest.approx([pull, push])


def test_the_losses_are_those_of_sentence_transformers():
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    rng = torch.Generator().manual_seed(0)
    first, second = (torch.nn.functional.normalize(torch.randn(16, 8, generator=rng), dim=1) for _ in "ab")
    labels = (torch.arange(16) % 3 == 0).float()

    class Encoder(torch.nn.Module):
        """Returns the embeddings that it is given."""

        def forward(self, features):
            return {"sentence_embedding": features["x"]}

    features, cosines = [{"x": first}, {"x": second}], (first * second).sum(1)
    given = {"cosine": cosines, "target": labels, "weight": torch.ones(16)}
    for name, settings, factor in (
        ("CoSENTLoss", {}, 1),
        ("CosineSimilarityLoss", {"form": "regression"}, 1),
        ("OnlineContrastiveLoss", {"form": "margin"}, 16),  # theirs is a sum over the rows
    ):
        theirs = float(getattr(losses, name)(Encoder())(features, labels))
        assert loss(make(**settings), given) * factor == pytest.approx(theirs, rel=1e-5), name


def test_the_loss_of_cut_vectors_is_the_mean_of_sentence_transformers_matryoshka():
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    model, tasks, examples = make_pairs()
    batch = examples.batch([row for row in range(ROWS) if row % 9 not in (0, 4)])
    outputs = model.eval()(batch)

    class Encoder(torch.nn.Module):
        """Returns the embeddings that it is given."""

        def get_embedding_dimension(self):
            return model.dim

        def forward(self, features):
            return {"sentence_embedding": features["x"]}

    encoder = Encoder()
    features = [{"x": outputs.sides[name].mean().detach()} for name in ("query", "document")]
    labels, dims = batch.targets["k"].values, [model.dim, 5, 2]
    theirs = losses.MatryoshkaLoss(encoder, losses.CoSENTLoss(encoder), dims)(features, labels)
    objective = SimilarityObjective(model, tasks, dims=[2, 5])
    ours = objective(model, batch, outputs)["similarity"]
    assert float(ours.detach()) == pytest.approx(float(theirs) / 3, rel=1e-5)
    assert float(SimilarityObjective(model, tasks)(model, batch, outputs)["similarity"].detach()) != pytest.approx(
        float(ours.detach()), rel=1e-3
    )
    ours.backward()
    assert model.sides[0].out.weight.grad.abs().sum() > 0


def test_what_cannot_be_compared_gives_0():
    objective, given = make(), pairs()
    assert loss(objective, given | {"target": torch.ones(14).double()}) == pytest.approx(0)  # no order
    assert loss(objective, given | {"weight": torch.zeros(14).double()}) == 0
    assert loss(objective, {name: values[:0] for name, values in given.items()}) == 0
    labels = pairs(labels=True)
    related = labels["target"] == 1
    hand = float((1 - labels["cosine"][related]).square().mean())
    some = {name: values[related] for name, values in labels.items()}
    assert loss(make(form="margin"), some) == pytest.approx(hand)  # without unrelated pairs all related ones count


def test_rows_without_a_side_or_a_target_have_no_part():
    model, _, examples = make_pairs()
    batch = examples.batch(range(24))
    vectors = make().vectors(batch, model.eval()(batch))
    lacks = {n: n % 9 for n in range(24)}
    expected = [float(lacks[n] not in (0, 4)) for n in range(24)]  # z is the document, k the target
    assert vectors["weight"].tolist() == expected


def _process(rank: int, folder: str, form: str, sizes: list[int], sent) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}", rank=rank, world_size=len(sizes))
    given = pairs(sum(sizes), labels=True)
    start = sum(sizes[:rank])
    own = {name: values[start : start + sizes[rank]].detach() for name, values in given.items()}
    own["cosine"].requires_grad_()
    value = make(form=form).of_vectors(gather_rows(own))["similarity"]
    value.backward()
    sent.put((rank, float(value.detach()), (own["cosine"].grad / len(sizes)).tolist()))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_have_the_gradient_of_one(form, tmp_path):
    context, sizes = multiprocessing.get_context("fork"), [9, 5]
    sent = context.Queue()
    arguments = [(rank, str(tmp_path / "sync"), form, sizes, sent) for rank in range(2)]
    processes = [context.Process(target=_process, args=given) for given in arguments]
    for process in processes:
        process.start()
    found = sorted(sent.get() for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    whole = pairs(sum(sizes), labels=True, grad=True)
    value = make(form=form).of_vectors(whole)["similarity"]
    value.backward()
    assert [one for _, one, _ in found] == pytest.approx([float(value.detach())] * 2)
    # What data parallelism makes of the processes' gradients, the mean, is the gradient of one process.
    assert [x for _, _, own in found for x in own] == pytest.approx(whole["cosine"].grad.tolist(), abs=1e-9)


def test_the_task_has_no_loss_besides():
    model, tasks, examples = make_pairs()
    batch: Batch = examples.batch(range(12))
    assert TaskLosses(tasks)(model, batch, model(batch)) == {}


def test_contrastive_compares_the_sides_beside_a_target():
    model, tasks, examples = make_pairs()
    objective = ContrastiveObjective(model, tasks)
    assert objective.columns == ["query", "document"] and not list(objective.heads.parameters())
    batch = examples.batch(range(12))
    assert objective(model, batch, model(batch))["contrastive"] > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"form": "cosine"}, "form is unknown"),
        ({"form": "regression", "temperature": 0.1}, "temperature does not go with form=regression"),
        ({"lowest": 0.5}, "lowest does not go with form=cosent"),
        ({"form": "regression", "lowest": 1}, "lowest is out of range"),
        ({"form": "cosent", "hard": False}, "hard does not go with form=cosent"),
        ({"temperature": 0}, "temperature is out of range"),
    ],
)
def test_settings_that_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        make(**settings)


def test_other_targets_are_refused():
    model, tasks, _ = make_parts()
    with pytest.raises(ConfigError, match="scored pairs"):
        SimilarityObjective(model, tasks)
