"""Fits of users and items: histories, splits, what is left out, answers for known and new users."""

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

import fusetune as ft
from fusetune.config.config import Config
from fusetune.errors import ConfigError, TableError, UserError
from fusetune.fitting.arguments import resolve_arguments
from fusetune.fitting.recommendations import Recommendations
from fusetune.fitting.tables import Tables
from fusetune.training import loop

NUM_USERS, NUM_ITEMS = 60, 40


def ratings(*, time: bool = True) -> pd.DataFrame:
    """Users of two kinds, each with items of their kind, at rising times."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(NUM_USERS):
        own = rng.permutation(NUM_ITEMS // 2)[:9] * 2 + user % 2
        rows += [{"who": f"u{user}", "film": f"f{item}", "rating": int(rng.integers(1, 11))} for item in own]
    table = pd.DataFrame(rows).sample(frac=1, random_state=0).reset_index(drop=True)
    return table.assign(time=np.arange(len(table))) if time else table


def items() -> pd.DataFrame:
    return pd.DataFrame(
        {"film": [f"f{item}" for item in range(NUM_ITEMS)], "side": [float(item % 2) for item in range(NUM_ITEMS)]}
    )


def users() -> pd.DataFrame:
    return pd.DataFrame(
        {"who": [f"u{user}" for user in range(NUM_USERS)], "taste": [user % 2 for user in range(NUM_USERS)]}
    )


def tables_of(train: pd.DataFrame, *, catalogue=None, overrides=(), **given) -> tuple[Tables, Recommendations]:
    """Return the tables of a fit and its documents."""
    config = Config.build({"user": "who", "item": "film"}).with_overrides(list(overrides))
    sources = {"train": train, "val": None, "test": None, "users": None, "catalogue": catalogue, **given}
    settings, sources = resolve_arguments(sources, None, config, None)
    tables = Tables(settings, sources)
    assert isinstance(tables.documents, Recommendations)
    return tables, tables.documents


def fit(folder, **options):
    overrides = ["columns.side=number", "columns.taste=category", "columns.who.dropout=0.4", "report.bootstrap=20"]
    return ft.fit(
        ratings(),
        user="who",
        item="film",
        catalogue=items(),
        users=users(),
        out=folder,
        overrides=[
            *overrides,
            "trainer.lr=0.02",
            "trainer.head_epochs=8",
            "trainer.checkpoint_minutes=0",
            "fusion.dim=16",
            "trainer.trackers=[]",
        ],
        progress=False,
        **options,
    )


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("recommend") / "run")


def test_nothing_of_the_future_is_in_a_history():
    train = ratings()
    tables, documents = tables_of(train)
    keys = documents.interactions.items
    times = {(row.who, row.film): row.time for row in train.itertuples()}
    start = {split: table.cells("time") for split, table in tables.splits.items()}
    last = max(start["train"])
    for row, history in enumerate(tables.splits["train"].cells(documents.history)):
        who, now = tables.splits["train"].cells("who")[row], start["train"][row]
        before = {key for (user, key), time in times.items() if user == who and time < now}
        assert {keys[position] for position in history or []} == before
    for split in ("val", "test"):
        table = tables.splits[split]
        for who, history in zip(table.cells("who"), table.cells(documents.history), strict=True):
            if who is None:  # an item
                assert history is None
                continue
            known = {key for (user, key), time in times.items() if user == who and time <= last}
            assert {keys[position] for position in history or []} == known


def test_splits_follow_time_and_are_told():
    tables, _ = tables_of(ratings())
    times = {
        split: [time for time in table.cells("time") if time is not None] for split, table in tables.splits.items()
    }
    assert max(times["train"]) < min(times["val"]) and max(times["val"]) < min(times["test"])
    assert any("split by time" in note for note in tables.notes)


def test_without_a_time_every_user_has_train_rows():
    tables, documents = tables_of(ratings(time=False))
    assert len(documents.interactions.users) == NUM_USERS
    assert documents.interactions.matrix.nnz == len(tables.splits["train"])
    row = tables.splits["train"].row(0)
    keys = [documents.interactions.items[position] for position in row[documents.history]]
    assert row["film"] not in keys and keys


def test_rows_of_a_history_that_a_split_overlaps_stop_before_it():
    train = ratings()
    late = train[train.time > 400]
    tables, documents = tables_of(train[train.time % 2 == 0], val=train[train.time % 2 == 1], test=late)
    first = train[train.time % 2 == 1].groupby("who").time.min()
    times = {(row.who, row.film): row.time for row in train.itertuples()}
    table = tables.splits["val"]
    for who, history in zip(table.cells("who"), table.cells(documents.history), strict=True):
        for position in history or []:
            assert times[who, documents.interactions.items[position]] < first[who]


def test_rows_that_cannot_be_used_are_rejected_and_counted():
    train = ratings().astype({"time": object})
    train.loc[3, "time"] = "soon"
    train.loc[5, "film"] = "f999"
    train.loc[7, "who"] = None
    tables, _ = tables_of(train, catalogue=items())
    found = {(item.row, item.column) for item in tables.rejected["train"]}
    assert found == {(3, "time"), (5, "film"), (7, "who")}


def test_low_ratings_are_known_but_not_learned():
    train = ratings()
    tables, documents = tables_of(train, overrides=["interactions.min_rating=6"])
    low = sum(rating < 6 for rating in train.rating[: len(train)])
    assert min(tables.splits["train"].cells("rating")) >= 6 and low
    assert documents.interactions.matrix.nnz > len(tables.splits["train"])
    assert documents.interactions.liked.sum() == len(tables.splits["train"])


def test_ratings_may_weigh_rows():
    tables, _ = tables_of(ratings(), overrides=["interactions.weigh=true", "interactions.half_life=none"])
    weight = tables.schema.weight
    assert tables.splits["train"].cells(weight) == tables.splits["train"].cells("rating")


def test_earlier_rows_weigh_less_with_a_half_life():
    rows = ratings()
    tables, _ = tables_of(rows.assign(time=rows.time * 86_400), overrides=["interactions.half_life=10"])
    train = tables.splits["train"]
    weights = dict(zip(train.cells("time"), train.cells(tables.schema.weight), strict=True))
    assert weights[100 * 86_400] == pytest.approx(2 * weights[90 * 86_400])
    assert tables.documents.recent.sum() == pytest.approx(sum(train.cells(tables.schema.weight)))
    assert tables_of(rows, overrides=["interactions.half_life=none"])[0].documents.recent is None
    with pytest.raises(TableError, match="no column of times"):
        tables_of(ratings(time=False), overrides=["interactions.half_life=10"])


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"user": "who"}, "item is not given"),
        ({"user": "who", "item": "who"}, "both user and item"),
        ({"user": "who", "item": "film", "target": "rating"}, "target"),
        ({"user": "who", "item": "film", "query": "rating"}, "query"),
        ({"user": "who", "item": "film", "document": "side"}, "there is none"),
        ({"target": "rating", "users": "users.csv"}, "no users"),
        ({"target": "rating", "interactions": {"history": 3}}, "no users"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, what):
    with pytest.raises(ConfigError, match=what):
        resolve_arguments({"train": ratings(), "val": None, "test": None}, None, Config.build(settings), None)


@pytest.mark.parametrize(
    ("catalogue", "what"),
    [
        (items().rename(columns={"film": "id"}), "no column 'film'"),
        (items().iloc[:0], "row"),
    ],
)
def test_catalogues_that_cannot_be_used_are_refused(catalogue, what):
    with pytest.raises(UserError, match=what):
        tables_of(ratings(), catalogue=catalogue)


def test_a_user_who_is_described_twice_is_refused():
    with pytest.raises(TableError, match="'u0'"):
        tables_of(ratings(), users=pd.concat([users(), users().iloc[:1]]))


def test_a_fit_learns_what_users_like(tuned):
    (task,) = tuned.results.tasks
    by_kind = {system.name: system.metrics["ndcg@10"].value for system in task.systems}
    assert task.metric == "ndcg@10"
    assert by_kind["tuned"] > 1.3 * by_kind["most popular"]


def test_known_items_are_left_out(tuned):
    table = tuned.recommend(user_id="u3", k=NUM_ITEMS).to_pandas()
    user = tuned.bundle.interactions.users.index("u3")
    known = {tuned.bundle.interactions.items[item] for item in tuned.bundle.interactions.seen(np.array([user])).indices}
    assert known and not known & set(table.film)
    assert len(table) == NUM_ITEMS - len(known) and table["rank"].tolist() == list(range(1, len(table) + 1))
    assert known <= set(tuned.recommend(user_id="u3", k=NUM_ITEMS, known=True).to_pandas().film)


def test_new_users_are_known_by_what_they_like_or_are(tuned):
    liked = tuned.recommend(liked=[["f1", "f3", "f5"], ["f0", "f2", "f4"]], k=8).to_pandas()
    odd = liked.film.str[1:].astype(int) % 2
    assert odd[liked.row == 0].mean() > 0.7 and odd[liked.row == 1].mean() < 0.3
    assert not set(liked.film[liked.row == 0]) & {"f1", "f3", "f5"}
    new = tuned.recommend(pd.DataFrame({"taste": [0, 1]}), k=8).to_pandas()
    odd = new.film.str[1:].astype(int) % 2
    assert odd[new.row == 1].mean() > odd[new.row == 0].mean() + 0.4


def test_a_stopped_run_ends_with_the_same_weights(tuned, tmp_path, monkeypatch):
    begun, real = [], loop.update

    def update(*args, **kwargs):
        begun.append(len(begun))
        if len(begun) == 20:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "update", update)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / "run")
    fit(tmp_path / "run", resume=True)
    first, second = (load_file(folder / "model.safetensors") for folder in (tuned.folder, tmp_path / "run"))
    assert first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


def test_a_saved_model_recommends_the_same(tuned):
    again = ft.load(tuned.folder)
    for asked in ({"user_id": ["u1", "u2"]}, {"liked": ["f1", "f3"]}):
        first, second = tuned.recommend(**asked).to_pandas(), again.recommend(**asked).to_pandas()
        assert first.film.tolist() == second.film.tolist()
        np.testing.assert_allclose(first.score, second.score, atol=1e-5)


def test_another_catalogue_is_ranked_by_its_columns(tuned):
    new = pd.DataFrame({"film": ["n0", "n1"], "side": [0.0, 1.0], "title": ["even", "odd"]})
    table = tuned.recommend(liked=["f1", "f3", "f5"], catalogue=new).to_pandas()
    assert table.title.tolist() == ["odd", "even"]


def test_wrong_requests_are_told(tuned):
    with pytest.raises(ConfigError, match="not clear who"):
        tuned.recommend()
    with pytest.raises(ConfigError, match="at least one item"):
        tuned.recommend(user_id="u1", k=0)
    with pytest.raises(TableError, match="no column about users"):
        tuned.recommend(pd.DataFrame({"age": [3]}))
    table = tuned.recommend(liked=["f1", "zzz"], k=3).to_pandas()
    assert len(table) == 3 and "zzz" in table.error[0]
    table = tuned.recommend(user_id=["u1", "stranger"], k=2).to_pandas()
    assert table.error.isna().tolist() == [True, True, False, False] and table.film.notna().all()
    nobody = tuned.recommend(liked=["zzz"]).to_pandas()
    assert nobody.film.isna().all() and "zzz" in nobody.error[0]


def test_new_rows_are_measured_without_what_users_know(tuned):
    known = ratings()
    interactions = tuned.bundle.interactions
    pairs = zip(*interactions.matrix.nonzero(), strict=True)
    train = {(interactions.users[user], interactions.items[item]) for user, item in pairs}
    held_out = known[[(row.who, row.film) not in train for row in known.itertuples()]]
    everything, rest = tuned.evaluate(known, catalogue=items()), tuned.evaluate(held_out, catalogue=items())
    assert everything.metrics() == rest.metrics()
    assert everything.rows_in == len(known) and "repeat a train row" in " ".join(everything.notes)
    assert rest.metrics()["user → item"]["ndcg@10"] > 0.15


def test_new_rows_with_unknown_users_and_items_are_counted(tuned):
    rows = pd.DataFrame({"who": ["u1", "new", "u2", "u3"], "film": ["f0", "f1", "f999", "f1"]})
    found = tuned.evaluate(rows, catalogue=items())
    assert found.rows_in == 4 and found.rows_rejected == 1
