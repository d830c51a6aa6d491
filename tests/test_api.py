"""From a table to a report, a folder and predictions, end to end on tiny models."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file

from fusetune import api
from fusetune.config.config import Config
from fusetune.data.table import Table
from fusetune.deploy.bundle import file_hash
from fusetune.errors import ConfigError, NonFiniteLoss, TableError
from fusetune.registry import FUSIONS, TASKS
from fusetune.training.callbacks import Callback

TABULAR = ["price", "plan"]


def column_close(left: pa.Table, right: pa.Table, tolerance: float = 1e-5) -> None:
    """The same columns; numbers within the tolerance, everything else equal."""
    assert left.column_names == right.column_names
    for name in left.column_names:
        ours, theirs = left.column(name).to_pylist(), right.column(name).to_pylist()
        if pa.types.is_floating(left.column(name).type):
            np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=0, err_msg=name)
        else:
            assert ours == theirs, name


@pytest.fixture(scope="module")
def fit(shop, write_csv, quick, tmp_path_factory):
    """`fit(columns, target, **settings)` on the shop's rows, its media beside the table."""
    folder, rows = shop

    def run(reads, target="label", /, *, change=None, out=None, **settings):
        targets = [target] if isinstance(target, str) else target
        chosen = [dict(row) for row in rows]
        for place, row in enumerate(chosen):
            if change is not None:
                change(place, row)
        names = [*reads, *targets, *(name for name in chosen[0] if name not in rows[0])]
        path = write_csv(folder / f"{tmp_path_factory.mktemp('t').name}.csv", chosen, names)
        config = Config.build(quick).with_overrides(settings)
        return api.fit(path, target=target, config=config, out=out or tmp_path_factory.mktemp("o"), progress=False)

    return run


class TestWholeRun:
    def test_folder_is_complete(self, fitted):
        files = {path.name for path in fitted.folder.iterdir()}
        assert files >= {
            *("model.safetensors", "bundle.json", "config.yaml", "schema.yaml", "backbones"),
            *("README.md", "report.html", "report.json", "rejected.jsonl", "logs"),
        }
        assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl", ".partial"))]

    def test_report_compares_with_everything_it_must(self, fitted):
        (task,) = fitted.results.tasks
        kinds = [system.kind for system in task.systems]
        assert (kinds.count("baseline"), kinds.count("before"), kinds.count("after")) == (1, 1, 1)
        names = {system.name for system in task.systems if system.kind == "alone"}
        assert names == {"text alone", "image alone", "audio alone", "tabular alone"}
        assert all(system.metrics[task.metric].known for system in task.systems)
        assert task.rows == 20

    def test_tuned_beats_a_constant_guess(self, fitted):
        (task,) = fitted.results.tasks
        assert task.first("after").metrics["roc_auc"].value > 0.6

    def test_every_row_is_accounted_for(self, fitted):
        assert {used.split: used.rows_in for used in fitted.results.tables} == {"train": 80, "val": 20, "test": 20}
        for used in fitted.results.tables:
            assert used.rows_in == used.rows_used + used.rows_rejected

    def test_the_best_check_is_no_worse_than_the_probe(self, fitted):
        points = fitted.results.curve.points
        assert points[0].step == 0
        assert max(point.val_metric for point in points) == next(
            point.val_metric for point in points if point.step == fitted.results.curve.best_step
        )

    def test_load_reproduces_the_predictions(self, fitted, shop_tables):
        column_close(
            api.load(fitted.folder).predict(shop_tables["test"]).table,
            fitted.predict(shop_tables["test"]).table,
            1e-6,
        )

    def test_a_folder_moved_elsewhere_predicts_the_same(self, fitted, shop_tables, tmp_path):
        import shutil

        shutil.copytree(fitted.folder, tmp_path / "moved")
        column_close(
            api.load(tmp_path / "moved").predict(shop_tables["test"]).table,
            fitted.predict(shop_tables["test"]).table,
        )

    def test_neighbours_and_order_do_not_matter(self, fitted, shop_tables):
        table = Table.read(shop_tables["test"])
        whole = fitted.predict(table).table
        order = np.random.default_rng(0).permutation(len(table))
        column_close(fitted.predict(table.select(order)).table, whole.take(pa.array(order)))
        column_close(fitted.predict(table.select([3])).table, whole.slice(3, 1))

    def test_rows_may_be_asked_for_twice(self, fitted, shop_tables):
        table = Table.read(shop_tables["test"])
        whole = fitted.predict(table).table
        column_close(fitted.predict(table.select([4, 4, 2])).table, whole.take(pa.array([4, 4, 2])))

    def test_evaluation_gives_the_reports_figures(self, fitted, shop_tables):
        found = api.evaluate(fitted.folder, shop_tables["test"], slices=["plan"])
        (task,) = fitted.results.tasks
        reported = {name: interval.value for name, interval in task.first("after").metrics.items()}
        for name, value in found.metrics()["label"].items():
            assert value == pytest.approx(reported[name], abs=1e-5, nan_ok=True), name
        assert {part.value for part in found.tasks[0].slices} == {"basic", "pro", "team"}
        assert "accuracy" in str(found)
        json.dumps(found.to_json(), allow_nan=False)

    def test_saving_again_writes_the_same_model(self, fitted, tmp_path):
        api.load(fitted.folder).save(tmp_path / "again")
        for name in ("model.safetensors", "config.yaml", "schema.yaml", "report.json"):
            assert file_hash(tmp_path / "again" / name) == file_hash(fitted.folder / name), name

    def test_repr_names_target_columns_and_folder(self, fitted):
        assert "label from note, photo, voice, price, plan" in repr(fitted)


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_every_fusion(fit, tiny, fusion):
    tuned = fit(["note", "price"], text=tiny("bert"), fusion={"name": fusion, "dim": 16})
    assert api.load(tuned.folder).bundle.config.fusion.name == fusion


