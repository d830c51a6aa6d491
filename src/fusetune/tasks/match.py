"""The contract of tasks of the match family: queries are answered from a catalogue, by vectors in a common space."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import sparse

from fusetune.tasks.base import Task


@dataclass(frozen=True)
class Search:
    """Queries, and the catalogue that they are searched in.

    Attributes:
        rows: (queries,) the queries' positions among the rows.
        ids: (queries,) their row ids.
        answer_rows: (answers,) the position of the first row that has each distinct answer.
        answer_ids: (answers,) its row id.
        right: (queries, answers), sparse bool: the right answers, those of every row with an equal query or in the
            query's group.
        grades: (queries, answers), sparse: their grades of relevance, above 0; None if each is 1.
        seen: (queries, answers), sparse bool: answers that are left out of the query's ranking, as its user knows them;
            None if there are none.
    """

    rows: np.ndarray
    ids: np.ndarray
    answer_rows: np.ndarray
    answer_ids: np.ndarray
    right: sparse.csr_array
    grades: sparse.csr_array | None = None
    seen: sparse.csr_array | None = None

    @property
    def gains(self) -> sparse.csr_array:
        """The grades of the right answers, (queries, answers) sparse float; 1 without grades."""
        return self.right.astype(np.float64) if self.grades is None else self.grades

    def without_seen(self, similarity: np.ndarray, queries: slice | np.ndarray) -> np.ndarray:
        """Return similarities with -inf for the answers that are left out, (queries, answers).

        Args:
            similarity: (queries, answers).
            queries: which queries these are.
        """
        if self.seen is None:
            return similarity
        query, answer = self.seen[queries].nonzero()
        similarity = np.array(similarity)
        similarity[query, answer] = -np.inf
        return similarity


@dataclass(frozen=True)
class Side:
    """The columns of a query or an answer.

    Attributes:
        name: the name shown in the report: "image", "text".
        columns: the columns' names.
        fused: whether the model has one vector for the side; otherwise the vectors of its columns are averaged.
    """

    name: str
    columns: tuple[str, ...]
    fused: bool = False

    def vectors(self, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the side's vectors, (rows, dim): the normalised mean of its columns', zeros where it is absent.

        Args:
            vectors: per column, or per fused side, (rows, dim) of unit length, zeros where it is absent.
        """
        if self.fused:
            return vectors[self.name]
        total = sum((vectors[name] for name in self.columns), np.zeros_like(vectors[self.columns[0]]))
        return np.asarray(total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12))


class MatchTask(Task):
    """A task whose answers follow from the vectors of a model of the match family.

    The model has no head for it, and it has no loss: an objective, such as `contrastive`, pulls vectors together.
    """

    family = "match"
    aligned: ClassVar[bool] = True
    """Whether training may start from a closed-form alignment of the sides."""
    negatives: Mapping[str, str]
    """By column that train rows have besides, the side whose only column it is read as: documents that the row's query
    should not find. They are not saved."""
    mined: int
    """How many such documents are found among the train rows for each row while the model is trained. Not saved."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.negatives, self.mined = {}, 0

    @property
    @abc.abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns whose vectors are compared."""

    @property
    def sides(self) -> dict[str, tuple[str, ...]]:
        """The columns that the model fuses to one vector each, by the vector's name; empty if it fuses none."""
        return {}

    @abc.abstractmethod
    def search(
        self,
        codes: Mapping[str, np.ndarray],
        *,
        ids: np.ndarray,
        groups: np.ndarray | None = None,
        related: sparse.csr_array | None = None,
        seen: sparse.csr_array | None = None,
    ) -> Search | None:
        """Return the queries and the catalogue of some rows; None if they are too few to be measured.

        Without `related` each row with both sides is a query, and its own answer is right. With it each distinct query
        is asked once if it has a right answer, and the catalogue is the distinct answers of all rows.

        Args:
            codes: per column, (rows,) the id of each row's cell, -1 for a missing cell.
            ids: (rows,) the row ids.
            groups: (rows,) int; rows of one group are right answers to each other; -1 for no group.
            related: (rows, rows) sparse, symmetric: the grade, above 0, of the answer in one row for the query in the
                other, where one of the two has a query and the other one none; `groups` then count for nothing.
            seen: (rows, rows) sparse bool, beside `related`: the answers, by column, that are left out of the ranking
                of the query in a row.
        """

    @abc.abstractmethod
    def answers(self, vectors: Mapping[str, np.ndarray], search: Search) -> np.ndarray:
        """Return an answer per query, (queries,).

        Args:
            vectors: per column, or per side of `sides`, (rows, dim) of unit length, zeros for a row without it.
            search: of the same rows.
        """

    @abc.abstractmethod
    def truth(self, search: Search) -> np.ndarray:
        """Return what each query's answer is compared with, (queries,)."""


class RankingTask(MatchTask):
    """A task that ranks the answers of one side by the queries of another: what rules without a model are measured by.

    Attributes:
        query, answer: the two sides.
    """

    query: Side
    answer: Side

    @abc.abstractmethod
    def by_similarity(self, similarity: Callable[[slice], np.ndarray], search: Search) -> np.ndarray:
        """Return an answer per query, (queries,) of `dtype`, by any similarity; see `answers`.

        Args:
            similarity: of some of the queries to all answers, (queries, answers).
            search: the queries and the answers.
        """

    @abc.abstractmethod
    def top(
        self, vectors: Mapping[str, np.ndarray], search: Search, queries: np.ndarray, num: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest answers of some queries and their similarities, (queries, num) each, the nearest first.

        Args:
            vectors: see `Side.vectors`.
            search: of the same rows.
            queries: indices among the search's queries.
            num: how many answers of each, at most; fewer if there are fewer.
        """
