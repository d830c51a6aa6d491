"""The fit of the match family: project columns into a common space, in which cells are searched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from accelerate.utils import set_seed

from fusetune.config.fusion import neural
from fusetune.data.examples import Examples
from fusetune.data.overlap import overlapping, row_keys
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.outputs import OUTPUTS
from fusetune.errors import TableError
from fusetune.evaluation.measure import rankings
from fusetune.evaluation.measure.judge import Candidate, EvaluatedRows, judge
from fusetune.evaluation.results import RunResults, TaskResult
from fusetune.fitting.findings import Findings
from fusetune.fitting.prepared import Prepared
from fusetune.fitting.saved import Trained, load_trained, reporting, save_trained
from fusetune.fitting.steps import bundle, encode, tune
from fusetune.inference.features import encoded
from fusetune.inference.retrieval import searches, used_vectors
from fusetune.models.build import build_model
from fusetune.models.family import Family
from fusetune.objectives.base import BatchObjective, Objective
from fusetune.tasks.match import MatchTask, Search
from fusetune.tasks.retrieval import RetrievalTask
from fusetune.training.alignment import Alignment, align
from fusetune.training.finetune import main_of
from fusetune.training.plan import Evaluate, Start
from fusetune.training.probe import column_scales
from fusetune.training.score_error import ScoreError
from fusetune.types import Tokens

MAX_LOSS_ROWS = 1024
"""Maximum number of rows that the validation loss compares with one another."""

Vectors = Mapping[str, np.ndarray]
"""By column, the used rows' vectors, (rows, dim) of unit length; zeros for rows that lack the column."""


def fit_match(fit: Prepared) -> tuple[Bundle, RunResults]:
    """Tune projections of the columns into one space, save the model, and compare it with a closed-form alignment.

    Raises:
        UserError, RunError: see `api.fit`.
    """
    return MatchFit(fit).run()