def test_every_token_goes_into_the_fusion(fit, tiny, shop_tables):
    """From the setting to a folder that predicts the same: texts of differing lengths, and pictures as maps."""
    settings = {"text": {"name": tiny("bert"), "pool": "none"}, "image": {"name": tiny("resnet"), "pool": "none"}}
    tuned = fit(["note", "photo", "price"], fusion={"name": "convolution", "dim": 16}, **settings)
    model = tuned.bundle.model
    assert model.encoders[model.routes["photo"]].grid == (0, 4, 4)
    column_close(api.load(tuned.folder).predict(shop_tables["test"]).table, tuned.predict(shop_tables["test"]).table)


def test_a_modality_alone_does_without_the_column_that_film_names(fit):
    settings = {"fusion": {"name": "film", "by": "price", "dim": 16}, "report": {"alone": "tuned", "bootstrap": 0}}
    tuned = fit(["note", "price", "plan"], text={"freeze": "all"}, **settings)
    assert tuned.results.tasks[0].first("alone") is not None
    assert tuned.bundle.model.fusion.by == 1


TARGETS = {"binary": "label", "multiclass": "plan", "multilabel": "tags", "regression": "rating", "ordinal": "stars"}


@pytest.mark.parametrize("task", [name for name in TARGETS if name in TASKS])
def test_every_task(fit, shop_tables, shop, task):
    target = TARGETS[task]
    tuned = fit(["price"], target, change=add_colour, tasks={target: task})
    assert tuned.results.tasks[0].name == task
    table = Table.from_records([{"price": row["price"], "photo_colour": row["photo"][:3]} for row in shop[1]])
    found = tuned.predict(table)
    assert found.num_errors == 0 and None not in found[target]
    column_close(api.load(tuned.folder).predict(table).table, found.table)


def add_colour(place, row):
    row["photo_colour"] = row["photo"][:3]


