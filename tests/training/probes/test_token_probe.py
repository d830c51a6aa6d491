"""The linear start of token tasks against scikit-learn's logistic regression on the same features and penalty."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from fusetune.tasks.entities.task import EntitiesTask
from fusetune.testing.token_tables import TARGET, TokenCase
from fusetune.training.probes import token_probe
from fusetune.training.probes.probe import SplitRows
from fusetune.training.probes.token_probe import TokenProbe
from fusetune.types import Tokens

DIM = 12


@pytest.fixture(scope="module")
def split():
    """Rows in which one word of thirty is an entity, which a direction of noisy features tells."""
    rng = np.random.default_rng(0)
    records = []
    for row in range(300):
        length = int(rng.integers(6, 14))
        tags = ["B-rare" if rng.random() < 1 / 30 else "O" for _ in range(length)]
        tags[0] = "B-rare" if row == 0 else tags[0]
        records.append({"words": [f"w{int(rng.integers(1, 40))}x{row}" for _ in range(length)], TARGET: tags})
    case = TokenCase(EntitiesTask, records)
    tags = case.encode().values
    column = case.examples.columns["words"]
    values = torch.randn(*tags.shape, DIM, generator=torch.Generator().manual_seed(0))
    values[..., 0] += 2.0 * (tags > 0)
    by_cell = torch.zeros_like(values)
    mask = torch.zeros(tags.shape, dtype=torch.bool)
    by_cell[column.codes], mask[column.codes] = values, torch.from_numpy(case.tokens().real)
    return case, SplitRows(case.examples, {"words": Tokens(by_cell, mask)}, case.rows, case.truth)


@pytest.mark.parametrize("penalty", [1e-3, 1e-5])
def test_the_probe_is_the_best_linear_model_also_where_nearly_all_tags_are_the_same(split, penalty, monkeypatch):
    case, rows = split
    monkeypatch.setattr(token_probe, "PENALTIES", (penalty,))
    probe = TokenProbe.fit(case.task, rows, rows, ["words"])
    inputs = probe._rows(rows).tokens.double().numpy()
    tags = np.concatenate([r[real] for r, real in zip(case.encode().values.numpy(), case.tokens().real, strict=True)])
    inputs, tags = inputs[tags >= 0], tags[tags >= 0]
    # Two weights of opposite sign have half the penalty of their difference, which scikit-learn's binary model has.
    oracle = LogisticRegression(C=2 / (penalty * len(tags)), tol=1e-10, max_iter=5000).fit(inputs, tags)
    expected = oracle.predict_proba(inputs)[:, list(oracle.classes_).index(1)]
    weight, _, bias = probe._parts()
    probabilities = (torch.from_numpy(inputs).float() @ weight + bias).softmax(1)[:, 1].numpy()
    assert expected.max() > 0.5, "the oracle itself finds no entity"
    np.testing.assert_allclose(probabilities, expected, atol=0.01)
    assert abs((probabilities > 0.5).sum() - (expected > 0.5).sum()) <= 2
