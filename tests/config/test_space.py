"""Search spaces: what can be read, what is refused, and how parameters become settings."""

import pytest
import yaml

from fusetune.config.config import Config
from fusetune.config.space import Choice, Range, read_space, settings_of
from fusetune.errors import ConfigError

LR = {"low": 1e-5, "high": 1e-3, "log": True}


def test_lists_are_choices_and_ends_are_ranges(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        yaml.safe_dump({"trainer": {"lr": LR, "epochs": {"low": 1, "high": 5}}, "fusion": ["gated", "film"]})
    )
    space = read_space(path, Config())
    assert space["fusion"] == Choice(("gated", "film"))
    assert isinstance(space["trainer.lr"], Range) and space["trainer.lr"].log and not space["trainer.lr"].whole
    assert isinstance(space["trainer.epochs"], Range) and space["trainer.epochs"].whole


def test_sections_are_laid_before_the_settings_in_them():
    space = read_space(
        {"fusion.dropout": [0.1, 0.2], "fusion": ["gated", "film"], "text": [{}, {"adapter": "lora"}]}, Config()
    )
    settings = settings_of({"fusion.dropout": "0.2", "fusion": "film", "text": "adapter: lora"}, space)
    config = Config().with_overrides(settings)
    assert config.fusion.name == "film" and config.fusion.options == {"dropout": 0.2}
    assert config.text.adapter is not None and config.text.adapter.name == "lora"
    assert (
        Config()
        .with_overrides(settings_of({"fusion.dropout": "0.2", "fusion": "film", "text": "as it is"}, space))
        .text
        == Config().text
    )


def test_values_keep_their_types():
    space = read_space(
        {"trainer.patience": [None, 3], "trainer.sam": [None, 0.05], "data.cache": ["none", "a"]}, Config()
    )
    config = Config().with_overrides(
        settings_of({"trainer.patience": "null", "trainer.sam": "0.05", "data.cache": "none"}, space)
    )
    assert config.trainer.patience is None and config.trainer.sam == 0.05 and config.data.cache == "none"


def test_folders_start_at_the_file(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "space.yaml").write_text("text.name: [minilm, ./model]\n")
    space = read_space(tmp_path / "space.yaml", Config())
    assert space["text.name"] == Choice(("minilm", str(tmp_path / "model")))


def test_all_problems_are_named_at_once():
    wrong = {
        "trainer.epocs": [1, 2],
        "trainer.lr": {"low": 1.0, "high": 0.1},
        "trainer.schedule": ["cosine", "square"],
        "seed": [0, 1],
        "report.alone": ["none", "probe"],
        "trainer.sam": [0.1],
        "trainer.head_lr": {"low": 0, "high": 1, "log": True},
    }
    with pytest.raises(ConfigError) as error:
        read_space(wrong, Config())
    for part in (
        "did you mean 'epochs'",
        "low must be less",
        "there is no such method",
        "seed: says",
        "report.alone: says",
    ):
        assert part in str(error.value)
    assert "trainer.sam: expected a list of two" in str(error.value) and "starts above 0" in str(error.value)
    with pytest.raises(ConfigError, match="no setting"):
        read_space({}, Config())


def test_values_of_a_grid():
    assert Range(low=1e-4, high=1e-2, log=True).grid() == pytest.approx([1e-4, 1e-3, 1e-2])
    assert Range(low=1, high=2, num=5).grid() == [1, 2]
    assert Range(low=0.0, high=1.0, step=0.25, num=4).grid() == [0.0, 0.25, 0.75, 1.0]


def test_what_a_range_contains():
    assert Range(low=0, high=10, step=5).contains(5) and not Range(low=0, high=10, step=5).contains(4)
    wide = Range(low=1e-4, high=1e-2, log=True).holding(0.1)
    assert (wide.low, wide.high) == (1e-4, 0.1)
    assert Range(low=1, high=3).holding(2.5) == Range(low=1, high=3)
