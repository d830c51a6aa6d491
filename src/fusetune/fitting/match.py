"""The fit of the match family: columns without a target are projected into one space, in which cells are searched."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from accelerate.utils import set_seed

from fusetune.config.fusion import neural
from fusetune.data.examples import Examples
from fusetune.deploy.bundle import Bundle
from fusetune.errors import TableError
from fusetune.evaluation.measure import retrieval
from fusetune.evaluation.measure.systems import parts
from fusetune.evaluation.results import RunResults, SystemResult, TaskResult
from fusetune.fitting.findings import Findings
from fusetune.fitting.prepared import Prepared
from fusetune.fitting.saved import Trained, load_trained, reporting, save_trained
from fusetune.fitting.steps import bundle, encode, tune
from fusetune.inference.features import encoded
from fusetune.inference.predict import row_vectors
from fusetune.models.build import build_model
from fusetune.models.family import Family
from fusetune.objectives.base import BatchObjective, Objective
from fusetune.training.alignment import Alignment, align
from fusetune.training.plan import Evaluate, Start
from fusetune.training.probe import column_scales
from fusetune.training.score_error import ScoreError
from fusetune.types import Tokens

MAX_LOSS_ROWS = 1024
"""Most rows that the validation loss compares with one another."""


def _mean_reciprocal(ranks: np.ndarray, rows: np.ndarray) -> float:
    """Return the mean reciprocal rank of some queries."""
    return float(np.mean(1 / ranks[rows]))


def fit_match(fit: Prepared) -> tuple[Bundle, RunResults]:
    """Tune projections of the columns into one space, save the model, and compare it with a closed-form alignment.

    Raises:
        UserError, RunError: see `api.fit`.
    """
    return Aligning(fit).run()


class Aligning:
    """The steps of a match fit after its cells were read."""

    def __init__(self, fit: Prepared) -> None:
        self.fit = fit
        set_seed(fit.config.seed)
        self.model = build_model(fit.modalities, {}, neural(fit.config.fusion))
        self.sides = retrieval.sides(parts(fit.examples["train"]))
        self.searches = {split: self._searches(examples) for split, examples in fit.examples.items()}
        for split in ("val", "test"):
            if not self.searches.get(split):
                raise TableError(
                    f"no two {split} rows have the columns that are aligned",
                    expected="at least two rows with two of the columns",
                    file=fit.examples[split].table.source if split in fit.examples else None,
                    do="give more rows, or columns that are filled in the same rows",
                )

    def _searches(self, examples: Examples) -> list[retrieval.Search]:
        codes = {name: column.codes[examples.used] for name, column in examples.columns.items()}
        return retrieval.searches(self.sides, codes, examples.groups[examples.used])

    def run(self) -> tuple[Bundle, RunResults]:
        """Encode, align, tune, save and measure."""
        model = self.model
        with self.fit.phase("encode with frozen backbones"):
            self.fit = encode(self.fit, model)
        fit = self.fit
        with fit.phase("align in closed form"):
            start = self._start(model)
            if start is not None:
                start.install(model)
                before = self._vectors(model, "test", fit.features["test"])
        trained = load_trained(fit.run, fit.tasks)
        if trained is None:
            with fit.phase("tune"):
                history = tune(fit, model, start=Start(alignment=start), evaluator=self._evaluator(model))
            trained = Trained(bundle(fit, model), history, {}, fit.phases)
            save_trained(fit.run, trained)
        self.fit = fit = replace(fit, phases=list(trained.phases))
        self.model = model = trained.bundle.model
        history = trained.history
        with reporting(fit.folder), fit.phase("compare and measure"):
            frozen = [name for name, key in model.routes.items() if key not in history.moved]
            features = {name: values for name, values in fit.features["test"].items() if name in frozen}
            after = self._vectors(model, "test", features)
            systems = {"frozen, aligned": before} if start is not None else {}
            findings = Findings(fit, trained)
            tasks = [self._judge(search, systems, after, start, findings) for search in self.searches["test"]]
            title = f"Alignment of {', '.join(fit.modalities)}"
        return trained.bundle, findings.run_results(tasks, title)

    def _start(self, model: Family) -> Alignment | None:
        """Return the best closed-form alignment of the columns with pretrained encoders, chosen on validation rows."""
        fit = self.fit
        scales = column_scales(fit.examples["train"], fit.features["train"])
        for name, (shift, scale) in scales.items():
            model.set_scale(name, shift, scale)
        score = retrieval.mean_score(self.searches["val"])

        def val_score(candidate: Alignment) -> float:
            candidate.install(model)
            return score(self._vectors(model, "val", fit.features["val"]))

        return align(fit.examples["train"], fit.features["train"], scales, model.dim, val_score)

    def _vectors(self, model: Family, split: str, known: Mapping[str, Tokens]) -> dict[str, np.ndarray]:
        """Return by column the used rows' vectors, (rows, dim) of unit length; zeros if a row lacks the column."""
        examples = self.fit.examples[split]
        examples = encoded(model, examples, known)
        return {name: values.numpy() for name, values in row_vectors(model, examples, examples.used).items()}

    def _evaluator(self, model: Family) -> Callable[[Sequence[Objective], ScoreError], Evaluate]:
        """Return a function that takes the built objectives and returns the evaluation on validation rows."""

        def make(objectives: Sequence[Objective], error: ScoreError) -> Evaluate:
            def evaluate(val: Examples) -> tuple[float, float, dict[str, dict[str, float]]]:
                known = {name: column.features for name, column in val.columns.items() if column.features is not None}
                val = encoded(model, val, known)
                vectors = {name: values.numpy() for name, values in row_vectors(model, val, val.used).items()}
                ranks = {search.name: retrieval.ranks(search, vectors) for search in self.searches["val"]}
                measured = {name: retrieval.metrics(values, np.empty(0)) for name, values in ranks.items()}
                if not error.known:
                    for values in ranks.values():
                        error.add(retrieval.METRIC, math.nan, partial(_mean_reciprocal, values), np.ones(len(values)))
                    error.close()
                score = float(np.mean([metrics[retrieval.METRIC] for metrics in measured.values()]))
                return _loss(model, objectives, val), score, measured

            return evaluate

        return make

    def _judge(
        self,
        search: retrieval.Search,
        systems: Mapping[str, Mapping[str, np.ndarray]],
        after: Mapping[str, np.ndarray],
        start: Alignment | None,
        findings: Findings,
    ) -> TaskResult:
        """Measure one direction of search on the test rows: random order, closed-form alignment, tuned model."""
        fit = self.fit
        examples = fit.examples["test"]
        rng = np.random.default_rng(fit.config.seed)
        chance = {name: rng.normal(size=values.shape) for name, values in after.items()}
        shown = f"{len(search.answer_rows)} distinct answers"
        compared = [
            (
                SystemResult("random order", "baseline", f"{shown}, in random order", {}),
                retrieval.ranks(search, chance),
            )
        ]
        for name, vectors in systems.items():
            assert start is not None
            what = f"frozen encoders, aligned in closed form (penalty {start.penalty:g}, power {start.power:g})"
            compared.append((SystemResult(name, "before", what, {}), retrieval.ranks(search, vectors)))
        what = f"tuned on {len(fit.examples['train'])} rows; best step chosen on {len(fit.examples['val'])} others"
        ranked = retrieval.ranks(search, after)
        compared.append((SystemResult("tuned", "after", what, {}), ranked))
        show = findings.shown
        worst = np.argsort(-ranked, kind="stable")[: fit.config.report.errors]
        firsts = retrieval.first_answers(search, after, worst) if len(worst) else worst
        rows = examples.used[search.rows]
        groups = examples.groups[rows]
        return retrieval.judge_search(
            search,
            compared,
            examples.rows[rows],
            groups=groups if (groups >= 0).all() else None,
            worst=[
                (int(index), int(examples.rows[examples.used[first]]), show(int(rows[index])))
                for index, first in zip(worst, firsts, strict=True)
                if ranked[index] > 1
            ],
            num=fit.config.report.bootstrap,
            seed=fit.config.seed,
        )


@torch.no_grad()
def _loss(model: Family, objectives: Sequence[Objective], examples: Examples) -> float:
    """Return the objectives' weighted loss on the first `MAX_LOSS_ROWS` rows, as one batch."""
    total = 0.0
    was_training = model.training
    model.eval()
    batch = examples.batch(examples.used[:MAX_LOSS_ROWS]).to(next(model.parameters()).device)
    outputs = model(batch)
    for objective in objectives:
        if isinstance(objective, BatchObjective):
            losses = objective.of_vectors(objective.vectors(batch, outputs))
            total += objective.weight * float(sum(losses.values(), torch.zeros(())))
    model.train(was_training)
    return total
