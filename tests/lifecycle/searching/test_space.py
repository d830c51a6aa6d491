"""The space where none is given, and where the settings as they are lie in a space."""

import pytest

from fusetune.config.config import Config
from fusetune.config.space import Choice, Range, settings_of
from fusetune.data.schema import Schema
from fusetune.data.table import Table
from fusetune.lifecycle.searching.space import default_space, with_current

ROWS = [
    {"note": f"w{number % 7} w{number % 5} w{number % 3}", "price": number * 1.5, "label": "ab"[number % 2]}
    for number in range(40)
]


@pytest.fixture
def schema():
    return Schema.detect(Table.read(Table.from_records(ROWS)), targets=["label"])


def test_the_default_space_holds_the_defaults(tiny, schema):
    config = Config().with_overrides({"text": {"name": tiny("bert")}, "objectives": {"contrastive": {"weight": 0.1}}})
    space, current, unknown = with_current(default_space(config, schema, "understand"), config)
    assert not unknown and set(current) == set(space)
    assert {"trainer.epochs", "trainer.backbone_lr", "text", "fusion", "fusion.dropout"} <= space.keys()
    assert {"objectives.contrastive.weight", "objectives.contrastive.lambda"} <= space.keys()
    assert current["text"] == "as it is" and current["fusion"] == "attention" and current["fusion.dropout"] == 0.1
    assert current["objectives.contrastive.lambda"] == 0.5
    same = config.with_overrides(settings_of(current, space))
    assert same.trainer == config.trainer and same.text == config.text
    assert all(config.with_overrides(settings_of({**current, "text": label}, space)) for label in space["text"].labels)


def test_settings_that_are_given_are_not_searched(tiny, schema):
    given = {"text": {"name": tiny("bert"), "freeze": "all"}, "trainer": {"epochs": 3}, "fusion": "gated"}
    space = default_space(Config().with_overrides(given), schema, "understand")
    assert not {"text", "trainer.epochs", "fusion"} & space.keys() and "trainer.lr" in space


def test_a_space_is_widened_to_hold_the_settings_as_they_are():
    space = {"trainer.lr": Range(low=1e-5, high=1e-4, log=True), "trainer.batch_size": Choice((8, 16))}
    wide, current, unknown = with_current(space, Config())
    assert wide["trainer.lr"].high == 1e-3 and wide["trainer.batch_size"].labels == ["32", "8", "16"]
    assert current == {"trainer.lr": 1e-3, "trainer.batch_size": "32"} and not unknown
    _, _, unknown = with_current({"trainer.ema": Range(low=0.9, high=0.999)}, Config())
    assert unknown == ["trainer.ema"]
