"""`fusion: stack`: trees beside the network, what they count, what they may know, and their files."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from fusetune import api
from fusetune.data.folds import fold_of
from fusetune.errors import FolderError, MissingExtra
from fusetune.evaluation.decisions import StackUsed
from fusetune.fitting.stack import choose_weight, mean
from fusetune.tasks.classes.classification import BinaryTask, MulticlassTask
from fusetune.tasks.classes.multilabel import MultilabelTask
from fusetune.tasks.regression import RegressionTask
from fusetune.trees.text import check_booster, lightgbm

pytest.importorskip("lightgbm")


@pytest.fixture(scope="module")
def steps(tmp_path_factory, write_csv):
    """`y` is constant on cells of a grid over `a` and `b`, another one for each `c`: what trees say in few splits."""
    rng, rows = np.random.default_rng(2), []
    for place in range(900):
        a, b, c = rng.uniform(0, 4), rng.uniform(0, 6), "pqr"[place % 3]
        level = ([0, 4, 2, 5] if b < 3 else [5, 1, 3, 0])[int(a)] + (c == "r")
        row = {"a": f"{a:.3f}", "b": f"{b:.3f}", "c": c, "y": f"{level + 0.1 * rng.normal():.3f}"}
        row |= {"w": "1" if place % 4 else "0.5", "g": str(place // 2)}
        row["a"] = "" if place % 20 == 0 else row["a"]
        row["many"] = "|".join(name for name, on in (("lo", level < 3), ("odd", level % 2), ("hi", level > 4)) if on)
        row["many"] = row["many"] or "[]"
        rows.append(row | {"kind": ["low", "mid", "high"][level // 3], "stars": str(level // 2), "two": str(level > 2)})
    for place in range(0, 900, 9):
        rows[place]["kind"] = ""
    return write_csv(tmp_path_factory.mktemp("steps") / "train.csv", rows)


TARGETS = ("y", "many", "kind", "stars", "two")


def fit(table, quick, *targets, out=None, val=None, test=None, **more):
    roles = {name: {"role": "ignore"} for name in TARGETS if name not in targets}
    roles |= {"a": "number", "b": "number", "c": "category", "w": {"role": "weight"}, "g": {"role": "group"}}
    settings = quick | {
        "fusion": {"name": "stack", "base": {"name": "concat", "dim": 16}, "rounds": 120},
        "data": {"split": [0.7, 0.15, 0.15]},
        "columns": roles,
        "tasks": {"stars": "ordinal"} if "stars" in targets else {},
    }
    given = {"val": val, "test": test, "out": out}
    return api.fit(str(table), target=list(targets), config=settings | more, progress=False, **given)


@pytest.fixture(scope="module")
def stacked(steps, quick, tmp_path_factory):
    return fit(steps, quick, *TARGETS, out=tmp_path_factory.mktemp("stacked") / "model")


def test_trees_help_every_sort_of_task_where_they_are_right(stacked):
    assert {task.name for task in stacked.results.tasks} == {
        "regression", "multilabel", "multiclass", "ordinal", "binary"
    }  # fmt: skip
    for task in stacked.results.tasks:
        alone = next(one for one in task.systems if one.name == "without trees")
        gained = task.main(task.first("after")).value - task.main(alone).value
        assert task.stack.weight > 0.3 and task.stack.trees > 0, task.target
        assert gained > 0.1, (task.target, gained)
        assert task.stack.together > task.stack.network + 0.1
        assert f"{task.stack.weight:.0%} of the prediction" in task.stack.said


def test_the_folder_predicts_the_same_and_holds_no_pickle(stacked, steps):
    folder = stacked.folder
    loaded = api.load(folder)
    first, second = stacked.predict(str(steps)), loaded.predict(str(steps))
    assert first.table.equals(second.table)
    names = [path.relative_to(folder).as_posix() for path in (folder / "stack").iterdir()]
    assert all(name.endswith((".txt", ".safetensors")) for name in names) and len(names) == 1 + 1 + 3 + 1 + 3 + 1
    assert len({path.stat().st_mode for path in (folder / "stack").iterdir()}) == 1
    content = json.loads((folder / "bundle.json").read_text())
    assert set(names) <= set(content["files"]) and content["fusion"] == {"name": "concat", "dim": 16}
    assert all(not path.read_bytes().startswith(b"\x80") for path in folder.rglob("*") if path.is_file())
    assert loaded.bundle.config.fusion.name == "stack"
    measured = loaded.evaluate(str(steps)).metrics()
    assert measured["y"]["r2"] > 0.8


def test_saved_again_it_is_the_same(stacked, steps, tmp_path):
    again = api.load(api.load(stacked.folder).save(tmp_path / "again"))
    assert again.predict(str(steps)).table.equals(stacked.predict(str(steps)).table)


def test_the_report_says_what_trees_count(stacked):
    page = " ".join((stacked.folder / "report.html").read_text().split())
    card = (stacked.folder / "README.md").read_text()
    said = stacked.results.tasks[0].stack.said
    assert "LightGBM&#39;s trees count" in page and said in card and "without trees" in page
    saved = json.loads((stacked.folder / "report.json").read_text())["tasks"][0]["stack"]
    assert saved["weight"] == stacked.results.tasks[0].stack.weight


def test_rows_that_lack_columns_are_predicted(stacked, tmp_path):
    (tmp_path / "few.csv").write_text("a,b,c\n,,q\n3.2,,\n1,2,never seen\n")
    numbers = stacked.predict(str(tmp_path / "few.csv"))["y"]
    assert np.isfinite(numbers).all() and len(set(numbers)) == 3


def test_rows_without_a_column_that_was_always_there_are_the_network_s_alone(stacked, tmp_path):
    """`a` was missing in every twentieth row, so trees know what to do without it; `b` never was; `c` tells little."""
    (tmp_path / "few.csv").write_text("a,b,c\n,2,q\n3.2,,q\n3.2,2,\n3.2,2,q\n")
    network = api.load(stacked.folder)
    network.bundle.stack = None
    both, alone = (np.asarray(one.predict(str(tmp_path / "few.csv"))["y"]) for one in (stacked, network))
    assert (both == alone).tolist() == [False, True, False, False]
    assert stacked.bundle.stack.blends["y"].needed == ["b"]


def test_an_altered_or_broken_tree_file_is_refused(stacked, tmp_path):
    import shutil

    from fusetune.deploy.bundle import file_hash

    folder = tmp_path / "model"
    shutil.copytree(stacked.folder, folder)
    path = folder / "stack" / "0-0.txt"
    text = path.read_text()
    path.write_text(text.replace("leaf_value=", "leaf_value=9", 1))
    with pytest.raises(FolderError, match="not the file that was saved"):
        api.load(folder)
    path.write_text(text[: len(text) // 2])  # cut short, and its hash made to fit
    content = json.loads((folder / "bundle.json").read_text())
    content["files"]["stack/0-0.txt"] = file_hash(path)
    (folder / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(FolderError, match="cannot be read"):
        api.load(folder)


def test_without_lightgbm_it_is_said_before_anything_is_read(stacked, steps, quick, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    for call in (lambda: fit(steps / "nowhere", quick, "y"), lambda: api.load(stacked.folder)):
        with pytest.raises(MissingExtra, match=r"pip install 'fusetune\[trees\]'"):
            call()


def test_trees_that_do_not_help_are_not_kept(quick, write_csv, tmp_path):
    """A sum of many numbers is a line's business."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(160, 12))
    rows = [{**{f"x{i}": f"{v:.3f}" for i, v in enumerate(r)}, "y": f"{r.sum():.3f}"} for r in x]
    table = write_csv(tmp_path / "line.csv", rows)
    tuned = api.fit(
        str(table),
        target="y",
        out=tmp_path / "model",
        config=quick | {"fusion": {"name": "stack", "base": {"name": "concat", "dim": 8}}},
        progress=False,
    )
    used = tuned.results.tasks[0].stack
    assert used.weight == 0 and "Trees did not help" in used.said and used.network > used.alone
    assert tuned.bundle.stack is None and not (tmp_path / "model" / "stack").exists()
    assert api.load(tmp_path / "model").predict(str(table)).num_errors == 0
    assert not [one for one in tuned.results.tasks[0].systems if one.name == "without trees"]


