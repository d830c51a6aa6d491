"""`fusion: auto`: candidates learn on the frozen features, and the validation rows choose one.

Each candidate gets what the fit's head stage would give it: the same start from the linear probes, the same updates,
the best step by validation rows. Encoders that are trained from scratch are copied for each. The fusion is then built
and tuned as if it had been named.

The rule is that of one standard error (Breiman et al. 1984, "Classification and Regression Trees", §3.4.3): the best of
many scores on few rows is often luck, so among those within the metric's standard error of the best score the default
is taken, or, where that is not among them, the fusion with the fewest parameters.
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
"""With more columns, a product over all of them and attention between each pair are left out."""


def candidates_of(settings: AutoConfig, columns: int) -> dict[str, NamedConfig]:
    """The fusions to try, in order, each with the options that it takes.

    Args:
        settings: what the user says.
        columns: how many input columns there are.

    Raises:
        ConfigError: an option that no candidate takes.
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
    """The fusion that a fit's model is first built with: the one named, or the first candidate.

    Raises:
        ConfigError: a candidate cannot be made with these settings.
    """
    settings = neural(fit.config.fusion)
    if not isinstance(settings, AutoConfig):
        return settings
    candidates = list(candidates_of(settings, len(fit.modalities)).values())
    for candidate in candidates:  # all of them before anything is trained
        build(fit, candidate)
    return candidates[0]


def choose_fusion(fit: Prepared, *, clock: Clock = time.perf_counter) -> tuple[FusionChoice, NamedConfig]:
    """Try the candidates until the budget is spent, and choose.

    Args:
        fit: with its cells read, features computed and probes fitted.
        clock: seconds.

    Returns:
        How it was chosen, and the fusion with its options.
    """
    settings = neural(fit.config.fusion)
    assert isinstance(settings, AutoConfig)
    candidates = candidates_of(settings, len(fit.modalities))
    if (kept := fit.run.recall("fusion")) is not None:
        with reading("what the run decided does not fit it", file=fit.folder, do="begin anew with --no-resume"):
            choice = FusionChoice(**{**kept, "candidates": [FusionTried(**one) for one in kept["candidates"]]})
            return choice, candidates[choice.chosen]
    tried: list[FusionTried] = []
    start, spent, margin = clock(), False, 0.0
    for name, candidate in candidates.items():
        model = build(fit, candidate)
        one = FusionTried(name, sum(parameter.numel() for parameter in model.get_submodule("fusion").parameters()))
        if not spent:
            begun = clock()
            score, error = _score(fit, model)
            margin = max(margin, error)
            ended = clock()
            late = fit.deadline.part(CHOOSING).passed()
            score, spent = _of_main(score, late or ended - start >= 60 * settings.minutes)
            one = replace(one, score=score, seconds=ended - begun, tried=True)
        tried.append(one)
    margin, _ = _of_main(margin, spent)
    mains = list(dict.fromkeys(task.main.name for task in fit.targets.values()))
    metric = f"validation {mains[0]}" if len(mains) == 1 else "mean of the validation metrics"
    choice = choose(tried, metric, margin=margin, minutes=settings.minutes, limited=fit.deadline.minutes is not None)
    fit.run.remember("fusion", asdict(choice))
    return choice, candidates[choice.chosen]


def choose(
    tried: list[FusionTried], metric: str, *, margin: float, minutes: float, limited: bool = False
) -> FusionChoice:
    """The best of the scores, unless a simpler fusion is as good within the margin.

    Args:
        tried: the candidates; the first was tried.
        metric: what the scores are, in words; more is better.
        margin: the scores' standard error, in their unit.
        minutes: the budget.
        limited: whether the whole fit has a budget of its own.
    """
    known = [one for one in tried if one.tried and not math.isnan(one.score)]
    best = max(known, key=lambda one: one.score, default=tried[0])
    near = [one for one in known if one.score >= best.score - margin] or [best]
    chosen = min(near, key=lambda one: (one.name != DEFAULT, one.parameters))
    said = _said(chosen, best, tried, known, metric, margin)
    left = [one.name for one in tried if not one.tried]
    if left:
        budget = f"The budget of {minutes:g} minutes{' or that of the whole fit' if limited else ''}"
        more = "fusion.minutes and trainer.minutes" if limited else "fusion.minutes"
        said += (
            f" {budget} was spent before {', '.join(left)} could be tried, so another run may choose otherwise; give"
            f" more with {more}."
        )
    return FusionChoice(chosen.name, metric, margin, minutes, tried, said)


def _said(
    chosen: FusionTried,
    best: FusionTried,
    tried: list[FusionTried],
    known: list[FusionTried],
    metric: str,
    margin: float,
) -> str:
    if not known:
        return f"{chosen.name} was taken, as no validation row has a target to choose by."
    if len([one for one in tried if one.tried]) == 1:
        return f"{chosen.name} was taken, as it is the only one that was tried."
    chance = f"(differences up to {margin:.3f} count as chance)"
    if chosen.name != best.name:
        why = "the default" if chosen.name == DEFAULT else "the fusion with the fewest parameters among those so near"
        return (
            f"{chosen.name} was chosen: {metric} {chosen.score:.3f}, no worse than the best, {best.name} with"
            f" {best.score:.3f} {chance}, and {why}."
        )
    default = next((one for one in known if one.name == DEFAULT and one is not chosen), None)
    beside = f"; the default, {DEFAULT}, reaches {default.score:.3f}" if default else ""
    return f"{chosen.name} was chosen: it has the best {metric}, {best.score:.3f}{beside} {chance}."


def _score(fit: Prepared, model: Family) -> tuple[float, float]:
    """Return a candidate's mean main metric on validation rows at its best step, and its standard error."""
    for key, encoder in model.encoders.items():
        if not encoder.pretrained:  # it learns, and the next candidate has to start where this one did
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


def _of_main(score: float, spent: bool) -> tuple[float, bool]:
    """What the main process measured, so that all processes go on alike."""
    if processes().num_processes == 1:
        return score, spent
    values: list[float | bool] = [score, spent]
    broadcast_object_list(values)
    return float(values[0]), bool(values[1])
