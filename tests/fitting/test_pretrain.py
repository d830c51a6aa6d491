"""Self-supervised tuning before the task: what takes part, what it changes, what the report says, and resuming it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file

import fusetune
from fusetune.errors import ConfigError, TableError
from fusetune.fitting import pretrain
from fusetune.training import loop

NUM, LABELLED = 90, 40


@pytest.fixture(scope="module")
def tables(shop, write_csv, tmp_path_factory):
    """Labelled rows, a table of rows without the column of the target, and held-out rows."""
    home = tmp_path_factory.mktemp("pretrain")
    rows = [{name: row[name] for name in ("note", "label")} for row in shop[1]]
    return {
        "labelled": str(write_csv(home / "labelled.csv", rows[:LABELLED])),
        "pool": str(write_csv(home / "pool.csv", [{"note": row["note"]} for row in rows[LABELLED:NUM]])),
        "held": str(write_csv(home / "held.csv", rows[NUM:])),
        "other": str(write_csv(home / "other.csv", [row | {"note": "w1 w39"} for row in rows[NUM:]])),
    }


@pytest.fixture
def fit(tables, quick, tiny, tmp_path):
    def run(*overrides, train=("labelled", "pool"), test="held", out="m", text="bert_with_mask", **options):
        trainer = quick["trainer"] | {"batch_size": 8, "checkpoint_minutes": 0, "patience": None}
        settings = quick | {"text": {"name": tiny(text), "freeze": "all"}, "trainer": trainer}
        settings |= {"pretrain": {"name": "mlm", "epochs": 2, "batch_size": 16, "lr": 1e-3}}
        return fusetune.fit(
            [tables[name] for name in train],
            target="label",
            val=tables["held"],
            test=tables[test],
            config=settings,
            overrides=list(overrides),
            out=tmp_path / out,
            progress=False,
            **options,
        )

    return run


def weights(tuned):
    return load_file(tuned.folder / "model.safetensors")


def same(first, second):
    one, two = weights(first), weights(second)
    return all(np.array_equal(one[name], two[name]) for name in one)


def encoder_same(first, second):
    one, two = weights(first), weights(second)
    return all(np.array_equal(one[name], two[name]) for name in one if name.startswith("encoders."))


def system(tuned, name):
    return next(part for part in tuned.results.tasks[0].systems if part.name == name)


@pytest.mark.parametrize("method", ["mlm", "simcse"])
def test_it_changes_the_encoder_by_all_train_rows_and_says_so(fit, method):
    plain, tuned = fit("pretrain=none", out="plain"), fit(f"pretrain.name={method}")
    used = tuned.results.pretraining
    assert (used.rows, used.unlabelled, used.val_rows) == (NUM, NUM - LABELLED, 30)
    assert used.after.val_loss < used.before.val_loss and used.changed > 0
    assert used.after.step in [step.step for step in used.steps] and "Test rows took no part" in used.said
    assert tuned.results.tables[0].rows_unlabelled == NUM - LABELLED
    assert not encoder_same(tuned, plain) and plain.results.pretraining is None
    assert system(tuned, "frozen probe").metrics == system(plain, "frozen probe").metrics
    assert system(tuned, f"frozen probe, {method}").kind == "before"
    assert tuned.results.tasks[0].first("before").name == "frozen probe"
    report = json.loads((tuned.folder / "report.json").read_text())
    assert report["pretraining"]["steps"][0]["step"] == 0
    page = (tuned.folder / "report.html").read_text()
    assert "before the task was tuned" in page and "as loaded" in page
    (backbone,) = (tuned.folder / "backbones").glob("*/backbone.json")
    assert json.loads(backbone.read_text())["pretrained_on_rows"]
    assert "before the task was tuned" in (tuned.folder / "README.md").read_text()


def test_a_loaded_model_predicts_with_the_changed_encoder(fit, tables):
    tuned = fit()
    first, again = (model.predict(tables["held"]).to_pandas() for model in (tuned, fusetune.load(tuned.folder)))
    numbers = first.select_dtypes("floating").columns
    assert len(numbers) and np.allclose(first[numbers], again[numbers], atol=1e-6)


def test_rows_without_a_target_count_and_test_rows_do_not(fit):
    both, alone, other = fit(), fit(train=["labelled"], out="alone"), fit(test="other", out="other")
    assert not encoder_same(both, alone) and encoder_same(both, other)
    assert alone.results.pretraining.unlabelled == 0
    assert any("train pretrain (mlm), and nothing else" in text for text in both.results.warnings)


def test_two_fits_are_alike_and_a_stopped_one_goes_on(fit, monkeypatch):
    class Killed(BaseException):
        pass

    through = fit(out="through")
    real, number = loop.update, [0]

    def update(*args, **kwargs):
        number[0] += 1
        if number[0] == 8:
            raise Killed
        return real(*args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(loop, "update", update)
        fit(out="parts")
    assert number[0] == 8
    assert same(fit(out="parts", resume=True), through)
    assert same(fit(out="again"), through)


def test_one_that_is_stopped_after_it_does_not_repeat_it(fit, monkeypatch):
    class Killed(BaseException):
        pass

    real, number, last = loop.update, [0], [10**6]

    def update(*args, **kwargs):
        number[0] += 1
        if number[0] == last[0]:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "update", update)
    through = fit("trainer.head_epochs=3", out="through")
    last[0], number[0] = number[0], 0  # the last update of the training on the task
    with pytest.raises(Killed):
        fit("trainer.head_epochs=3", out="parts")
    last[0], number[0] = 10**6, 0
    assert same(fit("trainer.head_epochs=3", out="parts", resume=True), through) and number[0] == 1


def test_models_for_comparison_start_from_the_changed_encoder(fit, shop, monkeypatch):
    """The features that they learn on are those of the encoder that they tune."""
    seen = []
    real = pretrain.ChangedWeights.install

    def install(self, backbone):
        seen.append(self.sha256)
        return real(self, backbone)

    monkeypatch.setattr(pretrain.ChangedWeights, "install", install)
    fit("report.attack={name: fgm}", "text.freeze=none", "trainer.epochs=1")
    assert len(seen) >= 1 and len(set(seen)) == 1 and seen[0]


@pytest.mark.parametrize(
    ("overrides", "options", "error", "words"),
    [
        ([], {"text": "bert"}, ConfigError, "mask token"),
        (["columns.note=category"], {}, ConfigError, "finds no column with text"),
        (["pretrain.columns=[label]"], {}, ConfigError, "pretrain.columns names 'label'"),
        (["pretrain.name=bert"], {}, ConfigError, "mlm"),
        (["pretrain.mask=1.5"], {}, ConfigError, "mask"),
        (["pretrain.freeze=most"], {}, ConfigError, "freeze"),
        (["pretrain.name=contrastive"], {}, ConfigError, "fewer than two columns"),
        (["trainer.shard=true"], {}, ConfigError, "shard"),
    ],
)
def test_what_cannot_be_done_is_refused(fit, overrides, options, error, words):
    with pytest.raises(error, match=words):
        fit(*overrides, **options)


def test_too_few_rows_are_refused(fit, monkeypatch):
    monkeypatch.setattr(pretrain, "MIN_TRAIN", 1000)
    with pytest.raises(TableError, match=r"too few train rows(.|\n)*1000 or more(.|\n)*Came: 90"):
        fit()


def test_an_adapter_alone_is_trained_where_the_encoder_has_one(fit):
    tuned = fit("text.adapter=lora", "pretrain.name=simcse")
    used = tuned.results.pretraining
    total = sum(value.size for value in map(np.asarray, weights(tuned).values()))
    assert 0 < used.changed < total
