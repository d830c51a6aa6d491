"""The fit of the understand family: frozen features, linear probes, the fusion, tuning, trees, comparisons."""

from __future__ import annotations

from dataclasses import replace

import torch

from fusetune.config.fusion import AutoConfig, StackConfig, neural, with_neural
from fusetune.deploy.bundle import Bundle
from fusetune.evaluation.results import RunResults
from fusetune.fitting.choose import choose_fusion, start_fusion
from fusetune.fitting.findings import Findings
from fusetune.fitting.joining import choose_reading, with_apart
from fusetune.fitting.prepared import Prepared
from fusetune.fitting.pretrain import pretrain
from fusetune.fitting.saved import Trained, load_trained, reporting, save_trained
from fusetune.fitting.stack import StackFit, untuned_encoders
from fusetune.fitting.steps import alone_models, build, bundle, drop_ngrams, encode, fit_probes, single_models, tune
from fusetune.models.family import Family
from fusetune.models.perturb import attacked_columns
from fusetune.training.history import TrainingHistory
from fusetune.training.plan import Start
from fusetune.training.updates.surgery import check_balance


def fit_understand(fit: Prepared) -> tuple[Bundle, RunResults]:
    """Tune a model on the prepared rows, save it, and compare it with its baselines.

    Raises:
        UserError, RunError: see `api.fit`.
    """
    with fit.phase("encode with frozen backbones"):
        fit = replace(fit, rng_state=torch.get_rng_state())
        model = build(fit, start_fusion(fit))
        _check(fit, model)
        fit = encode(fit, model)
    with fit.phase("fit linear probes"):
        fit = with_apart(replace(fit, probes=fit_probes(fit)))
    if fit.config.pretrain is not None:
        fit = pretrain(fit, model)
        fit = replace(fit, probes=fit_probes(fit))
    drop_ngrams(fit)
    chosen = choose_reading(fit, model)
    fit, model = chosen.fit, chosen.model
    if isinstance(neural(fit.config.fusion), AutoConfig):
        with fit.phase("choose the fusion"):
            choice, fusion = choose_fusion(fit)
        config = fit.config.model_copy(update={"fusion": with_neural(fit.config.fusion, fusion)})
        fit = replace(fit, choice=choice, config=config)
        model = build(fit, fusion)
    trained = load_trained(fit.run, fit.tasks) or _train(fit, model, chosen.history)
    fit = replace(fit, phases=list(trained.phases))
    with reporting(fit.folder), fit.phase("compare and measure"):
        results = Findings(fit, trained).results(alone_models(fit), single_models(fit))
    return trained.bundle, results


def _check(fit: Prepared, model: Family) -> None:
    """Check the settings that depend on the model, before anything is computed.

    Raises:
        ConfigError: a setting names a column that the model lacks.
        MissingExtra: a setting needs a library that is not installed.
    """
    check_balance(fit.config.trainer.balance)
    for asked, where in (
        (fit.config.trainer.adversarial, "trainer.adversarial"),
        (fit.config.report.attack, "report.attack"),
    ):
        attacked_columns(model, asked.columns if asked else [], where=where)


def _train(fit: Prepared, model: Family, history: TrainingHistory | None) -> Trained:
    """Tune the model, train its trees, tune decision thresholds on validation rows, and save it.

    Args:
        fit: with features and probes.
        model: of the fit.
        history: of its training, if it is tuned already.
    """
    before = untuned_encoders(fit, model)
    if history is None:
        with fit.phase("tune"):
            history = tune(fit, model, start=Start(fit.probes))
    trained = Trained(bundle(fit, model), history, {}, fit.phases)
    if isinstance(fit.config.fusion, StackConfig):
        with fit.phase("grow trees"):
            trained.bundle.stack, trained.stacked = StackFit(fit, model, history, before).run()
    with fit.phase("save"):
        trained.val_scores = Findings(fit, trained).decide()
        save_trained(fit.run, trained)
    return trained