@pytest.mark.parametrize("adapter", [None, pytest.param("lora", marks=pytest.mark.slow)])
def test_tuned_encoders_are_kept_as_they_were_for_the_trees(adapter, tiny, shop_tables, quick, tmp_path):
    """Trees see the untuned text encoder, also after loading and merging and where the tuned one has moved."""
    settings = quick | {
        "fusion": {"name": "stack", "base": {"name": "auto", "candidates": ["concat", "gated"], "dim": 16}},
        "text": {"name": tiny("bert")} | ({"adapter": adapter} if adapter else {}),
        "columns": {"photo": {"role": "ignore"}, "voice": {"role": "ignore"}},
        "trainer": {"epochs": 1, "head_epochs": 0, "lr": 0.01, "backbone_lr": 0.01, "trackers": [], "patience": None},
    }
    given = {"val": str(shop_tables["val"]), "test": str(shop_tables["test"])}
    with pytest.MonkeyPatch.context() as patch:  # whatever the validation rows say, so that there is a stack to look at
        patch.setattr("fusetune.fitting.stack.choose_weight", lambda *_: StackUsed(0.5, "accuracy"))
        patch.setattr("fusetune.training.callbacks.better", lambda new, old, margin=0.0: True)
        tuned = api.fit(
            str(shop_tables["train"]), target="label", out=tmp_path, config=settings, progress=False, **given
        )
    stack, model = tuned.bundle.stack, tuned.bundle.model
    assert tuned.results.choice.chosen in ("concat", "gated") and tuned.bundle.config.fusion.base.name != "auto"
    assert list(stack.frozen) == [key for key in model.encoders if key in stack.frozen] and stack.frozen
    from fusetune.deploy.tuned import read_examples
    from fusetune.inference.features import fill_features

    examples = read_examples(tuned.bundle, given["test"], targets=False)
    moved, untuned = fill_features(model, examples), stack.features(model, examples)
    assert not np.allclose(moved["note"].values, untuned["note"].values, atol=1e-3)
    assert np.array_equal(moved["price"].values, untuned["price"].values)
    fresh = api.load(tmp_path)
    again = read_examples(fresh.bundle, given["test"], targets=False)
    back = fresh.bundle.stack.features(fresh.bundle.model, again)
    assert np.allclose(back["note"].values, untuned["note"].values, atol=1e-6)
    assert fresh.predict(given["test"]).table.equals(tuned.predict(given["test"]).table)
    if adapter:
        merged = api.load(fresh.merge().save(tmp_path / "merged")).predict(given["test"])
        probabilities = [name for name in merged.table.column_names if name.startswith("label:")]
        assert all(np.allclose(merged[name], tuned.predict(given["test"])[name], atol=1e-5) for name in probabilities)


