"""Rank pretrained models for a table by what a linear model makes of their frozen features."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.hub import source as hub
from fusetune.backbones.hub.listing import kinds_of
from fusetune.config.config import Config
from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.storage.feature_cache import FeatureCache
from fusetune.data.table import Source, Table
from fusetune.deploy.bundle import versions
from fusetune.errors import BackboneError, ConfigError, TableError
from fusetune.evaluation.measure.compare import draw_all, draw_sums, interval
from fusetune.evaluation.report.describe import fingerprint
from fusetune.evaluation.report.write import replace_file
from fusetune.evaluation.results import Interval
from fusetune.fitting.arguments import read_settings, resolve_arguments
from fusetune.fitting.own_metrics import choose_metrics
from fusetune.fitting.prepared import backbones_of, input_columns
from fusetune.fitting.tables import Tables
from fusetune.fitting.tasks import make_tasks
from fusetune.inference.features import fill_features
from fusetune.lifecycle.frozen_features import cells_per_second, layer_means, probe_answers, row_matrix
from fusetune.lifecycle.rank_report import RankedBackbone, RankedKind, Ranking
from fusetune.lifecycle.transferability import h_score, log_me
from fusetune.models.build import build_modalities, build_model
from fusetune.security.untrusted import read_json
from fusetune.tasks.abilities import Probed, Summed
from fusetune.tasks.base import TargetTask
from fusetune.training.hardware.devices import choose_threads
from fusetune.training.probes.probe import SplitRows
from fusetune.training.probes.selection import as_numbers
from fusetune.training.progress import print_line, track

KINDS = ("text", "image", "audio")
MIN_ROWS = 30
DRAWS = 1000


def rank(
    train: Source,
    target: str | Sequence[str] | None = None,
    *,
    backbones: Sequence[str | Path],
    out: str | Path | None = None,
    rows: int = 2000,
    folds: int = 5,
    config: Config | Mapping[str, Any] | str | Path | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    progress: bool = True,
) -> Ranking:
    """List pretrained models by what their frozen features are worth for a table's target, before anything is tuned.

    For each kind of column, the candidates that read it are measured on the train rows that `fit` would draw with the
    same settings; validation and test rows are not looked at. A candidate reads all columns of the kind, other columns
    are left out. Frozen features come from the cache and go into it, so that a later fit with the best has them.

    Args:
        train: the table.
        target: the column, or columns, to predict; each must have a linear probe.
        backbones: folders, hub ids, or folders that hold model folders.
        out: folder for rank.html and rank.json, and for what a later call with it need not compute again.
        rows: the most train rows, drawn at random, at least 30.
        folds: of the cross-validation, 3 or more.
        config: settings as of `fit`: columns, tasks, the metric, the seed.
        overrides: settings on top.
        progress: whether to show progress on standard error.

    Raises:
        ConfigError: no candidate reads a column of the table, a target has no linear probe, or an argument is out of
            range.
        BackboneError: a candidate cannot be loaded.
        TableError: the table cannot be read, or has too few labelled rows.

    Example:
        >>> ranking = ft.rank("train.csv", "label", backbones=["minilm", "../models"])  # doctest: +SKIP
        >>> ranking.kinds[0].best.name, [candidate.name for candidate in ranking.kinds[0].cheaper]  # doctest: +SKIP
        ('../models/e5-small', ['minilm'])

    Reference:
        Bao et al. 2019 (H-score); You et al. 2021, LogME, arXiv 2102.11005; Garbas et al. 2024, TransformerRanker,
        arXiv 2409.05997.
    """
    if rows < MIN_ROWS or folds < 3:
        came = f"{rows=}, {folds=}"
        raise ConfigError(
            "an argument is out of range", expected=f"rows of {MIN_ROWS} or more, folds of 3 or more", came=came
        )
    choose_threads()
    settings, sources = resolve_arguments({"train": train}, target, read_settings(config, overrides)[0], None)
    settings = settings.with_absolute_paths()
    table = _TrainRows.read(settings, sources, rows)
    candidates, notes = _candidates(backbones, table)
    store = _Store(Path(out) if out is not None else None)
    ranking = Ranking(table.table.source, [], notes + table.notes)
    for kind, names in candidates.items():
        measured: dict[str, dict[str, _Measured]] = {}
        for number, name in enumerate(names):
            if progress:
                print_line(f"{kind} {number + 1}/{len(names)}: {name}")
            measured[name] = _measure(table, kind, name, folds, store, progress)
        ranking.kinds += [_ranked(table, kind, target, measured) for target in table.new_tasks()]
    if out is not None:
        ranking.save(out)
    return ranking


@dataclass(frozen=True)
class _TrainRows:
    """The train rows that are measured.

    Attributes:
        config: the settings.
        table: the rows.
        tables: all splits, for the schema.
        notes: sentences for the user.
    """

    config: Config
    table: Table
    tables: Tables
    notes: list[str]

    @classmethod
    def read(cls, config: Config, sources: Mapping[str, Any], rows: int) -> _TrainRows:
        tables = Tables(config, sources)
        tasks = make_tasks(tables.config, tables.schema, tables.splits["train"])
        unable = [name for name, task in tasks.items() if not isinstance(task, Probed) or task.reads is not None]
        if unable or not tasks:
            raise ConfigError(
                "pretrained models are ranked for targets that a linear model on a row's features predicts",
                expected="classes, sets of labels, ordered classes or numbers",
                came=f"{unable[0]}: {tasks[unable[0]].name}" if unable else "no target",
                do="fit with each candidate and compare the reports",
            )
        tables.read_together(tasks)
        train, notes = tables.splits["train"], list(tables.notes)
        if len(train) > rows:
            chosen = np.sort(np.random.default_rng(config.seed).permutation(len(train))[:rows])
            notes.append(f"{rows:,} of {len(train):,} train rows, drawn at random, were measured.")
            train = train.select(chosen)
        return cls(tables.config, train, tables, notes)

    def columns(self, kind: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
        """Return the input columns of a kind, without backbones of their own."""
        return {
            name: (own, {key: value for key, value in options.items() if key != "backbone"})
            for name, (own, options) in input_columns(self.config, self.tables.schema).items()
            if own == kind
        }

    def new_tasks(self) -> dict[str, TargetTask]:
        """Return the targets' tasks, unfitted."""
        return make_tasks(self.config, self.tables.schema, self.table)

    def examples(self, kind: str, name: str, progress: bool) -> tuple[Examples, Backbone]:
        """Return the rows with the columns of a kind, as a backbone reads them, and the backbone."""
        config = self.config.with_overrides({kind: {"name": name, "adapter": None}})
        backbones = backbones_of(config)
        modalities = build_modalities(self.columns(kind), backbones)
        schema, tasks = self.tables.schema, self.new_tasks()
        examples = Examples(self.table, modalities, tasks, weight=schema.weight, group=schema.group)
        bars = track if progress else None
        examples.prepare(on_bad_cell="mask", memory=config.data.memory, progress=bars)
        examples.fit()
        examples.check_targets()
        truths = {name: examples.truth(name, examples.labelled(name)[:1000]) for name in tasks}
        choose_metrics(config.trainer.metric, tasks, truths, {})
        if few := [name for name in tasks if len(examples.labelled(name)) < MIN_ROWS]:
            raise TableError(
                "there are too few train rows with a target",
                expected=f"{MIN_ROWS} or more",
                came=f"{len(examples.labelled(few[0]))} of {few[0]}",
                file=self.table.source,
            )
        return examples, backbones.get(kind, name)


