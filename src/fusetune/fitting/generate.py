"""The fit of the generate family: a language model learns to write the target from a row's prompt."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from accelerate.utils import set_seed
from sklearn.feature_extraction.text import TfidfVectorizer

from fusetune.config.fusion import AutoConfig, StackConfig, neural
from fusetune.data.examples import Examples
from fusetune.data.table import is_missing
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.outputs import OUTPUTS
from fusetune.errors import ConfigError
from fusetune.evaluation.measure.judge import Candidate, EvaluatedRows, judge
from fusetune.evaluation.measure.written import guesses, nearest
from fusetune.evaluation.results import RunResults, TaskResult
from fusetune.fitting.few_shot import with_answered_rows
from fusetune.fitting.findings import Findings
from fusetune.fitting.likelihoods import (
    Likelihoods,
    likelihood_section,
    likelihoods,
    losses_and_metrics,
    preference_section,
    references,
    weighted_mean,
)
from fusetune.fitting.obedience import TRUE, Attribute, obedience_section
from fusetune.fitting.prepared import Prepared
from fusetune.fitting.prompting import is_speech
from fusetune.fitting.saved import Trained, load_trained, reporting, save_trained
from fusetune.fitting.steps import bundle, encode, tune
from fusetune.inference.constraints import grammar_of
from fusetune.inference.write import LENGTH, Written, decoding_of, write
from fusetune.modalities.prompt import PromptModality, words_of
from fusetune.models.build import build_model
from fusetune.models.generate import Generate
from fusetune.objectives.base import Objective
from fusetune.tasks.abilities import Prefers, Writes
from fusetune.tasks.panels.written import first_of
from fusetune.training.deadline import COMPARING
from fusetune.training.hardware.devices import processes
from fusetune.training.plan import Evaluate, Start
from fusetune.training.probes.probe import SplitRows
from fusetune.training.score_error import ScoreError

WORDS = 4096
"""Most words by which a row's nearest train row is found."""


@dataclass(frozen=True)
class Answered:
    """What a model writes of the test rows, how likely it holds the true answers, and what it reads."""

    written: Written
    truth: Likelihoods
    what: str


def fit_generate(fit: Prepared) -> tuple[Bundle, RunResults]:
    """Tune a language model on the prepared rows, save it, and compare it with what it wrote before.

    Raises:
        UserError, RunError: see `api.fit`.
    """
    return GenerateFit(fit).run()


def check_generate(fit: Prepared) -> None:
    """Refuse settings that a language model that writes is not tuned with.

    Raises:
        ConfigError: there are such settings.
    """
    config = fit.config
    refused = [f"objectives.{name}" for name in config.objectives]
    refused += ["trainer.adversarial"] if config.trainer.adversarial is not None else []
    refused += ["trainer.compile"] if config.trainer.compile else []
    refused += ["trainer.shard"] if config.trainer.shard else []
    refused += [f"trainer.balance={config.trainer.balance}"] if config.trainer.balance != "sum" else []
    refused += [f"fusion={config.fusion.name}"] if isinstance(config.fusion, AutoConfig | StackConfig) else []
    refused += ["text.join"] if config.text.join else []
    if refused:
        raise ConfigError(
            f"{refused[0]} is not for targets that a language model writes",
            came=", ".join(fit.tasks),
            do="leave it out",
        )
    grammar_of(config.generation.regex, config.generation.json_schema)
    pairs = [name for name, task in fit.targets.items() if isinstance(task, Prefers)]
    soft = [name for name, modality in fit.modalities.items() if not isinstance(modality, PromptModality)]
    if pairs and soft and not is_speech(config):
        raise ConfigError(
            "preferences are compared with the model before tuning, which cannot read learned vectors yet",
            expected="a prompt of words",
            came=", ".join(soft),
            do=f"leave these columns out of prompt.template; or learn the answers alone: tasks.{pairs[0]}=generate",
        )