@pytest.fixture
def seen(monkeypatch):
    """What trees are grown from: `seen(table)` gives the train rows and the places of categories."""
    from fusetune.fitting import stack as growing

    found, grow = [], growing.grow

    def spy(task, train, val, categorical, settings, **more):
        found.append((train, categorical))
        return grow(task, train, val, categorical, settings, **more)

    monkeypatch.setattr(growing, "grow", spy)
    return found


def test_a_row_s_own_target_does_not_reach_what_trees_see_of_it(steps, quick, seen, tmp_path):
    """Another target in one row changes what trees see of rows in other folds, and nothing of it and its own fold."""
    head, *lines = steps.read_text().splitlines()
    at = head.split(",").index("two")
    for name, part in (("val", lines[200:260]), ("test", lines[260:300])):
        (tmp_path / f"{name}.csv").write_text("\n".join([head, *part]))
    for flip in (False, True):
        cells = lines[50].split(",")
        cells[at] = {"True": "False", "False": "True"}[cells[at]] if flip else cells[at]
        rows = [*lines[:50], ",".join(cells), *lines[51:200]]
        (tmp_path / "train.csv").write_text("\n".join([head, *rows]))
        given = {name: str(tmp_path / f"{name}.csv") for name in ("val", "test")}
        fit(tmp_path / "train.csv", quick, "two", **given)
    (before, _), (after, _) = seen
    assert (before.truth != after.truth).sum() == 1 and before.truth[50] != after.truth[50]
    same = (before.matrix == after.matrix) | np.isnan(before.matrix)
    own = fold_of(np.arange(200) // 2, 5, seed=0) == fold_of(np.arange(200) // 2, 5, seed=0)[50]
    assert own.sum() == 40 and same[own].all()
    assert same[:, :3].all() and not same[~own, 3:].any(axis=1).any()


def test_trees_see_numbers_and_categories_as_they_are(steps, quick, seen, tmp_path):
    head, *lines = steps.read_text().splitlines()
    for name, part in (("train", lines[:200]), ("val", lines[200:260]), ("test", lines[260:300])):
        (tmp_path / f"{name}.csv").write_text("\n".join([head, *part]))
    tuned = fit(tmp_path / "train.csv", quick, "y", val=str(tmp_path / "val.csv"), test=str(tmp_path / "test.csv"))
    (train, categorical), cells = seen[0], [line.split(",") for line in lines[:200]]
    assert categorical == [2]
    numbers = [float(row[0]) if row[0] else np.nan for row in cells]
    assert np.array_equal(train.matrix[:, 0], numbers, equal_nan=True) and np.isnan(numbers).sum() == 10
    names = tuned.bundle.modalities["c"].vocabulary
    assert [names[int(place) - 1] for place in train.matrix[:, 2]] == [row[2] for row in cells]
    assert np.array_equal(train.weights, [float(row[head.split(",").index("w")]) for row in cells])


def test_the_weight_is_of_the_smallest_loss_that_costs_no_metric():
    task = BinaryTask("t")
    task.fit(["no", "yes"])
    truth, rows = np.asarray([0, 1] * 200), np.ones(400)

    def sure(p):
        return np.stack([np.where(truth == 0, p, 1 - p), np.where(truth == 1, p, 1 - p)], axis=1)

    assert choose_weight(task, sure(0.6), sure(0.9), truth, rows).weight == 1
    assert choose_weight(task, sure(0.9), sure(0.6), truth, rows).weight == 0
    half = sure(0.9)
    half[:100] = 0.5, 0.5
    other = sure(0.9)
    other[100:200] = 0.5, 0.5
    assert 0.3 < choose_weight(task, half, other, truth, rows).weight < 0.7
    few = slice(80, 120)  # the same gain, but on so few rows it may be chance
    assert choose_weight(task, half[few], other[few], truth[few], rows[few]).weight == 0
    better_loss = sure(0.9)
    better_loss[0] = 0.45, 0.55  # one row is lost where the trees count much
    chosen = choose_weight(task, sure(0.52), better_loss, truth, rows)
    assert 0 < chosen.weight < 0.5 and chosen.together == chosen.network == 1.0
    only = np.asarray([1.0] * 200 + [0.0] * 200)  # rows that do not count
    wrong = np.concatenate([sure(0.9)[:200], sure(0.1)[200:]])
    assert choose_weight(task, sure(0.6), wrong, truth, only).weight == 1


def test_losses_are_those_of_scikit_learn():
    from sklearn.metrics import log_loss, mean_squared_error

    rng = np.random.default_rng(0)
    p, truth, weights = rng.dirichlet(np.ones(4), 50), rng.integers(0, 4, 50), rng.uniform(0.1, 1, 50)
    classes = MulticlassTask("k")
    assert mean(classes.row_losses(p, truth), weights) == pytest.approx(
        log_loss(truth, p, sample_weight=weights, labels=range(4))
    )
    y, z = rng.normal(size=(2, 50))
    numbers = RegressionTask("y")
    assert mean(numbers.row_losses(z, y), weights) == pytest.approx(mean_squared_error(y, z, sample_weight=weights))
    q, many = rng.uniform(0.01, 0.99, (50, 3)), rng.integers(0, 2, (50, 3)).astype(np.int8)
    each = [log_loss(many[:, k], q[:, k], sample_weight=weights, labels=[0, 1]) for k in range(3)]
    assert mean(MultilabelTask("t").row_losses(q, many), weights) == pytest.approx(np.mean(each))


@pytest.fixture(scope="module")
def text():
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(size=300), rng.integers(0, 9, 300)], axis=1)
    y = x[:, 0] + (x[:, 1] % 3)
    data = lightgbm().Dataset(x, y, categorical_feature=[1], params={"verbosity": -1})
    return lightgbm().train({"verbosity": -1, "min_data_per_group": 2}, data, 5).model_to_string()