def _candidates(backbones: Sequence[str | Path], table: _TrainRows) -> tuple[dict[str, list[str]], list[str]]:
    """Return the candidates by kind of column, and notes on those of a folder of models that are left out.

    Raises:
        ConfigError: one that was named reads no column of the table.
    """
    present = [kind for kind in KINDS if table.columns(kind)]
    result: dict[str, list[str]] = {kind: [] for kind in present}
    notes = []
    for source in dict.fromkeys(str(name) for name in backbones):
        folder = Path(source).expanduser()
        holds = folder.is_dir() and not (folder / "config.json").is_file()
        for name in [str(path.parent) for path in sorted(folder.glob("*/config.json"))] if holds else [source]:
            try:
                home = hub.resolve(name).folder
                kinds = kinds_of(home, hub.check_safe(home))
                hub.weight_files(home)
            except BackboneError as error:
                if not holds:
                    raise
                notes.append(f"{name} is left out: {error.what}.")
                continue
            fitting = [kind for kind in present if kind in kinds]
            if not fitting and not holds:
                raise ConfigError(
                    f"{name} reads no column of the table",
                    expected=f"a model of {' or '.join(present) or 'text, images or audio'}",
                    came=f"a model of {' and '.join(kinds) or 'neither text nor images nor audio'}",
                )
            for kind in fitting:
                if name not in result[kind]:
                    result[kind].append(name)
    result = {kind: names for kind, names in result.items() if names}
    if not result:
        raise ConfigError(
            "there is no candidate for the table's columns",
            expected=f"models of {' or '.join(present) or 'text, images or audio, and columns of such a kind'}",
            came=", ".join(str(name) for name in backbones) or "none",
            do="name them: --backbones FOLDER_OR_ID",
        )
    return result, notes


