"""Every registered task that answers by token keeps the contract, and each rule of it finds what breaks it."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fusetune.errors import BadCell
from fusetune.registry import TASKS
from fusetune.tasks.answers.task import AnswerTask
from fusetune.tasks.entities.tagging import IGNORED
from fusetune.tasks.entities.task import EntitiesTask
from fusetune.tasks.reading import Reading
from fusetune.tasks.token_task import TokenTask
from fusetune.testing.rules import broken_rules, rules_of
from fusetune.testing.token_tables import WINDOW
from fusetune.testing.tokens import TokenContract, check_token_task, usable_tables
from fusetune.types import Target

TOKEN_TASKS = {name: TASKS.get(name) for name in TASKS if issubclass(TASKS.get(name), TokenTask)}
OPTIONS = {
    "fixed threshold": partial(AnswerTask, threshold=0.5, max_length=30, num_best=1),
    "random field": partial(EntitiesTask, head="crf"),
    "scored spans": partial(EntitiesTask, head="span"),
}
CASES = [
    pytest.param(make, table, id=f"{name} of {kind}")
    for name, make in (TOKEN_TASKS | OPTIONS).items()
    for kind, table in usable_tables(make).items()
]


def test_every_token_task_has_an_example_table():
    assert all(usable_tables(make) for make in TOKEN_TASKS.values())


@pytest.mark.parametrize(("make", "table"), CASES)
class TestRegistered(TokenContract):
    pass


class ReadsTheTarget(EntitiesTask):
    def reading(self, schema):
        return Reading((next(iter(schema.columns)),), "tokens")


class RefusesSome(EntitiesTask):
    def check(self, value, *, row):
        if row == 3:
            raise BadCell(row=row, column=self.target, value=value, why="the row is the third", do="leave it out")


class TakesAnything(EntitiesTask):
    def resolve(self, value, cell, *, row):
        try:
            return super().resolve(value, cell, row=row)
        except BadCell:
            return []


class AnonymousRefusal(EntitiesTask):
    """Refuses without the row."""

    def resolve(self, value, cell, *, row):
        return super().resolve(value, cell, row=0)


class NeedsTheText(EntitiesTask):
    def resolve(self, value, cell, *, row):
        assert len(cell), "there is a text"
        return super().resolve(value, cell, row=row)


class CountsTheTextless(EntitiesTask):
    def encode(self, values, tokens=None):
        target = super().encode(values, tokens)
        target.labelled[:] = True
        return replace(target, sizes=target.sizes.clamp(min=1))


class LearnsTheMissing(EntitiesTask):
    def fit(self, values):
        super().fit(values)
        self.counts[0] += sum(value is None for value in values)


class FlatTargets(EntitiesTask):
    """One number a row where there is one token a row."""

    def encode(self, values, tokens=None):
        target = super().encode(values, tokens)
        return replace(target, values=target.values.squeeze(0))


class LabelsTheMissing(EntitiesTask):
    def encode(self, values, tokens=None):
        target = super().encode(values, tokens)
        return replace(target, labelled=target.sizes > 0)


class EncodesByBatch(EntitiesTask):
    """Tags the first rows of a batch alone."""

    def encode(self, values, tokens=None):
        return super().encode([value if row < 20 or value is None else [] for row, value in enumerate(values)], tokens)


class TermsOfTheBatch(EntitiesTask):
    def terms(self, logits, target):
        terms = super().terms(logits, target)
        return terms + terms.mean()


class OverflowingTerms(EntitiesTask):
    def terms(self, logits, target):
        return super().terms(logits, target) + 0 * logits.exp().sum((1, 2))


class LearnsPadding(EntitiesTask):
    def terms(self, logits, target):
        return super().terms(logits, Target(target.values.clamp(min=0), target.labelled, target.sizes))


class SoftmaxOverPadding(AnswerTask):
    def terms(self, logits, target):
        right = logits.masked_fill(target.values != 1, -1e9)
        return (logits.logsumexp(1) - right.logsumexp(1)).mean(1).masked_fill(~target.labelled, 0)


class SizesOfTheBatch(EntitiesTask):
    """As if padding were tokens."""

    def encode(self, values, tokens=None):
        target = super().encode(values, tokens)
        return replace(target, sizes=torch.where(target.sizes > 0, float(target.values.shape[1]), 0.0))


class SumOverTokens(EntitiesTask):
    def encode(self, values, tokens=None):
        target = super().encode(values, tokens)
        return replace(target, sizes=(target.sizes > 0).float())


class Summed(EntitiesTask):
    def loss(self, logits, target, weights):
        return (self.terms(logits.float(), target) * weights * target.labelled).sum()


class Greedy(EntitiesTask):
    """Lets unlabelled rows into the loss."""

    def loss(self, logits, target, weights):
        return super().loss(logits, Target(target.values, target.sizes > 0, target.sizes), weights)


class IdleHead(EntitiesTask):
    def build_head(self, dim):
        head = super().build_head(dim)
        head.register_parameter("idle", nn.Parameter(torch.zeros(1)))
        return head


class ReadsWindowsApart(EntitiesTask):
    """Answers about words instead of tokens in texts of more than one window."""

    def encode(self, values, tokens=None):
        target = super().encode(values, tokens)
        if self.windows:
            target.values[:, WINDOW - 2 :] = IGNORED
        return target

    windows = False

    def __deepcopy__(self, memo):
        again = type(self).from_state(self.target, self.state())
        again.reads, again.windows = self.reads, True
        return again


class Forgetful(EntitiesTask):
    """Loses the order of its labels when it is saved."""

    @classmethod
    def from_state(cls, target, state):
        return super().from_state(target, {**state, "classes": state["classes"][::-1]})


class OneCharacterLess(EntitiesTask):
    def answers(self, logits, tokens=None):
        answers = super().answers(logits, tokens)
        for entities in answers:
            for entity in entities:
                entity["end"] -= 1
                entity["text"] = entity["text"][:-1]
        return answers


class TextOfAnotherPlace(EntitiesTask):
    def answers(self, logits, tokens=None):
        answers = super().answers(logits, tokens)
        for entities, texts in zip(answers, tokens.texts, strict=True):
            for entity in entities:
                entity["text"] = texts[0][: entity["end"] - entity["start"]]
        return answers


class AnswersByBatch(EntitiesTask):
    def answers(self, logits, tokens=None):
        answers = super().answers(logits, tokens)
        for entities in answers:
            for entity in entities:
                entity["score"] /= len(answers)
        return answers


class AnswersPadding(AnswerTask):
    """Takes padding for tokens of the text."""

    def answers(self, logits, tokens=None):
        return super().answers(logits, replace(tokens, real=np.ones_like(tokens.real)))


class SpeechlessWithoutText(EntitiesTask):
    def answers(self, logits, tokens=None):
        answers = super().answers(logits, tokens)
        for row, texts in enumerate(tokens.texts):
            answers[row] = answers[row] if texts else None
        return answers


class ImperfectTruth(EntitiesTask):
    def perfect(self, truth):
        return self.constant(truth, len(truth))


class MeasuresTheBatch(EntitiesTask):
    def measured(self, answers, truth):
        return super().measured(answers, truth) / max(1, len(answers))


class Infinite(EntitiesTask):
    def metrics(self, measured, truth, weights=None):
        return {**super().metrics(measured, truth, weights), "odds": 1.0 if len(truth) else float("inf")}


class IgnoresWeights(EntitiesTask):
    def metrics(self, measured, truth, weights=None):
        return super().metrics(measured, truth)


class DivergesByBatch(AnswerTask):
    def divergence(self, logits, other, real=None):
        return super().divergence(logits, other, real) * len(logits)


class DivergesAtPadding(AnswerTask):
    def divergence(self, logits, other, real=None):
        return super().divergence(logits, other, torch.ones_like(real))


class PanelsOfMany(EntitiesTask):
    def panels(self, evidence):
        assert len(evidence.truth) > 1, "there are rows to compare"
        return super().panels(evidence)


class VaryingConstant(EntitiesTask):
    def constant(self, truth, rows):
        constant = super().constant(truth, rows)
        constant[0] = [{"start": 0, "end": 1, "label": self.classes[0], "score": 0.0, "text": ""}]
        return constant


class DetailsFirst(AnswerTask):
    def columns(self, answers):
        columns = super().columns(answers)
        return {name: columns[name] for name in reversed(columns)}


class ExampleOfAnotherType(EntitiesTask):
    def example_answers(self, logits):
        answers = super().example_answers(logits)
        answers[0][0]["start"] = "0"
        return answers


class Capitals(EntitiesTask):
    def columns(self, answers):
        entities = [[{**one, "label": one["label"].upper()} for one in row] for row in answers]
        return {self.target: entities}


FAULTS = [
    (ReadsTheTarget, "reading_names_texts_of_the_table"),
    (RefusesSome, "targets_are_resolved_with_their_text predictions_can_be_read_as_targets"),
    (TakesAnything, "targets_that_do_not_fit_are_refused"),
    (AnonymousRefusal, "targets_that_do_not_fit_are_refused"),
    (NeedsTheText, "a_missing_text_is_no_crash"),
    (CountsTheTextless, "a_missing_text_is_no_crash missing_targets_are_unlabelled"),
    (LearnsTheMissing, "missing_targets_are_not_learned_from"),
    (FlatTargets, "targets_have_an_axis_of_tokens a_row_is_encoded_by_itself"),
    (LabelsTheMissing, "missing_targets_are_unlabelled"),
    (EncodesByBatch, "a_row_is_encoded_by_itself learned_logits_answer_the_truth"),
    (TermsOfTheBatch, "terms_are_a_finite_number_a_row the_loss_is_a_weighted_mean some_rows_have_no_part_in_the_loss"),
    (OverflowingTerms, "terms_are_a_finite_number_a_row padding_has_no_part_in_the_loss"),
    (LearnsPadding, "padding_has_no_part_in_the_loss more_padding_changes_nothing"),
    (SoftmaxOverPadding, "padding_has_no_part_in_the_loss more_padding_changes_nothing"),
    (SizesOfTheBatch, "more_padding_changes_nothing a_row_is_encoded_by_itself long_texts_have_no_larger_loss"),
    (SumOverTokens, "long_texts_have_no_larger_loss"),
    (Summed, "the_loss_is_a_weighted_mean"),
    (Greedy, "some_rows_have_no_part_in_the_loss"),
    (IdleHead, "the_head_learns"),
    (ReadsWindowsApart, "windows_are_answered_as_the_unsplit_text"),
    (Forgetful, "the_state_restores_it"),
    (OneCharacterLess, "learned_logits_answer_the_truth"),
    (TextOfAnotherPlace, "answers_point_into_the_text"),
    (AnswersByBatch, "an_answer_is_of_its_row"),
    (AnswersPadding, "an_answer_is_of_its_row more_padding_changes_nothing"),
    (SpeechlessWithoutText, "rows_without_the_text_are_answered"),
    (
        ImperfectTruth,
        "the_truth_is_the_best_answer learned_logits_answer_the_truth predictions_can_be_read_as_targets",
    ),
    (MeasuresTheBatch, "what_is_measured_is_a_row_of_figures"),
    (Infinite, "metrics_are_named_numbers"),
    (IgnoresWeights, "metrics_heed_weights"),
    (DivergesByBatch, "divergence_is_a_finite_number_a_row"),
    (DivergesAtPadding, "padding_does_not_diverge"),
    (PanelsOfMany, "panels_are_of_these_rows"),
    (VaryingConstant, "the_constant_guess_is_constant"),
    (DetailsFirst, "columns_hold_the_prediction"),
    (ExampleOfAnotherType, "example_answers_have_the_types_of_the_output"),
    (Capitals, "predictions_can_be_read_as_targets"),
]


def table_of(task):
    return next(iter(usable_tables(AnswerTask if issubclass(task, AnswerTask) else EntitiesTask).values()))


@pytest.mark.parametrize(("broken", "rules"), FAULTS)
def test_each_fault_breaks_its_rules(broken, rules):
    found = broken_rules(TokenContract, make=broken, table=table_of(broken))
    assert {name.removeprefix("test_") for name in found} == set(rules.split()), found


def test_every_rule_is_shown_to_find_a_fault():
    shown = {f"test_{name}" for _, rules in FAULTS for name in rules.split()}
    assert shown == set(rules_of(TokenContract))


def test_one_call_checks_every_table():
    assert check_token_task(TASKS.get("entities")) == ["tags of words", "spans of a text"]
    with pytest.raises(AssertionError, match="the_loss_is_a_weighted_mean"):
        check_token_task(Summed)
