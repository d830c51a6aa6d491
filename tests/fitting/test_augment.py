"""Augmentation in batches and fits: train rows alone, and the same draws however rows are batched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusetune import api
from fusetune.config.config import Config
from fusetune.data.augmentation import Augmentation
from fusetune.errors import ConfigError
from fusetune.modalities.base import Augmenter
from fusetune.testing.objectives import make_parts


class Plus(Augmenter):
    """Adds what was drawn."""

    def __call__(self, cell, example, rng, base_dir):
        return example + rng.standard_normal()


def numbers(examples, places, **more) -> dict[int, list[float]]:
    """Per row id, the features of the column x."""
    batch = examples.batch(places, **more)
    (tensor,) = batch.inputs["x"].values()
    return {
        int(row): tensor[cell].tolist() for row, cell in zip(batch.rows, batch.cells["x"], strict=True) if cell >= 0
    }


@pytest.fixture
def examples():
    _, _, found = make_parts()
    return found.given(augmentation=Augmentation({"x": Plus()}))


def test_draws_follow_seed_epoch_row_and_column_alone(examples):
    whole = numbers(examples, range(20), epoch=3)
    parts = numbers(examples, [7, 3, 19], epoch=3) | numbers(examples, [5, 3], epoch=3)
    assert all(whole[row] == values for row, values in parts.items())
    other = numbers(examples, range(20), epoch=4)
    assert all(whole[row] != values for row, values in other.items())
    examples = examples.given(augmentation=Augmentation({"x": Plus()}, seed=1))
    assert all(whole[row] != values for row, values in numbers(examples, range(20), epoch=3).items())
    plain = numbers(examples, range(20))
    examples = examples.given(augmentation=Augmentation())
    assert numbers(examples, range(20), epoch=3) == plain


def test_equal_cells_are_changed_each_by_itself_and_still_known_as_equal(examples):
    swap = type("Swap", (Plus,), {"__call__": lambda self, cell, example, rng, base_dir: example})()
    examples = examples.given(augmentation=Augmentation({"x": Plus(), "c": swap}))
    plain, changed = examples.batch(range(24)), examples.batch(range(24), epoch=0)
    assert torch.equal(plain.codes["c"], changed.codes["c"]) and len(plain.codes["c"].unique()) < 12
    there = changed.cells["c"] >= 0
    assert torch.equal(changed.cells["c"][there], torch.arange(int(there.sum())))
    (one,), (other,) = plain.inputs["c"].values(), changed.inputs["c"].values()
    assert torch.equal(one[plain.cells["c"][there]], other[changed.cells["c"][there]])
    for name in plain.targets:
        assert torch.equal(plain.targets[name].values, changed.targets[name].values)


def test_computed_features_and_absent_columns_stay(examples):
    places = [place for place in range(24) if examples.columns["z"].codes[place] < 0]
    examples = examples.given(augmentation=Augmentation({"x": Plus(), "z": Plus()}))
    assert examples.batch(places, epoch=0).inputs["z"] == {}
    from fusetune.types import Tokens

    column = examples.columns["x"]
    features = Tokens(torch.randn(len(column.cells), 1, 3), torch.ones(len(column.cells), 1, dtype=torch.bool))
    examples = examples.given(features={"x": features})
    assert torch.equal(
        examples.batch([0, 1], epoch=0).inputs["x"]["features"], examples.batch([0, 1]).inputs["x"]["features"]
    )


@pytest.fixture(scope="module")
def tune(tiny, shop_tables, quick, tmp_path_factory):
    def made(augment, train=None, **more):
        settings = quick | {
            "text": tiny("bert"),
            "image": tiny("vit"),
            "audio": {"name": tiny("wav2vec2"), "freeze": "all"},
            "trainer": {"epochs": 1, "head_epochs": 1, "trackers": [], "lr": 0.01, "probe": "columns"}
            | more.pop("trainer", {}),
            "augment": augment,
        }
        tables = {name: str(shop_tables[name]) for name in ("val", "test")}
        out = tmp_path_factory.mktemp("augmented") / "model"
        return api.fit(
            train or str(shop_tables["train"]),
            target="label",
            **tables,
            out=out,
            config=settings | more,
            progress=False,
        )

    return made


EVERYTHING = {
    "text": {"word_dropout": 0.3, "swap": 0.2},
    "image": ["flip", "crop", "color", "trivial", "erasing"],
    "number": {"noise": 0.2, "swap": 0.1},
    "category": "swap",
    "audio": {"gain": 3, "noise": 30},
}


def weights(tuned) -> torch.Tensor:
    return torch.cat([p.detach().flatten().cpu() for p in tuned.bundle.model.parameters()])


def test_a_fit_is_the_same_again_and_another_without(tune, shop_tables):
    one, two, plain = tune(EVERYTHING), tune(EVERYTHING), tune({})
    assert torch.equal(weights(one), weights(two)) and not torch.equal(weights(one), weights(plain))
    # What is measured is not augmented: the system before tuning is the same.
    before = [t.results.tasks[0].main(t.results.tasks[0].first("before")).value for t in (one, plain)]
    assert before[0] == before[1]
    assert one.results.settings["augment.text.word_dropout"] == "0.3"


def test_validation_and_test_rows_are_never_augmented(tune, monkeypatch):
    from fusetune.data.examples import Examples

    seen, real = set(), Examples._augmented

    def noted(self, name, places, epoch):
        seen.add(self.table.source.rsplit("/", 1)[-1])
        return real(self, name, places, epoch)

    monkeypatch.setattr(Examples, "_augmented", noted)
    tune(EVERYTHING)
    assert seen == {"train.csv"}


@pytest.mark.parametrize(
    ("freeze", "epochs", "columns"),
    [("none", 1, {"note", "photo", "price"}), ("all", 1, {"note", "photo", "price"}), ("none", 0, {"price"})],
)
def test_what_is_read_anew(tune, tiny, monkeypatch, freeze, epochs, columns):
    """Texts and pictures once the features are no longer taken as computed, numbers always."""
    from fusetune.data.examples import Examples

    seen, real = set(), Examples._augmented
    monkeypatch.setattr(Examples, "_augmented", lambda self, name, *rest: seen.add(name) or real(self, name, *rest))
    tune(
        {"text": "swap", "image": "flip", "number": "noise"},
        text={"name": tiny("bert"), "freeze": freeze},
        image={"name": tiny("vit"), "freeze": freeze},
        trainer={"epochs": epochs},
    )
    assert seen == columns


def test_a_column_may_be_left_out_or_have_its_own(tune, monkeypatch):
    from fusetune.data.examples import Examples

    seen, real = set(), Examples._augmented
    monkeypatch.setattr(Examples, "_augmented", lambda self, name, *rest: seen.add(name) or real(self, name, *rest))
    tune({"text": "swap", "number": "noise"}, columns={"note": {"augment": "none"}, "plan": {"augment": "swap"}})
    assert seen == {"price", "plan"}


@pytest.mark.parametrize(
    ("augment", "said"),
    [
        ({"video": "flip"}, "no kind 'video'"),
        ({"image": {"flop": 1}}, "augment.image has no setting 'flop'"),
        ({"audio": "spec"}, "this backbone reads samples"),
    ],
)
def test_wrong_settings_stop_the_fit_before_training(tune, augment, said):
    with pytest.raises(ConfigError, match=said):
        tune(augment)


def test_a_kind_that_no_column_has(tmp_path, write_csv, quick):
    rng = np.random.default_rng(0)
    rows = [{"x": round(float(rng.normal()), 2), "c": "pq"[n % 2], "y": "ab"[n % 3 % 2]} for n in range(60)]
    with pytest.raises(ConfigError, match=r"augment\.image finds no column of this kind"):
        api.fit(
            str(write_csv(tmp_path / "t.csv", rows)),
            target="y",
            out=tmp_path / "m",
            config=quick | {"augment": {"image": "flip"}},
            progress=False,
        )


def test_ways_to_write_it():
    for given in ("{image: trivial}", "{image: [trivial]}", "{image: {trivial: true}}"):
        assert Config().with_overrides([f"augment={given}"]).augment == {"image": {"trivial": True}}
    assert Config().with_overrides(["augment={image: none}"]).augment == {"image": {}}
    assert Config().with_overrides(["columns.photo.augment=none"]).columns["photo"].augment == {}