class TestTargets:
    def test_several_of_mixed_kinds(self, fit):
        tuned = fit([*TABULAR, "note"], ["label", "rating", "tags"], text={"freeze": "all"})
        assert {task.target: task.name for task in tuned.results.tasks} == {
            "label": "binary",
            "rating": "regression",
            "tags": "multilabel",
        }
        columns = tuned.predict(Table.from_records([{"price": 3, "plan": "pro", "note": "w1"}])).table.column_names
        assert {"label", "rating", "tags"} <= set(columns)

    def test_rows_without_a_target_are_counted_and_teach_nothing(self, fit):
        def some_unlabelled(place, row):
            if place % 4 == 0:
                row.update(label="", price="1e9")

        tuned = fit(TABULAR, change=some_unlabelled)
        train = tuned.results.tables[0]
        assert train.rows_unlabelled == 30
        assert sum(used.rows_in for used in tuned.results.tables) == 120
        assert tuned.bundle.modalities["price"].mean < 10

    def test_rows_with_one_of_two_targets_are_used_for_that_one(self, fit):
        def alternate(place, row):
            row["label" if place % 2 else "rating"] = ""

        tuned = fit(TABULAR, ["label", "rating"], change=alternate)
        assert sum(task.rows for task in tuned.results.tasks) == 12
        assert tuned.results.tables[0].rows_unlabelled == 0

    def test_a_target_that_no_test_row_has(self, fit):
        def first_rows_only(place, row):
            row["split"] = ("train", "val", "test")[0 if place < 80 else 1 if place < 100 else 2]
            if place >= 100:
                row["rating"] = ""

        tuned = fit(TABULAR, ["label", "rating"], change=first_rows_only)
        rows = {task.target: task.rows for task in tuned.results.tasks}
        assert rows == {"label": 20, "rating": 0}
        assert tuned.bundle.metrics["rating"]["r2"] is None

    def test_no_target(self, shop_tables):
        with pytest.raises(TableError, match="no target"):
            api.fit(shop_tables["train"], progress=False)


class TestColumns:
    def test_one_column(self, fit):
        tuned = fit(["price"], "rating", report={"alone": "probe"})
        assert [system.kind for system in tuned.results.tasks[0].systems] == ["baseline", "before", "after"]

    def test_text_alone(self, fit, tiny):
        tuned = fit(["note"], text=tiny("gpt2"))
        assert [system.kind for system in tuned.results.tasks[0].systems] == ["baseline", "before", "after"]

    def test_two_texts_share_one_encoder(self, fit, tiny):
        def title(place, row):
            row["title"] = " ".join(reversed(row["note"].split()))

        tuned = fit(["note"], change=title, text=tiny("bert"), trainer={"epochs": 1})
        assert len(tuned.bundle.model.encoders) == 1
        assert set(tuned.bundle.modalities) == {"note", "title"}
        assert len(list((tuned.folder / "backbones").iterdir())) == 1
        names = load_file(tuned.folder / "model.safetensors")
        assert len([name for name in names if name.startswith("projections")]) == 2 * 4
        again = api.load(tuned.folder)
        rows = Table.from_records([{"note": "w1 w2", "title": "w3"}])
        column_close(again.predict(rows).table, tuned.predict(rows).table)

    def test_one_two_tower_model_serves_two_columns(self, fit, tiny):
        clip = tiny("clip")
        tuned = fit(["note", "photo"], text=clip, image=clip, trainer={"epochs": 1})
        assert {used.kind for used in tuned.results.backbones} == {"text", "image"}
        assert {used.source for used in tuned.results.backbones} == {clip}
        assert all(used.how == "tuned" for used in tuned.results.backbones)
        assert api.load(tuned.folder).bundle.modalities["photo"].backbone.kind == "image"

    def test_several_pictures_in_a_cell(self, fit, tiny, shop):
        def two(place, row):
            row["photo"] = f"{row['photo']};{row['photo']}" if place % 2 else row["photo"]

        tuned = fit(["photo"], change=two, image=tiny("resnet"))
        assert tuned.results.num_rejected == 0
        table = Table.from_records(
            [{"photo": "red0.png"}, {"photo": "red0.png;red0.png"}, {"photo": "red0.png;blue1.png"}], base_dir=shop[0]
        )
        first, same, other = tuned.predict(table)["label:yes"]
        assert first == pytest.approx(same, abs=1e-6)
        assert first != pytest.approx(other, abs=1e-9)

    def test_no_backbone_given_trains_small_ones_and_says_so(self, fit):
        tuned = fit(["photo", "price"], trainer={"head_epochs": 1}, report={"alone": "probe"})
        (used,) = tuned.results.backbones
        assert (used.pretrained, used.how) == (False, "trained from scratch")
        assert "image alone" in {system.name for system in tuned.results.tasks[0].systems}

    def test_a_category_column_may_be_read_as_text(self, fit, tiny):
        tuned = fit(TABULAR, columns={"plan": "text"}, text=tiny("bert"))
        assert tuned.bundle.modalities["plan"].kind == "text"

    def test_columns_of_one_kind_may_have_their_own_backbones(self, fit, tiny):
        def title(place, row):
            row["title"] = row["note"][::-1]

        tuned = fit(["note"], change=title, text=tiny("bert"), columns={"title": {"backbone": tiny("t5")}})
        assert len(tuned.bundle.model.encoders) == 2
        assert len(api.load(tuned.folder).bundle.model.encoders) == 2

    def test_an_option_that_the_kind_does_not_take(self, fit):
        with pytest.raises(ConfigError, match=r"columns.price.*'bin'.*\n.*bins"):
            fit(TABULAR, columns={"price": {"bin": 3}})

    def test_an_option_that_the_fusion_does_not_take(self, fit):
        with pytest.raises(ConfigError, match=r"fusion .attention. has no setting 'head'"):
            fit(TABULAR, fusion={"name": "attention", "head": 2})


