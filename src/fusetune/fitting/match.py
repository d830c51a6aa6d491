"""The fit of the match family: project columns into a common space, in which cells are searched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor

from fusetune.config.fusion import neural
from fusetune.data.examples import Examples
from fusetune.data.overlap import overlapping, row_keys
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.outputs import OUTPUTS
from fusetune.errors import TableError
from fusetune.evaluation.measure import rankings
from fusetune.evaluation.measure.dims import dims_section
from fusetune.evaluation.measure.judge import Candidate, EvaluatedRows, judge
from fusetune.evaluation.results import RunResults, TaskResult
from fusetune.fitting.findings import Findings
from fusetune.fitting.own_space import identity_start, keep_own_space, sides_of, tied
from fusetune.fitting.prepared import Prepared
from fusetune.fitting.pretrain import pretrain
from fusetune.fitting.recommendations import Recommendations
from fusetune.fitting.recommended import Compared
from fusetune.fitting.saved import Trained, load_trained, reporting, save_trained
from fusetune.fitting.steps import bundle, encode, tune
from fusetune.inference.features import encoded
from fusetune.inference.retrieval import cut_vectors, searches, used_vectors
from fusetune.models.build import build_model
from fusetune.models.family import Family
from fusetune.models.items import ItemVectors, attach_items, remember_items
from fusetune.models.match import Match
from fusetune.objectives.base import BatchObjective, Objective
from fusetune.objectives.total import trained_dims
from fusetune.tasks.match import MatchTask, RankingTask, Search
from fusetune.tasks.recommendation import ITEM
from fusetune.training.alignment import Alignment, Identity, align
from fusetune.training.finetune import main_of
from fusetune.training.plan import Evaluate, Start
from fusetune.training.probes.probe import column_scales
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
        self.fit = fit = keep_own_space(fit)
        self.scales: Mapping[str, tuple[Tensor, Tensor]] = {}
        self.model = self._build()
        documents = fit.tables.documents
        related, seen = ({}, {}) if documents is None else (documents.related, documents.seen)
        self.searches = {
            split: searches(fit.tasks, examples, related.get(split), seen.get(split))
            for split, examples in fit.examples.items()
        }
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
        with self.fit.phase("encode with frozen backbones"):
            self.fit = encode(self.fit, self.model)
            self._attach_items()
        with self.fit.phase("align in closed form"):
            start = self._align()
            before = None if start is None else (start, self._vectors(self.model, "test", self.fit.features["test"]))
        if self.fit.config.pretrain is not None:
            self.fit = pretrain(self.fit, self.model)
            with self.fit.phase("align pretrained encoders"):
                start = self._align()
        fit, model = self.fit, self.model
        trained = load_trained(fit.run, fit.tasks)
        if trained is None:
            with fit.phase("tune"):
                history = tune(fit, model, start=Start(alignment=start), evaluator=self._evaluator(model))
            if isinstance(model, Match):
                remember_items(model)
            trained = Trained(bundle(fit, model), history, {}, fit.phases)
            save_trained(fit.run, trained)
        self.fit = fit = replace(fit, phases=list(trained.phases))
        self.model = model = trained.bundle.model
        history = trained.history
        with reporting(fit.folder), fit.phase("compare and measure"):
            frozen = [name for name, key in model.routes.items() if key not in history.moved]
            features = {name: values for name, values in fit.features["test"].items() if name in frozen}
            after = self._vectors(model, "test", features)
            systems = self._systems(before, after)
            findings = Findings(fit, trained)
            tasks = [self._judge(task, search, systems, findings) for task, search in self.searches["test"].values()]
            title = OUTPUTS[model.name].title(trained.bundle)
            results = findings.run_results(tasks, title)
            results.warnings[:0] = [*self._known_sides(), *self._equal_sides(), *self._unsearched()]
        return trained.bundle, results

    def _align(self) -> Alignment | Identity | None:
        """Choose the start by the fit's features and install it in the model; return it."""
        self.scales = column_scales(self.fit.examples["train"], self.fit.features["train"])
        start = self._start(self.model)
        if isinstance(start, Identity):  # both sides start alike, and may stay so
            self.fit = tied(self.fit)
            self.model = self._build()
        if start is not None:
            self._install(start, self.model)
        return start

    def _build(self) -> Family:
        """Build the model; its initial weights do not depend on models built before."""
        set_seed(self.fit.config.seed)
        return build_model(self.fit.modalities, self.fit.tasks, neural(self.fit.config.fusion))

    def _attach_items(self) -> None:
        """Have users' histories read items by the model's own vectors, computed from the validation rows' catalogue."""
        documents, model = self.fit.tables.documents, self.model
        if isinstance(documents, Recommendations) and isinstance(model, Match):
            rows = self.fit.examples["val"].given(features=self.fit.features["val"])
            first = len(rows.table) - len(documents.catalogue.items)
            attach_items(model, ItemVectors(model, ITEM, rows, first))

    def _known_sides(self) -> list[str]:
        """Return a warning for each side of pairs whose cells some test rows share with train rows."""
        if self.fit.config.user is not None:  # users are known, and items as well
            return []
        train, test = (self.fit.examples[split] for split in ("train", "test"))
        own = test.rows[test.used] < self.fit.tables.reserved.get("test", np.inf)  # without negatives, see `Tables`
        test = test.of(np.flatnonzero(own))
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
        if config.user is not None or not config.query or len(config.query) != len(config.document):
            return []
        keys, names = row_keys(train), list(train.columns)
        query, document = (
            np.sort(keys[:, [names.index(name) for name in side]], 1) for side in (config.query, config.document)
        )
        num = int(np.sum((query == document).all(1) & (query != 0).any(1)))
        what = "have equal sides: they teach only that equal cells match."
        return [f"{num:,} of {len(train):,} train pairs {what}"] if num else []

    def _unsearched(self) -> list[str]:
        """Return a warning if test queries, or all documents that are right for them, cannot be read."""
        documents, asked = self.fit.tables.documents, tuple(self.fit.config.query)
        if documents is None:
            return []
        for task, search in self.searches["test"].values():
            num = documents.num_queries["test"] - len(search.rows)
            if isinstance(task, RankingTask) and task.query.columns == asked and num:
                return [f"{num:,} test queries have no readable cell, or no readable document: not measured."]
        return []

    def _start(self, model: Family) -> Alignment | Identity | None:
        """Return the start that validation rows prefer: the encoder's own vectors, if one reads all sides, or the best
        closed-form alignment of the columns with pretrained encoders.
        """
        fit = self.fit
        if not all(task.aligned for task in fit.tasks.values() if isinstance(task, MatchTask)):
            return None

        def val_score(start: Alignment | Identity) -> float:
            self._install(start, model)
            return self._val_score(self._vectors(model, "val", fit.features["val"]))[0]

        starts: list[Alignment | Identity] = []
        if (own := identity_start(model, sides_of(fit.tasks))) is not None:
            starts.append(own)
        columns = [name for names in model.compared.values() for name in names]
        if not any(name in model.shares for name in columns):  # an alignment has maps for each column
            train, features = fit.examples["train"], fit.features["train"]
            if (closed := align(train, features, self.scales, model.dim, val_score, sides=model.compared)) is not None:
                starts.append(closed)
        return max(starts, key=val_score) if len(starts) > 1 else next(iter(starts), None)

    def _install(self, start: Alignment | Identity, model: Family) -> None:
        for name, scale in self.scales.items():
            model.set_scale(name, *scale)
        start.install(model)

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
        self, before: tuple[Alignment | Identity, Vectors] | None, after: Vectors
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
            name = "frozen" if isinstance(start, Identity) else "frozen, aligned"
            systems.append((partial(Candidate, name, "before", start.description), vectors))
        train, val = len(self.fit.examples["train"]), self.searches["val"].values()
        what = f"tuned on {train} rows; best step chosen on {max(len(search.rows) for _, search in val)} others"
        return [*systems, (partial(Candidate, "tuned", "after", what), after)]

    def _compared(self, task: MatchTask) -> Compared | None:
        """Return the rules that recommendation is compared with; None for another task."""
        documents = self.fit.tables.documents
        if not isinstance(documents, Recommendations) or not isinstance(task, RankingTask):
            return None
        own = {split: found[task.target][1] for split, found in self.searches.items() if task.target in found}
        return Compared(task, documents, self.fit.examples, own)

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
        known = {system.name: vectors for system, (_, vectors) in zip(candidates, systems, strict=True)}
        compared = self._compared(task)
        if compared is not None:
            candidates[1:1] = [system for system, _ in compared.baselines]
        elif isinstance(task, RankingTask):
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
        if dims := trained_dims(fit.config.objectives):
            values = {}
            for dim in (len(next(iter(systems[-1][1].values()))[0]), *dims):
                measured = task.measured(task.answers(cut_vectors(systems[-1][1], dim), search), task.truth(search))
                values[dim] = task.main_value(measured, task.truth(search), examples.weights[rows])
            result.sections.append(dims_section(task.main.name, values))
        if compared is not None:
            num, weights = fit.config.report.bootstrap, examples.weights[rows]
            result.sections += compared.sections(candidates, known, weights=weights, num=num, seed=fit.config.seed)
        if isinstance(task, RankingTask):
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
