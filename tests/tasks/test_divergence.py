import pytest
import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence

from fusetune.tasks.divergence import (
    bernoulli_divergence,
    positions_divergence,
    softmax_divergence,
    squared_difference,
)


@pytest.fixture
def pair():
    made = torch.Generator().manual_seed(0)
    return [3 * torch.randn(20, 5, generator=made, dtype=torch.float64) for _ in range(2)]


def test_softmax_divergence_is_the_kl_of_categorical_distributions(pair):
    one, two = pair
    wanted = kl_divergence(Categorical(logits=one), Categorical(logits=two))
    assert torch.allclose(softmax_divergence(one, two), wanted, rtol=1e-12)
    assert not torch.allclose(softmax_divergence(two, one), wanted)


def test_bernoulli_divergence_is_the_mean_kl_of_bernoulli_distributions(pair):
    one, two = pair
    wanted = kl_divergence(Bernoulli(logits=one), Bernoulli(logits=two)).mean(1)
    assert torch.allclose(bernoulli_divergence(one, two), wanted, rtol=1e-12)


def test_two_classes_diverge_alike_as_logits_of_either_form(pair):
    one, two = (logits[:, :1] for logits in pair)
    classes = [torch.cat([torch.zeros_like(logits), logits], 1) for logits in (one, two)]
    assert torch.allclose(bernoulli_divergence(one, two), softmax_divergence(*classes), rtol=1e-12)


def test_squared_difference():
    assert squared_difference(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])).tolist() == [4.0, 0.0]


def test_positions_divergence_is_the_kl_of_distributions_over_a_rows_own_tokens():
    made = torch.Generator().manual_seed(0)
    one, two = (torch.randn(3, 4, 2, generator=made, dtype=torch.float64) for _ in range(2))
    lengths = [4, 2, 0]
    real = torch.arange(4) < torch.tensor(lengths).unsqueeze(1)
    wanted = [
        float(kl_divergence(Categorical(logits=one[row, :num].T), Categorical(logits=two[row, :num].T)).mean())
        if num
        else 0
        for row, num in enumerate(lengths)
    ]
    assert positions_divergence(one, two, real).tolist() == pytest.approx(wanted, rel=1e-12)