class TestRoles:
    def test_groups_stay_whole_in_the_split_and_in_the_bootstrap(self, fit, monkeypatch):
        from fusetune.fitting import findings

        def patient(place, row):
            row["patient"] = f"p{place // 4}"

        seen = []
        real = findings.judge
        monkeypatch.setattr(findings, "judge", lambda *a, **k: seen.append(a[2]) or real(*a, **k))
        tuned = fit(TABULAR, change=patient, columns={"patient": {"role": "group"}}, report={"bootstrap": 20})
        groups = seen[0].groups
        assert len(groups) == len(seen[0].weights) and len(set(groups)) == len(groups) / 4
        sizes = {used.split: used.rows_in for used in tuned.results.tables}
        assert all(size % 4 == 0 for size in sizes.values()) and sum(sizes.values()) == 120
        assert "patient" not in tuned.bundle.modalities

    def test_evaluation_draws_groups_and_weighs_rows_too(self, fit, monkeypatch, shop):
        def roles(place, row):
            row.update(patient=f"p{place // 4}", weight=str(place % 3))

        columns = {"patient": {"role": "group"}, "weight": {"role": "weight"}}
        tuned = fit(TABULAR, change=roles, columns=columns)
        rows = [
            {"price": row["price"], "plan": row["plan"], "label": row["label"], "patient": "a", "weight": 1 + n % 2}
            for n, row in enumerate(shop[1][:30])
        ]
        table = Table.from_records(rows)
        found = tuned.evaluate(table).metrics()["label"]["accuracy"]
        predicted = np.asarray(tuned.predict(table)["label"]) == [row["label"] for row in rows]
        assert found == pytest.approx(np.average(predicted, weights=[row["weight"] for row in rows]))

    def test_weights_count_in_the_loss(self, fit):
        def mixed(place, row):
            row["weight"] = "0" if row["label"] == "no" else "2"

        settings = {"columns": {"weight": {"role": "weight"}}, "trainer": {"head_epochs": 30, "lr": 0.05}}
        table = Table.from_records([{"price": price, "plan": plan} for price in range(9) for plan in ("pro", "team")])
        tuned = fit(TABULAR, change=mixed, **settings)
        assert "weight" not in tuned.bundle.modalities
        assert set(tuned.predict(table)["label"]) == {"yes"}

    def test_split_column(self, fit):
        def split(place, row):
            row["split"] = ("train", "val", "test")[place % 3]

        tuned = fit(TABULAR, change=split)
        assert [used.rows_in for used in tuned.results.tables] == [40, 40, 40]

    def test_identifiers_come_back_beside_the_predictions(self, fit):
        def ids(place, row):
            row["row"] = f"R{place:05d}"

        tuned = fit(TABULAR, change=ids, columns={"row": {"role": "id"}})
        found = tuned.predict(Table.from_records([{"row": "R9", "price": 1, "plan": "pro"}]))
        assert (found["row"], found["row_"]) == ([0], ["R9"])


