"""The contract of tasks of the match family: queries are answered from a catalogue, by vectors in a common space."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass

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
    """

    rows: np.ndarray
    ids: np.ndarray
    answer_rows: np.ndarray
    answer_ids: np.ndarray
    right: sparse.csr_array
    grades: sparse.csr_array | None = None

    @property
    def gains(self) -> sparse.csr_array:
        """The grades of the right answers, (queries, answers) sparse float; 1 without grades."""
        return self.right.astype(np.float64) if self.grades is None else self.grades


class MatchTask(Task):
    """A task whose answers follow from the vectors of a model of the match family.

    The model has no head for it, and it has no loss: an objective, such as `contrastive`, pulls vectors together.
    """

    family = "match"
    negatives: Mapping[str, str]
    """By column that train rows have besides, the side whose only column it is read as: documents that the row's query
    should not find. They are not saved."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.negatives = {}

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
