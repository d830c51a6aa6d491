"""Read two texts apart or together, as `text.join` has it: tune both, and let validation rows choose.

The frozen encoder does not tell which is better: it was trained on single texts, so that its vector of two texts in one
sequence says little before it is tuned (Reimers and Gurevych 2019, arXiv 1908.10084, compare both when tuned). So both
readings are tuned, on the same train rows and with the settings of the fit. On a small table that is the whole
training, and the better model is kept; on a large one, a trial on some of the train rows.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace

import numpy as np

from fusetune.config.fusion import AutoConfig, StackConfig
from fusetune.config.section import NamedConfig
from fusetune.data.column import Column
from fusetune.data.examples import Examples
from fusetune.errors import ConfigError
from fusetune.evaluation.decisions import ReadingChoice, ReadingTried
from fusetune.evaluation.report import describe
from fusetune.fitting.choose import of_main, start_fusion
from fusetune.fitting.prepared import Prepared, input_columns
from fusetune.fitting.steps import (
    build,
    drop_ngrams,
    fit_probes,
    fresh_modalities,
    labelled,
    rules,
    training_rows,
    tune,
)
from fusetune.fitting.tables import SPLITS, Tables
from fusetune.inference.features import fill_features
from fusetune.models.build import build_modalities, build_model
from fusetune.models.family import Family
from fusetune.models.perturb import attacked_columns
from fusetune.objectives.total import build_objectives
from fusetune.security.untrusted import reading
from fusetune.training.deadline import CHOOSING
from fusetune.training.finetune import finetune
from fusetune.training.history import TrainingHistory
from fusetune.training.plan import Goal, RunContext, Start
from fusetune.training.progress import print_line

APART, TOGETHER = "apart", "together"
MIN_ROWS, MIN_VAL_ROWS = 200, 50
"""With fewer train or validation rows, texts are read apart: the choice would be left to chance."""
MAX_ROWS = 4000
"""With more train rows, the readings are tried on `TRIAL_ROWS` of them, so that trying them takes no longer than the
training."""
TRIAL_ROWS = 2000


@dataclass(frozen=True)
class Reading:
    """A fit whose texts are read in one way.

    Attributes:
        name: of the way.
        fit: with features and probes.
        model: its model.
        history: of the training, if the model was tuned on all train rows in order to choose; else None.
    """

    name: str
    fit: Prepared
    model: Family
    history: TrainingHistory | None = None


@dataclass(frozen=True)
class Trial:
    """How well a reading did when tuned.

    Attributes:
        tried: its name, score and seconds.
        error: the score's standard error.
        history: of the training.
    """

    tried: ReadingTried
    error: float
    history: TrainingHistory


def read_as(fit: Prepared, tables: Tables) -> Prepared:
    """Return a fit whose texts are read as other tables have it, with its features and labelled rows.

    Cells and features of the columns that both have are shared.

    Args:
        fit: with features.
        tables: the same rows, with text columns read in another way.
    """
    wanted = input_columns(fit.config, tables.schema)
    new = [name for name in wanted if name not in fit.modalities]
    made = build_modalities({name: wanted[name] for name in new}, fit.backbones())
    modalities = {name: made.get(name) or fit.modalities[name] for name in wanted}
    examples = {}
    for split, table in tables.splits.items():
        rows = fit.examples[split]
        columns = {name: Column(made[name], table, name) if name in made else rows.columns[name] for name in wanted}
        for name in new:
            columns[name].decode_all(int(fit.config.data.memory * 2**30 / len(SPLITS)))
            columns[name].codes[list(columns[name].unread())] = -1
        examples[split] = rows.reading(table, columns)
    if not tables.has_test:
        examples["test"] = examples["val"]
    train = examples["train"]
    for name in new:
        train.columns[name].learn(train.columns[name].codes[train.used])
    if fit.config.trainer.probe == "auto":
        train.with_target().restrict(new).learn_ngrams()
    return _encoded(replace(fit, tables=tables, modalities=modalities, examples=examples), new)


def _encoded(fit: Prepared, new: list[str]) -> Prepared:
    """Return the fit with the features of new columns, the others' as they are, its labelled rows and probes."""
    encoders = build_model(fresh_modalities(fit, new), fit.tasks, NamedConfig(name="mean"))
    features = {}
    for split, rows in fit.examples.items():
        groups = fit.run.manager(f"encode-{split}", new).step_cells
        own = fill_features(encoders, rows, cache=fit.cache, groups=groups, progress=fit.progress)
        known = {**fit.features[split], **own}
        features[split] = {name: known[name] for name in fit.modalities if name in known}
    fingerprints = {split: describe.fingerprint(rows) for split, rows in fit.examples.items()}
    fit = labelled(replace(fit, features=features, fingerprints=fingerprints))
    return replace(fit, probes=fit_probes(fit))


