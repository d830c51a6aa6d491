"""One fit: prepare the tables, then fit a model of the family that the tasks choose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fusetune.backbones.passes.compiled import check_compiler
from fusetune.deploy.bundle import Bundle
from fusetune.errors import ConfigError
from fusetune.evaluation.results import RunResults, plain
from fusetune.fitting.generate import fit_generate
from fusetune.fitting.match import fit_match
from fusetune.fitting.prepared import Prepared, RunSettings, prepare
from fusetune.fitting.pretrain import check_pretraining
from fusetune.fitting.rerank import check_texts, fit_reranker
from fusetune.fitting.similarity import fit_similarity
from fusetune.fitting.stack import check_stack
from fusetune.fitting.teacher import with_teacher
from fusetune.fitting.understand import fit_understand
from fusetune.models.generate import Generate
from fusetune.models.match import Match
from fusetune.models.understand import Understand
from fusetune.tasks.base import family_of


def fit_sides(fit: Prepared) -> tuple[Bundle, RunResults]:
    """Fit a model of the match family: of pairs with a target, or of pairs and columns that belong together.

    Raises:
        UserError, RunError: see `api.fit`.
    """
    return fit_similarity(fit) if fit.targets else fit_match(fit)


FAMILIES: dict[str, Callable[[Prepared], tuple[Bundle, RunResults]]] = {
    Understand.name: fit_understand,
    Match.name: fit_sides,
    Generate.name: fit_generate,
}
"""The function that fits a model, by the family's name."""


def run_fit(settings: RunSettings) -> tuple[Bundle, RunResults]:
    """Prepare the tables and fit the family that the tasks choose.

    Raises:
        UserError, RunError: see `api.fit`.
    """
    check_stack(settings.config)
    if settings.config.trainer.compile:
        check_compiler()
    fit = prepare(settings)
    if settings.config.rerank is not None:
        check_texts(fit)
    check_pretraining(fit)
    _check_probe_only(fit)
    fit = with_teacher(fit)
    bundle, results = FAMILIES[family_of(fit.tasks)](fit)
    for task in results.tasks:
        after = task.first("after")
        assert after is not None
        bundle.metrics[task.target] = {name: plain(value.value) for name, value in after.metrics.items()}
    if settings.config.rerank is not None:
        fit_reranker(fit, bundle, results)
    return bundle, results


def _check_probe_only(fit: Prepared) -> None:
    """Check which tables only the linear probe and the heads learn on.

    Raises:
        ConfigError: there is no such table, none is left to tune on, or the model has no linear probe.
    """
    numbers = fit.config.data.probe_only
    if not numbers:
        return
    if family_of(fit.tasks) != Understand.name:
        raise ConfigError(
            "data.probe_only is about models that predict targets", do="leave it out, or the tables that it names"
        )
    train = fit.examples["train"].with_target()
    known = len(train.table.files)
    if max(numbers) >= known:
        raise ConfigError(
            f"data.probe_only names the train table {max(numbers)}",
            expected=f"numbers from 0 to {known - 1}",
            came=", ".join(map(str, numbers)),
        )
    if np.isin(train.table.parts()[train.used], numbers).all():
        raise ConfigError(
            "data.probe_only leaves no row to tune on",
            came=f"all {known} train tables",
            do="leave out the number of a table with new rows",
        )
