"""Tune a re-ranker after a model of pairs: it reads a query and a document together (`rerank: true`).

It learns from the train pairs, and from documents near a query that are no right answers to it, found by the tuned
model (`fusetune.inference.retrieval.hard_negatives`). Validation rows say whether searches should take its order.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import sparse

from fusetune.config.config import Config
from fusetune.data.table import Table
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.card import write_card
from fusetune.deploy.search.rerank import NOT_RELEVANT, RELEVANT, RERANKER, Reranker, save_reranker
from fusetune.errors import ConfigError, TableError
from fusetune.evaluation.report.write import write_report
from fusetune.evaluation.results import RunResults
from fusetune.fitting.prepared import Prepared, RunSettings, prepare
from fusetune.fitting.run_folder import RunFolder
from fusetune.fitting.understand import fit_understand
from fusetune.inference.features import encoded
from fusetune.inference.predict import model_device
from fusetune.inference.retrieval import hard_negatives, searches, used_vectors
from fusetune.tasks.match import RankingTask, Search
from fusetune.tasks.panels.kinds import Head, Section, TablePanel
from fusetune.training.hardware.devices import processes

MAX_QUERIES = 1000
"""Queries of a split on which a re-ranker is measured, at most: it reads several documents for each."""


def check_texts(fit: Prepared) -> None:
    """Refuse a re-ranker of other columns than texts.

    Raises:
        ConfigError: a side is of another kind.
    """
    for name in (*fit.config.query, *fit.config.document):
        if (kind := fit.schema.columns[name].kind) != "text":
            raise ConfigError(
                "rerank reads texts together",
                expected="a query and a document of texts",
                came=f"a column of kind {kind}",
                do="leave rerank out",
                column=name,
            )


def fit_reranker(fit: Prepared, bundle: Bundle, results: RunResults) -> None:
    """Tune a re-ranker, save it in the model's folder, and add to the report what it changes.

    Args:
        fit: of the model of pairs, with `config.rerank`.
        bundle: the tuned model, which is saved.
        results: the report, which gets a section.

    Raises:
        UserError, RunError: see `api.fit`.
    """
    settings, (query,), (document,) = fit.config.rerank, fit.config.query, fit.config.document
    assert settings is not None
    with fit.phase("mine pairs for the re-ranker"):
        splits = {split: _Searched.of(fit, bundle, split) for split in fit.examples}
        target = "relevant"
        while target in (query, document):
            target += "_"
        margins = {"train": settings.margin}
        tables = {
            split: Table.from_records(
                [
                    {query: asked, document: found, target: label}
                    for asked, found, label in searched.pairs(settings.negatives, margins.get(split))
                ]
            )
            for split, searched in splits.items()
        }
    config, folder = _settings(fit.config, query, document, target), fit.folder / RERANKER
    with RunFolder(folder, config, resume=bool(fit.run.resume), overwrite=True) as run:
        second, found = fit_understand(prepare(RunSettings(config, tables, run, fit.show, fit.deadline)))
        reranker = Reranker(second, query, document, settings.depth, preferred=False)
        with fit.phase("re-rank"):
            measured = {split: splits[split].some(MAX_QUERIES).measure(reranker) for split in ("val", "test")}
        reranker.preferred = measured["val"].gain > 0
        if processes().is_main_process:
            write_report(found, folder)
            write_card(second, found, folder)
            save_reranker(reranker, folder, fit.folder)
            run.finish()
    _tell(results, splits["test"].task, measured, reranker)


def _settings(config: Config, query: str, document: str, target: str) -> Config:
    """Return the settings of the re-ranker's fit: those of the model of pairs, where they apply."""
    trainer = config.trainer.model_dump(exclude_defaults=True, exclude={"metric", "minutes"})
    return Config.build(
        {
            "target": [target],
            "columns": {query: "text", document: "text", target: "category"},
            "tasks": {target: "binary"},
            "text": config.text.model_dump(exclude_defaults=True) | {"join": [[query, document]]},
            "trainer": trainer,
            "report": {"alone": "none", "bootstrap": config.report.bootstrap, "errors": config.report.errors},
            "data": config.data.model_dump(exclude_defaults=True, include={"cache", "cache_gib", "memory"}),
            "seed": config.seed,
        }
    )


@dataclass(frozen=True)
class _Measured:
    """The main metric of a split's queries.

    Attributes:
        before, after: by the vectors, and with the nearest documents sorted anew.
        seconds: that reading took, a query.
        greater_is_better: whether a greater metric is better.
    """

    before: float
    after: float
    seconds: float
    greater_is_better: bool

    @property
    def gain(self) -> float:
        """By how much sorting anew is better."""
        return (self.after - self.before) * (1 if self.greater_is_better else -1)


