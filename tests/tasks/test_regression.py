import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import PowerTransformer
from torch.nn import functional as F

from fusetune.errors import BadCell, ConfigError, TableError
from fusetune.tasks.regression import RegressionTask
from fusetune.tasks.transforms import TRANSFORMS, Transform, inverse_yeo_johnson, yeo_johnson

PRICES = ["1.5", "2", "-3e0", "10", " 4 "]


def fitted(values=PRICES, **options):
    task = RegressionTask("price", **options)
    task.fit(values)
    return task


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("mse", F.mse_loss),
        ("huber", lambda a, b: F.huber_loss(a, b, delta=0.5)),
        ("mae", F.l1_loss),
    ],
)
def test_the_loss_is_torchs_on_the_learned_scale(loss, expected):
    task = fitted(loss=loss, delta=0.5)
    logits, target = torch.randn(5), task.encode(PRICES)
    assert torch.allclose(task.loss(logits, target, torch.ones(5)), expected(logits, target.values))
    assert target.values.mean().item() == pytest.approx(0, abs=1e-6)
    assert target.values.std(correction=0).item() == pytest.approx(1)


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name != "quantile"])
@settings(deadline=None)
@given(values=st.lists(st.floats(0, 1e6), min_size=3, unique=True))
def test_every_scale_leads_back(name, values):
    numbers = np.asarray(values)
    transform = Transform(name)
    transform.fit(numbers, "price")
    spread = float(np.ptp(numbers))
    # float64 resolves the learned scale to about 1e-16 of its own range, which a steep curve widens
    assert np.allclose(transform.inverse(transform.forward(numbers)), numbers, rtol=1e-6, atol=1e-6 * spread + 1e-9)


def test_quantiles_lead_back_and_are_normal():
    numbers = np.random.default_rng(0).exponential(size=5000) ** 3
    transform = Transform("quantile")
    transform.fit(numbers, "price")
    learned = transform.forward(numbers)
    assert abs(((learned - learned.mean()) ** 3).mean()) < 0.05  # no skew is left
    inside = (numbers > np.quantile(numbers, 0.002)) & (numbers < np.quantile(numbers, 0.998))
    assert np.allclose(transform.inverse(learned)[inside], numbers[inside], rtol=1e-3)
    ties = Transform("quantile")
    ties.fit(np.array([0.0] * 50 + [1.0, 2.0, 3.0]), "price")
    assert ties.inverse(ties.forward(np.array([0.0, 2.0]))) == pytest.approx([0.0, 2.0], abs=1e-6)


@pytest.mark.parametrize("power", [-1.5, 0.0, 0.7, 2.0, 3.1])
def test_yeo_johnson_is_scikit_learns(power):
    numbers = np.linspace(-3, 4, 29)
    oracle = PowerTransformer(standardize=False).fit(numbers[:, None])
    oracle.lambdas_ = np.array([power])
    assert np.allclose(yeo_johnson(numbers, power), oracle.transform(numbers[:, None])[:, 0])
    assert np.allclose(inverse_yeo_johnson(yeo_johnson(numbers, power), power), numbers)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_wild_predictions_stay_finite_and_curved_scales_near_the_range(name):
    numbers = np.random.default_rng(0).lognormal(sigma=2, size=300)
    transform = Transform(name)
    transform.fit(numbers, "price")
    back = transform.inverse(np.array([-1e6, -10, 0, 10, 1e6]))
    assert np.isfinite(back).all() and (np.diff(back) >= 0).all()
    if transform.name not in ("none", "standard"):
        room = np.ptp(numbers) * 0.1001
        assert back[0] >= numbers.min() - room and back[-1] <= numbers.max() + room


def test_auto_looks_at_the_skew():
    rng = np.random.default_rng(0)
    for numbers, expected in (
        (rng.lognormal(sigma=2, size=500), "log1p"),
        (rng.normal(size=500), "standard"),
        (-rng.lognormal(sigma=2, size=500), "standard"),
    ):
        transform = Transform("auto")
        transform.fit(numbers, "price")
        assert transform.name == expected


def test_clip_keeps_the_observed_range():
    task = fitted(clip=True)
    assert task.answers(torch.tensor([-100.0, 100.0])).tolist() == [-3.0, 10.0]
    assert task.from_state("price", task.state()).clip


@pytest.mark.parametrize("cell", ["2007–2019", "1,234", "12 %", "nan", "inf", "$5", "", "abc", "1e999"])
def test_cells_that_are_not_numbers_are_refused(cell):
    with pytest.raises(BadCell, match="row 4, column 'price'"):
        fitted().check(cell, row=4)


def test_fit_leaves_unreadable_cells_to_check():
    assert fitted([*PRICES, "n/a"]).state() == fitted().state()


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (["", None], {}, "no train row has a value"),
        (["a", "b"], {}, "no train row has a number"),
        (["3", "3.0"], {}, "same number everywhere"),
        (["-2", "5"], {"transform": "log1p"}, "log1p does not take"),
    ],
)
def test_nothing_to_learn_is_refused(values, options, message):
    with pytest.raises(TableError, match=message):
        fitted(values, **options)


@pytest.mark.parametrize("options", [{"transform": "log"}, {"loss": "l3"}, {"delta": 0.0}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ConfigError):
        RegressionTask("price", **options)


def test_output_and_baseline():
    task = fitted()
    assert task.columns(np.array([1.5, 2])) == {"price": [1.5, 2.0]}
    assert task.constant(np.array([1.0, 3.0]), 2).tolist() == [2.0, 2.0]
