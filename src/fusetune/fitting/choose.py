"""`fusion: auto`: train candidate fusions on the frozen features, and choose one on validation rows.

Each candidate is trained as in the fit's head stage: initialised from the linear probes, with the same updates, and
scored at its best step on validation rows. Encoders without pretrained weights are copied for each candidate. The
chosen fusion is then built and tuned as if the settings had named it.

The choice follows the one-standard-error rule (Breiman et al. 1984, "Classification and Regression Trees", §3.4.3),
because the best of many scores on few rows is often best by chance. Of the fusions within the metric's standard error
of the best score, it takes the default, or if that is not among them the one with the fewest parameters.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace

from accelerate.utils import broadcast_object_list

from fusetune.config.fusion import AutoConfig, neural
from fusetune.config.section import NamedConfig
from fusetune.errors import ConfigError, nearest
from fusetune.evaluation.decisions import FusionChoice, FusionTried
from fusetune.fitting.prepared import Prepared
from fusetune.fitting.steps import build, rules, training_rows
from fusetune.models.build import SHARED_OPTIONS, options_of
from fusetune.models.family import Family
from fusetune.registry import FUSIONS
from fusetune.security.untrusted import reading
from fusetune.training.deadline import CHOOSING
from fusetune.training.finetune import finetune
from fusetune.training.hardware.devices import processes
from fusetune.training.plan import Goal, RunContext, Start

Clock = Callable[[], float]

DEFAULT = "attention"
FEW_COLUMNS = ("attention", "concat", "gated", "low_rank", "mixture", "film", "bottleneck", "cross_attention")
ONE_COLUMN = ("attention", "concat", "mixture")
MANY_COLUMNS = ("attention", "concat", "gated", "mixture", "film", "bottleneck")
MANY = 8
"""With more columns, products of all columns and attention between each pair are not tried."""


def candidates_of(settings: AutoConfig, columns: int) -> dict[str, NamedConfig]:
    """Return the fusions to try, in order, each with those of the options that it has.

    Args:
        settings: the section `fusion`.
        columns: number of input columns.

    Raises:
        ConfigError: no candidate has one of the options.
    """
    usual = ONE_COLUMN if columns == 1 else FEW_COLUMNS if columns <= MANY else MANY_COLUMNS
    names = settings.candidates or list(usual)
    known = {name: [*options_of(FUSIONS.get(name), "columns", "dim"), *SHARED_OPTIONS] for name in names}
    every = list(dict.fromkeys(option for options in known.values() for option in options))
    for option in settings.options:
        if option not in every:
            raise ConfigError(
                f"fusion (auto) has no setting {option!r}, nor has any candidate",
                expected=", ".join(["candidates", "minutes", *every]),
                do=nearest(option, ["candidates", "minutes", *every]),
            )
    return {
        name: NamedConfig(name=name, **{key: value for key, value in settings.options.items() if key in known[name]})
        for name in names
    }


def start_fusion(fit: Prepared) -> NamedConfig:
    """Return the fusion that the model is first built with: the one in the settings, or the first candidate.

    Raises:
        ConfigError: a candidate cannot be built with these settings.
    """
    settings = neural(fit.config.fusion)
    if not isinstance(settings, AutoConfig):
        return settings
    candidates = list(candidates_of(settings, len(fit.modalities)).values())
    for candidate in candidates:  # checks all of them before training
        build(fit, candidate)
    return candidates[0]


def choose_fusion(fit: Prepared, *, clock: Clock = time.perf_counter) -> tuple[FusionChoice, NamedConfig]:
    """Try the candidates until the time budget is spent, and choose one.

    Args:
        fit: with features and probes.
        clock: returns seconds.

    Returns:
        The record of the choice, and the fusion with its options.
    """
    settings = neural(fit.config.fusion)
    assert isinstance(settings, AutoConfig)
    candidates = candidates_of(settings, len(fit.modalities))
    if (stored := fit.run.load_decision("fusion")) is not None:
        with reading("what the run decided does not fit it", file=fit.folder, do="begin anew with --no-resume"):
            choice = FusionChoice(**{**stored, "candidates": [FusionTried(**item) for item in stored["candidates"]]})
            return choice, candidates[choice.chosen]
    tried: list[FusionTried] = []
    start, spent, margin = clock(), False, 0.0
    for name, candidate in candidates.items():
        model = build(fit, candidate)
        result = FusionTried(name, sum(parameter.numel() for parameter in model.get_submodule("fusion").parameters()))
        if not spent:
            begun = clock()
            score, error = _score(fit, model)
            margin = max(margin, error)
            ended = clock()
            late = fit.deadline.part(CHOOSING).passed()
            score, spent = of_main(score, late or ended - start >= 60 * settings.minutes)
            result = replace(result, score=score, seconds=ended - begun, tried=True)
        tried.append(result)
    margin, _ = of_main(margin, spent)
    mains = list(dict.fromkeys(task.main.name for task in fit.targets.values()))
    metric = f"validation {mains[0]}" if len(mains) == 1 else "mean of the validation metrics"
    choice = choose(tried, metric, margin=margin, minutes=settings.minutes, limited=fit.deadline.minutes is not None)
    fit.run.save_decision("fusion", asdict(choice))
    return choice, candidates[choice.chosen]


def choose(
    tried: list[FusionTried], metric: str, *, margin: float, minutes: float, limited: bool = False
) -> FusionChoice:
    """Return the choice: the fusion with the best score, unless the default or a smaller one is within the margin.

    Args:
        tried: the candidates, of which at least the first was trained.
        metric: a description of the scores; higher is better.
        margin: the scores' standard error, in their unit.
        minutes: the time budget.
        limited: whether the whole fit has a time budget too.
    """
    known = [item for item in tried if item.tried and not math.isnan(item.score)]
    best = max(known, key=lambda item: item.score, default=tried[0])
    near = [item for item in known if item.score >= best.score - margin] or [best]
    chosen = min(near, key=lambda item: (item.name != DEFAULT, item.parameters))
    reason = _reason(chosen, best, tried, known, metric, margin)
    left = [item.name for item in tried if not item.tried]
    if left:
        budget = f"The budget of {minutes:g} minutes{' or that of the whole fit' if limited else ''}"
        more = "fusion.minutes and trainer.minutes" if limited else "fusion.minutes"
        reason += (
            f" {budget} was spent before {', '.join(left)} could be tried, so another run may choose otherwise; give"
            f" more with {more}."
        )
    return FusionChoice(chosen.name, metric, margin, minutes, tried, reason)


def _reason(
    chosen: FusionTried,
    best: FusionTried,
    tried: list[FusionTried],
    known: list[FusionTried],
    metric: str,
    margin: float,
) -> str:
    if not known:
        return f"{chosen.name} was taken, as no validation row has a target to choose by."
    if len([item for item in tried if item.tried]) == 1:
        return f"{chosen.name} was taken, as it is the only one that was tried."
    chance = f"(differences up to {margin:.3f} count as chance)"
    if chosen.name != best.name:
        why = "the default" if chosen.name == DEFAULT else "the fusion with the fewest parameters among those so near"
        return (
            f"{chosen.name} was chosen: {metric} {chosen.score:.3f}, no worse than the best, {best.name} with"
            f" {best.score:.3f} {chance}, and {why}."
        )
    default = next((item for item in known if item.name == DEFAULT and item is not chosen), None)
    beside = f"; the default, {DEFAULT}, reaches {default.score:.3f}" if default else ""
    return f"{chosen.name} was chosen: it has the best {metric}, {best.score:.3f}{beside} {chance}."


def _score(fit: Prepared, model: Family) -> tuple[float, float]:
    """Return a candidate's mean main metric on validation rows at its best step, and its standard error."""
    for key, encoder in model.encoders.items():
        if not encoder.pretrained:  # it is trained, but the next candidate must start from its initial weights
            model.encoders[key] = copy.deepcopy(encoder)
    settings = fit.config.trainer
    head = settings.head_epochs if settings.head_epochs != 0 else None
    settings = settings.model_copy(update={"epochs": 0, "head_epochs": head, "adversarial": None})
    history = finetune(
        model,
        training_rows(fit),
        Goal(fit.targets, fit.config.objectives),
        settings,
        rules=rules(fit, fit.modalities),
        start=Start(fit.probes),
        context=RunContext(fit.config.seed, bar=fit.show, deadline=fit.deadline.part(CHOOSING)),
    )
    return history.best.score, history.error


def of_main(score: float, spent: bool) -> tuple[float, bool]:
    """Return the main process's values, so that all processes continue alike."""
    if processes().num_processes == 1:
        return score, spent
    values: list[float | bool] = [score, spent]
    broadcast_object_list(values)
    return float(values[0]), bool(values[1])