BREAKS = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "size": lambda text: text.replace("tree_sizes=", "tree_sizes=9"),
    "few leaves": lambda text: text.replace("leaf_value=", "leaf_value=1 ", 1).replace("tree_sizes=", "tree_sizes="),
    "feature": lambda text: swap(text, "split_feature", "7"),
    "child": lambda text: swap(text, "left_child", "0"),
    "far child": lambda text: swap(text, "right_child", "99"),
    "far leaf": lambda text: swap(text, "right_child", "-99"),
    "category": lambda text: text.replace("num_cat=", "num_cat=0", 1),
    "nan": lambda text: swap(text, "leaf_value", "nan"),
    "rounds": lambda text: text.replace("num_tree_per_iteration=1", "num_tree_per_iteration=3"),
}


def swap(text, name, value):
    """The text with the first number of the first list of this name replaced, and the tree's size made to fit."""
    line = next(line for line in text.splitlines() if line.startswith(f"{name}="))
    changed = f"{name}=" + " ".join([value, *line.partition("=")[2].split(" ")[1:]])
    sizes = next(line for line in text.splitlines() if line.startswith("tree_sizes="))
    first, *rest = sizes.partition("=")[2].split(" ")
    text = text.replace(sizes, "tree_sizes=" + " ".join([str(int(first) + len(changed) - len(line)), *rest]))
    return text.replace(line, changed, 1)