class GenerateFit:
    """The steps of a fit of the generate family.

    Args:
        fit: with its cells read.
    """

    def __init__(self, fit: Prepared) -> None:
        check_generate(fit)
        self.fit = fit
        self.moved: set[str] = set()  # keys of the encoders that tuning has changed
        self.tasks: dict[str, Writes] = {name: task for name, task in fit.targets.items() if isinstance(task, Writes)}

    def run(self) -> tuple[Bundle, RunResults]:
        """Encode, write untuned, tune, save, write and measure."""
        set_seed(self.fit.config.seed)
        model = build_model(self.fit.modalities, self.fit.tasks, neural(self.fit.config.fusion))
        assert isinstance(model, Generate)
        with self.fit.phase("encode with frozen backbones"):
            self.fit = encode(self.fit, model)
        self._refer(model)
        fit = self.fit
        before: dict[str, dict[str, Answered]] = {}
        if fit.config.report.zero_shot:
            with fit.phase("write untuned"):
                model.to(processes().device)
                before = {name: self._untuned(model, name) for name in self.tasks}
        trained = load_trained(fit.run, fit.tasks)
        if trained is None:
            with fit.phase("tune"):
                history = tune(fit, model, start=Start(), evaluator=self._evaluator(model))
            trained = Trained(bundle(fit, model), history, {}, fit.phases)
            save_trained(fit.run, trained)
        self.fit = fit = replace(fit, phases=list(trained.phases))
        tuned, history = trained.bundle.model, trained.history
        assert isinstance(tuned, Generate)
        self.moved = set() if history.encoders_unchanged and history.best.stage == "head" else history.moved
        with reporting(fit.folder), fit.phase("write and measure"):
            findings = Findings(fit, trained)
            results = [self._judge(tuned, name, before.get(name, {}), findings) for name in self.tasks]
            run_results = findings.run_results(results, OUTPUTS[tuned.name].title(trained.bundle))
            if fit.config.trainer.metric is None:
                run_results.curve.metric = "log-likelihood of a token"
        return trained.bundle, run_results

    def _refer(self, model: Generate) -> None:
        """Measure how likely the untuned model holds the answers of pairs, once for all of the fit."""
        pairs = [name for name, task in self.tasks.items() if isinstance(task, Prefers)]
        if not pairs:
            return
        with self.fit.phase("likelihood of the pairs before tuning"):
            model.to(processes().device)
            examples = {
                split: own.given(references={name: references(model, name, own) for name in pairs})
                for split, own in self.fit.examples.items()
            }
        self.fit = replace(self.fit, examples=examples)

    def _untuned(self, model: Generate, name: str) -> dict[str, Answered]:
        """Return what the untuned model answers to the test rows' prompts, alone and with answered train rows."""
        task, settings = self.tasks[name], self.fit.config
        hidden = _soft(model)
        what = "the language model untuned, with the same prompt"
        what += f", without {', '.join(hidden)}" if hidden else ""
        examples = self._seen(model, "test", hidden)
        before = {"zero-shot": self._answered(model, name, examples, what)}
        if settings.report.few_shot and not self.fit.deadline.part(COMPARING).passed():
            tokens = decoding_of(settings.generation, task).max_tokens
            options = {"num": settings.report.few_shot, "answer_tokens": tokens, "seed": settings.seed}
            train = self.fit.rows[name]["train"]
            if (shown := with_answered_rows(examples, examples.labelled(name), task, train, **options)) is not None:
                what += f", which begins with {shown[1]} train rows and their answers"
                before["few-shot"] = self._answered(model, name, shown[0], what)
        return before

    def _answered(self, model: Generate, name: str, examples: Examples, what: str) -> Answered:
        """Write the answers of rows that have the target, and measure the likelihood of the true ones."""
        truth = likelihoods(model, name, examples, examples.labelled(name))
        return Answered(self._write(model, name, examples), truth, what)

    def _write(self, model: Generate, name: str, examples: Examples) -> Written:
        """Write a task's answers of rows that have the target."""
        task = self.tasks[name]
        decoding = decoding_of(self.fit.config.generation, task)
        return write(model, name, task, examples, examples.labelled(name), decoding, progress=self.fit.progress)

    def _seen(self, model: Generate, split: str, hidden: Sequence[str]) -> Examples:
        """Return a split's rows, all of which have a prompt, without the hidden columns.

        Columns whose encoders are as pretrained have their features.
        """
        still = [name for name, key in model.routes.items() if key not in self.moved]
        known = {name: values for name, values in self.fit.features[split].items() if name in still}
        examples = self.fit.examples[split].given(features=known)
        columns = {name: column for name, column in examples.columns.items() if name not in hidden}
        return examples.reading(examples.table, columns) if hidden else examples

    def _evaluator(self, model: Generate) -> Callable[[Sequence[Objective], ScoreError], Evaluate]:
        """Return a function that takes the built objectives and returns the evaluation on validation rows.

        The score is −loss by tokens, unless the user named a metric.
        """
        settings = self.fit.config

        def make(objectives: Sequence[Objective], error: ScoreError) -> Evaluate:
            def evaluate(val: Examples) -> tuple[float, float, dict[str, dict[str, float]]]:
                total, scores, metrics = 0.0, [], {}
                for name, task in self.tasks.items():
                    rows = val.labelled(name)
                    if not len(rows):
                        continue
                    weights, reference = val.weights[rows], val.references.get(name)
                    losses, sizes, metrics[name] = losses_and_metrics(
                        task,
                        likelihoods(model, name, val, rows),
                        None if reference is None else reference[rows],
                        weights,
                    )
                    loss = metrics[name]["loss"]
                    total += loss
                    metrics[name] |= self._val_metrics(model, name, task, val, rows)
                    by_metric = settings.trainer.metric is not None and task.main.name in metrics[name]
                    value = metrics[name][task.main.name] if by_metric else -loss
                    scores.append(value if not by_metric or task.main.greater_is_better else -value)
                    if not error.known:
                        error.add("loss", -loss, partial(_negative, losses, sizes, weights), weights)
                if not error.known:
                    error.close()
                return total, float(np.mean(scores)) if scores else float("nan"), metrics

            return evaluate

        return make

    def _val_metrics(
        self, model: Generate, name: str, task: Writes, val: Examples, rows: np.ndarray
    ) -> dict[str, float]:
        """Return the metrics of the answers of some validation rows, the same at each evaluation."""
        num = self.fit.config.generation.val_rows
        if self.fit.config.trainer.metric is not None:
            num = len(rows)
        if not num:
            return {}
        chosen = np.sort(np.random.default_rng(self.fit.config.seed).permutation(len(rows))[:num])
        some = rows[chosen]
        written = write(model, name, task, val, some, decoding_of(self.fit.config.generation, task))
        return task.evaluate(written.texts, val.truth(name, some), val.weights[some])

    def _judge(self, model: Generate, name: str, before: Mapping[str, Answered], findings: Findings) -> TaskResult:
        """Measure the systems on the test rows of a task."""
        fit, task = self.fit, self.tasks[name]
        train, val, test = (fit.rows[name][split] for split in ("train", "val", "test"))
        candidates = guesses(train.truth, self._sources(task, test), len(test.indices))
        if (vectors := self._vectors(task, train, test)) is not None:
            what = "the answer of the train row with the nearest prompt: its words by tf-idf, its frozen features"
            candidates.append(Candidate("nearest train row", "baseline", what, nearest(*vectors, train.truth)))
        for system, untuned in before.items():
            candidates.append(Candidate(system, "before", untuned.what, untuned.written.texts))
        for column in _soft(model) if not fit.deadline.part(COMPARING).passed() else ():
            hidden = self._write(model, name, self._seen(model, "test", [column]))
            what = f"the tuned model, {column} hidden"
            candidates.append(Candidate(f"without {column}", "without", what, hidden.texts, [column]))
        what = f"tuned on {len(train.indices)} rows; best step chosen on {len(val.indices)} validation rows"
        after = self._answered(model, name, self._seen(model, "test", ()), what)
        candidates.append(Candidate("tuned", "after", what, after.written.texts, list(fit.modalities)))
        candidates[-1].cut = after.written.finish == LENGTH
        result = judge(
            task,
            candidates,
            findings.evaluated(test),
            show=lambda at: findings.shown(int(test.indices[at])),
            num=fit.config.report.bootstrap,
            num_errors=fit.config.report.errors,
            seed=fit.config.seed,
        )
        systems = {system: answered.truth for system, answered in [*before.items(), ("tuned", after)]}
        result.sections.insert(0, likelihood_section(systems))
        self._add_sections(result, name, after.truth, candidates, findings.evaluated(test))
        result.shared = int(findings.shared("test", test.indices).sum())
        result.balance = task.target_panels({split: rows.truth for split, rows in fit.rows[name].items()})
        return result

    def _add_sections(
        self,
        result: TaskResult,
        name: str,
        after: Likelihoods,
        candidates: Sequence[Candidate],
        evaluated: EvaluatedRows,
    ) -> None:
        """Add what the report says of pairs of answers, and of categories in prompts."""
        fit, task = self.fit, self.tasks[name]
        train, test = fit.rows[name]["train"], fit.rows[name]["test"]
        settings = {"num": fit.config.report.bootstrap, "seed": fit.config.seed}
        if isinstance(task, Prefers):
            reference = fit.examples["test"].references[name][test.indices]
            untuned = Likelihoods(reference.double().numpy(), after.sizes)
            result.sections.insert(0, preference_section(task, untuned, after, evaluated, **settings))
        texts = {TRUE: [first_of(value) for value in test.truth]}
        texts |= {system.name: list(system.answers) for system in candidates if system.kind in ("before", "after")}
        answers = [first_of(value) for value in train.truth]
        obedience = obedience_section(self._attributes(task, train, test), answers, texts, evaluated, **settings)
        result.sections += [obedience] if obedience is not None else []

    def _prompt(self, task: Writes) -> PromptModality:
        modality = self.fit.modalities[task.prompt]
        assert isinstance(modality, PromptModality)
        return modality

    def _attributes(self, task: Writes, train: SplitRows, test: SplitRows) -> list[Attribute]:
        """Return the categories that a task's prompts name, with their labels in the train and test rows."""
        prompt, columns = self._prompt(task), self.fit.schema.columns
        names = [name for name in [*prompt.join, *prompt.soft] if not task.chats and columns[name].kind == "category"]

        def labels(name: str, rows: SplitRows) -> list[str | None]:
            return [words_of(cell) for cell in rows.examples.table.cells(name, rows.indices)]

        return [Attribute(name, labels(name, train), labels(name, test)) for name in names]

    def _sources(self, task: Writes, test: SplitRows) -> dict[str, list[str | None]]:
        """Return the cells of the text columns in a task's prompts, by column; a chat has its answer in it."""
        if task.chats:
            return {}
        names = [name for name in self._prompt(task).join if self.fit.schema.columns[name].kind == "text"]
        cells = {name: test.examples.table.cells(name, test.indices) for name in names}
        return {name: [None if is_missing(cell) else str(cell) for cell in own] for name, own in cells.items()}

    def _vectors(self, task: Writes, train: SplitRows, test: SplitRows) -> tuple[np.ndarray, np.ndarray] | None:
        """Return vectors of the train and test rows, (rows, dim), by which the nearest are found; None without any.

        They are the tf-idf of the prompts' words, fitted on train rows, and each soft column's frozen features.
        """
        prompt, parts = self._prompt(task), dict[str, list[np.ndarray]]()
        words = TfidfVectorizer(token_pattern=r"(?u)\w+", max_features=WORDS, dtype=np.float32)
        for split, rows in (("train", train), ("test", test)):
            cells = rows.examples.table.cells(task.prompt, rows.indices)
            texts = ["" if is_missing(cell) else prompt.text(cell) for cell in cells]
            parts[split] = [values[rows.indices] for values in self._features(split).values()]
            with contextlib.suppress(ValueError):  # no words
                weights = words.fit_transform(texts) if split == "train" else words.transform(texts)
                parts[split].append(weights.toarray())
        if not parts["train"]:
            return None
        return np.concatenate(parts["train"], 1), np.concatenate(parts["test"], 1)

    def _features(self, split: str) -> Mapping[str, np.ndarray]:
        """Return each soft column's frozen vectors of a split's rows, (rows, dim), centred and of unit length."""
        vectors = {}
        for name, tokens in self.fit.features[split].items():
            means, codes = tokens.mean().numpy(), self.fit.examples[split].columns[name].codes
            train = self.fit.features["train"][name].mean().numpy()
            means = means - train.mean(0)
            means = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
            vectors[name] = np.where(codes[:, None] >= 0, means[np.maximum(codes, 0)], 0)
        return vectors


def _soft(model: Generate) -> list[str]:
    """Return the columns that a model reads as learned vectors; what a model of speech hears is none."""
    return [] if model.language.hears else model.columns


def _negative(losses: np.ndarray, sizes: np.ndarray, weights: np.ndarray, rows: np.ndarray) -> float:
    return -weighted_mean(losses[rows], sizes[rows], weights[rows])