@dataclass(frozen=True)
class _Searched:
    """The queries of a split, and the documents that they are searched in.

    Attributes:
        task, search: of the direction from query to document.
        queries: (queries, dim) of unit length.
        documents: (documents, dim) of unit length.
        query_cells: (queries,) texts.
        document_cells: (documents,) texts.
        weights: (queries,) of the rows.
    """

    task: RankingTask
    search: Search
    queries: torch.Tensor
    documents: torch.Tensor
    query_cells: list[Any]
    document_cells: list[Any]
    weights: np.ndarray

    @classmethod
    def of(cls, fit: Prepared, bundle: Bundle, split: str) -> _Searched:
        """Return the search of a split by the tuned model.

        Raises:
            TableError: too few of its rows have both sides.
        """
        examples = fit.examples[split].given(features={})
        related = {} if fit.tables.documents is None else fit.tables.documents.related
        (query,), (document,) = fit.config.query, fit.config.document
        directions = searches(fit.tasks, examples, related.get(split)).values()
        asked = ((t, s) for t, s in directions if isinstance(t, RankingTask) and t.query.columns == (query,))
        if (direction := next(asked, None)) is None:
            raise TableError(f"a re-ranker needs two or more {split} rows with both sides")
        task, search = direction
        vectors, device = used_vectors(bundle.model, encoded(bundle.model, examples)), model_device(bundle.model)
        rows, answers = examples.used[search.rows], examples.used[search.answer_rows]
        return cls(
            task,
            search,
            torch.from_numpy(task.query.vectors(vectors)[search.rows]).to(device),
            torch.from_numpy(task.answer.vectors(vectors)[search.answer_rows]).to(device),
            examples.table.cells(query, rows),
            examples.table.cells(document, answers),
            examples.weights[rows],
        )

    def pairs(self, negatives: int, margin: float | None) -> list[tuple[Any, Any, str]]:
        """Return texts of queries and documents with their labels: every distinct right pair, and near wrong ones.

        Args:
            negatives: wrong documents of each distinct query.
            margin: see `hard_negatives`.
        """
        _, asked = np.unique(np.array([str(cell) for cell in self.query_cells]), return_index=True)
        asked = np.sort(asked)
        right = sparse.csr_array(self.search.right[asked])
        wrong = self._nearest(asked, right, num=negatives, margin=margin)
        made = []
        for number, at in enumerate(asked):
            own = right.indices[right.indptr[number] : right.indptr[number + 1]]
            labelled = [(int(i), RELEVANT) for i in own] + [(int(i), NOT_RELEVANT) for i in wrong[number] if i >= 0]
            made += [(self.query_cells[at], self.document_cells[index], label) for index, label in labelled]
        return made

    def _nearest(self, asked: np.ndarray, left_out: sparse.csr_array, *, num: int, margin: float | None) -> np.ndarray:
        """Return the documents nearest to some queries, (asked, num), -1 where there are no more.

        Args:
            asked: indices of the queries.
            left_out: (asked, documents) sparse bool.
            num, margin: see `hard_negatives`.
        """
        right = sparse.csr_array(self.search.right[asked])
        own = torch.from_numpy(right.indices[right.indptr[:-1]].astype(np.int64)).to(self.queries.device)
        queries = self.queries[torch.from_numpy(asked).to(self.queries.device)]
        return hard_negatives(queries, self.documents, own, left_out, num=num, margin=margin)[0]

    def some(self, num: int) -> _Searched:
        """Return the search of at most `num` of the queries, evenly spaced."""
        total = len(self.search.rows)
        chosen = np.unique(np.linspace(0, total - 1, min(num, total)).astype(np.int64))
        grades = None if self.search.grades is None else sparse.csr_array(self.search.grades[chosen])
        search = replace(
            self.search,
            rows=self.search.rows[chosen],
            ids=self.search.ids[chosen],
            right=sparse.csr_array(self.search.right[chosen]),
            grades=grades,
        )
        return replace(
            self,
            search=search,
            queries=self.queries[torch.from_numpy(chosen).to(self.queries.device)],
            query_cells=[self.query_cells[at] for at in chosen],
            weights=self.weights[chosen],
        )

    def measure(self, reranker: Reranker) -> _Measured:
        """Return the main metric before and after the nearest documents are sorted anew."""
        every = np.arange(len(self.search.rows))
        nothing = sparse.csr_array(self.search.right.shape, dtype=bool)
        near = self._nearest(every, nothing, num=min(reranker.depth, len(self.documents)), margin=None)
        start = time.perf_counter()
        cells = [[self.document_cells[index] for index in row] for row in near]
        order, _ = reranker.order(self.query_cells, cells)
        seconds = (time.perf_counter() - start) / len(every)
        best = np.take_along_axis(near, order, 1)

        def by_vectors(part: slice) -> np.ndarray:
            return np.asarray((self.queries[part] @ self.documents.T).cpu().numpy())

        def similarity(part: slice) -> np.ndarray:
            similar = by_vectors(part)
            # Cosines are at most 1: the documents that were read come first, in their new order.
            np.put_along_axis(similar, best[part], 2 + np.linspace(1, 0, best.shape[1])[None], 1)
            return similar

        truth = self.task.truth(self.search)
        before, after = (
            self.task.main_value(
                self.task.measured(self.task.by_similarity(rule, self.search), truth), truth, self.weights
            )
            for rule in (by_vectors, similarity)
        )
        return _Measured(before, after, seconds, self.task.main.greater_is_better)


def _tell(results: RunResults, task: RankingTask, measured: Mapping[str, _Measured], reranker: Reranker) -> None:
    """Add a section to the report of the direction from query to document, and a sentence on whether it is used."""
    name, test, val = task.main.name, measured["test"], measured["val"]
    heads = [Head(""), Head(f"{name} by vectors", "number"), Head(f"{name}, re-ranked", "number")]
    heads.append(Head("milliseconds a query", "number"))
    rows: list[list[str | int | float | None]] = [
        [split, some.before, some.after, 1000 * some.seconds] for split, some in measured.items()
    ]
    used = "sort" if reranker.preferred else "do not sort"
    note = (
        f"rerank: with the nearest {reranker.depth} documents read together with the query, {name} on validation rows"
        f" is {val.after:.3f} instead of {val.before:.3f}, on test rows {test.after:.3f} instead of {test.before:.3f}:"
        f" searches {used} them anew by default."
    )
    figures = {"before": test.before, "after": test.after, "seconds": test.seconds}
    section = Section("rerank", "Re-ranked", [TablePanel(heads, rows)], notes=[note], figures=figures)
    for result in results.tasks:
        if result.target == task.target:
            result.sections.append(section)
    results.warnings.append(note)
