"""Compare an exported model with the model that it was made from, on real rows: answers, metrics, size and speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.rows import read_rows
from fusetune.deploy.tuned import predict, read_examples
from fusetune.errors import ConfigError, ExportError, FusetuneError
from fusetune.inference.predict import row_vectors
from fusetune.inference.scores import predict_scores
from fusetune.runtime.model import load
from fusetune.tasks.abilities import Exported
from fusetune.tasks.output_columns import decisions_of

TOLERANCE = 1e-4
"""Greatest difference of an answer in float32, in units of the target's largest answer if that is above 1."""
LATENCIES = 50
"""Single rows by which the latency is measured, at most."""


@dataclass(frozen=True)
class CheckRows:
    """The rows that an export is checked on.

    Attributes:
        source: where they come from.
        table: some of its rows.
        examples: the rows prepared for the model, with the targets if the table has all of them.
        answers: the model's answers by output, (rows, ...) each, for `examples.used`.
        metrics: the main metric by target; None where no row has the target.
    """

    source: str
    table: Table
    examples: Examples
    answers: dict[str, np.ndarray]
    metrics: dict[str, float | None]


def find_rows(bundle: Bundle, check: Any, rows: int) -> CheckRows:
    """Return the rows that an export is checked on: those given, else validation rows, else train rows of the run.

    Args:
        bundle: the tuned model.
        check: a table; None takes those that the run's settings name.
        rows: how many, at most.

    Raises:
        ConfigError: no table is given and the run's own cannot be read.
        TableError: the table cannot be read, lacks a column, or has no row that can be predicted.
    """
    named = [check] if check is not None else [source for source in (bundle.config.val, *_listed(bundle.config.train))]
    tables = [source for source in named if source is not None]
    table, failed = None, list[str]()
    for source in tables:
        try:
            table = read_rows(bundle, source)
            break
        except FusetuneError as error:
            if check is not None:
                raise
            failed.append(str(error).splitlines()[0])
    if table is None:
        raise ConfigError(
            "there are no rows to check the export on",
            came="; ".join(failed) or "a model whose settings name no table",
            do="give a table: --check TABLE",
        )
    table = table.select(np.arange(min(rows, len(table))))
    labelled = all(task.target in table for task in bundle.targets.values())
    examples = read_examples(bundle, table, targets=bool(bundle.targets) and labelled)
    if bundle.targets and labelled:
        examples.check_targets()
    if not len(examples):
        raise ConfigError("no row of the table can be predicted", came=table.source, do="give others: --check TABLE")
    answers = eager_answers(bundle, examples)
    metrics = {task.target: _metric(bundle, name, examples, answers[task.target]) for name, task in
               bundle.targets.items() if labelled}  # fmt: skip
    return CheckRows(table.source, table, examples, answers, metrics)


def _listed(train: Any) -> Sequence[Any]:
    return train if isinstance(train, list | tuple) else [train]


def eager_answers(bundle: Bundle, examples: Examples) -> dict[str, np.ndarray]:
    """Return the model's answers by output of the flat model, (rows, ...) each."""
    if bundle.targets:
        scores = predict_scores(bundle.model, bundle.targets, examples)
        return {task.target: scores[name] for name, task in bundle.targets.items()}
    vectors = row_vectors(bundle.model, examples, examples.used)
    return {f"{name}_vector": vector.numpy() for name, vector in vectors.items()}


def _metric(bundle: Bundle, name: str, examples: Examples, answers: np.ndarray) -> float | None:
    """Return a task's main metric on the labelled rows, None without any."""
    labelled, task = examples.labelled(name), bundle.targets[name]
    if not len(labelled):
        return None
    places = np.searchsorted(examples.used, labelled)
    own = answers[places].astype(np.float64)
    value = task.main_value(task.measured(own, truth := examples.truth(name, labelled)), truth)
    return None if np.isnan(value) else float(value)


def check_variant(bundle: Bundle, rows: CheckRows, folder: Path, variant: str) -> dict[str, Any]:
    """Compare a variant with the model.

    Args:
        bundle: the tuned model.
        rows: to compare on.
        folder: of the export.
        variant: its name.

    Returns:
        As JSON: `size_bytes`; `largest_difference` by output; `agreement`, the share of equal decisions, by target with
        labels; `metrics` by target; `rows_per_second`; `latency_p50_ms` and `latency_p95_ms` of a single row.

    Raises:
        ExportError: the runtime predicts other rows than the model does.
    """
    model = load(folder, variant, threads=torch.get_num_threads())
    source = rows.table.select(rows.examples.used)
    kept, answers = model.answers(source)
    if kept != list(range(len(source))):
        raise ExportError(f"{variant} predicts {len(kept)} of the {len(source)} rows that the model predicts")
    forms = {task.target: task.output_form() for task in bundle.targets.values() if isinstance(task, Exported)}
    differences, agreement, metrics = {}, {}, {}
    for name, wanted in rows.answers.items():
        found = answers[name]
        scale = max(1.0, float(np.abs(wanted).max(initial=0)))
        differences[name] = float(np.abs(found - wanted).max(initial=0)) / scale
        if name in forms and forms[name]["kind"] != "number":
            agreement[name] = _agreement(forms[name], found, wanted)
    for name, task in bundle.targets.items():
        if task.target in rows.metrics:
            metrics[task.target] = _metric(bundle, name, rows.examples, answers[task.target])
    files = [path for path in folder.iterdir() if path.name.startswith(model.file)]
    return {
        "size_bytes": sum(path.stat().st_size for path in files),
        "largest_difference": differences,
        "agreement": agreement,
        "metrics": metrics,
        **_speeds(model.predict, source),
    }


def _agreement(form: Mapping[str, Any], found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the share of rows with equal decisions."""
    equal = decisions_of(form, found.astype(np.float64)) == decisions_of(form, wanted)
    return float((equal if equal.ndim == 1 else equal.all(1)).mean())


def eager_speeds(bundle: Bundle, rows: CheckRows) -> dict[str, Any]:
    """Return the speeds of the model in torch, as `check_variant` measures them, and its metrics."""
    source = rows.table.select(rows.examples.used)
    return {"metrics": rows.metrics, **_speeds(lambda table: predict(bundle, table), source)}


def _speeds(predict_table: Callable[[Table], Any], source: Table) -> dict[str, float]:
    """Return the rows a second of a table, and percentiles of the time of single rows."""

    def seconds(table: Table) -> float:
        start = time.perf_counter()
        predict_table(table)
        return time.perf_counter() - start

    all_rows = min(seconds(source) for _ in range(2))
    latencies = [seconds(source.select([index])) for index in range(min(LATENCIES, len(source)))]
    p50, p95 = np.percentile(np.asarray(latencies) * 1000, [50, 95])
    return {"rows_per_second": len(source) / all_rows, "latency_p50_ms": float(p50), "latency_p95_ms": float(p95)}


def require_equal(result: Mapping[str, Any], variant: str) -> None:
    """Check that a float32 variant answers as the model does.

    Raises:
        ExportError: an answer differs by more than `TOLERANCE`.
    """
    wrong = {name: value for name, value in result["largest_difference"].items() if not value <= TOLERANCE}
    if wrong:
        worst = max(wrong, key=lambda name: wrong[name])
        raise ExportError(
            f"{variant}: the export answers {worst!r} otherwise than the tuned model: the largest difference is "
            f"{wrong[worst]:.3g}, more than {TOLERANCE:g}; nothing was written"
        )
