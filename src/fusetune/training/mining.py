"""Mine hard negatives: documents near a query that are no right answers to it, by the model in its present state.

Xiong et al. 2020, "Approximate Nearest Neighbor Negative Contrastive Learning for Dense Text Retrieval" (arXiv
2007.00808), mine again as the model learns. Documents that are nearly as similar to the query as its right answer are
often right, too, and are left out (Moreira et al. 2024, "NV-Retriever", arXiv 2407.15831).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from fusetune.data.examples import Examples
from fusetune.inference.predict import model_device, row_vectors
from fusetune.inference.retrieval import hard_negatives, searches
from fusetune.models.match import Match
from fusetune.objectives.contrastive import ContrastiveObjective
from fusetune.objectives.gather import gather_rows
from fusetune.tasks.retrieval import pair_tasks
from fusetune.training.hardware.dtensor import is_sharded
from fusetune.training.learner import Learner

BATCH = {"cpu": 64}
"""Rows that are encoded together, by type of device; 256 on others."""


class Miner:
    """Finds documents of other train rows that a row's query should be told apart from.

    They follow from the weights and the rows alone. Several processes share the work and get the same documents.

    Args:
        model: has negatives that are mined.
        objective: has the settings.
        train: prepared rows.
        accelerator: the processes.

    Attributes:
        rows: (negatives, rows of the table) int64, the position of the row whose document is a row's negative, -1 for
            none; before the first mining, all -1.
        mined_at: the number of updates after which they were mined; None before the first mining.
        times: how often they were mined.
    """

    def __init__(
        self, model: Match, objective: ContrastiveObjective, train: Examples, accelerator: Accelerator
    ) -> None:
        assert objective.mining is not None
        self.model, self.objective, self.train, self.accelerator = model, objective, train, accelerator
        self.mining = objective.mining
        self.negatives = [negative for negative in objective.negatives.values() if negative.mined]
        self.document = self.negatives[0].side
        (self.query,) = (name for name in model.side_names if name != self.document)
        self.rows = np.full((len(self.negatives), len(train.rows)), -1, dtype=np.int64)
        self.mined_at: int | None = None
        self.times, self.counts = 0, {"queries": 0, "mined": 0, "too near": 0}

    @classmethod
    def of(cls, learner: Learner, train: Examples, accelerator: Accelerator) -> Miner | None:
        """Return the miner that a learner's objectives ask for, or None."""
        for objective in learner.objective.batch_objectives():
            if isinstance(objective, ContrastiveObjective) and objective.mining is not None:
                assert isinstance(learner.model, Match)
                return cls(learner.model, objective, train, accelerator)
        return None

    def next_time(self, done: int, num_updates: int) -> int:
        """Return after which update negatives are mined next: `done` itself where they are due now.

        Args:
            done: number of updates so far in this stage.
            num_updates: of an epoch.
        """
        if self.mined_at is None:
            return done
        period = self.mining.every * num_updates
        begun = done // period * period
        return begun if begun == done and self.mined_at != done else begun + period

    def mine(self, done: int) -> Examples:
        """Mine after `done` updates of the stage, and return the train rows with the documents found."""
        train, model, mining = self.train, self.model, self.mining
        found = searches(pair_tasks(*(model.compared[name] for name in (self.query, self.document))), train)
        self.mined_at, self.times = done, self.times + 1
        self.rows[:] = -1
        if found:
            _, search = next(iter(found.values()))  # documents for queries
            rows, documents = train.used[search.rows], train.used[search.answer_rows]
            first, query_of = self._distinct(self.query, rows)
            _, document_of = self._distinct(self.document, np.concatenate([documents, rows]))
            number = np.empty(document_of.max() + 1, np.int64)
            number[document_of[: len(documents)]] = np.arange(len(documents))
            own = number[document_of[len(documents) :]]
            queries, answers = self._vectors(self.query, rows[first]), self._vectors(self.document, documents)
            nearest, too_near = hard_negatives(
                queries[torch.from_numpy(query_of).to(queries.device)],
                answers,
                torch.from_numpy(own).to(queries.device),
                search.right,
                num=mining.num,
                margin=mining.margin,
            )
            self.rows[:, rows] = np.where(nearest >= 0, documents[nearest], -1).T
            self.counts = {
                "queries": len(rows),
                "mined": int((nearest >= 0).sum()),
                "too near": int(too_near.sum()),
            }
        self._tell()
        return self.attach()

    def attach(self) -> Examples:
        """Return the train rows with the documents mined last."""
        columns = dict(self.train.columns)
        for rows, negative in zip(self.rows, self.negatives, strict=True):
            columns |= {name: self.train.columns[column].of_rows(rows) for column, name in negative.columns.items()}
        return self.train.reading(self.train.table, columns)

    def stand_in(self) -> Examples:
        """Return the train rows with the documents of other rows, which cost as much as those that would be mined."""
        used = self.train.used
        for number in range(len(self.rows)):
            self.rows[number, used] = np.roll(used, number + 1)
        return self.attach()

    def _distinct(self, side: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return an index in `rows` of each distinct cell of a side, and by row the number of its cell."""
        codes = np.stack([self.train.columns[column].codes[rows] for column in self.model.compared[side]], 1)
        _, first, number = np.unique(codes, axis=0, return_index=True, return_inverse=True)
        return first, number.reshape(-1)

    def _vectors(self, side: str, rows: np.ndarray) -> Tensor:
        """Return the vectors of a side of some rows, (rows, dim) of unit length, on the accelerator's device."""
        model, processes = self.model, self.accelerator.num_processes
        some = self.train.restrict(model.compared[side])
        order = np.argsort(some.sizes(rows), kind="stable")
        # All processes run a sharded model together, so none may encode more batches than the others.
        shared = processes > 1 and len(rows) >= processes and not any(map(is_sharded, model.parameters()))
        shares = [order[number::processes] for number in range(processes)] if shared else [order]
        own, size = shares[self.accelerator.process_index if shared else 0], BATCH.get(model_device(model).type, 256)
        vectors = row_vectors(model, some, rows[own], batch_size=size)[side].to(self.accelerator.device)
        if shared:
            vectors = gather_rows({"vectors": vectors})["vectors"]
        result = torch.empty_like(vectors)
        result[torch.from_numpy(np.concatenate(shares)).to(vectors.device)] = vectors
        return result

    def _tell(self) -> None:
        """Have the objective log how many documents a query has, and how many were left out."""
        num = max(self.counts["queries"], 1)
        self.objective.mined_figures = {
            "mined": torch.tensor(self.counts["mined"] / num),
            "too_near": torch.tensor(self.counts["too near"] / num),
        }

    def summary(self, stage: str) -> str:
        """Return a sentence for the report.

        Args:
            stage: the name of the stage whose rows these are.
        """
        counts, margin = self.counts, self.mining.margin
        near = (
            ""
            if margin is None
            else (
                f"; {counts['too near']:,} times a document was left out, as it was more similar to the query than"
                f" {margin:.0%} of its right answer's similarity"
            )
        )
        often = "once" if self.times == 1 else f"{self.times} times, last"
        return (
            f"objectives.contrastive.mine: in the stage {stage} hard negatives were mined {often} {counts['mined']:,}"
            f" for {counts['queries']:,} train rows{near}."
        )

    def state(self) -> dict[str, Any]:
        """Return the documents mined last, for a checkpoint."""
        return {
            "rows": torch.from_numpy(self.rows),
            "at": self.mined_at,
            "times": self.times,
            "counts": dict(self.counts),
        }

    def load(self, state: Mapping[str, Any]) -> Examples:
        """Restore the result of `state`, and return the train rows with these documents."""
        self.rows, self.mined_at = state["rows"].cpu().numpy().copy(), state["at"]
        self.times, self.counts = int(state["times"]), {name: int(value) for name, value in state["counts"].items()}
        self._tell()
        return self.attach()
