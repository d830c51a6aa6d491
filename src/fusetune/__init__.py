"""fusetune: fine-tune pretrained models on tables of text, images, audio, numbers and categories.

    import fusetune as ft

    tuned = ft.fit("train.csv", target="rating", out="runs/rating")
    print(ft.evaluate(tuned, "test.csv"))
    tuned.predict("new.csv").to_csv("out.csv")

Names are imported when they are first used, so that `import fusetune` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusetune import errors as errors
    from fusetune import samples as samples
    from fusetune.api import FineTuned as FineTuned
    from fusetune.api import dry_run as dry_run
    from fusetune.api import evaluate as evaluate
    from fusetune.api import fit as fit
    from fusetune.api import load as load
    from fusetune.api import schema_of as schema_of
    from fusetune.config.config import Config as Config
    from fusetune.data.schema import Schema as Schema
    from fusetune.data.table import Table as Table
    from fusetune.estimators import FusetuneClassifier as FusetuneClassifier
    from fusetune.estimators import FusetuneRegressor as FusetuneRegressor
    from fusetune.lifecycle.drift import drift as drift
    from fusetune.lifecycle.label_errors import label_errors as label_errors
    from fusetune.lifecycle.labelling.label import label as label
    from fusetune.lifecycle.rank import rank as rank
    from fusetune.lifecycle.retune import retune as retune
    from fusetune.lifecycle.searching.search import search_settings as search_settings
    from fusetune.tasks.main_metric import Metric as Metric

__version__ = "0.1.0"

_PLACES = {
    "Config": "fusetune.config.config:Config",
    "FineTuned": "fusetune.api:FineTuned",
    "FusetuneClassifier": "fusetune.estimators:FusetuneClassifier",
    "FusetuneRegressor": "fusetune.estimators:FusetuneRegressor",
    "Metric": "fusetune.tasks.main_metric:Metric",
    "Schema": "fusetune.data.schema:Schema",
    "Table": "fusetune.data.table:Table",
    "drift": "fusetune.lifecycle.drift:drift",
    "dry_run": "fusetune.api:dry_run",
    "errors": "fusetune.errors",
    "evaluate": "fusetune.api:evaluate",
    "fit": "fusetune.api:fit",
    "label": "fusetune.lifecycle.labelling.label:label",
    "label_errors": "fusetune.lifecycle.label_errors:label_errors",
    "load": "fusetune.api:load",
    "rank": "fusetune.lifecycle.rank:rank",
    "retune": "fusetune.lifecycle.retune:retune",
    "samples": "fusetune.samples",
    "schema_of": "fusetune.api:schema_of",
    "search_settings": "fusetune.lifecycle.searching.search:search_settings",
}

__all__ = ["__version__", *sorted(_PLACES)]


def __getattr__(name: str) -> Any:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module 'fusetune' has no attribute {name!r}")
    module, _, attribute = place.partition(":")
    found = importlib.import_module(module)
    value = getattr(found, attribute) if attribute else found
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
