"""Labels and separators in settings are what the table has, whatever YAML takes them for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusetune.config.config import Config, parse_override
from fusetune.config.spelling import spelled, spells
from fusetune.security.yaml_text import parse_yaml

LABELS = [
    "no",
    "yes",
    "off",
    "true",
    "01",
    "1",
    "1.0",
    "12:30",
    "2020-01-01",
    "null",
    "~",
    "1e3",
    "0x1F",
    "NA",
    "1_000",
]


@pytest.mark.parametrize("label", LABELS)
def test_a_label_as_a_value_is_found_in_the_table(label):
    value = parse_yaml(label)
    assert spells(value, label)
    assert spelled(value, [label, "other"]) == label


@pytest.mark.parametrize("label", LABELS)
def test_a_label_as_a_key_is_its_text(label):
    assert parse_override(f"tasks.y.class_weights={{{label}: 2}}") == {"tasks": {"y": {"class_weights": {label: 2}}}}


@given(st.sampled_from(LABELS) | st.booleans() | st.integers(0, 20) | st.none())
def test_settings_come_back_from_their_file(label):
    config = Config.build({"tasks": {"y": {"name": "binary", "positive": label, "class_weights": {"no": 2.0}}}})
    again = Config.build(parse_yaml(config.to_yaml()))
    assert again == config == config.with_overrides(["seed=0"])


def test_several_labels_that_yaml_reads_alike_are_none():
    assert spelled(True, ["yes", "on"]) is None
    assert spelled(True, ["yes", "True"]) == "True"
    assert spelled(1, ["1", "01"]) == "1"


@pytest.mark.parametrize("sign", list("|;,:-/*&!%@#>?'\"`"))
def test_one_sign_is_itself(sign):
    assert parse_override(f"tasks.y.separator={sign}")["tasks"]["y"]["separator"] == sign


def test_formats_of_dates_need_no_quotes():
    assert Config().with_overrides(["data.read.dates=%d/%m/%Y"]).data.read.dates == "%d/%m/%Y"


def test_names_of_columns_and_targets_may_look_like_numbers():
    config = Config().with_overrides(["columns={2020: number}", "tasks={yes: binary}", "tasks.01=regression"])
    assert list(config.columns) == ["2020"] and list(config.tasks) == ["yes", "01"]
