"""Every registered task of the match family keeps the contract, and each rule of the contract finds what breaks it."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from fusetune.registry import TASKS
from fusetune.tasks.base import Metric
from fusetune.tasks.match import MatchTask
from fusetune.tasks.metrics import retrieval
from fusetune.tasks.panels.kinds import WorstRows
from fusetune.tasks.retrieval import RetrievalTask
from fusetune.testing.match import MatchContract
from fusetune.testing.rules import broken_rules, rules_of

MAKES = [TASKS.get(name) for name in TASKS if issubclass(TASKS.get(name), MatchTask)]


@pytest.mark.parametrize("make", MAKES)
class TestRegistered(MatchContract):
    pass


class MedianTask(RetrievalTask):
    """A task whose main metric is lower where it is better keeps the contract too."""

    main = Metric("median_rank", greater_is_better=False)


@pytest.mark.parametrize("make", [MedianTask])
class TestLowerIsBetter(MatchContract):
    pass


class Homeless(RetrievalTask):
    family = "understand"


class ForgetsAColumn(RetrievalTask):
    @property
    def columns(self):
        return self.query.columns


class AsksTwice(RetrievalTask):
    def search(self, codes, *, ids, groups=None):
        return super().search(codes, ids=np.arange(len(ids)), groups=groups)


class NeedsNoRows(RetrievalTask):
    def search(self, codes, *, ids, groups=None):
        found = super().search(codes, ids=ids, groups=groups)
        return found or super().search({name: np.arange(len(ids)) for name in codes}, ids=ids)


class OwnAnswerAlone(RetrievalTask):
    def search(self, codes, *, ids, groups=None):
        found = super().search(codes, ids=ids, groups=groups)
        if found is None or groups is not None:
            return found
        own = sparse.csr_array(found.ids[:, None] == found.answer_ids[None])
        return replace(found, right=own)


class IgnoresGroups(RetrievalTask):
    def search(self, codes, *, ids, groups=None):
        return super().search(codes, ids=ids)


class OneGroupOfStrangers(RetrievalTask):
    """Takes rows without a group for a group."""

    def search(self, codes, *, ids, groups=None):
        return super().search(codes, ids=ids, groups=None if groups is None else groups + 1)


class IgnoresRelations(RetrievalTask):
    """Takes only rows with both sides for pairs."""

    def search(self, codes, *, ids, groups=None, related=None):
        return super().search(codes, ids=ids, groups=groups)


class OneWay(RetrievalTask):
    """Loses one right answer of each query that has several."""

    def search(self, codes, *, ids, groups=None, related=None):
        found = super().search(codes, ids=ids, groups=groups, related=related)
        if found is None or related is None:
            return found
        single = found.grades.toarray()
        single[np.arange(len(single)), single.argmin(1)] = 0
        best = single * (single == single.max(1, keepdims=True))
        return replace(found, right=sparse.csr_array(best > 0), grades=sparse.csr_array(best))


class AsksForNothing(RetrievalTask):
    """Asks queries that have no right answer, too."""

    def search(self, codes, *, ids, groups=None, related=None):
        if related is not None:
            related = sparse.csr_array(related.toarray() + 1e-9)
        return super().search(codes, ids=ids, groups=groups, related=related)


class SumsGrades(RetrievalTask):
    def search(self, codes, *, ids, groups=None, related=None):
        found = super().search(codes, ids=ids, groups=groups, related=related)
        return found if found is None or related is None else replace(found, grades=found.grades * 2)


class Ungraded(RetrievalTask):
    """Takes all right answers for equally relevant."""

    def search(self, codes, *, ids, groups=None, related=None):
        found = super().search(codes, ids=ids, groups=groups, related=related)
        return found if found is None or related is None else replace(found, grades=None)


class RanksGradesBackwards(RetrievalTask):
    def by_similarity(self, similarity, search):
        if search.grades is not None:
            inverse = search.grades.copy()
            inverse.data = 1 / inverse.data
            search = replace(search, grades=inverse)
        return super().by_similarity(similarity, search)


class ByPosition(RetrievalTask):
    def answers(self, vectors, search):
        answers = super().answers(vectors, search)
        answers["rank"] += 1e-3 * search.rows
        return answers


class ByAxes(RetrievalTask):
    """Compares one coordinate, not the vectors."""

    def answers(self, vectors, search):
        return super().answers({name: np.abs(values) for name, values in vectors.items()}, search)


class Backwards(RetrievalTask):
    def answers(self, vectors, search):
        answers = super().answers(vectors, search)
        answers["rank"] = answers["catalogue"] + 1 - answers["rank"]
        return answers


class TiesCountFirst(RetrievalTask):
    def answers(self, vectors, search):
        values = {name: side + 1e-4 * np.arange(len(side))[:, None] * side for name, side in vectors.items()}
        answers = super().answers(values, search)
        same = self.answer.vectors(vectors)[search.answer_rows]
        if np.allclose(same, same[:1]):
            answers["rank"] = 1
        return answers


class RanksOfTheBatch(RetrievalTask):
    def measured(self, answers, truth):
        return super().measured(answers, truth) / max(1, len(answers))


class Lists(RetrievalTask):
    def measured(self, answers, truth):
        return super().measured(answers, truth)[:, 0]

    def metrics(self, measured, truth, weights=None):
        return super().metrics(measured.reshape(-1, 1), truth, weights)


class NoMain(RetrievalTask):
    main = Metric("map")

    def main_value(self, measured, truth, weights=None):
        return 0.0


class Infinite(RetrievalTask):
    def metrics(self, measured, truth, weights=None):
        return {**super().metrics(measured, truth, weights), "odds": 1.0 if len(truth) > 1 else float("inf")}


class IgnoresWeights(RetrievalTask):
    def metrics(self, measured, truth, weights=None):
        metrics = super().metrics(measured, truth, weights)
        return {**metrics, "recall@1": super().metrics(measured, truth)["recall@1"]}


class PerfectConstant(RetrievalTask):
    def constant(self, truth, rows):
        answers = super().constant(truth, rows)
        answers["rank"] = 1
        return answers


class VaryingConstant(RetrievalTask):
    def constant(self, truth, rows):
        answers = super().constant(truth, rows)
        answers["rank"] += np.arange(rows)
        return answers


class BestFirst(RetrievalTask):
    def worst(self, answers, truth, num):
        worst = super().worst(answers, truth, num)
        return WorstRows(worst.what, worst.rows[::-1])


class Forgetful(RetrievalTask):
    def state(self):
        return {**super().state(), "answer": super().state()["query"]}


class Reciprocal(RetrievalTask):
    """Its metrics divide by zero where no query is left."""

    def metrics(self, measured, truth, weights=None):
        return retrieval(measured[:, 0], np.ones(len(truth)) if weights is None else weights) | (
            {"share": 1 / len(truth)} if len(truth) else {}
        )


FAULTS = [
    (Homeless, "it_names_its_family_and_columns"),
    (ForgetsAColumn, "it_names_its_family_and_columns"),
    (AsksTwice, "rows_with_both_sides_are_queries a_query_is_answered_by_itself"),
    (NeedsNoRows, "too_few_rows_are_no_search"),
    (OwnAnswerAlone, "equal_queries_share_their_right_answers"),
    (IgnoresGroups, "groups_share_their_right_answers"),
    (OneGroupOfStrangers, "groups_share_their_right_answers"),
    (IgnoresRelations, "given_answers_are_the_right_ones"),
    (OneWay, "given_answers_are_the_right_ones grades_are_kept"),
    (AsksForNothing, "a_query_without_a_right_answer_is_not_asked given_answers_are_the_right_ones"),
    (SumsGrades, "grades_are_kept"),
    (Ungraded, "grades_are_kept"),
    (RanksGradesBackwards, "a_better_order_of_grades_scores_no_worse"),
    (ByPosition, "a_query_is_answered_by_itself"),
    (ByAxes, "answers_depend_on_similarity_alone"),
    (Backwards, "better_vectors_score_better the_constant_guess_is_constant"),
    (TiesCountFirst, "equal_vectors_are_no_better_than_random_ones"),
    (RanksOfTheBatch, "what_is_measured_is_a_row_of_figures"),
    (Lists, "what_is_measured_is_a_row_of_figures"),
    (NoMain, "metrics_are_named_numbers"),
    (Infinite, "metrics_are_named_numbers"),
    (Reciprocal, "metrics_are_named_numbers metrics_heed_weights"),
    (IgnoresWeights, "metrics_heed_weights"),
    (PerfectConstant, "the_constant_guess_is_constant"),
    (VaryingConstant, "the_constant_guess_is_constant"),
    (BestFirst, "panels_and_worst_queries_are_of_these_queries"),
    (Forgetful, "the_state_restores_it"),
]


@pytest.mark.parametrize(("broken", "rules"), FAULTS)
def test_each_fault_breaks_its_rules(broken, rules):
    found = broken_rules(MatchContract, make=broken)
    assert set(rules.split()) <= {name.removeprefix("test_") for name in found}, found


def test_every_rule_is_shown_to_find_a_fault():
    shown = {f"test_{name}" for _, rules in FAULTS for name in rules.split()}
    assert shown == set(rules_of(MatchContract))
