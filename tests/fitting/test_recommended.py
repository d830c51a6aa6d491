"""The report of a recommendation fit: rules on the same split, known and new users and items apart."""

import numpy as np
import pandas as pd
import pytest

import fusetune as ft

NUM_ITEMS = 30


@pytest.fixture(scope="module")
def tables():
    """Train rows of 24 users and items 0 to 24; test rows also of two new users and of items 25 to 29."""
    rng = np.random.default_rng(0)
    rows = {"train": [], "val": [], "test": []}
    for user in range(26):
        own = rng.permutation(25)
        cuts = {"train": own[:8], "val": own[8:10], "test": [*own[10:12], 25 + user % 5]}
        for split, items in cuts.items():
            if user < 24 or split == "test":
                rows[split] += [(f"u{user}", f"i{item}", rng.choice([2, 5], p=[0.3, 0.7])) for item in items]
    frames = {split: pd.DataFrame(part, columns=["user", "item", "rating"]) for split, part in rows.items()}
    frames["test"]["rating"] = 5
    return frames


@pytest.fixture(scope="module")
def fitted(tables, tmp_path_factory):
    items = pd.DataFrame({"item": [f"i{item}" for item in range(NUM_ITEMS)], "price": np.arange(NUM_ITEMS) * 1.5})
    return ft.fit(
        tables["train"],
        val=tables["val"],
        test=tables["test"],
        catalogue=items,
        config={
            "user": "user",
            "item": "item",
            "interactions": {"min_rating": 4},
            "trainer": {"epochs": 0, "head_epochs": 1, "trackers": []},
            "report": {"bootstrap": 100, "errors": 0},
        },
        out=tmp_path_factory.mktemp("recommended"),
        progress=False,
    )


def test_rules_are_measured_on_the_same_split(fitted, tables):
    (task,) = fitted.results.tasks
    systems = {system.name: system for system in task.systems}
    assert list(systems) == ["random order", "most popular", "item-kNN", "tuned"]
    train, test = tables["train"], tables["test"]
    liked = train[train["rating"] >= 4].groupby("item")["user"].nunique()
    recalls = []
    for user, rows in test.groupby("user"):
        seen, right = set(train[train["user"] == user]["item"]), set(rows["item"])
        counts = np.array([liked.get(f"i{item}", 0) for item in range(NUM_ITEMS)], float)
        counts[[int(item[1:]) for item in seen]] = -1
        least = np.sort(counts)[-10]
        order = [item for item in range(NUM_ITEMS) if counts[item] > least]
        tied = [item for item in range(NUM_ITEMS) if counts[item] == least]
        inside = len(right & {f"i{item}" for item in order})
        recalls.append((inside, inside + min(len(right & {f"i{item}" for item in tied}), 10 - len(order)), len(right)))
    low, high = (np.mean([part[side] / part[2] for part in recalls]) for side in (0, 1))
    assert low <= systems["most popular"].metrics["mean_recall@10"].value <= high


def test_known_and_new_users_and_items_are_shown_apart(fitted):
    (task,) = fitted.results.tasks
    sections = {section.key: section for section in task.sections}
    heads = [head.name for head in sections["known_and_new"].panels[0].heads]
    assert heads == ["system", "known users (24)", "new users (2)", "known items (26)", "new items (26)"]
    assert [row[0] for row in sections["exposure"].panels[0].rows] == [system.name for system in task.systems]
    figures = sections["known_and_new"].figures
    tuned, popular = (task.systems[at].metrics["ndcg@10"].value for at in (3, 1))
    for name, value in (("tuned", tuned), ("most popular", popular)):
        known, new = (figures[f"{name}, {group} users, ndcg@10"] for group in ("known", "new"))
        assert (24 * known + 2 * new) / 26 == pytest.approx(value)


def test_the_report_draws_them(fitted):
    page = (fitted.folder / "report.html").read_text(encoding="utf-8")
    assert "Known and new users and items" in page and "item-kNN" in page
