"""The fit of pairs with a target: tune both sides' vectors so that their cosine follows the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from accelerate.utils import set_seed

from fusetune.config.fusion import neural
from fusetune.data.examples import Examples
from fusetune.data.table import is_missing
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.outputs import OUTPUTS
from fusetune.evaluation.measure import systems
from fusetune.evaluation.measure.dims import dims_section
from fusetune.evaluation.measure.judge import Candidate, judge
from fusetune.evaluation.results import RunResults, SystemKind, TaskResult
from fusetune.fitting.findings import Findings
from fusetune.fitting.match import batch_loss
from fusetune.fitting.own_space import identity_start, keep_own_space, tied
from fusetune.fitting.prepared import Prepared
from fusetune.fitting.pretrain import pretrain
from fusetune.fitting.saved import Trained, load_trained, reporting, save_trained
from fusetune.fitting.steps import bundle, encode, tune
from fusetune.inference.features import encoded
from fusetune.inference.predict import row_vectors
from fusetune.inference.retrieval import cut_vectors
from fusetune.models.build import build_model
from fusetune.models.family import Family
from fusetune.objectives.base import Objective
from fusetune.objectives.total import trained_dims
from fusetune.tasks.pairs import PairTask
from fusetune.tasks.panels.kinds import Section
from fusetune.training.alignment import Alignment, Identity, align
from fusetune.training.finetune import evaluate_loss
from fusetune.training.plan import Evaluate, Start
from fusetune.training.probes.probe import SplitRows, column_scales
from fusetune.training.score_error import ScoreError
from fusetune.types import Tokens

Scores = Mapping[str, np.ndarray]
"""The cosines of the labelled rows of "val" and "test", (rows,) each."""


def fit_similarity(fit: Prepared) -> tuple[Bundle, RunResults]:
    """Tune a model of pairs with a target, save it, and compare it with the frozen encoders.

    Raises:
        UserError, RunError: see `api.fit`.
    """
    return SimilarityFit(keep_own_space(fit)).run()


class SimilarityFit:
    """The steps of a fit of pairs with a target.

    Args:
        fit: with its cells read, and one task about pairs.
    """

    def __init__(self, fit: Prepared) -> None:
        self.fit = fit
        ((self.name, task),) = fit.targets.items()
        assert isinstance(task, PairTask)
        self.task: PairTask = task

    def run(self) -> tuple[Bundle, RunResults]:
        """Encode, choose the start, tune, save and measure."""
        set_seed(self.fit.config.seed)
        model = build_model(self.fit.modalities, self.fit.tasks, neural(self.fit.config.fusion))
        with self.fit.phase("encode with frozen backbones"):
            self.fit = encode(self.fit, model)
        with self.fit.phase("compare frozen vectors"):
            start, model = self._choose_start(model)
            frozen, before = start, self._before(model, start)
        if self.fit.config.pretrain is not None:
            self.fit = pretrain(self.fit, model)
            with self.fit.phase("compare pretrained vectors"):
                start, model = self._choose_start(model)
        fit = self.fit
        trained = load_trained(fit.run, fit.tasks)
        if trained is None:
            with fit.phase("tune"):
                history = tune(fit, model, start=Start(alignment=start), evaluator=self._evaluator(model))
            trained = Trained(bundle(fit, model), history, {}, fit.phases)
            trained.val_scores = Findings(fit, trained).decide()
            save_trained(fit.run, trained)
        self.fit = fit = replace(fit, phases=list(trained.phases))
        with reporting(fit.folder), fit.phase("compare and measure"):
            findings = Findings(fit, trained)
            findings.decide()
            result = self._judge(findings, frozen, before)
            results = findings.run_results([result], OUTPUTS[trained.bundle.model.name].title(trained.bundle))
        return trained.bundle, results

    def _choose_start(self, model: Family) -> tuple[Alignment | Identity | None, Family]:
        """Return the start, and the model, with one projection for both sides if they start alike."""
        start = self._start(model)
        if isinstance(start, Identity):  # both sides start alike, and may stay so
            self.fit = tied(self.fit)
            set_seed(self.fit.config.seed)
            model = build_model(self.fit.modalities, self.fit.tasks, neural(self.fit.config.fusion))
        return start, model

    def _start(self, model: Family) -> Alignment | Identity | None:
        """Return the better of the encoder's own vectors and a closed-form alignment on validation rows.

        The alignment learns from the half of the train pairs that are most alike.
        """
        fit, task = self.fit, self.task
        train = fit.examples["train"]
        scales = column_scales(train.with_target(), fit.features["train"])
        val = fit.rows[self.name]["val"]

        def score(start: Alignment | Identity) -> float:
            for name, scale in scales.items():
                model.set_scale(name, *scale)
            start.install(model)
            value = task.evaluate(self._cosines(model, val), val.truth)[task.main.name]
            value = value if task.main.greater_is_better else -value
            return float(np.nan_to_num(value, nan=-np.inf))

        starts: list[Alignment | Identity] = []
        if (own := identity_start(model, task.sides)) is not None:
            starts.append(own)
        if not model.shares:  # an alignment has maps for each column
            alike = _most_alike(task, self.name, train)
            sides, features = model.compared, fit.features["train"]
            if (closed := align(alike, features, scales, model.dim, score, sides=sides)) is not None:
                starts.append(closed)
        return max(starts, key=score, default=None)

    def _cosines(self, model: Family, rows: SplitRows, features: Mapping[str, Tokens] | None = None) -> np.ndarray:
        """Return the cosines of labelled rows, (rows,), from the frozen features or others."""
        known = rows.features if features is None else features
        split = rows.seen(encoded(model, rows.examples, known))
        return systems.model_scores(model, self.name, self.task, split, split)

    def _before(self, model: Family, start: Alignment | Identity | None) -> Scores | None:
        """Return the cosines that the start gives; None without one."""
        if start is None:
            return None
        for name, scale in column_scales(self.fit.examples["train"].with_target(), self.fit.features["train"]).items():
            model.set_scale(name, *scale)
        start.install(model)
        return {split: self._cosines(model, self.fit.rows[self.name][split]) for split in ("val", "test")}

    def _evaluator(self, model: Family) -> Callable[[Sequence[Objective], ScoreError], Evaluate]:
        """Return a function that takes the built objectives and returns the evaluation on validation rows."""

        def make(objectives: Sequence[Objective], error: ScoreError) -> Evaluate:
            def evaluate(val: Examples) -> tuple[float, float, dict[str, dict[str, float]]]:
                known = {name: column.features for name, column in val.columns.items() if column.features is not None}
                val = encoded(model, val, known)
                _, score, metrics = evaluate_loss(model, self.fit.targets, val, error=error)
                return batch_loss(model, objectives, val), score, metrics

            return evaluate

        return make

    def _judge(self, findings: Findings, start: Alignment | Identity | None, before: Scores | None) -> TaskResult:
        """Measure the systems on the test rows."""
        fit, task = self.fit, self.task
        train, val, test = (fit.rows[self.name][split] for split in ("train", "val", "test"))
        rng = np.random.default_rng(fit.config.seed)
        chance = {split: rng.uniform(-1, 1, len(rows.indices)) for split, rows in (("val", val), ("test", test))}
        candidates = [_candidate("random order", "baseline", "pairs in random order", chance)]
        if (words := self._words(train, val, test)) is not None:
            what = "cosine of the texts' words, weighted by tf-idf of the train rows"
            candidates.append(_candidate("shared words", "baseline", what, words))
        if start is not None and before is not None:
            candidates.append(_candidate("frozen", "before", start.description, before))
        frozen = findings.unchanged_features("test")
        what = f"tuned on {len(train.indices)} rows; best step chosen on {len(val.indices)} validation rows"
        model = findings.model
        after = {"val": findings.val_scores[self.name], "test": self._cosines(model, test, frozen)}
        candidates.append(_candidate("tuned", "after", what, after))
        result = judge(
            task,
            candidates,
            findings.evaluated(test),
            validation=(after["val"], val.truth),
            show=lambda at: findings.shown(int(test.indices[at])),
            num=fit.config.report.bootstrap,
            num_errors=fit.config.report.errors,
            seed=fit.config.seed,
        )
        if dims := trained_dims(fit.config.objectives):
            result.sections.append(self._by_width(model, test, frozen, (model.dim, *dims)))
        result.shared = int(findings.shared("test", test.indices).sum())
        result.balance = task.target_panels({split: rows.truth for split, rows in fit.rows[self.name].items()})
        return result

    def _by_width(self, model: Family, rows: SplitRows, features: Mapping[str, Tokens], dims: Sequence[int]) -> Section:
        """Return the main metric of rows by how many of the vectors' numbers are compared."""
        seen = np.isin(rows.indices, rows.examples.used)
        some = encoded(model, rows.examples, features)
        vectors = row_vectors(model, some, rows.indices[seen])
        by_side = {name: values.numpy() for name, values in vectors.items()}
        values, weights = {}, rows.examples.weights[rows.indices[seen]]
        for dim in dims:
            first, second = cut_vectors(by_side, dim).values()
            cosines = (first * second).sum(1).astype(np.float64)
            values[dim] = self.task.evaluate(cosines, rows.truth[seen], weights)[self.task.main.name]
        return dims_section(self.task.main.name, values)

    def _words(self, train: SplitRows, val: SplitRows, test: SplitRows) -> Scores | None:
        """Return the cosines of the tf-idf vectors of both sides' words; None unless each side is one text."""
        columns = [name for names in self.task.sides.values() for name in names]
        if len(columns) != 2 or any(self.fit.schema.columns[name].kind != "text" for name in columns):
            return None
        from sklearn.feature_extraction.text import TfidfVectorizer

        texts = {
            split: [
                ["" if is_missing(cell) else str(cell) for cell in rows.examples.table.cells(name, rows.indices)]
                for name in columns
            ]
            for split, rows in (("train", train), ("val", val), ("test", test))
        }
        words = TfidfVectorizer(token_pattern=r"(?u)\w+").fit([text for side in texts["train"] for text in side])
        cosines = {}
        for split in ("val", "test"):
            first, second = (words.transform(side) for side in texts[split])
            cosines[split] = np.asarray(first.multiply(second).sum(1), dtype=float).ravel()
        return cosines


def _candidate(name: str, kind: SystemKind, what: str, scores: Scores) -> Candidate:
    return Candidate(name, kind, what, scores["test"], validation=scores["val"])


def _most_alike(task: PairTask, name: str, train: Examples) -> Examples:
    """Return the labelled train rows whose target is not below the median, and above the least."""
    rows = train.labelled(name)
    values = train.encode(name, rows).values
    chosen = (values >= values.median()) & (values > values.min())
    return train.of(train.positions(rows[chosen.numpy()]))