class MatchFit:
    """The steps of a fit of the match family.

    Args:
        fit: with its cells read.

    Raises:
        TableError: the validation or test rows have fewer than two rows with the columns.
    """

    def __init__(self, fit: Prepared) -> None:
        self.fit = fit
        set_seed(fit.config.seed)
        self.model = build_model(fit.modalities, fit.tasks, neural(fit.config.fusion))
        related = {} if fit.tables.documents is None else fit.tables.documents.related
        self.searches = {split: searches(fit.tasks, fit.examples[split], related.get(split)) for split in fit.examples}
        for split in ("val", "test"):
            if not self.searches.get(split):
                raise TableError(
                    f"no two {split} rows have the columns that are aligned",
                    expected="at least two rows with two of the columns",
                    file=fit.examples[split].table.source if split in fit.examples else None,
                    do="give more rows, or columns that are filled in the same rows",
                )

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
            systems = self._systems((start, before) if start is not None else None, after)
            findings = Findings(fit, trained)
            tasks = [self._judge(task, search, systems, findings) for task, search in self.searches["test"].values()]
            title = OUTPUTS[model.name].title(trained.bundle)
            results = findings.run_results(tasks, title)
            results.warnings[:0] = [*self._known_sides(), *self._equal_sides()]
        return trained.bundle, results

    def _known_sides(self) -> list[str]:
        """Return a warning for each side of pairs whose cells some test rows share with train rows."""
        train, test = (self.fit.examples[split] for split in ("train", "test"))
        sides = {name: columns for task, _ in self.searches["test"].values() for name, columns in task.sides.items()}
        if self.fit.tables.documents is not None:  # test rows are searched among the documents of train rows, too
            sides = {name: columns for name, columns in sides.items() if columns != tuple(self.fit.config.document)}
        warnings = []
        for name, columns in sides.items():
            seen = overlapping(train.restrict(columns), test.restrict(columns))
            if count := int(np.sum(seen)):
                warnings.append(
                    f"{count:,} of {len(seen):,} test rows have a {name} that train rows have too: how well a new"
                    f" {name} is found may be lower."
                )
        return warnings

    def _equal_sides(self) -> list[str]:
        """Return a warning if train pairs have the same cells on both sides."""
        config, train = self.fit.config, self.fit.examples["train"]
        if not config.query or len(config.query) != len(config.document):
            return []
        keys, names = row_keys(train), list(train.columns)
        query, document = (
            np.sort(keys[:, [names.index(name) for name in side]], 1) for side in (config.query, config.document)
        )
        num = int(np.sum((query == document).all(1) & (query != 0).any(1)))
        what = "have equal sides: they teach only that equal cells match."
        return [f"{num:,} of {len(train):,} train pairs {what}"] if num else []

    def _start(self, model: Family) -> Alignment | None:
        """Return the best closed-form alignment of the columns with pretrained encoders, chosen on validation rows."""
        fit = self.fit
        scales = column_scales(fit.examples["train"], fit.features["train"])
        for name, (mean, scale) in scales.items():
            model.set_scale(name, mean, scale)

        def val_score(candidate: Alignment) -> float:
            candidate.install(model)
            return self._val_score(self._vectors(model, "val", fit.features["val"]))[0]

        features = fit.features["train"]
        return align(fit.examples["train"], features, scales, model.dim, val_score, sides=model.compared)

    def _vectors(self, model: Family, split: str, known: Mapping[str, Tokens]) -> Vectors:
        return used_vectors(model, encoded(model, self.fit.examples[split], known))

    def _val_score(
        self, vectors: Vectors, error: ScoreError | None = None
    ) -> tuple[float, dict[str, dict[str, float]]]:
        """Return the score of the validation rows (mean main metric, more is better) and each task's metrics.

        Args:
            vectors: of the validation rows.
            error: the score's standard error, measured here if it is not known yet.
        """
        examples, scores, metrics = self.fit.examples["val"], [], {}
        for name, (task, search) in self.searches["val"].items():
            truth, weights = task.truth(search), examples.weights[examples.used[search.rows]]
            measured = task.measured(task.answers(vectors, search), truth)
            metrics[name] = task.metrics(measured, truth, weights)
            main = metrics[name][task.main.name]
            scores.append(main if task.main.greater_is_better else -main)
            if error is not None and not error.known:
                error.add(task.main.name, main, partial(main_of, task, measured, truth, weights), weights)
        if error is not None and not error.known:
            error.close()
        return float(np.mean(scores)), metrics

    def _evaluator(self, model: Family) -> Callable[[Sequence[Objective], ScoreError], Evaluate]:
        """Return a function that takes the built objectives and returns the evaluation on validation rows."""

        def make(objectives: Sequence[Objective], error: ScoreError) -> Evaluate:
            def evaluate(val: Examples) -> tuple[float, float, dict[str, dict[str, float]]]:
                known = {name: column.features for name, column in val.columns.items() if column.features is not None}
                val = encoded(model, val, known)
                score, metrics = self._val_score(used_vectors(model, val), error)
                return batch_loss(model, objectives, val), score, metrics

            return evaluate

        return make

    def _systems(
        self, before: tuple[Alignment, Vectors] | None, after: Vectors
    ) -> list[tuple[Callable[[np.ndarray], Candidate], Vectors]]:
        """Return what is compared, with its vectors of the test rows: random order, closed form, tuned model."""
        rng = np.random.default_rng(self.fit.config.seed)
        random_vectors = {name: rng.normal(size=values.shape) for name, values in after.items()}
        what = "the distinct answers, in random order"
        systems: list[tuple[Callable[[np.ndarray], Candidate], Vectors]] = [
            (partial(Candidate, "random order", "baseline", what), random_vectors)
        ]
        if before is not None:
            start, vectors = before
            what = f"frozen encoders, aligned in closed form (penalty {start.penalty:g}, power {start.power:g})"
            systems.append((partial(Candidate, "frozen, aligned", "before", what), vectors))
        train, val = (len(self.fit.examples[split]) for split in ("train", "val"))
        what = f"tuned on {train} rows; best step chosen on {val} others"
        return [*systems, (partial(Candidate, "tuned", "after", what), after)]

    def _judge(
        self,
        task: MatchTask,
        search: Search,
        systems: Sequence[tuple[Callable[[np.ndarray], Candidate], Vectors]],
        findings: Findings,
    ) -> TaskResult:
        """Measure the systems on one direction of retrieval among the test rows."""
        fit = self.fit
        examples = fit.examples["test"]
        rows = examples.used[search.rows]
        groups = examples.groups[rows]
        candidates = [make(task.answers(vectors, search)) for make, vectors in systems]
        if isinstance(task, RetrievalTask):
            candidates[1:1] = rankings.baselines(task, search, fit.examples["train"], examples)
        result = judge(
            task,
            candidates,
            EvaluatedRows(
                task.truth(search),
                search.ids,
                weights=examples.weights[rows],
                groups=groups.tolist() if (groups >= 0).all() else None,
                slices={column: examples.table.cells(column, rows) for column in fit.config.report.slices},
            ),
            show=lambda at: findings.shown(int(rows[at])),
            num=fit.config.report.bootstrap,
            num_errors=fit.config.report.errors,
            seed=fit.config.seed,
        )
        if isinstance(task, RetrievalTask):
            before = next((system.answers["rank"] for system in candidates if system.kind == "before"), None)
            after = candidates[-1].answers["rank"]
            result.sections += [] if before is None else [rankings.tuning_section(before, after)]
            if fit.config.report.errors:
                result.queries = rankings.ranked_queries(
                    task,
                    search,
                    systems[-1][1],
                    (after, before),
                    lambda at, columns: findings.shown(int(examples.used[at]), columns),
                )
        return result


@torch.no_grad()
def batch_loss(model: Family, objectives: Sequence[Objective], examples: Examples) -> float:
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