class TestSources:
    @pytest.fixture
    def records(self, shop):
        return [{"price": float(row["price"]), "plan": row["plan"], "label": row["label"]} for row in shop[1]]

    def test_data_frame(self, records, quick, tmp_path):
        import pandas as pd

        frame = pd.DataFrame(records)
        tuned = api.fit(frame, target="label", test=frame.head(30), config=quick, out=tmp_path, progress=False)
        found = tuned.predict(frame.head(5))
        assert len(found.to_pandas()) == 5
        assert tuned.results.tables[2].rows_in == 30

    def test_hugging_face_dataset(self, records, quick, tmp_path):
        import datasets

        data = datasets.Dataset.from_list(records)
        tuned = api.fit(data, target="label", config=quick, out=tmp_path, progress=False)
        assert len(tuned.predict(data)) == 120

    @pytest.mark.parametrize("form", ["tsv", "jsonl", "parquet"])
    def test_files(self, records, quick, tmp_path, form):
        path = tmp_path / f"t.{form}"
        if form == "tsv":
            path.write_text("\n".join("\t".join(map(str, row)) for row in [records[0], *(r.values() for r in records)]))
        elif form == "jsonl":
            path.write_text("\n".join(map(json.dumps, records)))
        else:
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(records), path)
        tuned = api.fit(str(path), target="label", config=quick, out=tmp_path / "o", progress=False)
        assert sum(used.rows_used for used in tuned.results.tables) == 120

    def test_pictures_as_bytes_in_parquet(self, shop, quick, tiny, tmp_path):
        import pyarrow.parquet as pq

        folder, rows = shop
        made = [
            {"photo": {"bytes": (folder / row["photo"]).read_bytes(), "path": row["photo"]}, "label": row["label"]}
            for row in rows
        ]
        pq.write_table(pa.Table.from_pylist(made), tmp_path / "t.parquet")
        config = Config.build(quick).with_overrides({"image": tiny("resnet")})
        tuned = api.fit(tmp_path / "t.parquet", target="label", config=config, out=tmp_path / "o", progress=False)
        assert tuned.bundle.modalities["photo"].kind == "image"
        assert tuned.predict(tmp_path / "t.parquet").num_errors == 0

    def test_yaml_config_names_the_tables(self, shop_tables, quick, tmp_path, shop):
        config = Config.build(quick).with_overrides(
            {"columns": {n: {"role": "ignore"} for n in ("note", "photo", "voice")}}
        )
        text = f"train: train.csv\ntest: test.csv\ntarget: label\n{config.to_yaml()}"
        (shop[0] / "config.yaml").write_text(text)
        tuned = api.fit(config=shop[0] / "config.yaml", out=tmp_path, overrides=["trainer.lr=0.02"], progress=False)
        assert tuned.bundle.config.trainer.lr == 0.02
        assert tuned.results.tables[-1].rows_in == 20

    def test_the_saved_config_can_be_run_from_anywhere(self, shop_tables, tiny, quick, tmp_path, monkeypatch):
        monkeypatch.chdir(shop_tables["train"].parent)
        ignored = {"columns": {name: {"role": "ignore"} for name in ("photo", "voice")}}
        text = os.path.relpath(tiny("bert"))
        first = api.fit(
            "train.csv",
            target="label",
            test="test.csv",
            out=os.path.relpath(tmp_path / "first"),
            config=Config.build(quick).with_overrides({"text": text, **ignored}),
            progress=False,
        )
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        again = api.fit(config=tmp_path / "first" / "config.yaml", out="again", progress=False)
        assert again.folder.resolve() == tmp_path / "elsewhere" / "again"
        weights = [file_hash(tuned / "model.safetensors") for tuned in (tmp_path / "first", again.folder)]
        assert weights[0] == weights[1]
        assert first.bundle.fingerprint == again.bundle.fingerprint

    def test_a_finished_model_is_replaced_only_when_asked(self, records, quick, tmp_path):
        table = Table.from_records(records)
        settings = {"target": "label", "out": tmp_path / "m", "config": quick, "progress": False}
        api.fit(table, **settings)
        before = file_hash(tmp_path / "m" / "bundle.json")
        for resume in (None, False):
            with pytest.raises(ConfigError, match=r"(?s)has a finished model.*--out.*--overwrite"):
                api.fit(table, **settings, overrides={"seed": 1}, resume=resume)
        assert file_hash(tmp_path / "m" / "bundle.json") == before
        api.fit(table, **settings, resume=True)  # the same run, which is over
        assert file_hash(tmp_path / "m" / "bundle.json") == before
        api.fit(table, **settings, overrides={"seed": 1}, overwrite=True)
        assert api.load(tmp_path / "m").bundle.config.seed == 1

    def test_no_folder_given_makes_a_temporary_one(self, records, quick, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        table = Table.from_records(records)
        tuned = api.fit(table, target="label", config=quick, progress=False)
        assert tuned.folder.is_relative_to(tmp_path)
        column_close(api.load(tuned.folder).predict(table).table, tuned.predict(table).table)

    def test_a_target_that_is_no_name(self, records, quick):
        with pytest.raises(ConfigError, match="the column's name as text"):
            api.fit(pa.Table.from_pylist(records), target=2.5, config=Config.build(quick))

    def test_no_table(self):
        with pytest.raises(ConfigError, match="no table"):
            api.fit(target="label")

    def test_schema_of(self, records):
        schema = api.schema_of(Table.from_records(records), target="label", columns={"price": "category"})
        assert schema.columns["price"].kind == "category" and schema.targets == ["label"]


class TestRepeats:
    def test_same_seed_same_weights(self, fit, tiny):
        settings = {"text": tiny("bert"), "trainer": {"epochs": 1, "head_epochs": 1}}
        one, two = (fit(["note", *TABULAR], **settings) for _ in range(2))
        assert file_hash(one.folder / "model.safetensors") == file_hash(two.folder / "model.safetensors")
        other = fit(["note", *TABULAR], seed=1, **settings)
        assert file_hash(one.folder / "model.safetensors") != file_hash(other.folder / "model.safetensors")

    def test_small_encoders_repeat_too(self, fit):
        one, two = (fit(["photo"], trainer={"head_epochs": 1}) for _ in range(2))
        assert file_hash(one.folder / "model.safetensors") == file_hash(two.folder / "model.safetensors")

    def test_processors_learn_from_train_rows_only(self, fit):
        def leak(place, row):
            row["split"] = "train" if place < 80 else "val" if place < 100 else "test"
            if place >= 80:
                row.update(price="1000000", plan="unseen")

        tuned = fit(TABULAR, change=leak)
        state = tuned.bundle.modalities["price"].state()
        assert state["mean"] < 10 and max(state["edges"]) < 10
        assert "unseen" not in tuned.bundle.modalities["plan"].vocabulary
        assert tuned.results.tables[2].rows_used == 20

    def test_test_rows_do_not_change_the_model(self, fit):
        def split(place, row):
            row["split"] = "train" if place < 80 else "val" if place < 100 else "test"

        def other_test_rows(place, row):
            split(place, row)
            if place >= 100:
                row.update(price="7", label="yes" if place % 2 else "no")

        one, two = fit(TABULAR, change=split), fit(TABULAR, change=other_test_rows)
        assert file_hash(one.folder / "model.safetensors") == file_hash(two.folder / "model.safetensors")


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"precision": "bf16"}, {"optimizer": "lion"}])
def test_ways_to_train(fit, tiny, settings):
    tuned = fit(["note", "photo"], text=tiny("bert"), image=tiny("vit"), trainer={"epochs": 1, **settings})
    assert {point.stage for point in tuned.results.curve.points} == {"head", "tune"}
    assert all("frozen" not in used.how for used in tuned.results.backbones)
    assert all(math.isfinite(point.val_loss) for point in tuned.results.curve.points)
    assert Path(tuned.folder / "README.md").is_file()