@dataclass(frozen=True)
class _Measured:
    """What a candidate came to for one target.

    Attributes:
        facts: its figures, without those that compare it with others.
        task: of the target, fitted.
        measured: (rows, k) as of `Task.measured`, of the cross-validated probe.
        truth, weights: (rows, ...) and (rows,).
        groups: (rows,) int64, rows with equal numbers belong together; None if all rows stand alone.
    """

    facts: RankedBackbone
    task: TargetTask
    measured: np.ndarray
    truth: np.ndarray
    weights: np.ndarray
    groups: np.ndarray | None


class _Store:
    """Finished candidates in the output folder, by a digest of all that they depend on."""

    def __init__(self, out: Path | None) -> None:
        self.folder = None if out is None else out / "candidates"

    def load(self, key: str) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """Return what `save` stored under a key, or None if there is nothing that can be read."""
        if self.folder is None:
            return None
        try:
            facts = read_json(self.folder / f"{key}.json")
            return facts, load_file(self.folder / f"{key}.safetensors")
        except (OSError, ValueError, SafetensorError):
            return None

    def save(self, key: str, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Store facts and arrays; a candidate counts as finished once the facts are there."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, Path(scratch) / "arrays")
            (Path(scratch) / "arrays").replace(self.folder / f"{key}.safetensors")
        replace_file(self.folder / f"{key}.json", json.dumps(facts))


def _measure(
    table: _TrainRows, kind: str, name: str, folds: int, store: _Store, progress: bool
) -> dict[str, _Measured]:
    """Measure a candidate for every target, or take what an earlier call measured."""
    examples, encoder = table.examples(kind, name, progress)
    depends = {"rows": fingerprint(examples), "encoder": encoder.describe() | {"source": name}, "folds": folds}
    depends |= {"kind": kind, "seed": table.config.seed, "versions": dict(versions())}
    depends |= {"metrics": {key: task.main.name for key, task in examples.tasks.items()}}
    key = hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()[:24]
    known = store.load(key)
    if known is None:
        known = _compute(table, examples, encoder, kind, name, folds, progress)
        store.save(key, *known)
    facts, arrays = known
    result = {}
    for number, (target, task) in enumerate(examples.tasks.items()):
        rows = examples.labelled(target)
        own: dict[str, Any] = {part: math.nan if value is None else value for part, value in facts[target].items()}
        nothing = Interval(math.nan)
        truth, weights = examples.truth(target, rows), examples.weights[rows]
        codes = np.asarray(examples.groups[rows], dtype=np.int64)
        groups = np.where(codes < 0, -1 - np.arange(len(codes)), codes) if (codes >= 0).any() else None
        ranked = RankedBackbone(name, nothing, nothing, **own)
        result[target] = _Measured(ranked, task, arrays[str(number)], truth, weights, groups)
    return result


def _compute(
    table: _TrainRows, examples: Examples, encoder: Backbone, kind: str, name: str, folds: int, progress: bool
) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """Return a candidate's figures by target, and its measured answers by the target's number."""
    config, bars = table.config, track if progress else None
    cache = FeatureCache.of(config.data.cache, config.data.cache_gib)
    model = build_model(dict(_modalities(examples)), examples.tasks, NamedConfig(name="concat"))
    features = fill_features(model, examples, cache=cache, progress=bars)
    if not features:  # an encoder from scratch has no frozen features
        raise BackboneError("the model is not pretrained", came=name)
    means, num_layers, seconds = {}, 1, 0.0
    for column in features:
        own = examples.columns[column]
        means[column], num_layers = layer_means(encoder, column, own, cache=cache, progress=bars)
        seconds += 1 / cells_per_second(encoder, own, seed=config.seed)
    files = hub.weight_files(hub.resolve(name).folder)
    shared = {
        "layers": num_layers,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "megabytes": sum(path.stat().st_size for path in files) / 1e6,
        "rows_per_second": 1 / seconds,
        "dim": encoder.dim,
    }
    facts: dict[str, dict[str, Any]] = {}
    arrays = {}
    for number, (target, task) in enumerate(examples.tasks.items()):
        assert isinstance(task, Probed)
        rows = SplitRows.of(target, examples, features)
        answers = probe_answers(task, rows, folds=folds, seed=config.seed)
        numbers = as_numbers(rows.truth, len(task.labels))
        if not task.labels:
            numbers = (numbers - numbers.mean(0)) / np.maximum(numbers.std(0), 1e-12)
        classes = rows.truth if rows.truth.ndim == 1 and task.labels else None
        mean = row_matrix(rows, means)
        scored = {"log_me": log_me(_standardised(row_matrix(rows, features)), numbers)}
        if classes is not None:
            scored["h_score"] = h_score(mean, classes)
        elif task.labels:
            scored["h_score"] = float(np.nanmean([h_score(mean, column.astype(int)) for column in numbers.T]))
        scored.setdefault("h_score", math.nan)
        facts[target] = {**shared, **{part: value if math.isfinite(value) else None for part, value in scored.items()}}
        arrays[str(number)] = np.asarray(task.measured(answers, rows.truth), dtype=np.float64)
    return facts, arrays


def _modalities(examples: Examples) -> dict[str, Any]:
    return {name: column.modality for name, column in examples.columns.items()}


def _standardised(features: np.ndarray) -> np.ndarray:
    """Return features with zero mean and one scale for all, and a constant for the intercept."""
    centred = features - features.mean(0)
    return np.concatenate([centred / max(float(centred.std()), 1e-12), np.ones((len(features), 1))], 1)


def _ranked(table: _TrainRows, kind: str, target: str, measured: Mapping[str, Mapping[str, _Measured]]) -> RankedKind:
    """Compare the candidates on the same draws of rows."""
    some = next(iter(measured.values()))[target]
    task, truth, weights = some.task, some.truth, some.weights
    sign = 1 if task.main.greater_is_better else -1
    guess = task.main_value(task.measured(task.constant(truth, len(truth)), truth), truth, weights)
    draw = draw_sums if isinstance(task, Summed) else draw_all
    systems = {name: by_target[target].measured for name, by_target in measured.items()}
    options: dict[str, Any] = {"num": DRAWS, "seed": table.config.seed, "weights": weights, "groups": some.groups}
    draws = draw(task.all_metrics, systems, truth, **options)
    metric = task.main.name
    order = sorted(systems, key=lambda name: -sign * np.nan_to_num(draws[name].value[metric], nan=-sign * np.inf))
    best, backbones = draws[order[0]], []
    for name in order:
        own = draws[name]
        behind = interval(
            sign * (best.value[metric] - own.value[metric]), sign * (best.drawn[metric] - own.drawn[metric])
        )
        facts = measured[name][target].facts
        probe = interval(own.value[metric], own.drawn[metric])
        backbones.append(replace(facts, probe=probe, behind=behind, as_good=not behind.low > 0))
    columns, larger = list(table.columns(kind)), task.main.greater_is_better
    return RankedKind(kind, columns, target, metric, larger, len(truth), guess, backbones)
