import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fusetune.errors import BadCell, ConfigError, TableError
from fusetune.tasks.classes.ordinal import CumulativeHead, OrdinalTask, level_probabilities

LEVELS = ["1", "10", "2", "2.5", "1", "10"]


def fitted(values=LEVELS, **options):
    task = OrdinalTask("level", **options)
    task.fit(values)
    return task


def test_levels_are_ordered_by_value_or_as_given():
    assert fitted().labels == ["1", "2", "2.5", "10"]
    task = fitted(["low", "high", "low"], order=["low", "mid", "high"])
    assert task.labels == ["low", "mid", "high"] and task.truth(["high", "mid"]).tolist() == [2, 1]
    with pytest.raises(BadCell):
        task.check("huge", row=0)


def test_words_need_an_order():
    with pytest.raises(ConfigError, match=r"from lowest to highest: tasks\.\S+\.order="):
        fitted(["low", "high"])
    with pytest.raises(ConfigError, match="each once"):
        OrdinalTask("level", order=["a", "a"])
    with pytest.raises(TableError, match="fewer than two"):
        fitted(["low", "other"], order=["low", "high"])
    with pytest.raises(TableError, match="one class only"):
        fitted(["low", "low"], order=["low", "high"])


def test_the_loss_is_corals():
    """Cao et al. 2020, equation 3: Σ_k BCE(σ(logit_k), 1[y > k]), here as the mean over k."""
    task, logits = fitted(), torch.randn(6, 3)
    target = task.encode(LEVELS)
    above = torch.tensor([[int(level > k) for k in range(3)] for level in target.values]).float()
    p = logits.sigmoid()
    expected = -(above * p.log() + (1 - above) * (1 - p).log()).sum(1).mean() / 3
    assert torch.allclose(task.loss(logits, target, torch.ones(6)), expected)


def test_probabilities_are_consistent_whatever_the_parameters():
    torch.manual_seed(0)
    head = CumulativeHead(4, torch.tensor([0.8, 0.5, 0.1]))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn_like(parameter) * 5)
    logits = head(torch.randn(50, 4))
    assert (logits.diff(dim=1) <= 0).all()
    scores = fitted().answers(logits)
    assert (scores >= 0).all() and np.allclose(scores.sum(1), 1)


def test_the_head_starts_at_the_rates():
    head = CumulativeHead(4, torch.tensor([0.8, 0.5, 0.1]))
    assert head(torch.zeros(1, 4)).sigmoid()[0].tolist() == pytest.approx([0.8, 0.5, 0.1], abs=1e-5)
    assert CumulativeHead(4, torch.tensor([0.3]))(torch.zeros(2, 4)).shape == (2, 1)


def test_thresholds_learned_apart_are_put_in_order():
    scores = level_probabilities(np.array([[0.0, 2.0, -1.0]]))
    assert (scores >= 0).all() and scores.sum() == pytest.approx(1) and scores[0, 1] == 0


def test_the_decision_is_the_median_level():
    task = fitted(["1", "2", "3"])
    assert task.decide(np.array([[0.4, 0.2, 0.4], [0.6, 0.0, 0.4], [0.1, 0.1, 0.8]])).tolist() == [1, 0, 2]


def test_metrics_count_distance():
    task = fitted(["1", "2", "3"])
    near, far = np.eye(3)[[1, 1, 2]], np.eye(3)[[2, 1, 2]]
    truth = np.array([0, 1, 2])
    assert task.metrics(near, truth)["mae"] == pytest.approx(1 / 3)
    assert task.metrics(near, truth)["qwk"] > task.metrics(far, truth)["qwk"]
    assert task.metrics(np.eye(3), truth)["qwk"] == 1


def test_training_reaches_the_order():
    torch.manual_seed(0)
    features = torch.randn(300, 3)
    levels = [str(int(v)) for v in (features[:, 0] * 1.5 + 2.5).clamp(0, 4)]
    task = fitted(levels)
    head, target = task.build_head(3), task.encode(levels)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        F.relu(task.loss(head(features), target, torch.ones(300))).backward()
        optimizer.step()
    assert task.metrics(task.answers(head(features)), task.truth(levels))["qwk"] > 0.95