class TestThinTables:
    """Where a split or a modality has next to nothing, the run goes on or says why not."""

    def test_a_modality_that_only_train_rows_have(self, fit):
        def split(place, row):
            row["split"] = "train" if place < 80 else "val" if place < 100 else "test"
            if place >= 80:
                row["photo"] = ""

        tuned = fit(["photo", "price"], change=split, report={"alone": "probe"})
        scores = {system.name: system for system in tuned.results.tasks[0].systems}
        assert scores["image alone"].metrics["accuracy"].value == scores["constant guess"].metrics["accuracy"].value

    def test_weights_of_zero_in_all_validation_rows(self, fit):
        def split(place, row):
            row["split"] = "train" if place < 80 else "val" if place < 100 else "test"
            row["weight"] = "0" if 80 <= place < 100 else "1"

        tuned = fit(TABULAR, change=split, columns={"weight": {"role": "weight"}})
        assert tuned.predict(Table.from_records([{"price": 1, "plan": "pro"}])).num_errors == 0

    def test_a_label_that_chance_cannot_put_everywhere(self, fit):
        def rare(place, row):
            row["label"] = "rare" if place == 5 else row["label"]

        tuned = fit(TABULAR, change=rare)
        assert "rare" in tuned.bundle.tasks["label"].labels
        assert tuned.results.num_rejected == 0

    def test_five_rows(self, shop, write_csv, quick, tmp_path):
        path = write_csv(tmp_path / "t.csv", shop[1][:5], ["price", "plan", "label"])
        tuned = api.fit(path, target="label", config=quick, out=tmp_path / "o", progress=True)
        assert [used.rows_in for used in tuned.results.tables] == [3, 1, 1]

    def test_a_run_that_blows_up_says_where(self, fit):
        settings = {"lr": 1e30, "clip": None, "head_epochs": 20, "warmup": 0.0, "optimizer": "sgd"}
        with pytest.raises(NonFiniteLoss, match=r"(?s)update \d+ of stage 'head'.*rows \[\d+.*lower trainer.lr"):
            fit(TABULAR, "rating", trainer=settings)