def with_apart(fit: Prepared) -> Prepared:
    """Return the fit with `apart` for its frozen baseline, if the settings join texts."""
    return replace(fit, apart=read_as(fit, fit.tables.read_apart())) if fit.tables.apart else fit


def choose_reading(fit: Prepared, model: Family) -> Reading:
    """Tune both readings of the pair of texts, if there is one, and return the one that is better on validation rows.

    Args:
        fit: with features and probes; reads the texts apart.
        model: not tuned yet.
    """
    apart, pair = Reading(APART, fit, model), fit.tables.pair
    if pair is None:
        return apart
    fusion = start_fusion(fit)
    if (stored := fit.run.load_decision("reading")) is not None:
        with reading("what the run decided does not fit it", file=fit.folder, do="begin anew with --no-resume"):
            choice = ReadingChoice(**{**stored, "tried": [ReadingTried(**item) for item in stored["tried"]]})
        return _with_choice(apart if choice.chosen == APART else _together(fit, fusion), choice)
    if (why := why_apart(fit)) is not None:
        choice = ReadingChoice(APART, [*pair], "", 0.0, 0, [], f"{' and '.join(pair)} are read apart: {why}.")
        return _with_choice(apart, choice) if fit.config.text.join == "auto" else apart
    try:
        together = _together(fit, fusion)
    except ConfigError as error:  # a setting names one of the columns
        if fit.config.text.join == "auto":
            raise
        fit.tables.notes.append(f"{' and '.join(pair)} are read apart, as it is refused to read them together: {error}")
        return apart
    whole = len(_train_rows(fit)) <= MAX_ROWS and not isinstance(fit.config.fusion, AutoConfig | StackConfig)
    candidates = [apart, together]
    with fit.phase("tune the texts apart and together"):
        trials = [_trial(candidate, fusion, whole=whole) for candidate in candidates]
    choice = choose(fit, trials, len(_train_rows(fit)) if whole else TRIAL_ROWS)
    fit.run.save_decision("reading", asdict(choice))
    place = [APART, TOGETHER].index(choice.chosen)
    return _with_choice(replace(candidates[place], history=trials[place].history if whole else None), choice)


def _with_choice(chosen: Reading, choice: ReadingChoice) -> Reading:
    if chosen.fit.show:
        print_line(choice.said)
    return replace(chosen, fit=replace(chosen.fit, reading=choice))


def _train_rows(fit: Prepared) -> Examples:
    return fit.examples["train"].with_target()


def why_apart(fit: Prepared) -> str | None:
    """Return why the pair of texts is read apart without tuning both readings; None if both are tuned."""
    trainer, augmented = fit.config.trainer, fit.examples["train"].augmentation.augmenters
    if fit.config.text.freeze in ("all", "only:heads") or not trainer.epochs:
        return "the text encoder stays as pretrained, and then reading together rarely helps"
    if any(name in augmented for name in fit.tables.pair or ()):
        return "texts that are read together cannot be augmented"
    if trainer.shard:
        return "with trainer.shard they are not tuned twice"
    num_train, num_val = (len(fit.examples[split].with_target()) for split in ("train", "val"))
    if num_train < MIN_ROWS or num_val < MIN_VAL_ROWS:
        return (
            f"{num_train:,} train and {num_val:,} validation rows are too few to choose by, less than {MIN_ROWS} and"
            f" {MIN_VAL_ROWS}"
        )
    return None


