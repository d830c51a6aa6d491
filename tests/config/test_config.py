"""Settings from YAML, `key=value` and Python: defaults, overrides, near misses, and all problems at once."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusetune.config import paths, trainer
from fusetune.config.config import Config, merge, parse_override
from fusetune.config.options import check_options
from fusetune.errors import ConfigError


def test_defaults_are_left_out_of_yaml():
    assert Config().to_yaml().strip() == "{}"
    assert Config.build({"trainer": {"epochs": 7}, "seed": 0}).to_yaml() == "trainer:\n  epochs: 7.0\n"


def test_yaml_there_and_back(tmp_path):
    given = {
        "target": ["a", "b"],
        "columns": {"year": "number", "x": {"kind": "text", "role": "input", "bins": 3}},
        "tasks": {"a": {"name": "regression", "loss": "huber"}, "b": "ordinal"},
        "fusion": {"name": "gated", "dim": 32},
        "image": {"name": "some/model", "freeze": "bottom:2"},
        "trainer": {"lr": 1e-4, "patience": None, "trackers": []},
        "data": {"split": [0.5, 0.25, 0.25]},
    }
    config = Config.build(given)
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert Config.from_yaml(tmp_path / "c.yaml") == config
    assert config.tasks["b"].name == "ordinal" and config.tasks["a"].options == {"loss": "huber"}
    assert config.columns["year"].kind == "number"


def test_a_name_stands_for_its_section():
    config = Config.build({"text": "minilm", "fusion": "concat", "target": "t"})
    assert (config.text.name, config.fusion.name, config.target) == ("minilm", "concat", ["t"])


def test_all_problems_are_told_at_once_with_the_nearest_key():
    with pytest.raises(ConfigError) as caught:
        Config.build(
            {"trainer": {"epocs": 3, "lr": -1}, "seeed": 1, "text": {"pool": "men"}, "data": {"split": [1, 1, 1]}}
        )
    message = str(caught.value)
    assert "5 problems" in message
    for part in (
        "trainer.epocs",
        "did you mean 'epochs'",
        "trainer.lr",
        "did you mean 'seed'",
        "text.pool",
        "sum to 1",
    ):
        assert part in message, part


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("5", 5),
        ("null", None),
        ("[]", []),
        ("true", True),
        ("bottom:2", "bottom:2"),
        ("1E3", 1e3),
        ("", None),
    ],
)
def test_values_of_overrides(text, value):
    found = parse_override(f"a.b={text}")
    assert found == {"a": {"b": value}}


@pytest.mark.parametrize(("kind", "said"), [("numbr", "did you mean 'number'?"), ("video", "known: image, audio")])
def test_an_unknown_kind_of_column_is_answered(kind, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        Config.build({"columns": {"year": kind}})


@pytest.mark.parametrize("override", ["epochs", "=3", "a=[1", "a={"])
def test_overrides_that_are_none(override):
    with pytest.raises(ConfigError):
        parse_override(override)


@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=3), min_size=1, max_size=4), st.integers())
def test_overrides_nest_by_their_dots(keys, value):
    found = parse_override(f"{'.'.join(keys)}={value}")
    for key in keys:
        assert list(found) == [key]
        found = found[key]
    assert found == value


def test_overrides_lie_over_settings():
    config = Config.build({"fusion": {"name": "attention", "layers": 3}, "trainer": {"epochs": 2, "lr": 0.1}})
    changed = config.with_overrides(["fusion=gated", "trainer.epochs=4", "text=here", "text.freeze=all"])
    assert changed.fusion.options == {} and changed.fusion.name == "gated"
    assert (changed.trainer.epochs, changed.trainer.lr) == (4, 0.1)
    assert (changed.text.name, changed.text.freeze) == ("here", "all")
    assert config.trainer.epochs == 2


def test_overrides_may_be_nested_settings():
    changed = Config.build({"text": "a"}).with_overrides({"text": {"pool": "cls"}, "tasks": {"t": {"loss": "huber"}}})
    assert (changed.text.name, changed.text.pool) == ("a", "cls")
    assert changed.tasks["t"].options == {"loss": "huber"}


def test_an_unknown_override_is_answered():
    with pytest.raises(ConfigError, match="did you mean 'batch_size'"):
        Config().with_overrides(["trainer.batchsize=3"])


def test_merge_goes_down():
    base = {"a": {"b": 1, "c": 2}, "d": "name"}
    merge(base, {"a": {"b": 3}, "d": {"e": 4}})
    assert base == {"a": {"b": 3, "c": 2}, "d": {"name": "name", "e": 4}}


def test_paths_in_a_file_start_at_its_folder(tmp_path):
    (tmp_path / "models" / "vit").mkdir(parents=True)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.yaml").write_text(
        "train: ../t.csv\nout: o\nimage: ../models/vit\ntext: some/hub-id\naudio: {name: ../models/vit, pool: cls}\n"
        "columns: {a: {backbone: ../models/vit}, b: {backbone: hub/id}, c: text}\n"
    )
    config = Config.from_yaml(tmp_path / "sub" / "c.yaml")
    home = tmp_path / "sub"
    assert (config.train, config.out) == ([str(home / "../t.csv")], str(home / "o"))
    assert config.image.name == config.audio.name == config.columns["a"].backbone == str(home / "../models/vit")
    assert (config.text.name, config.columns["b"].backbone, config.audio.pool) == ("some/hub-id", "hub/id", "cls")


def test_absolute_paths_mean_the_same_from_any_folder(tmp_path, monkeypatch):
    for folder in ("here/bert", "there"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    given = {
        "train": ["t.csv", "s3://bucket/t.csv"],
        "test": "../u.csv",
        "schema_file": "s.yaml",
        "text": "bert",
        "image": {"name": "./vit", "pool": "cls"},
        "audio": "hub/id",
        "columns": {"a": {"backbone": "bert"}, "b": {"backbone": "minilm"}, "c": "text"},
        "data": {"cache": "cells"},
    }
    config = Config.build(given).with_absolute_paths()
    home = tmp_path / "here"
    assert config.train == [str(home / "t.csv"), "s3://bucket/t.csv"]
    assert (config.test, config.schema_file, config.out) == (str(home / "../u.csv"), str(home / "s.yaml"), None)
    assert (config.text.name, config.image.name, config.audio.name) == (str(home / "bert"), str(home / "vit"), "hub/id")
    assert (config.image.pool, config.columns["c"].kind) == ("cls", "text")
    assert (config.columns["a"].backbone, config.columns["b"].backbone) == (str(home / "bert"), "minilm")
    assert config.data.cache == str(home / "cells")
    assert Config.build({"data": {"cache": "none"}}).with_absolute_paths().data.cache == "none"

    (tmp_path / "there" / "c.yaml").write_text(config.to_yaml())
    monkeypatch.chdir("/")
    assert Config.from_yaml(tmp_path / "there" / "c.yaml") == config == config.with_absolute_paths()


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [1", "just words", None, b"\xff\xfe\x00"])
def test_files_that_are_no_config(tmp_path, content):
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        Config.from_yaml(path)


def test_yaml_makes_no_objects(tmp_path):
    (tmp_path / "c.yaml").write_text("train: !!python/object/apply:os.system ['echo no']\n")
    with pytest.raises(ConfigError):
        Config.from_yaml(tmp_path / "c.yaml")


def test_a_column_by_its_kind_or_role_alone():
    columns = Config.build({"columns": {"year": "number", "speaker": "group"}}).columns
    assert (columns["year"].kind, columns["year"].role) == ("number", None)
    assert (columns["speaker"].kind, columns["speaker"].role) == (None, "group")
    with pytest.raises(ConfigError, match="did you mean 'group'"):
        Config.build({"columns": {"speaker": "grup"}})


def test_an_edited_schema_lies_under_the_columns(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "columns:\n  year: {kind: number, role: input, options: {bins: 4}}\n  id: {role: ignore}\n"
    )
    config = Config.build({"schema_file": str(tmp_path / "s.yaml"), "columns": {"year": {"role": "ignore", "bins": 8}}})
    assert config.schema_overrides() == {
        "year": {"kind": "number", "role": "ignore", "options": {"bins": 8}},
        "id": {"role": "ignore"},
    }


def test_options_of_a_part_are_checked():
    check_options(Config, ["a"], known=["a"], where="here")
    with pytest.raises(ConfigError, match=r"(?s)here has no setting 'depht'.*did you mean 'depth'"):
        check_options(Config, ["depht"], known=["depth", "dim"], where="here")


def test_unknown_parts_are_told_together_with_everything_else():
    given = {
        "fusion": "gatd",
        "tasks": {"y": "binry"},
        "objectives": "contrstive",
        "trainer": {"optimizer": "adm", "schedule": "cosin", "epoch": 1},
        "epochs": 2,
        "xyzzy": 0,
    }
    with pytest.raises(ConfigError) as raised:
        Config.build(given)
    told = str(raised.value)
    for hint in (
        "'gated'",
        "'binary'",
        "'contrastive'",
        "'adam'",
        "'cosine'",
        "'epochs'",
        "trainer.epochs",
        "known ones",
    ):
        assert hint in told, hint
    assert "8 problems" in told


@pytest.mark.parametrize("fusion", ["stakc", "atuo"])
def test_hints_on_fusions_name_auto_and_stack(fusion):
    with pytest.raises(ConfigError, match=r"did you mean '(stack|auto)'"):
        Config.build({"fusion": fusion})
    with pytest.raises(ConfigError, match=r"known: attention.*auto, stack"):
        Config.build({"fusion": "xyzzy"})


@pytest.mark.parametrize(
    ("key", "hint"), [("epochs", "trainer.epochs"), ("freeze", "text.freeze or image.freeze"), ("split", "data.split")]
)
def test_a_setting_outside_its_section_is_answered_with_the_section(key, hint):
    with pytest.raises(ConfigError, match=rf"{key}: there is no such setting; did you mean {hint}"):
        Config.build({key: 1})


def test_names_of_the_trainer_are_those_of_the_libraries():
    import torch
    from transformers import SchedulerType, get_scheduler

    from fusetune.training.optim import OPTIMIZERS

    assert tuple(OPTIMIZERS) == trainer.OPTIMIZERS
    assert set(trainer.SCHEDULES) <= {kind.value for kind in SchedulerType}
    for name in trainer.SCHEDULES:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 1.0)
        get_scheduler(name, optimizer, num_warmup_steps=1, num_training_steps=4)
    assert Config.build({"trainer": {"optimizer": "AdamW"}}).trainer.optimizer == "adamw"


def test_all_problems_of_a_part_are_told_at_once():
    with pytest.raises(ConfigError) as raised:
        check_options(Config, ["depht", "wdth"], known=["depth", "width"], where="here")
    assert len(raised.value.problems) == 2
    assert "did you mean 'depth'" in str(raised.value) and "did you mean 'width'" in str(raised.value)


def test_a_user_without_a_home_has_no_cache(monkeypatch, tmp_path):
    from fusetune.data.storage.feature_cache import FeatureCache

    for name in ("HOME", "XDG_CACHE_HOME", "FUSETUNE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(paths.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert paths.user_cache() is None
    assert FeatureCache.of(None, 1.0) is None
    assert FeatureCache.of(str(tmp_path), 1.0) is not None
    assert Config.build({"train": "t.csv"}).with_absolute_paths().train == [str(paths.Path.cwd() / "t.csv")]


def test_words_that_yaml_takes_for_booleans_and_numbers_are_texts():
    found = Config().with_overrides(["prompt.chat=no", "generation.choices=[yes,no,2,maybe]", "generation.stop=no"])
    assert found.prompt.chat == "no" and Config().with_overrides(["prompt.chat=yes"]).prompt.chat == "yes"
    assert found.generation.choices == ["yes", "no", "2", "maybe"] and found.generation.stop == ["no"]
