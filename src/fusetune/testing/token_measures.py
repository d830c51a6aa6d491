"""Rules of the answers, metrics and output of tasks that answer token by token; `TokenContract` includes them."""

from __future__ import annotations

import json
import math
import unittest
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fusetune.modalities.passages import text_tokens
from fusetune.tasks.panels.kinds import Evidence
from fusetune.testing.rules import Contract
from fusetune.testing.token_tables import TARGET, MakeTokenTask, TokenCase, TokenTable, token_case


def json_of(values: Any) -> str:
    """Return answers or columns as JSON, with numbers rounded to six digits; dataclasses as their attributes."""

    def rounded(value: Any) -> Any:
        if is_dataclass(value):
            value = vars(value)
        if isinstance(value, Mapping):
            return {str(key): rounded(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple | np.ndarray):
            return [rounded(entry) for entry in value]
        if isinstance(value, float | np.floating):
            return float(f"{value:.6g}")
        return value.item() if isinstance(value, np.generic) else value

    return json.dumps(rounded(values), sort_keys=True)


class TokenMeasureContract(Contract):
    """Rules from a token task's answers on. They take `make` and `table`, rows that the task reads."""

    def test_learned_logits_answer_the_truth(self, make: MakeTokenTask, table: TokenTable) -> None:
        """Logits that minimise the loss give answers with the best main metric, in windows of the text too."""
        case = token_case(make, table)
        logits = case.learned_logits()
        best = case.main(case.task.perfect(case.truth))
        found = case.main(case.answers(logits))
        assert math.isclose(found, best, rel_tol=1e-6), f"{case.task.main.name} is {found}, of the truth {best}"

    def test_an_answer_is_of_its_row(self, make: MakeTokenTask, table: TokenTable) -> None:
        """An array with an answer a row; the same among other rows and in another order, for extreme logits too."""
        case = token_case(make, table)
        order = np.random.default_rng(2).permutation(len(case.rows))
        for logits in (case.logits().detach(), case.logits(scale=1e4).detach()):
            answers = case.answers(logits)
            assert isinstance(answers, np.ndarray) and len(answers) == len(case.rows), "answers are not one a row"
            json.dumps(json_of(answers), allow_nan=False)
            for rows in (order, order[:2], order[:1], order[:0]):
                tokens = case.tokens(rows)
                num = case.task.num_shared + tokens.real.shape[1]
                some = case.task.answers(logits[torch.from_numpy(rows)][:, :num], tokens)
                assert len(some) == len(rows), f"{len(rows)} rows have {len(some)} answers"
                assert json_of(some) == json_of(answers[rows]), "a row's answer depends on the other rows"

    def test_rows_without_the_text_are_answered(self, make: MakeTokenTask, table: TokenTable) -> None:
        """In the form of other answers, and the output table's columns can be made of them."""
        case = token_case(make, table)
        tokens = text_tokens([None, None], [(), ()])
        num = case.task.num_shared + tokens.real.shape[1]
        answers = case.task.answers(torch.zeros(2, num, case.logits().shape[2]), tokens)
        assert isinstance(answers, np.ndarray) and answers.shape[1:] == case.answers().shape[1:] and len(answers) == 2
        columns, others = case.task.columns(answers), case.task.columns(case.answers())
        assert columns.keys() == others.keys(), "rows without the text have other output columns"
        truth = case.truth[:2]
        assert case.task.measured(answers, truth).shape[0] == 2, "their answers cannot be measured"

    def test_answers_point_into_the_text(self, make: MakeTokenTask, table: TokenTable) -> None:
        """Whatever has a `start`, an `end` and a `text` is that part of its row's own text."""
        case = token_case(make, table)
        parts = 0
        for logits in (case.logits(), case.learned_logits()):
            for texts, answer in zip(case.tokens().texts, case.answers(logits), strict=True):
                for part in _parts(answer):
                    start, end, text = part["start"], part["end"], part["text"]
                    if start >= 0:
                        assert 0 <= start < end <= len(texts[-1]), f"{start} to {end} is not in {texts[-1]!r}"
                        assert texts[-1][start:end] == text, f"{text!r} is not at {start} to {end} of {texts[-1]!r}"
                        parts += 1
        if not parts:
            raise unittest.SkipTest("answers have no parts of texts")

    def test_the_truth_is_the_best_answer(self, make: MakeTokenTask, table: TokenTable) -> None:
        """`perfect` has the best main metric; the answers of another row are worse, and so is the constant guess."""
        case = token_case(make, table)
        perfect, truth = case.task.perfect(case.truth), case.truth
        assert perfect.shape == case.answers().shape, f"perfect answers have the shape {perfect.shape}"
        best, others = case.main(perfect, truth), case.main(np.roll(perfect, 1, 0), truth)
        constant = case.main(case.task.constant(truth, len(truth)), truth)
        assert best > others, f"{case.task.main.name} is {best} for the truth, {others} for other rows' truth"
        assert best > constant, f"{case.task.main.name} is {best} for the truth, {constant} for the constant guess"

    def test_what_is_measured_is_a_row_of_figures(self, make: MakeTokenTask, table: TokenTable) -> None:
        """`measured` is (rows, k), and a row of it depends on that row alone: the bootstrap draws from its rows."""
        case = token_case(make, table)
        answers, truth = _mixed(case), case.truth
        measured = case.task.measured(answers, truth)
        assert measured.ndim == 2 and len(measured) == len(answers), f"measured has the shape {measured.shape}"
        some = np.arange(len(answers)) % 3 == 1
        alone = case.task.measured(answers[some], truth[some])
        assert np.allclose(measured[some], alone, equal_nan=True), "what is measured of a row depends on the others"
        none = case.task.measured(answers[:0], truth[:0])
        assert none.shape == (0, measured.shape[1]), f"no rows are measured as {none.shape}"

    def test_metrics_are_named_numbers(self, make: MakeTokenTask, table: TokenTable) -> None:
        """The main one among them, of any number of rows; no metric is infinite."""
        case = token_case(make, table)
        answers, truth = _mixed(case), case.truth
        metrics = case.task.evaluate(answers, truth)
        assert case.task.main.name in metrics, f"the main metric {case.task.main.name!r} is not among the metrics"
        assert all(isinstance(value, float) for value in metrics.values()), "a metric is not a float"
        for rows in (0, 1):
            few = case.task.evaluate(answers[:rows], truth[:rows])
            assert few.keys() == metrics.keys(), f"of {rows} rows there are other metrics"
            assert not any(map(math.isinf, few.values())), f"a metric of {rows} rows is infinite"

    def test_metrics_heed_weights(self, make: MakeTokenTask, table: TokenTable) -> None:
        """Weights of 1 change nothing, a row of weight 0 is as if it were not there, and weight 2 is the row twice."""
        case = token_case(make, table)
        answers, truth = _mixed(case), case.truth
        some, ones = np.arange(len(answers)) % 3 != 1, np.ones(len(answers))
        twice = np.concatenate([np.arange(len(answers)), np.flatnonzero(some)])
        for rows, weights in ((slice(None), ones), (some, ones * some), (twice, ones + some)):
            plain, weighted = (
                case.task.evaluate(answers[rows], truth[rows]),
                case.task.evaluate(answers, truth, weights),
            )
            for name, value in plain.items():
                assert np.isclose(value, weighted[name], equal_nan=True), f"weights are not counts of rows in {name}"

    def test_panels_are_of_these_rows(self, make: MakeTokenTask, table: TokenTable) -> None:
        """Panels can be made of all answers or one; the worst rows are at most as many as asked for, each once."""
        case = token_case(make, table)
        truth = case.truth
        for answers in (_mixed(case), case.answers()):
            for rows in (slice(None), slice(1)):
                case.task.panels(Evidence(answers[rows], truth[rows]))
                case.task.target_panels({"train": truth[rows], "val": truth[:0]})
                assert all(isinstance(line, str) for line in case.task.warnings(answers[rows], truth[rows]))
            indices = [row.at for row in case.task.worst(answers, truth, 5).rows]
            assert len(indices) <= 5 and len(set(indices)) == len(indices), "more rows than asked for, or one twice"
            assert all(0 <= index < len(answers) for index in indices), "a row that is none of these"

    def test_the_constant_guess_is_constant(self, make: MakeTokenTask, table: TokenTable) -> None:
        """The same answer for every row, in the form of answers."""
        case = token_case(make, table)
        constant = case.task.constant(case.truth, 7)
        assert constant.shape == (7, *case.answers().shape[1:]), f"the constant guess has the shape {constant.shape}"
        assert len({json_of(answer) for answer in constant}) == 1, "the constant guess varies"
        for name, column in case.task.columns(constant).items():
            assert len(column) == 7, f"{name!r} has {len(column)} values for 7 rows"

    def test_columns_hold_the_prediction(self, make: MakeTokenTask, table: TokenTable) -> None:
        """First under the target's name; lists that are JSON, as long as there are rows."""
        case = token_case(make, table)
        columns = case.task.columns(case.answers())
        assert next(iter(columns)) == TARGET, "the prediction is not under the target's name"
        for name, column in columns.items():
            assert isinstance(column, list) and len(column) == len(case.rows), f"{name!r} is no list with these rows"
        json.dumps(columns)
        assert all(not column for column in case.task.columns(case.answers()[:0]).values()), "no rows give output"

    def test_example_answers_have_the_types_of_the_output(self, make: MakeTokenTask, table: TokenTable) -> None:
        """The columns of `example_answers` take the predictions of other rows, and of rows without the text."""
        case = token_case(make, table)
        example = case.task.columns(case.task.example_answers(torch.zeros(1, 1, case.logits().shape[2])))
        absent = text_tokens([None], [()])
        outputs = [case.task.columns(case.answers()), case.task.columns(case.answers(case.learned_logits()))]
        nothing = torch.zeros(1, case.task.num_shared + 1, case.logits().shape[2])
        outputs.append(case.task.columns(case.task.answers(nothing, absent)))
        for columns in outputs:
            assert list(columns) == list(example), f"the output has the columns {list(columns)}, not {list(example)}"
            for name, values in columns.items():
                kind = pa.array(example[name]).type
                assert pa.array(values, kind).to_pylist() == values, f"{name!r} is not of the type {kind}"

    def test_predictions_can_be_read_as_targets(self, make: MakeTokenTask, table: TokenTable) -> None:
        """What is written under the target's name is resolved with its text, and is the truth of its own answer."""
        case = token_case(make, table)
        answers = case.answers(case.learned_logits())
        predicted = case.task.columns(answers)[TARGET]
        values = []
        for row, (value, cell) in enumerate(zip(predicted, case.cells, strict=True)):
            raw = value if case.task.second is None else (value, None)
            values.append(case.task.resolve(raw, cell, row=row))
            case.task.check(values[-1], row=row)
        truth = case.task.truth(values)
        best, found = case.main(case.task.perfect(truth), truth), case.main(answers, truth)
        assert math.isclose(found, best, rel_tol=1e-6), f"predictions, read as targets, are others: {found}, not {best}"


def _mixed(case: TokenCase) -> np.ndarray:
    """Return answers of which every other one is that of its row."""
    right = case.task.perfect(case.truth)
    others = (np.arange(len(right)) % 2 == 0).reshape(-1, *[1] * (right.ndim - 1))
    return np.where(others, np.roll(right, 1, 0), right)


def _parts(answer: Any) -> Iterator[Mapping[str, Any]]:
    """Yield what in an answer says which part of the text it is."""
    if isinstance(answer, Mapping):
        if {"start", "end", "text"} <= answer.keys():
            yield answer
        for value in answer.values():
            yield from _parts(value)
    elif isinstance(answer, list | tuple):
        for value in answer:
            yield from _parts(value)
