"""Accuracy under attack: each row by itself, the same change for every model, and nothing follows from it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fusetune import api
from fusetune.config.attack import AttackConfig
from fusetune.config.backbone import BackboneConfig
from fusetune.config.config import Config
from fusetune.config.report import ReportConfig
from fusetune.config.section import NamedConfig
from fusetune.config.trainer import TrainerConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.errors import ConfigError
from fusetune.evaluation.measure.attack import Attack, attack_of, others_encoded, separate_cells, start_model, units_of
from fusetune.evaluation.report.verdict import verdict
from fusetune.evaluation.report.write import render, terminal_table
from fusetune.evaluation.results import AttackUsed, from_json, to_json
from fusetune.inference.features import fill_features
from fusetune.inference.predict import predict_logits
from fusetune.modalities.category import CategoryModality
from fusetune.modalities.image import ImageModality
from fusetune.modalities.number import NumberModality
from fusetune.modalities.text import TextModality
from fusetune.models.build import Backbones, build_model
from fusetune.models.perturb import Ball
from fusetune.tasks.classes.classification import BinaryTask
from fusetune.tasks.regression import RegressionTask
from fusetune.training.probes.probe import Probe, SplitRows


@pytest.fixture
def made(tiny, tmp_path):
    """A text, an image, a number and a category column whose cells repeat, and rows that lack some."""
    from PIL import Image

    rng = np.random.default_rng(2)
    for name in "abc":
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    records = []
    for place in range(60):
        x = round(float(rng.normal()), 1)
        note = " ".join(f"w{n}" for n in range(place % 4 + 1))
        photo = ("a.png", "b.png;c.png", "c.png")[place % 3]
        label = "yes" if x + place % 2 > 0.4 else "no"
        records.append(
            {"note": note, "photo": photo, "x": x, "c": "uv"[place % 2], "label": label, "y": x + rng.normal()}
        )
    records[41] |= {"photo": None, "x": None}
    records[42]["note"] = None
    backbones = Backbones(
        {"text": BackboneConfig(name=tiny("bert")), "image": BackboneConfig(name=tiny("vit"))}
    )  # fmt: skip
    modalities = {
        "note": TextModality("note", backbone=backbones.get("text", None)),
        "photo": ImageModality("photo", backbone=backbones.get("image", None)),
        "x": NumberModality("x", bins=2),
        "c": CategoryModality("c"),
    }
    tasks = {"label": BinaryTask("label"), "y": RegressionTask("y")}
    table = Table.from_records(records, base_dir=tmp_path)
    splits = [Examples(table.select(rows), modalities, tasks) for rows in (range(30), range(30, 40), range(40, 60))]
    for examples in splits:
        examples.prepare(on_bad_cell="mask")
    splits[0].fit()
    torch.manual_seed(0)
    model = build_model(modalities, tasks, NamedConfig(name="concat", dim=8)).eval()
    rows = {
        name: [SplitRows.of(name, examples, fill_features(model, examples)) for examples in splits] for name in tasks
    }
    probes = {name: Probe.fit(tasks[name], *parts[:2], list(modalities)) for name, parts in rows.items()}
    return start_model(model, probes), tasks, rows, probes


ALL = ["note", "photo", "x", "c"]


def losses(task, examples, indices, logits) -> torch.Tensor:
    target = task.encode([examples.targets[task.target][index] for index in indices])
    parts = [
        task.loss(logits[row : row + 1], target.take(torch.tensor([row])), torch.ones(1)) for row in range(len(logits))
    ]
    return torch.stack(parts)


def test_the_start_model_gives_the_probes_scores(made):
    model, tasks, rows, probes = made
    for name, task in tasks.items():
        test = rows[name][2]
        scores = task.answers(predict_logits(model, test.examples, test.indices)[name])
        np.testing.assert_allclose(scores, probes[name].scores(test), atol=1e-5)


def test_separate_cells_change_no_output(made):
    model, _, rows, _ = made
    examples = rows["label"][2].examples
    batch = examples.batch(examples.used)
    own = separate_cells(batch)
    for column, cells in own.cells.items():
        present = batch.cells[column] >= 0
        assert (cells >= 0).equal(present) and len(set(cells[present].tolist())) == int(present.sum())
        assert int(batch.cells[column].max()) + 1 < int(present.sum()), "cells repeat"
    with torch.no_grad():
        one, two = model(batch), model(own)
    for name, logits in one.logits.items():
        torch.testing.assert_close(two.logits[name], logits)
    assert own.inputs["photo"]["owner"].tolist() == sorted(own.inputs["photo"]["owner"].tolist())


@pytest.mark.parametrize("name", ["label", "y"])
@pytest.mark.parametrize(
    "settings", [{"name": "fgm"}, {"name": "pgd", "steps": 4}], ids=lambda settings: settings["name"]
)
def test_an_attack_raises_every_rows_loss_and_leaves_the_model_alone(made, name, settings):
    model, tasks, rows, _ = made
    train, _, test = rows[name]
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attack = Attack(model, train.examples, AttackConfig(epsilon=0.02, columns=ALL, **settings))
    logits = attack.logits(model, name, tasks[name], test.examples, test.indices)
    clean = predict_logits(model, test.examples, test.indices)[name]
    after, first = (losses(tasks[name], test.examples, test.indices, given) for given in (logits, clean))
    unsure = first > 1e-5  # a loss of 0 in float32 may stay 0
    assert (after[unsure] > first[unsure]).all() and unsure.sum() > 5 and (after >= first).all()
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_rows_are_attacked_by_themselves_and_in_their_order(made):
    model, tasks, rows, _ = made
    train, _, test = rows["label"]
    attack = Attack(model, train.examples, AttackConfig(name="pgd", epsilon=0.1, columns=ALL))
    together = attack.logits(model, "label", tasks["label"], test.examples, test.indices)
    chosen = test.indices[::-3]
    alone = [attack.logits(model, "label", tasks["label"], test.examples, np.asarray([row])) for row in chosen]
    torch.testing.assert_close(torch.cat(alone), together[np.arange(len(test.indices))[::-3].copy()])


def test_fgm_by_hand(made):
    model, tasks, rows, _ = made
    train, _, test = rows["label"]
    settings = AttackConfig(name="fgm", epsilon=0.05, columns=["note", "x"])
    attack = Attack(model, train.examples, settings)
    row = test.indices[[3]]
    batch = test.examples.batch(row)
    ball = Ball(model, batch, ["note", "x"], units=attack.units)
    deltas = ball.zeros()
    loss = tasks["label"].loss(model(ball.perturbed(deltas)).logits["label"], batch.targets["label"], torch.ones(1))
    grads = torch.autograd.grad(loss, list(deltas.values()))
    moved = {c: 0.05 * g / g.square().mean().sqrt() for c, g in zip(deltas, grads, strict=True)}
    wanted = model(ball.perturbed(moved)).logits["label"].detach()
    torch.testing.assert_close(attack.logits(model, "label", tasks["label"], test.examples, row), wanted)
    assert attack.used() == AttackUsed("FGM", 0.05, 1, 0.05, ["note", "x"], attack.units)


def test_units_are_those_of_the_model_before_tuning(made):
    model, _, rows, _ = made
    train, _, test = rows["label"]
    units = units_of(model, train.examples, ALL)
    assert units["x"] == units["c"] == 1.0 and 0 < units["note"] < 1 and 0.5 < units["photo"] < 3
    attack = Attack(model, train.examples, AttackConfig(name="fgm", epsilon=0.05))
    assert attack.columns == ["note", "photo"] and attack.units == {c: units[c] for c in attack.columns}
    table = model.encoders[model.routes["note"]].model.get_input_embeddings()
    with torch.no_grad():
        table.weight *= 100.0  # a tuned model with larger embeddings is changed by no more for it
    batch = test.examples.batch(test.indices)
    assert Ball(model, batch, ["note"], units=attack.units).units["note"] == units["note"]
    with pytest.raises(ConfigError, match=r"report.attack.columns names 'notes'"):
        Attack(model, train.examples, AttackConfig(name="fgm", columns=["notes"]))


def test_other_columns_are_encoded_once(made):
    model, _, rows, _ = made
    examples = rows["label"][2].examples
    features = fill_features(model, examples)
    view = others_encoded(model, examples, ["note"])
    assert {name for name, column in view.columns.items() if column.features is not None} == {"photo", "x", "c"}
    torch.testing.assert_close(view.columns["x"].features.values, features["x"].values)
    assert all(column.features is None for column in examples.columns.values())


def test_rows_that_cannot_be_predicted_get_the_constant_guess(made):
    model, tasks, rows, _ = made
    train, _, test = rows["label"]
    test.examples.used = test.examples.used[1:]
    attack = Attack(model, train.examples, AttackConfig(name="fgm", epsilon=0.05))
    found = attack.candidate("tuned", model, "label", tasks["label"], test, train)
    assert found.kind == "attack" and found.name == "tuned, attacked" and found.columns == ["note", "photo"]
    np.testing.assert_allclose(found.answers[0], tasks["label"].constant(train.truth, 1)[0])
    assert not np.allclose(found.answers[1], found.answers[0])


def test_which_attack_is_reported():
    none, fgm = ReportConfig(), ReportConfig(attack={"name": "fgm", "epsilon": 0.3})
    free = TrainerConfig(adversarial={"name": "freelb", "epsilon": 0.2, "steps": 4, "columns": ["a"], "step_size": 0.1})
    assert attack_of(none, TrainerConfig()) is None
    assert attack_of(fgm, free) == AttackConfig(name="fgm", epsilon=0.3)
    assert attack_of(ReportConfig(attack={"name": "none"}), free) is None
    assert attack_of(none, free) == AttackConfig(name="pgd", epsilon=0.2, steps=4, columns=["a"], step_size=0.1)
    assert attack_of(none, TrainerConfig(adversarial={"name": "fgm", "weight": 1.0})) == AttackConfig(name="fgm")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["trainer.adversarial=fmg"], "trainer.adversarial.name: there is no such method; did you mean 'fgm'"),
        (["trainer.adversarial={name: pgd, epsilom: 1}"], "epsilom: there is no such setting; did you mean 'epsilon'"),
        (["trainer.adversarial={name: pgd, epsilon: 0}"], "epsilon: Input should be greater than 0"),
        (["trainer.adversarial={name: fgm, steps: 2}"], "fgm makes one step of size epsilon"),
        (["trainer.adversarial={name: freelb, weight: 1.0}"], "freelb has no weight"),
        (["report.attack=freelb"], "report.attack.name: there is no such method; known: fgm, pgd, none"),
        (["report.attack={epsilon: 0.1}"], "report.attack.name: Field required"),
    ],
)
def test_wrong_settings(overrides, said):
    with pytest.raises(ConfigError) as error:
        Config().with_overrides(overrides)
    assert said in str(error.value)


def test_settings_survive_yaml():
    config = Config().with_overrides(
        ["trainer.adversarial=pgd", "trainer.adversarial.epsilon=0.2", "report.attack=fgm"]
    )
    again = Config().with_overrides(
        {"trainer": {"adversarial": {"name": "pgd", "epsilon": 0.2}}, "report": {"attack": "fgm"}}
    )
    assert config == again and config.trainer.adversarial.epsilon == 0.2


@pytest.fixture
def fit(shop, write_csv, quick, tiny, tmp_path):
    """Fits notes and numbers to `label`; the test rows' labels may be others'."""
    rows, columns = shop[1], ["note", "price", "label"]

    def run(name: str, turn: int = 0, **report):
        labels = [row["label"] for row in rows[100:]]
        test = [{**row, "label": labels[(n + turn) % 20]} for n, row in enumerate(rows[100:])]
        parts = {"train": rows[:80], "val": rows[80:100], "test": test}
        files = {part: write_csv(tmp_path / f"{name}-{part}.csv", chosen, columns) for part, chosen in parts.items()}
        settings = {**quick, "text": tiny("bert"), "report": {"bootstrap": 50, "errors": 0, "alone": "none", **report}}
        settings["trainer"] = {**quick["trainer"], "epochs": 1, "head_epochs": 2, "backbone_lr": 0.01}
        return api.fit(
            files["train"], target="label", val=files["val"], test=files["test"], out=tmp_path / name, config=settings,
            progress=False,
        )  # fmt: skip

    return run


def test_the_report_has_both_models_under_attack(fit):
    tuned = fit("out", attack={"name": "pgd", "epsilon": 0.3, "steps": 2, "columns": ["note", "price"]})
    results = from_json(to_json(tuned.results))
    task = results.tasks[0]
    assert task.attack == AttackUsed("PGD", 0.3, 2, pytest.approx(0.375), ["note", "price"], task.attack.units)
    before, after = (one for one in task.systems if one.kind == "attack")
    assert (before.name, after.name) == ("frozen probe, attacked", "tuned, attacked")
    for clean, attacked in (("before", before), ("after", after)):
        assert task.main(attacked).value < task.main(task.first(clean)).value
    assert before.metrics["log_loss"].value != after.metrics["log_loss"].value
    assert task.first("before").metrics["log_loss"].value != task.first("after").metrics["log_loss"].value
    gap = before.difference["accuracy"].value
    assert gap == pytest.approx(task.main(after).value - task.main(before).value) and not after.difference
    page, table = render(results), terminal_table(results)
    assert "tuned, attacked" in page and "Under attack" in page and "under attack, the tuned model" in page
    assert "tuned, attacked" in list(table.renderables[0].columns[0].cells)[-1].plain
    note = next(note for note in verdict(task).notes if "attack" in note)
    assert note.startswith("Under a white-box attack (PGD, ε 0.3 on note, price) accuracy goes from")
    assert "before tuning the attack takes it to" in note
    assert json.loads(to_json(results))["tasks"][0]["attack"]["steps"] == 2


def test_without_an_attack_nothing_of_it_is_shown(fit):
    results = fit("out").results
    assert results.tasks[0].attack is None and not results.tasks[0].all("attack")
    assert "Under attack" not in render(results) and not any(
        "attack" in note for note in verdict(results.tasks[0]).notes
    )


def test_the_attacked_rows_labels_choose_nothing(fit):
    one, two, three = fit("one", attack="fgm"), fit("two", 7, attack="fgm"), fit("three")
    for other in (two, three):
        for (name, first), (_, second) in zip(
            one.bundle.model.state_dict().items(), other.bundle.model.state_dict().items(), strict=True
        ):
            assert torch.equal(first, second), name
    attacked = [run.results.tasks[0].all("attack")[0].metrics["log_loss"].value for run in (one, two)]
    assert attacked[0] != attacked[1]


def test_wrong_columns_are_refused_before_training(fit, quick, tiny, shop_tables, tmp_path):
    with pytest.raises(ConfigError, match=r"report.attack.columns names 'notes'(.|\n)*did you mean 'note'"):
        fit("out", attack={"name": "fgm", "columns": ["notes"]})
    assert not list((tmp_path / "out").glob("logs/*"))
