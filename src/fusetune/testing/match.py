"""The contract suite of tasks of the match family: one test a rule.

@pytest.mark.parametrize("make", [MyTask])
class TestMyTask(MatchContract):
    pass
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from fusetune.tasks.match import MatchTask, Search, Side
from fusetune.tasks.panels.kinds import Evidence
from fusetune.testing.rules import Contract

MakeMatch = Callable[[Side, Side], MatchTask]
"""`make(query, answer)`: the class, or a `functools.partial` of it."""

ROWS = 60
DIM = 16


@dataclass(frozen=True)
class MatchCase:
    """Rows of two columns, "q" and "a", of which some are missing and some are equal.

    Attributes:
        task: retrieves "a" by "q".
        codes: per column, (rows,) the id of each row's cell, -1 for a missing cell.
        ids: (rows,) the row ids.
        vectors: per column, (rows, dim) of unit length: equal cells have equal vectors, and those of a row are close.
    """

    task: MatchTask
    codes: dict[str, np.ndarray]
    ids: np.ndarray
    vectors: dict[str, np.ndarray]

    @property
    def given(self) -> dict[tuple[int, int], float]:
        """The grade of answers for queries, by the codes of both: graded, many to many, some queries without any."""
        asked = np.unique(self.codes["q"][self.codes["q"] >= 0])
        answered = np.unique(self.codes["a"][self.codes["a"] >= 0])
        return {
            (int(q), int(answered[(number + 7 * more) % len(answered)])): float(1 + more)
            for number, q in enumerate(asked)
            for more in range(number % 3)
        }

    @property
    def apart(self) -> dict[str, np.ndarray]:
        """The codes, (2 * rows,), with each row's query in a row without an answer, and the answers in rows below."""
        nothing = np.full(ROWS, -1)
        return {"q": np.concatenate([self.codes["q"], nothing]), "a": np.concatenate([nothing, self.codes["a"]])}

    @property
    def related_search(self) -> Search:
        """The search of `apart` with the right answers of `given`, of which equal rows may have lower grades too."""
        related, codes = np.zeros((2 * ROWS, 2 * ROWS)), self.apart
        for (q, a), grade in self.given.items():
            for place, row in enumerate(np.flatnonzero(codes["q"] == q)):
                for other in np.flatnonzero(codes["a"] == a):
                    related[row, other] = related[other, row] = grade if place == 0 else grade / 2
        search = self.task.search(codes, ids=np.arange(2 * ROWS) * 10, related=sparse.csr_array(related))
        assert search is not None, "rows whose right answers are given cannot be searched"
        return search

    @property
    def search(self) -> Search:
        """The search of all rows."""
        search = self.task.search(self.codes, ids=self.ids)
        assert search is not None, "rows with both sides cannot be searched"
        return search

    def answers(self, vectors: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """Return the answers to all queries, by these vectors or the case's."""
        return self.task.answers(self.vectors if vectors is None else vectors, self.search)

    def main(self, vectors: Mapping[str, np.ndarray]) -> float:
        """Return the main metric of vectors, with the sign by which more is better."""
        value = self.task.evaluate(self.answers(vectors), self.task.truth(self.search))[self.task.main.name]
        return value if self.task.main.greater_is_better else -value


def example_match(make: MakeMatch, *, noise: float = 1.0) -> MatchCase:
    """Return rows to hold a task to its rules with.

    Args:
        make: builds the task from its two sides.
        noise: of the answers' vectors, relative to what they share with their queries.
    """
    rng = np.random.default_rng(0)
    asked = np.where(np.arange(ROWS) % 5 == 4, -1, np.arange(ROWS) // 2 * 2)  # pairs of rows ask alike
    codes = {"q": asked, "a": np.where(np.arange(ROWS) % 7 == 6, -1, np.arange(ROWS))}
    shared = rng.normal(size=(ROWS, DIM))
    cells = {"q": shared, "a": shared[np.arange(ROWS) // 2 * 2] + noise * rng.normal(size=(ROWS, DIM))}
    vectors = {}
    for name, codes_of in codes.items():
        values = cells[name][codes_of] * (codes_of >= 0)[:, None]
        vectors[name] = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return MatchCase(make(Side("query", ("q",)), Side("answer", ("a",))), codes, np.arange(ROWS) * 10, vectors)


class MatchContract(Contract):
    """What every task of the match family must do. The rules take `make`, which builds it from its two sides."""

    def test_it_names_its_family_and_columns(self, make: MakeMatch) -> None:
        """Family "match", the columns of both sides, and a name to report results under."""
        task = example_match(make).task
        assert task.family == "match", f"the family is {task.family!r}"
        assert sorted(task.columns) == ["a", "q"], f"the columns are {task.columns}"
        assert task.target, "results have no name"

    def test_rows_with_both_sides_are_queries(self, make: MakeMatch) -> None:
        """Once each, under their ids; what the others hold is not asked for."""
        case = example_match(make)
        both = np.flatnonzero((case.codes["q"] >= 0) & (case.codes["a"] >= 0))
        search = case.search
        assert search.rows.tolist() == both.tolist(), "the queries are not the rows with both sides"
        assert search.ids.tolist() == case.ids[both].tolist(), "queries have other ids than their rows"
        assert set(search.answer_ids) <= set(search.ids), "the catalogue has answers of rows that do not ask"

    def test_too_few_rows_are_no_search(self, make: MakeMatch) -> None:
        """None, where one row or none has both sides."""
        case = example_match(make)
        for keep in (0, 1):
            few = {name: np.where(np.arange(ROWS) < keep, codes, -1) for name, codes in case.codes.items()}
            assert case.task.search(few, ids=case.ids) is None, f"{keep} rows with both sides are a search"

    def test_equal_queries_share_their_right_answers(self, make: MakeMatch) -> None:
        """Every query has one or more, and rows that ask alike the same."""
        case = example_match(make)
        right, asked = case.search.right.toarray() > 0, case.codes["q"][case.search.rows]
        assert right.any(1).all(), "a query has no right answer"
        for code in np.unique(asked):
            assert (right[asked == code] == right[asked == code][0]).all(), "equal queries have other right answers"

    def test_groups_share_their_right_answers(self, make: MakeMatch) -> None:
        """Rows of one group are right answers to each other, rows without a group are not."""
        case = example_match(make)
        groups = np.where(np.arange(ROWS) < 12, 3, -1)
        search = case.task.search(case.codes, ids=case.ids, groups=groups)
        assert search is not None
        inside = search.rows < 12
        added = (search.right.toarray() > 0) & ~(case.search.right.toarray() > 0)
        assert added[inside].any(), "rows of a group are not right answers to each other"
        assert not added[~inside].any(), "rows of no group are right answers to each other"

    def test_given_answers_are_the_right_ones(self, make: MakeMatch) -> None:
        """With `related` each distinct query is asked once, of all distinct answers, and exactly these are right."""
        case = example_match(make)
        search = case.related_search
        asked, answered = case.apart["q"][search.rows], case.apart["a"][search.answer_rows]
        right = {(q, a) for q, row in zip(asked, search.right.toarray() > 0, strict=True) for a in answered[row]}
        assert len(set(asked)) == len(asked), "a query is asked twice"
        assert len(set(answered)) == len(answered), "an answer is twice in the catalogue"
        assert set(answered) == set(case.apart["a"]) - {-1}, "the catalogue is not all distinct answers"
        assert right == set(case.given), "other answers are right than those that were given"

    def test_a_query_without_a_right_answer_is_not_asked(self, make: MakeMatch) -> None:
        """Nor is anything searched for if fewer than two queries have one."""
        case = example_match(make)
        assert set(case.apart["q"][case.related_search.rows]) == {q for q, _ in case.given}, "other queries are asked"
        nothing, ids = sparse.csr_array((2 * ROWS, 2 * ROWS)), np.arange(2 * ROWS)
        assert case.task.search(case.apart, ids=ids, related=nothing) is None, "nothing is related, and searched"

    def test_grades_are_kept(self, make: MakeMatch) -> None:
        """Each right answer has its grade; of several for equal rows the highest."""
        case = example_match(make)
        search = case.related_search
        grades = search.gains.toarray()
        asked, answered = case.apart["q"][search.rows], case.apart["a"][search.answer_rows]
        got = {(asked[q], answered[a]): grades[q, a] for q, a in zip(*np.nonzero(grades), strict=True)}
        assert got == case.given, "grades are lost or changed"

    def test_a_better_order_of_grades_scores_no_worse(self, make: MakeMatch) -> None:
        """Vectors that rank answers by their grades score at least as well as those that rank them backwards."""
        case = example_match(make)
        search = case.related_search
        scores = []
        for power in (1.0, -1.0):
            near = search.gains.toarray()
            near[near > 0] **= power  # all right answers before the wrong ones, in one order or the other
            ends = {
                "q": np.zeros((2 * ROWS, len(search.answer_rows))),
                "a": np.zeros((2 * ROWS, len(search.answer_rows))),
            }
            ends["q"][search.rows] = near / np.linalg.norm(near, axis=1, keepdims=True)
            ends["a"][search.answer_rows] = np.eye(len(search.answer_rows))
            figures = case.task.evaluate(case.task.answers(ends, search), case.task.truth(search))
            scores.append({name: value for name, value in figures.items() if name.startswith("ndcg")})
        forward, backward = scores
        assert all(forward[name] >= backward[name] for name in forward), f"{forward} by grade, {backward} backwards"
        assert not forward or any(forward[name] > backward[name] for name in forward), "grades count for nothing"

    def test_a_query_is_answered_by_itself(self, make: MakeMatch) -> None:
        """In whatever order rows come, each query has the same answer: (queries,) and finite."""
        case = example_match(make)
        answers, order = case.answers(), np.random.default_rng(1).permutation(ROWS)
        assert isinstance(answers, np.ndarray) and len(answers) == len(case.search.rows), "not an answer a query"
        moved = {name: codes[order] for name, codes in case.codes.items()}
        search = case.task.search(moved, ids=case.ids[order])
        assert search is not None
        again = case.task.answers({name: values[order] for name, values in case.vectors.items()}, search)
        first = dict(zip(case.search.ids.tolist(), self._figures(case, answers, case.search), strict=True))
        second = dict(zip(search.ids.tolist(), self._figures(case, again, search), strict=True))
        assert first == second, "an answer depends on the order of the rows"

    def test_answers_depend_on_similarity_alone(self, make: MakeMatch) -> None:
        """Turning all vectors the same way changes no answer; turning one side's does."""
        case = example_match(make)
        turn = np.linalg.qr(np.random.default_rng(2).normal(size=(DIM, DIM)))[0]
        turned = {name: values @ turn for name, values in case.vectors.items()}
        plain = self._figures(case, case.answers(), case.search)
        assert plain == self._figures(case, case.answers(turned), case.search), "a rotation changes answers"
        half = self._figures(case, case.answers({**case.vectors, "a": turned["a"]}), case.search)
        assert plain != half, "answers do not depend on the vectors"

    def test_better_vectors_score_better(self, make: MakeMatch) -> None:
        """Vectors that fit score above noisy ones, and these above random ones."""
        fitting, noisy = example_match(make, noise=0.0), example_match(make, noise=4.0)
        rng = np.random.default_rng(3)
        chance = noisy.main({name: rng.normal(size=values.shape) for name, values in noisy.vectors.items()})
        values = fitting.main(fitting.vectors), noisy.main(noisy.vectors), chance
        assert values[0] > values[1] > values[2], f"fitting, noisy and random vectors score {values}"

    def test_equal_vectors_are_no_better_than_random_ones(self, make: MakeMatch) -> None:
        """Tied answers are not counted in the query's favour, so that a collapsed model does not look perfect."""
        case, rng = example_match(make), np.random.default_rng(4)
        same = {name: np.tile(values[:1], (ROWS, 1)) for name, values in case.vectors.items()}
        chance = [{name: rng.normal(size=(ROWS, DIM)) for name in case.vectors} for _ in range(10)]
        best = max(case.main(vectors) for vectors in chance)
        assert case.main(same) <= best, "a model whose vectors are all equal beats random order"

    def test_what_is_measured_is_a_row_of_figures(self, make: MakeMatch) -> None:
        """`measured` is (queries, k), and a query's row depends on its answer alone: the bootstrap draws from it."""
        case = example_match(make)
        answers, truth = case.answers(), case.task.truth(case.search)
        measured = case.task.measured(answers, truth)
        assert measured.ndim == 2 and len(measured) == len(answers), f"measured has the shape {measured.shape}"
        some = np.arange(len(answers)) % 3 == 1
        alone = case.task.measured(answers[some], truth[some])
        assert np.allclose(measured[some], alone, equal_nan=True), "what is measured of a query depends on the others"

    def test_metrics_are_named_numbers(self, make: MakeMatch) -> None:
        """The main one among them, of any number of queries; no metric is infinite."""
        case = example_match(make)
        task, answers, truth = case.task, case.answers(), case.task.truth(case.search)
        metrics = task.evaluate(answers, truth)
        assert task.main.name in metrics, f"the main metric {task.main.name!r} is not among the metrics"
        assert all(isinstance(value, float) for value in metrics.values()), "a metric is not a float"
        for rows in (0, 1):
            few = task.evaluate(answers[:rows], truth[:rows])
            assert few.keys() == metrics.keys(), f"of {rows} queries there are other metrics"
            assert not any(map(math.isinf, few.values())), f"a metric of {rows} queries is infinite"

    def test_metrics_heed_weights(self, make: MakeMatch) -> None:
        """Weights of 1 change nothing, weight 0 is as if the query were not there, and weight 2 is the query twice."""
        case = example_match(make, noise=8.0)
        task, answers, truth = case.task, case.answers(), case.task.truth(case.search)
        some, ones = np.arange(len(answers)) % 3 != 1, np.ones(len(answers))
        twice = np.concatenate([np.arange(len(answers)), np.flatnonzero(some)])
        for rows, weights in ((slice(None), ones), (some, ones * some), (twice, ones + some)):
            plain, weighted = task.evaluate(answers[rows], truth[rows]), task.evaluate(answers, truth, weights)
            for name, value in plain.items():
                assert np.isclose(value, weighted[name], equal_nan=True), f"weights are not counts of queries in {name}"

    def test_the_constant_guess_is_constant(self, make: MakeMatch) -> None:
        """The same answer for every query, in the form of answers, and not better than fitting vectors."""
        case = example_match(make, noise=0.0)
        truth = case.task.truth(case.search)
        constant = case.task.constant(truth, len(truth))
        assert constant.dtype == case.answers().dtype, "the constant guess has another form than answers"
        assert (constant == constant[0]).all(), "the constant guess varies"
        value = case.task.evaluate(constant, truth)[case.task.main.name]
        value = value if case.task.main.greater_is_better else -value
        assert value < case.main(case.vectors), "the constant guess is not worse than fitting vectors"

    def test_panels_and_worst_queries_are_of_these_queries(self, make: MakeMatch) -> None:
        """Panels can be made of all answers or one; the worst are at most as many as asked for, each once."""
        case = example_match(make)
        answers, truth = case.answers(), case.task.truth(case.search)
        for rows in (slice(None), slice(1)):
            case.task.panels(Evidence(answers[rows], truth[rows]))
        worst = case.task.worst(answers, truth, 5).rows
        places = [row.at for row in worst]
        assert len(places) <= 5 and len(set(places)) == len(places), "more rows than asked for, or one twice"
        assert all(0 <= place < len(answers) for place in places), "a row that is none of the queries"
        losses = [row.loss for row in worst]
        assert losses == sorted(losses, reverse=True), "the worst do not come first"

    def test_the_state_restores_it(self, make: MakeMatch) -> None:
        """`state` is JSON, and the task that is made from it has the same state and gives the same answers."""
        case = example_match(make)
        again = type(case.task).from_state(case.task.target, json.loads(json.dumps(case.task.state())))
        assert isinstance(again, MatchTask)
        assert (again.state(), again.target) == (case.task.state(), case.task.target), "the state is not kept"
        assert (again.answers(case.vectors, case.search) == case.answers()).all(), "answers differ after the state"

    @staticmethod
    def _figures(case: MatchCase, answers: np.ndarray, search: Search) -> list[list[float]]:
        """Return what is measured of each answer."""
        measured: list[list[float]] = case.task.measured(answers, case.task.truth(search)).tolist()
        return measured