@pytest.mark.parametrize("how", BREAKS)
def test_text_that_would_lead_lightgbm_astray_is_refused(text, how):
    check_booster(text, 2)
    with pytest.raises((ValueError, KeyError)):
        check_booster(BREAKS[how](text), 2)
    with pytest.raises(ValueError, match="features"):
        check_booster(text, 3)


def test_a_changed_number_that_fits_is_still_read(text):
    assert swap(text, "leaf_value", "0.125") != text
    check_booster(swap(text, "leaf_value", "0.125"), 2)


def test_a_number_s_scale_is_the_task_s():
    from fusetune.config.fusion import StackConfig
    from fusetune.trees.boost import Rows, grow, tree_scores

    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (400, 1))
    y = np.where(x[:, 0] > 0.5, 1000.0, 10.0) + rng.normal(size=400)
    task = RegressionTask("y", transform="log1p")
    task.fit(list(y))
    rows = Rows(x, y, np.ones(400))
    boosters = grow(task, rows, rows, [], StackConfig(name="stack"), seed=0)
    scores = tree_scores(task, boosters, np.asarray([[0.1], [0.9], [np.nan]]))
    assert scores[0] == pytest.approx(10, rel=0.1) and scores[1] == pytest.approx(1000, rel=0.1)


@pytest.mark.parametrize("goal", [{"objective": "binary"}, {"objective": "multiclass", "num_class": 3}, {}])
@pytest.mark.parametrize("rows", [3, 40, 700])
def test_whatever_lightgbm_writes_is_read(goal, rows):
    """Few rows, one class only, features that never vary, infinite thresholds, many categories."""
    many = goal.get("num_class", 1)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(rows, 6)) * 10.0 ** rng.integers(-30, 30)
        x[:, 1], x[:, 2], x[:, 5] = rng.integers(0, 200, rows), 3.0, np.where(rng.random(rows) < 0.5, 1.0, np.nan)
        x[rng.random(x.shape) < 0.2] = np.nan
        y = (x[:, 1] % max(many, 2)) * (seed != 3)
        y = np.nan_to_num(y) if goal else np.nan_to_num(x[:, 0])
        options = {"verbosity": -1, "min_data_per_group": 2, "min_data_in_leaf": 2, "deterministic": True} | goal
        data = lightgbm().Dataset(x, y, categorical_feature=[1], params={"verbosity": -1})
        text = lightgbm().train(options, data, 12).model_to_string()
        check_booster(text, 6, many)
        check_booster(lightgbm().Booster(model_str=text).model_to_string(), 6, many)
