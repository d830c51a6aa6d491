"""Contrastive learning between rows of one label: against the metric-learning library, and what takes no part."""

from __future__ import annotations

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss
from torch.nn import functional as F

from fusetune.errors import ConfigError
from fusetune.objectives.supcon import SupConObjective
from fusetune.objectives.total import build_objectives
from fusetune.tasks.classes.multilabel import MultilabelTask
from fusetune.testing.objectives import ROWS, make_parts


def make(**settings) -> SupConObjective:
    model, tasks, _ = make_parts()
    return SupConObjective(model, tasks, **{"projection": "none", **settings}).double()


def vectors(labels: list, labelled: list | None = None, *, grad: bool = False) -> dict:
    rng = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(len(labels), 5, generator=rng, dtype=torch.float64), dim=1)
    there = [True] * len(labels) if labelled is None else labelled
    weights = torch.tensor(there, dtype=torch.float64)
    return {"vector": rows.requires_grad_(grad), "label": torch.tensor(labels), "weight": weights}


def loss(objective: SupConObjective, given: dict) -> float:
    return float(objective.of_vectors(given)["supcon"].detach())


LABELS = [0, 0, 1, 1, 1, 2, 2, 0]


def test_half_is_half_of_the_metric_learning_librarys():
    given = vectors(LABELS)
    wanted = SupConLoss(temperature=0.1)(given["vector"], given["label"])
    assert loss(make(), given) == pytest.approx(float(wanted) / 2, abs=1e-6)


def test_lambda_weighs_pull_against_push():
    given = vectors(LABELS)
    pull, push = loss(make(lam=1), given), loss(make(lam=0), given)
    assert loss(make(lam=0.8), given) == pytest.approx(0.8 * pull + 0.2 * push, abs=1e-12)
    assert make(lam=0.3).warnings and not make().warnings


def test_unlabelled_rows_take_no_part():
    labelled = [True, True, False, True, True, True, True, False]
    keep = [row for row, there in enumerate(labelled) if there]
    given = vectors(LABELS, labelled)
    cut = {name: value[keep] for name, value in given.items()}
    assert loss(make(), given) == pytest.approx(loss(make(), cut), abs=1e-12)


def test_a_row_that_is_alone_with_its_label_is_a_negative_but_no_anchor():
    given, wanted = vectors([0, 0, 1, 1, 2]), 0.0
    similar = given["vector"] @ given["vector"].T / 0.1
    for i, p in ((0, 1), (1, 0), (2, 3), (3, 2)):
        others = [j for j in range(5) if j != i]
        wanted += float(-similar[i, p] + torch.logsumexp(similar[i, others], 0)) / 4 / 2
    assert loss(make(), given) == pytest.approx(wanted, abs=1e-6)


def test_rows_that_share_a_label_are_positives():
    labels = [[True, True, False], [False, True, False], [False, False, True], [True, False, True]]
    given, wanted = vectors(labels), 0.0
    similar = given["vector"] @ given["vector"].T / 0.1
    positives = {0: [1, 3], 1: [0], 2: [3], 3: [0, 2]}
    for i, chosen in positives.items():
        others = [j for j in range(4) if j != i]
        wanted += float(-similar[i, chosen].mean() + torch.logsumexp(similar[i, others], 0)) / 4 / 2
    assert loss(make(), given) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 1, 2], [4]])
def test_one_label_or_all_different_costs_nothing(labels):
    given = vectors(labels, grad=True)
    found = make().of_vectors(given)["supcon"]
    assert found.item() == 0
    found.backward()
    assert given["vector"].grad.abs().sum() == 0


def test_the_default_target_is_the_only_one_with_labels():
    model, tasks, examples = make_parts()
    objective = SupConObjective(model, tasks, projection="mlp", dim=6)
    assert objective.target == "k"
    batch = examples.batch(range(ROWS))
    found = objective.vectors(batch, model(batch))
    assert found["vector"].shape == (ROWS, 6) and torch.equal(found["weight"] > 0, batch.targets["k"].labelled)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target": "y"}, "'y' has none(.|\n)*tasks.y=multiclass"),
        ({"target": "kk"}, "'kk', which is no target(.|\n)*'k'"),
        ({"lambda": -0.1}, "lambda is out of range"),
        ({"projection": "deep"}, "projection is unknown"),
    ],
)
def test_wrong_settings(settings, said):
    model, tasks, _ = make_parts()
    with pytest.raises(ConfigError, match=said):
        build_objectives(model, tasks, {"supcon": settings})


def test_no_target_with_labels_and_several():
    model, tasks, _ = make_parts()
    with pytest.raises(ConfigError, match="no target has labels"):
        SupConObjective(model, {"y": tasks["y"]})
    with pytest.raises(ConfigError, match="must know whose labels"):
        SupConObjective(model, {**tasks, "m": MultilabelTask("m")})
