"""Contrastive tuning across the columns of a row before the task, and pairs whose texts are tuned on beforehand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import fusetune
from fusetune.config.pretrain import PretrainConfig
from fusetune.errors import ConfigError
from fusetune.fitting.pretrain import held_out
from fusetune.objectives.contrastive import ContrastiveObjective
from fusetune.testing.objectives import make_parts

TRAINER = {"epochs": 0, "head_epochs": 1, "trackers": [], "patience": None}


@pytest.fixture(scope="module")
def tables(write_csv, tmp_path_factory):
    """Notes whose first words say the colour of the row's photo; most rows have no label."""
    home, rng, rows = tmp_path_factory.mktemp("columns"), np.random.default_rng(7), []
    for name, colour in (("red", (220, 30, 20)), ("blue", (20, 40, 230))):
        for number in range(30):
            noise = rng.integers(0, 25, (40, 40, 3)) + np.asarray(colour)
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(home / f"{name}{number}.png")
    for place in range(120):
        word, rest = int(rng.integers(0, 6)), " ".join(f"w{number}" for number in rng.integers(6, 40, 2))
        photo = f"{'red' if word < 3 else 'blue'}{place % 30}.png"
        label = "yes" if place % 2 else "no"
        labelled = place < 40 or place >= 90
        rows.append({"note": f"w{word} w{word} {rest}", "photo": photo, "label": label if labelled else ""})
    rows[50]["photo"] = ""
    return {name: str(write_csv(home / f"{name}.csv", part)) for name, part in
            (("train", rows[:90]), ("held", rows[90:]))}  # fmt: skip


@pytest.fixture
def fit(tables, quick, tiny, tmp_path):
    def run(*overrides, out="m", **options):
        settings = quick | {"text": {"name": tiny("bert_with_mask"), "freeze": "all"}, "trainer": TRAINER}
        settings |= {"image": {"name": tiny("vit"), "freeze": "all"}, "data": {"cache": "none"}}
        settings |= {"pretrain": {"name": "contrastive", "epochs": 6, "batch_size": 16, "lr": 3e-3}}
        return fusetune.fit(
            tables["train"],
            val=tables["held"],
            test=tables["held"],
            config=settings,
            overrides=list(overrides),
            out=tmp_path / out,
            progress=False,
            **options,
        )

    return run


def encoders(tuned):
    weights = load_file(tuned.folder / "model.safetensors")
    return {name: value for name, value in weights.items() if name.startswith("encoders.")}


def test_columns_of_a_row_are_brought_together(fit):
    plain, tuned = fit("pretrain=none", target="label", out="plain"), fit(target="label")
    used = tuned.results.pretraining
    assert (used.name, used.columns, used.rows, used.unlabelled) == ("contrastive", ["note", "photo"], 89, 49)
    assert used.after.val_loss < used.before.val_loss and {"alignment", "uniformity", "gap"} <= set(used.after.figures)
    before, after = encoders(plain), encoders(tuned)
    for kind in ("text", "image"):
        names = [name for name in before if name.startswith(f"encoders.{kind}")]
        assert any(not np.array_equal(before[name], after[name]) for name in names), kind
    assert [part.name for part in tuned.results.tasks[0].systems if part.kind == "before"] == [
        "frozen probe",
        "frozen probe, contrastive",
    ]


def test_some_columns_can_be_named_and_one_is_too_few(fit):
    with pytest.raises(ConfigError, match="fewer than two columns"):
        fit("pretrain.columns=[note]", target="label")
    text = fit("pretrain={name: simcse, epochs: 1}", target="label")
    assert text.results.pretraining.columns == ["note"]


def test_a_fit_without_a_target_is_contrastive_itself(fit):
    with pytest.raises(ConfigError, match="a fit of pairs does anyway"):
        fit("objectives=contrastive")


@pytest.mark.parametrize("method", ["mlm", "simcse"])
def test_pairs_are_searched_after_it_and_compared_with_the_encoder_as_loaded(fit, method):
    plain = fit("pretrain=none", "objectives=contrastive", out="plain")
    tuned = fit("objectives=contrastive", f"pretrain.name={method}")
    assert tuned.results.pretraining.rows == 90
    for one, other in zip(plain.results.tasks, tuned.results.tasks, strict=True):
        (frozen,), (same,) = ([s for s in task.systems if s.kind == "before"] for task in (one, other))
        assert frozen.metrics == same.metrics
    before, after = encoders(plain), encoders(tuned)
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_pairs_with_a_target(shop, write_csv, tmp_path, quick, tiny):
    rng = np.random.default_rng(0)
    rows = [{"a": row["note"], "b": shop[1][place - 1]["note"], "alike": f"{rng.uniform():.2f}"}
            for place, row in enumerate(shop[1])]  # fmt: skip
    train, held = write_csv(tmp_path / "t.csv", rows[:80]), write_csv(tmp_path / "h.csv", rows[80:])
    settings = quick | {"text": {"name": tiny("bert_with_mask")}, "trainer": TRAINER, "query": "a", "document": "b"}
    settings |= {"pretrain": {"name": "mlm", "epochs": 1, "batch_size": 16}}
    tuned = fusetune.fit(
        str(train), "alike", val=str(held), test=str(held), config=settings, out=tmp_path / "p", progress=False
    )
    assert tuned.results.pretraining.columns == ["a", "b"]
    assert tuned.results.tasks[0].first("before") is not None


def test_the_loss_on_validation_rows_is_the_same_each_time_and_draws_nothing():
    model, _, examples = make_parts()
    objective = ContrastiveObjective(model, {}, columns=["x", "z"])
    settings = PretrainConfig(name="contrastive", batch_size=5)
    model.train()
    state = torch.get_rng_state()
    first = held_out(model, [objective], examples, settings, seed=3)
    assert held_out(model, [objective], examples, settings, seed=3) == first
    assert torch.equal(torch.get_rng_state(), state) and model.training
    batches = np.array_split(np.random.default_rng(3).permutation(examples.used), round(len(examples) / 5))
    model.eval()
    with torch.no_grad():
        losses = [
            objective(model, batch, model(batch)) for rows in batches for batch in [examples.batch(np.sort(rows))]
        ]
    weights = [float(examples.weights[rows].sum()) for rows in batches]
    want = np.average([float(loss["contrastive"]) for loss in losses], weights=weights)
    assert first[0] == pytest.approx(want, abs=1e-5)
