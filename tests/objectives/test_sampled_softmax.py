"""The sampled softmax is the one of its formula: corrected for popularity, without known items among the negatives."""

import numpy as np
import pytest
import torch

from fusetune.objectives.sampled_softmax import (
    ANSWER,
    ANSWER_CODE,
    QUERY,
    QUERY_CODE,
    WEIGHT,
    SampledSoftmaxObjective,
)
from fusetune.testing.objectives import make_parts

USERS, ITEMS = torch.tensor([0, 1, 2, 0, 3]), torch.tensor([5, 6, 5, 7, 6])


@pytest.fixture
def objective():
    model, tasks, examples = make_parts()
    objective = SampledSoftmaxObjective(model, tasks, temperature=0.5)
    first, second = (examples.columns[objective.parts[side][0]] for side in objective.sides)
    objective.parts = {side: objective.parts[side][:1] for side in objective.sides}
    rows = examples.used[:5]
    users, items = (np.full(len(examples.rows), -1) for _ in range(2))
    users[rows], items[rows] = USERS.numpy(), ITEMS.numpy()
    keys = {first.modality.column: users, second.modality.column: items}
    objective.fit(examples.given(keys=keys))
    return objective


def vectors():
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(2, 5, 4, dtype=torch.float64), dim=2).float()
    return {QUERY: unit[0], ANSWER: unit[1], QUERY_CODE: USERS, ANSWER_CODE: ITEMS, WEIGHT: torch.ones(5)}


def test_the_loss_is_that_of_the_formula(objective):
    given = vectors()
    shares = {5: 2 / 5, 6: 2 / 5, 7: 1 / 5}
    bought = set(zip(USERS.tolist(), ITEMS.tolist(), strict=True))
    losses = []
    for row in range(5):
        logits = 2 * given[ANSWER] @ given[QUERY][row] - torch.tensor([shares[int(item)] for item in ITEMS]).log()
        allowed = [other for other in range(5) if other == row or (int(USERS[row]), int(ITEMS[other])) not in bought]
        losses.append(logits[allowed].logsumexp(0) - logits[row])
    expected = float(torch.stack(losses).mean())
    assert float(objective.of_vectors(given)[objective.name].detach()) == pytest.approx(expected, rel=1e-5)


def test_without_the_correction_shares_count_for_nothing(objective):
    plain = vectors()
    objective.correct = False
    objective.pairs = objective.pairs[:0]
    logits = 2 * plain[QUERY] @ plain[ANSWER].T
    same = ITEMS[:, None] == ITEMS[None, :]
    same.fill_diagonal_(False)
    expected = torch.nn.functional.cross_entropy(logits.masked_fill(same, -torch.inf), torch.arange(5))
    assert float(objective.of_vectors(plain)[objective.name].detach()) == pytest.approx(float(expected), rel=1e-5)


def test_rows_of_no_weight_are_no_negatives(objective):
    given, weights = vectors(), torch.tensor([1.0, 1, 0, 1, 1])
    part = {name: values[weights > 0] for name, values in given.items()}
    found = objective.of_vectors(given | {WEIGHT: weights})[objective.name]
    again = objective.of_vectors(part)[objective.name]
    assert float(found.detach()) == pytest.approx(float(again.detach()), rel=1e-6)
