"""The JSON schema of the settings takes what `Config` takes, checked with the library jsonschema."""

import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from fusetune.config.config import Config
from fusetune.config.json_schema import json_schema
from fusetune.config.space import read_space
from fusetune.config.watch import WatchConfig
from fusetune.errors import ConfigError

ROOT = Path(__file__).parents[2]
DOCUMENTED = [
    block
    for page in sorted(ROOT.glob("docs/**/*.md"))
    for block in re.findall(r"(?ms)^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"))
]
SCHEDULES = [block for block in DOCUMENTED if block.startswith("# watch.yaml")]
SPACES = [block for block in DOCUMENTED if block.startswith("# space.yaml")]


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(json_schema())


def test_is_a_schema():
    Draft202012Validator.check_schema(json_schema())


def test_defaults_are_valid(validator):
    validator.validate(Config().model_dump(mode="json"))


@pytest.mark.parametrize("block", [block for block in DOCUMENTED if block not in SCHEDULES + SPACES])
def test_settings_in_the_docs_are_valid(validator, block):
    settings = yaml.safe_load(block)
    Config.build(settings)
    validator.validate(settings)


@pytest.mark.parametrize("block", SCHEDULES)
def test_schedules_in_the_docs_are_valid(block):
    assert WatchConfig.model_validate(yaml.safe_load(block)).tables


@pytest.mark.parametrize("block", SPACES)
def test_search_spaces_in_the_docs_are_valid(block):
    assert read_space(yaml.safe_load(block), Config())


@pytest.mark.parametrize(
    "settings",
    [
        {"train": "a.csv", "target": "y"},
        {"fusion": "gated"},
        {"fusion": {"name": "gated", "dropout": 0.1}},
        {"fusion": {"name": "auto", "candidates": "gated"}},
        {"objectives": "contrastive"},
        {"objectives": ["rdrop"]},
        {"objectives": {"contrastive": 0.1, "rdrop": None}},
        {"columns": {"year": "number", "note": {"kind": "text", "max_tokens": 9}}},
        {"image": "../m", "catalogue": "items.csv", "rerank": True},
        {"trainer": {"adversarial": "fgm"}, "tasks": {"y": "ordinal"}, "augment": {"image": ["flip"]}},
    ],
)
def test_short_forms_are_valid(validator, settings):
    Config.build(settings)
    validator.validate(settings)


@pytest.mark.parametrize(
    "settings", [{"traner": {}}, {"trainer": {"epocs": 1}}, {"trainer": {"epochs": "many"}}, {"seed": -1}, {"train": 3}]
)
def test_mistakes_are_invalid(validator, settings):
    with pytest.raises(ConfigError):
        Config.build(settings)
    assert not validator.is_valid(settings)


def test_every_setting_is_described():
    schema = json_schema()
    for section in (schema, *schema["$defs"].values()):
        for name, part in section["properties"].items():
            assert "description" in part or "$ref" in part or "anyOf" in part, name
    assert schema["$defs"]["TrainerConfig"]["properties"]["epochs"]["description"]
