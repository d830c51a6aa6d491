"""The shop: what is written is what is stated, and the ceilings are those of the probabilities."""

import csv

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import ndcg_score

from fusetune.errors import ConfigError
from fusetune.samples import wares
from fusetune.samples.choices import mean_figures
from fusetune.samples.shop import COLUMNS, MATCH, column_sets, make_shop

SPLITS = {"train": 0.8, "val": 0.1, "test": 0.1}
SETTINGS = {"missing": 0.2, "label_noise": 0.1, "splits": SPLITS}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return make_shop(400, 3, tmp_path_factory.mktemp("shop"), **SETTINGS)


@pytest.fixture(scope="module")
def large():
    return make_shop(8000, 1, splits=SPLITS)


def rows_of(file):
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def test_files_hold_the_choices_and_the_catalogue(written, tmp_path):
    rows = [row for file in written.tables.values() for row in rows_of(file)]
    assert list(rows[0]) == ["user_id", "item_id", "time"] and len(rows) == 400
    assert [int(row["item_id"][1:]) for row in rows] == written.items.tolist()
    assert np.all(np.diff([int(row["time"]) for row in rows]) > 0)
    items = rows_of(written.catalogue)
    assert list(items[0]) == list(COLUMNS) and len({item["item_id"] for item in items}) == 256
    assert [bool(item["description"]) for item in items] == written.present[:, 1].tolist()
    pictures = {item["picture"] for item in items if item["picture"]}
    assert pictures == {f"pictures/{file.name}" for file in (written.path / "pictures").iterdir()}
    assert 0 < len(pictures) < 256 and all(item["description"] or item["picture"] for item in items)
    again = make_shop(400, 3, tmp_path, **SETTINGS)
    for name in (*pictures, "train.csv", "val.csv", "test.csv", "items.csv", "README.md"):
        assert (again.path / name).read_bytes() == (written.path / name).read_bytes()
    assert f"| {', '.join(COLUMNS)} | {written.ceilings[frozenset(COLUMNS)]:.4f} |" in written.readme()


def test_a_picture_tells_the_colour_and_a_description_the_theme(written):
    for level, item in zip(written.levels, rows_of(written.catalogue), strict=True):
        things, places = wares._THINGS, wares._PLACES
        if item["description"]:
            theme = [any(word in item["description"] for word in (*things[k], *places[k])) for k in range(4)]
            assert np.flatnonzero(theme).tolist() == [level[1]]
        if item["picture"]:
            with Image.open(written.path / item["picture"]) as image:
                centre = np.asarray(image, float)[22:27, 22:27].reshape(-1, 3)
            coloured = centre[np.ptp(centre, axis=1) > 60].mean(0)
            distance = np.linalg.norm(np.asarray(wares._TONES) - coloured, axis=1)
            assert distance.argmin() == level[2]


def test_no_one_chooses_twice_or_a_new_item_too_early(large):
    pairs = large.users * 10_000 + large.items
    assert len(np.unique(pairs)) == len(pairs)
    train = large.items[: large.splits["train"].stop]
    assert not large.new[train].any() and large.new[large.items[len(train) :]].mean() > 0.3
    assert large.new.mean() == pytest.approx(0.3, abs=0.005)


def test_first_choices_are_as_likely_as_documented(large):
    _, first = np.unique(large.users, return_index=True)
    alike = large.tastes[large.users[first]] == large.levels[large.items[first]]
    old = large.levels[~large.new]
    for factor, match in enumerate(MATCH):
        share = (old[:, factor] == large.tastes[:, factor, None]).mean(1)
        taste = match * share / (match * share + 1 - share)
        assert alike[:, factor].mean() == pytest.approx((0.95 * taste + 0.05 * share).mean(), abs=0.06)


def test_figures_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    scores, right = rng.integers(1, 5, (30, 40)).astype(float), rng.random((30, 40)) < 0.1
    right[:, 0] |= ~right.any(1)
    figures = mean_figures(scores, right)
    assert figures["ndcg@10"] == pytest.approx(ndcg_score(right, scores, k=10))  # it averages over ties
    orders = [
        (np.argsort(-(scores + rng.random(scores.shape) / 2), 1)[:, :10], np.arange(30)[:, None]) for _ in range(400)
    ]
    recalls = np.mean([right[rows, top].sum(1) / right.sum(1) for top, rows in orders])
    assert figures["mean_recall@10"] == pytest.approx(recalls, abs=0.01)


def test_ceilings_are_what_the_probabilities_reach(large):
    for chosen, value in large.ceilings.items():
        assert large.best(chosen)["ndcg@10"] == pytest.approx(value, abs=0.025)
    assert list(large.ceilings) == column_sets() and len(large.ceilings) == 7


def test_each_source_has_its_share(large):
    best = large.ceilings
    everything = best[frozenset(COLUMNS)]
    for name in COLUMNS:
        assert best[frozenset(COLUMNS) - {name}] < everything - 0.03, f"{name} adds nothing"
    known, new = (large.best(["item_id"], items=items)["ndcg@10"] for items in ("known", "new"))
    assert known > 0.2 and new < 0.02, "an id tells nothing of a new item"
    assert large.best(COLUMNS[1:], items="new")["ndcg@10"] > 0.1


def test_no_other_order_is_better(large):
    rows = large.splits["test"]
    known, seen = large._before(rows)
    asked, query = np.unique(large.users[rows.start :], return_inverse=True)
    right = np.zeros((len(asked), 256))
    right[query, large.items[rows.start :]] = 1
    weights = np.where(seen[asked], -np.inf, large.weights(COLUMNS, known)[asked])
    best = mean_figures(weights, right)["ndcg@10"]
    assert best == pytest.approx(large.best()["ndcg@10"])
    rng = np.random.default_rng(0)
    for noise in (1, 3):
        assert mean_figures(weights * np.exp(noise * rng.normal(size=weights.shape)), right)["ndcg@10"] < best


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"n": 0}, "n=0"),
        ({"seed": -1}, "seed=-1"),
        ({"missing": 1.0}, "missing"),
        ({"label_noise": 0.6}, "label_noise"),
        ({"splits": {"a": 0.5}}, "splits"),
    ],
)
def test_bad_settings_are_refused(settings, named):
    with pytest.raises(ConfigError, match=named):
        make_shop(**settings)


def test_unknown_names_are_refused(written):
    with pytest.raises(ConfigError, match="did you mean 'picture'"):
        written.best(["pictur"])
    with pytest.raises(ConfigError, match="train, val, test"):
        written.best(split="dev")
    with pytest.raises(ConfigError, match="write"):
        _ = make_shop(1).tables


def test_a_single_table_is_measured_on_its_last_fifth():
    shop = make_shop(1000, 0)
    assert shop._rows(None) == range(800, 1000)
    assert not shop.new[shop.items[:800]].any()
    assert 0 < shop.ceilings[frozenset(COLUMNS)] < 1
