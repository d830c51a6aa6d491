"""The names that `import fusetune` promises."""

import pytest

import fusetune

NAMES = [
    "Config",
    "FineTuned",
    "FusetuneClassifier",
    "FusetuneRegressor",
    "Metric",
    "Schema",
    "Table",
    "__version__",
    "drift",
    "dry_run",
    "errors",
    "evaluate",
    "fit",
    "label",
    "label_errors",
    "load",
    "rank",
    "retune",
    "samples",
    "schema_of",
    "search_settings",
]


def test_names_are_pinned():
    assert sorted(fusetune.__all__) == NAMES
    assert dir(fusetune) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there(name):
    assert getattr(fusetune, name) is not None


def test_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'fitt'"):
        fusetune.fitt  # noqa: B018


def test_samples_are_named():
    assert fusetune.samples.make_tickets(3, seed=0).num_rows == 3
    assert fusetune.samples.make_posts(3, seed=0).num_rows == 3
    assert fusetune.samples.make_shop(3, seed=0).num_rows == 3