def _together(fit: Prepared, fusion: NamedConfig) -> Reading:
    """Return the pair's texts read together, with backbones of its own.

    Raises:
        ConfigError: the settings do not go with it.
    """
    other = replace(read_as(fit, fit.tables.together()), apart=fit)
    drop_ngrams(other)
    shared = [name for name in other.modalities if name in fit.modalities]
    own = {**other.modalities, **fresh_modalities(fit, shared)}
    other = replace(other, modalities={name: own[name] for name in other.modalities})
    model = build(other, fusion)
    build_objectives(model, other.targets, other.config.objectives)
    for asked, where in (
        (fit.config.trainer.adversarial, "trainer.adversarial"),
        (fit.config.report.attack, "report.attack"),
    ):
        attacked_columns(model, asked.columns if asked else [], where=where)
    return Reading(TOGETHER, other, model)


def _trial(candidate: Reading, fusion: NamedConfig, *, whole: bool) -> Trial:
    """Tune a reading and return how well it did on validation rows.

    Args:
        candidate: its model is tuned in place if `whole`.
        fusion: of the model.
        whole: whether to tune it on all train rows, rather than a copy of it on `TRIAL_ROWS` of them.
    """
    fit, start = candidate.fit, time.perf_counter()
    if fit.show:
        print_line(f"{' and '.join(fit.tables.pair or ())} read {candidate.name}")
    if whole:
        history = tune(fit, candidate.model, start=Start(fit.probes))
    else:
        fit = _part(fit)
        context = RunContext(
            fit.config.seed,
            fit.cache,
            fit.run.manager("reading", [candidate.name]),
            bar=fit.show,
            deadline=fit.deadline.part(CHOOSING),
        )
        history = finetune(
            build(fit, fusion),
            training_rows(fit),
            Goal(fit.targets, fit.config.objectives),
            fit.config.trainer,
            rules=rules(fit, fit.modalities),
            start=Start(fit.probes),
            context=context,
        )
    score, late = of_main(history.best.score, history.out_of_time)
    error, _ = of_main(history.error, late)
    tried = ReadingTried(candidate.name, math.nan if late else score, time.perf_counter() - start)
    return Trial(tried, error, history)


def _part(fit: Prepared) -> Prepared:
    """Return a fit on `TRIAL_ROWS` random train rows, with probes of these rows and backbones of its own."""
    train = fit.examples["train"]
    with_target = np.flatnonzero(~train.unlabelled())
    chosen = np.random.default_rng(fit.config.seed).permutation(with_target)[:TRIAL_ROWS]
    examples = {**fit.examples, "train": train.of(np.sort(chosen))}
    part = labelled(replace(fit, examples=examples, modalities=fresh_modalities(fit, list(fit.modalities))))
    return replace(part, probes=fit_probes(part))


def choose(fit: Prepared, trials: list[Trial], num_rows: int) -> ReadingChoice:
    """Return the choice: the reading with the better score, or apart if the difference is within chance.

    Args:
        fit: of the pair.
        trials: of apart and together.
        num_rows: the number of train rows of each.
    """
    apart, together = (trial.tried for trial in trials)
    pair = fit.tables.pair or ()
    margin = max(trial.error for trial in trials)
    mains = list(dict.fromkeys(task.main.name for task in fit.targets.values()))
    metric = f"validation {mains[0]}" if len(mains) == 1 else "mean of the validation metrics"
    better = together.score > apart.score + margin
    names = " and ".join(pair)
    scores = f"{metric} {apart.score:.3f} apart and {together.score:.3f} together, tuned on {num_rows:,} train rows"
    if math.isnan(apart.score) or math.isnan(together.score):
        better, why = False, "the time was up before both readings were tuned (trainer.minutes)"
    elif better:
        why = f"{scores}: together is better by more than chance ({margin:.3f})"
    elif together.score > apart.score:
        why = f"{scores}: together is better by no more than chance ({margin:.3f})"
    else:
        why = scores
    chosen = TOGETHER if better else APART
    insist = "text.join=[]" if better else f"text.join=[[{', '.join(pair)}]]"
    said = f"{names} are read {chosen}: {why}. {insist} insists on the other."
    return ReadingChoice(chosen, [*pair], metric, margin, num_rows, [apart, together], said)
