"""What a fit of recommendation is compared with: rules of train interactions, beside the searches of held-out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import sparse

from fusetune.data.examples import Examples
from fusetune.evaluation.measure import recommended
from fusetune.evaluation.measure.judge import Candidate
from fusetune.evaluation.measure.recommended import Chosen, System
from fusetune.fitting.recommendations import Recommendations
from fusetune.tasks.match import RankingTask, Search
from fusetune.tasks.panels.kinds import Section


class Compared:
    """The rules that recommend without a model, and what is shown of them beside models.

    Args:
        task: recommendation.
        documents: the fit's users and items.
        examples, searches: of the validation and test rows, by split.
    """

    def __init__(
        self,
        task: RankingTask,
        documents: Recommendations,
        examples: Mapping[str, Examples],
        searches: Mapping[str, Search],
    ) -> None:
        self.task, self.search = task, searches["test"]
        self.chosen = chosen_beside(documents, "test", examples["test"], self.search)
        validation = searches["val"], chosen_beside(documents, "val", examples["val"], searches["val"])
        self.baselines = recommended.baselines(task, self.search, self.chosen, validation)

    def sections(
        self,
        candidates: Sequence[Candidate],
        vectors: Mapping[str, Mapping[str, np.ndarray]],
        *,
        weights: np.ndarray,
        num: int,
        seed: int,
    ) -> list[Section]:
        """Return the report's sections; see `recommended.sections`.

        Args:
            candidates: all systems, in the order of the report.
            vectors: by name of a system, those of the models; the others are the rules.
            weights: (queries,) in the metrics.
            num, seed: of bootstrap draws.
        """
        rules = {candidate.name: scorer for candidate, scorer in self.baselines}
        systems: list[System] = [
            (
                system,
                recommended.by_vectors(self.task, self.search, vectors[system.name])
                if system.name in vectors
                else rules[system.name],
            )
            for system in candidates
        ]
        return recommended.sections(self.search, self.chosen, systems, weights=weights, num=num, seed=seed)


def chosen_beside(documents: Recommendations, split: str, examples: Examples, search: Search) -> Chosen:
    """Return what train users chose, with the columns of a search's answers and the rows of its queries.

    Train rows whose rating is too low to be learned from do not count.

    Args:
        documents: the fit's users and items.
        split: of the search.
        examples: of the split.
        search: among its used rows.
    """
    interactions, keys = documents.interactions, documents.keys(split)
    items = keys[documents.item][examples.used[search.answer_rows]]
    users = keys[documents.user][examples.used[search.rows]]
    train = sparse.csr_array(interactions.matrix, dtype=np.float64, copy=True)
    train.data *= interactions.liked
    train.eliminate_zeros()
    train = sparse.csr_array(train[:, items])
    known = np.flatnonzero((users >= 0) & (users < train.shape[0]))
    picked = sparse.csr_array((np.ones(len(known)), (known, users[known])), shape=(len(users), train.shape[0]))
    recent = None if documents.recent is None else documents.recent[items]
    return Chosen(train, sparse.csr_array(picked @ train), recent)