def test_an_out_that_is_a_file_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "t.csv").write_text("a,y\n1,x\n")
    with pytest.raises(ConfigError, match="is a file"):
        api.fit(tmp_path / "t.csv", target="y", out=tmp_path / "taken", progress=False)
    assert (tmp_path / "taken").read_text() == "mine"


def test_test_rows_choose_nothing(shop: Any, write_csv: Any, quick: Any, tmp_path: Path) -> None:
    """Other labels in the test rows leave weights, thresholds and predictions as they were."""
    rows, columns = shop[1], ["price", "plan", "tags"]
    labels = [row["tags"] for row in rows[100:]]
    other = [{**row, "tags": label} for row, label in zip(rows[100:], [*labels[7:], *labels[:7]], strict=True)]
    train, val = write_csv(tmp_path / "a.csv", rows[:80], columns), write_csv(tmp_path / "b.csv", rows[80:100], columns)
    config = Config.build({**quick, "tasks": {"tags": {"name": "multilabel", "threshold": "tuned"}}})
    states, seen = [], []
    for name, part in (("true", rows[100:]), ("other", other)):
        test = write_csv(tmp_path / f"{name}.csv", part, columns)
        tuned = api.fit(
            train, target="tags", val=val, test=test, config=config, out=tmp_path / name / "out", progress=False
        )
        states.append((file_hash(tmp_path / name / "out" / "model.safetensors"), tuned.bundle.tasks["tags"].state()))
        seen.append(tuned.predict(tmp_path / "true.csv")["tags"])
    assert states[0] == states[1] and seen[0] == seen[1]
    assert [row["tags"] for row in other] != labels


class TestCallbacks:
    class Watch(Callback):
        def __init__(self, stop_at: int | None = None) -> None:
            self.checks, self.updates, self.ended, self.stop_at = [], 0, 0, stop_at

        def on_update(self, step, losses, lr, figures):
            self.updates += 1
            if self.updates == self.stop_at:
                raise KeyError("enough")

        def on_check(self, check):
            self.checks.append(check.score)

        def on_end(self):
            self.ended += 1

    @pytest.fixture
    def table(self, shop, write_csv, tmp_path):
        return write_csv(tmp_path / "t.csv", shop[1], [*TABULAR, "label"])

    def test_they_see_every_check_of_the_tuning(self, table, quick, tmp_path):
        watch = self.Watch()
        options = {"config": quick, "out": tmp_path / "run", "progress": False, "callbacks": [watch]}
        tuned = api.fit(table, "label", **options)
        assert watch.checks == [point.val_metric for point in tuned.results.curve.points]
        assert watch.updates > 0 and watch.ended == 1

    def test_what_one_raises_ends_the_fit(self, table, quick, tmp_path):
        watch = self.Watch(stop_at=1)
        with pytest.raises(KeyError, match="enough"):
            api.fit(table, "label", config=quick, out=tmp_path / "run", progress=False, callbacks=[watch])
        assert watch.ended == 1 and not (tmp_path / "run" / "bundle.json").exists()
