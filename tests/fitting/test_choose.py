"""`fusion: auto`: which fusion is chosen, on what evidence, within what time, and what is kept of it."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import yaml

from fusetune import api
from fusetune.config.config import Config
from fusetune.errors import ConfigError
from fusetune.evaluation.decisions import FusionTried
from fusetune.fitting import choose as choosing
from fusetune.fitting.fit import run_fit
from fusetune.fitting.prepared import RunSettings
from fusetune.fitting.run_folder import RunFolder

HEAD = {"epochs": 0, "head_epochs": 20, "lr": 0.02, "trackers": []}


@pytest.fixture(scope="module")
def table(tmp_path_factory, write_csv):
    """`odd` is whether just one of `a` and `b` is on; `sum` whether both together are enough."""
    rng, rows = np.random.default_rng(1), []
    for _ in range(400):
        a, b, z = rng.choice(["on", "off"]), rng.choice(["yes", "no"]), rng.normal()
        odd = (a == "on") != (b == "yes")
        both = (a == "on") + (b == "yes") + 0.2 * z > 0.8
        rows.append({"a": a, "b": b, "z": round(z, 2), "odd": "odd" if odd else "even", "sum": "hi" if both else "lo"})
    return write_csv(tmp_path_factory.mktemp("choose") / "train.csv", rows)


def settings(quick, target, **fusion):
    other = {"odd": "sum", "sum": "odd"}[target]
    return quick | {
        "fusion": {"name": "auto", "dim": 16} | fusion,
        "trainer": HEAD,
        "data": {"split": [0.6, 0.2, 0.2]},
        "columns": {other: {"role": "ignore"}, "a": "category", "b": "category", "z": "number"},
    }


def fit(table, quick, target, out=None, **fusion):
    return api.fit(str(table), target=target, out=out, config=settings(quick, target, **fusion), progress=False)


@pytest.fixture(scope="module")
def chosen(table, quick, tmp_path_factory):
    out = tmp_path_factory.mktemp("chosen") / "model"
    return fit(table, quick, "odd", out=out, candidates=["mean", "concat"])


def test_what_only_products_of_columns_tell_needs_more_than_a_sum(chosen):
    choice = chosen.results.choice
    scores = {one.name: one.score for one in choice.candidates}
    assert choice.chosen == "concat" and not choice.cut
    assert scores["concat"] > 0.95 > 0.75 > scores["mean"]
    assert "concat was chosen: it has the best validation accuracy" in choice.said


def test_where_a_sum_tells_all_the_simpler_one_is_taken(table, quick):
    choice = fit(table, quick, "sum", candidates=["concat", "mean"]).results.choice
    assert choice.chosen == "mean"
    assert abs(choice.candidates[0].score - choice.candidates[1].score) <= choice.margin


def test_the_model_is_the_one_that_the_name_gives(chosen, table, quick, tmp_path):
    """Trying others leaves no trace: same weights drawn, same updates."""
    named = fit(table, quick, "odd", out=tmp_path / "named", name="concat")
    assert named.results.choice is None
    task, other = chosen.results.tasks[0], named.results.tasks[0]
    assert task.main(task.first("after")).value == other.main(other.first("after")).value
    same = zip(chosen.bundle.model.state_dict().items(), named.bundle.model.state_dict().items(), strict=True)
    assert all(name == name2 and one.equal(two) for (name, one), (name2, two) in same)


def test_the_folder_knows_the_fusion_and_nothing_of_the_choice(chosen, table):
    content = json.loads((chosen.folder / "bundle.json").read_text())
    assert content["fusion"] == {"name": "concat", "dim": 16}
    assert yaml.safe_load((chosen.folder / "config.yaml").read_text())["fusion"] == {"name": "concat", "dim": 16}
    loaded = api.load(chosen.folder)
    assert loaded.predict(str(table)).table.equals(chosen.predict(str(table)).table)
    assert loaded.results.choice.chosen == "concat"


def test_the_table_is_in_every_report(chosen):
    from rich.console import Console

    from fusetune.evaluation.report.write import terminal_table

    console = Console(width=140, record=True, file=io.StringIO())
    console.print(terminal_table(chosen.results))
    pages = {
        "terminal": console.export_text(),
        "html": (chosen.folder / "report.html").read_text(),
        "card": (chosen.folder / "README.md").read_text(),
    }
    for place, page in pages.items():
        words = " ".join(page.split())
        assert chosen.results.choice.said.split(";")[0] in words, place
        for name, score, seconds, _ in chosen.results.choice.rows():
            assert name in page and score in page and seconds in page, place
    saved = json.loads((chosen.folder / "report.json").read_text())["choice"]
    assert [one["name"] for one in saved["candidates"]] == ["mean", "concat"]
    assert "choose the fusion" in [phase.name for phase in chosen.results.phases]


class Clock:
    """A clock that each trained candidate moves on by 40 seconds."""

    def __init__(self, monkeypatch):
        self.now, train = 0.0, choosing._score

        def slow(fit, model):
            self.now += 40
            return train(fit, model)

        monkeypatch.setattr(choosing, "_score", slow)

    def __call__(self):
        return self.now


def started(table, quick, tmp_path, **fusion):
    """A fit up to where the fusion is chosen."""
    config = Config.build(settings(quick, "odd", **fusion) | {"target": "odd"})
    place = RunFolder(tmp_path, config)
    place.__enter__()
    asked = RunSettings(config, {"train": str(table), "val": None, "test": None}, place, progress=False)
    reached = []

    class Reached(Exception):
        pass

    def here(fit):
        reached.append(fit)
        raise Reached

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Reached):
        patch.setattr("fusetune.fitting.understand.choose_fusion", here)
        run_fit(asked)
    return reached[0]


@pytest.mark.parametrize(("minutes", "tried"), [(0.01, 1), (4 / 3, 2), (10, 3)])
def test_no_candidate_is_begun_once_the_budget_is_spent(table, quick, tmp_path, monkeypatch, minutes, tried):
    names = ["mean", "gated", "concat"]
    run = started(table, quick, tmp_path, candidates=names, minutes=minutes)
    choice, fusion = choosing.choose_fusion(run, clock=Clock(monkeypatch))
    assert [one.tried for one in choice.candidates] == [place < tried for place in range(3)]
    assert [one.seconds for one in choice.candidates if one.tried] == [40.0] * tried
    assert fusion.name == choice.chosen in names[:tried]
    assert choice.cut == (tried < 3) == ("was spent before" in choice.said)
    assert all(row[3].startswith("not tried") for row in choice.rows()[tried:])


def test_the_same_seed_gives_the_same_scores(table, quick, tmp_path):
    runs = [started(table, quick, tmp_path / name, candidates=names) for name, names in
            (("one", ["mean", "gated"]), ("two", ["gated", "mean"]))]  # fmt: skip
    first, second = ({c.name: c.score for c in choosing.choose_fusion(run)[0].candidates} for run in runs)
    assert first == second


def pick(*scores, margin=0.05):
    tried = [FusionTried(name, size, score, 1.0, True) for name, size, score in scores]
    return choosing.choose(tried, "validation accuracy", margin=margin, minutes=5)


def test_ties_and_what_may_be_chance_go_to_the_default_then_to_the_smaller():
    assert pick(("concat", 10, 0.8), ("attention", 500, 0.8)).chosen == "attention"
    within = pick(("concat", 10, 0.84), ("attention", 500, 0.8))
    assert within.chosen == "attention" and "no worse than the best, concat with 0.840" in within.said
    beyond = pick(("concat", 10, 0.86), ("attention", 500, 0.8))
    assert beyond.chosen == "concat" and "the default, attention, reaches 0.800" in beyond.said
    assert pick(("gated", 90, 0.84), ("concat", 10, 0.8), ("attention", 500, 0.7)).chosen == "concat"
    assert pick(("gated", 90, 0.86), ("concat", 10, 0.8), ("attention", 500, 0.7)).chosen == "gated"


def test_without_a_score_the_first_is_taken():
    nothing = pick(("gated", 90, float("nan")), ("concat", 10, float("nan")))
    assert nothing.chosen == "gated" and "no validation row" in nothing.said
    assert pick(("gated", 90, float("nan")), ("concat", 10, 0.1)).chosen == "concat"


def test_candidates_suit_the_number_of_columns_and_get_the_options_they_take():
    auto = Config.build({"fusion": {"name": "auto", "dim": 16, "num_latents": 3, "dropout": 0.2}}).fusion
    two = choosing.candidates_of(auto, 2)
    assert next(iter(two)) == "attention" and "cross_attention" in two
    assert two["bottleneck"].options == {"dim": 16, "num_latents": 3, "dropout": 0.2}
    assert two["attention"].options == {"dim": 16, "dropout": 0.2}
    one, many = (choosing.candidates_of(Config.build({"fusion": "auto"}).fusion, number) for number in (1, 30))
    assert not {"film", "cross_attention", "low_rank"} & set(one) and "low_rank" not in many


def test_wrong_settings_are_refused_before_anything_is_trained(table, quick, monkeypatch):
    for wrong, said in (
        ({"candidates": ["gatd"]}, "did you mean 'gated'"),
        ({"minutes": 0}, "fusion.minutes: Input should be greater than 0"),
        ({"minutes": "soon"}, "fusion.minutes"),
    ):
        with pytest.raises(ConfigError, match=said):
            Config.build({"fusion": {"name": "auto"} | wrong})
    monkeypatch.setattr(choosing, "_score", lambda *_: pytest.fail("it trained"))
    with pytest.raises(ConfigError, match="no setting 'candidate'"):
        fit(table, quick, "odd", candidate="gated")
    with pytest.raises(ConfigError, match="cannot be split among its heads"):
        fit(table, quick, "odd", candidates=["concat", "attention"], num_heads=3)


def test_encoders_are_left_as_they_were(tiny, shop_tables, quick, tmp_path):
    """Those trained from scratch learn anew for each candidate and for the fit; pretrained ones stay as they came."""
    given = {"val": str(shop_tables["val"]), "test": str(shop_tables["test"])}
    more = {"text": tiny("bert"), "trainer": quick["trainer"] | {"epochs": 0.5}, "columns": {"voice": "category"}}
    models = []
    for fusion in ({"name": "auto", "candidates": ["gated", "concat"]}, {"name": "gated"}, {"name": "concat"}):
        config = quick | more | {"fusion": fusion | {"dim": 16}}
        models.append(api.fit(str(shop_tables["train"]), target="label", config=config, progress=False, **given))
    auto, *named = models
    same = named[0] if auto.results.choice.chosen == "gated" else named[1]
    assert any(not one.pretrained for one in auto.results.backbones)
    weights = same.bundle.model.state_dict()
    assert all(value.equal(weights[name]) for name, value in auto.bundle.model.state_dict().items())
