"""The contract suite of tasks that answer token by token: one test a rule.

@pytest.mark.parametrize("make", [MyTask])
@pytest.mark.parametrize("table", usable_tables(MyTask).values(), ids=usable_tables(MyTask))
class TestMyTask(TokenContract):
    pass
"""

from __future__ import annotations

import copy
import json
import unittest
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fusetune.data.resolved import raw_targets
from fusetune.data.schema import ColumnSpec, Schema
from fusetune.errors import BadCell, ConfigError
from fusetune.modalities.passages import text_tokens
from fusetune.tasks.abilities import Divergent, Thresholded
from fusetune.tasks.token_head import with_shared, with_zero_rows
from fusetune.testing.rules import check
from fusetune.testing.token_measures import TokenMeasureContract, json_of
from fusetune.testing.token_tables import (
    DIM,
    TARGET,
    WINDOW,
    MakeTokenTask,
    TokenCase,
    TokenTable,
    token_case,
    usable_tables,
)
from fusetune.types import TextTokens

__all__ = ["TokenContract", "TokenTable", "check_token_task", "usable_tables"]

E = TypeVar("E", bound=Exception)


def check_token_task(make: MakeTokenTask, table: TokenTable | None = None) -> list[str]:
    """Hold a task that answers token by token to every rule of `TokenContract`.

    Args:
        make: `make(target)` builds a task.
        table: the rows to check it with. None: each of `usable_tables(make)`.

    Returns:
        The names of the tables that it was checked with.

    Raises:
        AssertionError: rules are broken, or the task reads none of the example tables.
    """
    tables = usable_tables(make) if table is None else {"given": table}
    assert tables, "the task reads none of the example tables; pass rows that it reads as a TokenTable"
    for rows in tables.values():
        check(TokenContract, make=make, table=rows)
    return list(tables)


class TokenContract(TokenMeasureContract):
    """What every task that answers token by token must do. The rules take `make` and `table`, rows that it reads.

    The rules of answers, metrics and the output table are in `fusetune.testing.token_measures`.
    """

    def test_reading_names_texts_of_the_table(self, make: MakeTokenTask, table: TokenTable) -> None:
        """Text columns of the schema, answered by token; a table without a text is refused."""
        task = make(TARGET)
        specs = {name: ColumnSpec(name, "text", "target" if name == TARGET else "input") for name in table.columns}
        reading = task.reading(Schema(specs))
        named = {*reading.columns, *reading.choices, *reading.also}
        assert named <= specs.keys() - {TARGET} and reading.columns, f"it reads {sorted(named)}"
        assert reading.by_token, "it does not answer by token"
        assert task.family == "understand", f"the family is {task.family!r}"
        only_target = Schema({TARGET: specs[TARGET]})
        _raises(ConfigError, lambda: make(TARGET).reading(only_target), "a table without a text is not refused")

    def test_targets_are_resolved_with_their_text(self, make: MakeTokenTask, table: TokenTable) -> None:
        """Every row's target is accepted, and resolved by its own text alone."""
        case = token_case(make, table)
        for row, value in enumerate(case.values):
            assert value is not None, f"the target of row {row} is refused"
            case.task.check(value, row=row)
        some = np.arange(len(case.rows)) % 2 == 0
        records = [record for record, taken in zip(table.records(), some, strict=True) if taken]
        alone = TokenCase(make, records, task=case.task)
        assert alone.values == [value for value, taken in zip(case.values, some, strict=True) if taken], (
            "what a target is resolved to depends on the other rows"
        )

    def test_targets_that_do_not_fit_are_refused(self, make: MakeTokenTask, table: TokenTable) -> None:
        """By `resolve` or `check`, with a BadCell that has the row and the target's column."""
        case = token_case(make, table)
        for record in table.bad:
            bad = TokenCase(make, [record], task=case.task)
            raw, cell = _raw(bad, 0), bad.cells[0]
            error = _raises(
                BadCell,
                lambda raw=raw, cell=cell: case.task.check(case.task.resolve(raw, cell, row=7), row=7),  # type: ignore[misc]
                f"{record} is not refused",
            )
            assert (error.row, error.column) == (7, TARGET), f"the error names {error.column!r} in row {error.row}"

    def test_a_missing_text_is_no_crash(self, make: MakeTokenTask, table: TokenTable) -> None:
        """Without its text a target is refused with a BadCell, or resolved to a row without a loss."""
        case = token_case(make, table)
        values = []
        for row in range(len(case.rows)):
            try:
                values.append(case.task.resolve(_raw(case, row), None, row=row))
            except BadCell:
                values.append(None)
        nothing = text_tokens([None] * len(values), [()] * len(values))
        target, ones = case.task.encode(values, nothing), torch.ones(len(values))
        assert not target.counts(ones).any(), "a row without the text counts in the loss"
        logits = torch.zeros(len(values), case.task.num_shared + nothing.real.shape[1], case.logits().shape[2])
        assert case.task.terms(logits, target).isfinite().all(), "the loss of a row without the text is not finite"

    def test_missing_targets_are_not_learned_from(self, make: MakeTokenTask, table: TokenTable) -> None:
        """`fit` skips them."""
        case = token_case(make, table)
        gaps = copy.deepcopy(case.task)
        gaps.fit([*case.values, None, None])
        assert gaps.state() == case.task.state(), "missing targets change what is learned"

    def test_targets_have_an_axis_of_tokens(self, make: MakeTokenTask, table: TokenTable) -> None:
        """Values are (rows, tokens, ...), and which rows are labelled and the sizes (rows,); of no rows too."""
        case = token_case(make, table)
        for rows in (case.rows, case.rows[:1], case.rows[:0]):
            target, real = case.encode(rows), case.tokens(rows).real
            assert tuple(target.values.shape[:2]) == real.shape, (
                f"values have the shape {tuple(target.values.shape)} for tokens of {real.shape}"
            )
            assert target.labelled.shape == (len(rows),) and target.labelled.dtype == torch.bool, "labelled is no mask"
            if target.sizes is not None:
                assert target.sizes.shape == (len(rows),) and (target.sizes >= 0).all(), "sizes are not one a row"
        assert case.encode().labelled.all(), "a labelled row is encoded as unlabelled"

    def test_missing_targets_are_unlabelled(self, make: MakeTokenTask, table: TokenTable) -> None:
        """None gives an unlabelled row and changes no other row."""
        case = token_case(make, table)
        tokens, full = case.tokens(), case.encode()
        some = torch.arange(len(case.rows)) % 3 == 1
        holes = [value if taken else None for value, taken in zip(case.values, some.tolist(), strict=True)]
        partly = case.task.encode(holes, tokens)
        assert torch.equal(partly.labelled, some), "unlabelled rows are labelled"
        assert torch.equal(full.values[some], partly.values[some]), "an encoded row depends on the other rows"

    def test_a_row_is_encoded_by_itself(self, make: MakeTokenTask, table: TokenTable) -> None:
        """In whatever order rows come, and in however long a batch."""
        case = token_case(make, table)
        target, order = case.encode(), np.random.default_rng(1).permutation(len(case.rows))
        moved = case.encode(order)
        assert torch.equal(moved.values, target.values[torch.from_numpy(order)]), "encoding depends on the order"
        for row in case.rows[:6]:
            own, num = case.encode(case.rows[[row]]), case.tokens(case.rows[[row]]).real.shape[1]
            assert torch.equal(own.values[0], target.values[row, :num]), "encoding depends on the other rows"
            if target.sizes is not None and own.sizes is not None:
                assert own.sizes[0] == target.sizes[row], "a row's size depends on the other rows"

    def test_terms_are_a_finite_number_a_row(self, make: MakeTokenTask, table: TokenTable) -> None:
        """(rows,), finite for unlabelled rows and extreme logits too, 0 or more, and each row's own."""
        case = token_case(make, table)
        target, some = case.encode(), torch.arange(len(case.rows)) % 2 == 1
        holes = target.where(some)
        for logits in (case.logits(), case.logits(scale=1e4)):
            terms = case.task.terms(logits, holes)
            assert terms.shape == (len(case.rows),), f"terms have the shape {tuple(terms.shape)}"
            assert terms.isfinite().all(), "a row's loss is not finite"
        terms = case.task.terms(case.logits(), target)
        assert (terms >= -1e-5).all(), "a row's loss is below 0"
        alone = case.task.terms(case.logits()[some], target.take(some))
        assert torch.allclose(terms[some], alone, rtol=1e-5, atol=1e-6), "a row's loss depends on the other rows"

    def test_padding_has_no_part_in_the_loss(self, make: MakeTokenTask, table: TokenTable) -> None:
        """Whatever the logits of tokens are that are not real: the loss is the same, and they have no gradient."""
        case = token_case(make, table)
        target, logits = case.encode(), case.logits().detach()
        padding = with_zero_rows(~torch.from_numpy(case.tokens().real).unsqueeze(2), case.task.num_shared)
        noise = (50 * torch.randn_like(logits) * padding + logits).requires_grad_()
        plain, noisy = case.task.terms(logits, target), case.task.terms(noise, target)
        assert torch.allclose(plain, noisy, rtol=1e-5, atol=1e-5), "padding has a part in the loss"
        (grad,) = torch.autograd.grad(noisy.sum(), noise)
        assert not (grad * padding).any(), "padding has a gradient"

    def test_more_padding_changes_nothing(self, make: MakeTokenTask, table: TokenTable) -> None:
        """The losses, the sizes and the answers of a batch that is padded to five more tokens are the same."""
        case = token_case(make, table)
        tokens, logits = case.tokens(), case.logits().detach()
        wide, more = _padded(tokens, 5), torch.nn.functional.pad(logits, (0, 0, 0, 5))
        target, padded = case.encode(), case.task.encode(case.values, wide)
        terms = case.task.terms(logits, target), case.task.terms(more, padded)
        assert torch.allclose(*terms, rtol=1e-5, atol=1e-5), "the loss depends on the padding"
        ones = torch.ones(len(case.rows))
        assert torch.equal(target.counts(ones), padded.counts(ones)), "sizes depend on the padding"
        same = json_of(case.task.answers(logits, tokens)) == json_of(case.task.answers(more, wide))
        assert same, "answers depend on the padding"

    def test_long_texts_have_no_larger_loss(self, make: MakeTokenTask, table: TokenTable) -> None:
        """A row's loss over its size does not grow with its tokens: a sum over tokens has their number as its size."""
        case = token_case(make, table)
        target, num = case.encode(), case.tokens().real.sum(1)
        terms = case.task.terms(torch.zeros_like(case.logits()), target)
        means = terms / target.counts(torch.ones(len(terms))).clamp(min=1e-9)
        order = np.argsort(num, kind="stable")
        third = len(order) // 3
        short, long = (float(means[torch.from_numpy(part)].mean()) for part in (order[:third], order[-third:]))
        assert long < 2.5 * short, f"the mean loss of the longest texts is {long:.3g}, of the shortest {short:.3g}"

    def test_the_loss_is_a_weighted_mean(self, make: MakeTokenTask, table: TokenTable) -> None:
        """A finite scalar that the weights' scale does not change; weight 2 is the row twice."""
        case = token_case(make, table)
        logits, target, ones = case.logits(), case.encode(), torch.ones(len(case.rows))
        loss = case.task.loss(logits, target, ones)
        assert loss.shape == () and loss.isfinite() and loss >= 0, f"the loss is {loss}"
        scaled = case.task.loss(logits, target, ones * 3)
        assert torch.allclose(loss, scaled, rtol=1e-5), "the weights' scale changes the mean"
        half = torch.arange(len(ones)) < len(ones) // 2
        again = torch.cat([torch.arange(len(ones)), torch.arange(len(ones))[half]])
        twice = case.task.loss(logits[again], target.take(again), torch.ones(len(again)))
        doubled = case.task.loss(logits, target, torch.where(half, 2.0, 1.0))
        assert torch.allclose(doubled, twice, rtol=1e-5), "weight 2 is not the row twice"

    def test_some_rows_have_no_part_in_the_loss(self, make: MakeTokenTask, table: TokenTable) -> None:
        """Neither unlabelled rows nor rows of weight 0; where no row is labelled it is 0, with a gradient of 0."""
        case = token_case(make, table)
        logits, target, ones = case.logits(), case.encode(), torch.ones(len(case.rows))
        half = torch.arange(len(ones)) < len(ones) // 2
        first = case.task.loss(logits[half], target.take(half), ones[half])
        masked, weightless = (
            case.task.loss(logits, target.where(half), ones),
            case.task.loss(logits, target, 1.0 * half),
        )
        assert torch.allclose(first, masked, rtol=1e-5), "unlabelled rows have a part in the loss"
        assert torch.allclose(first, weightless, rtol=1e-5), "rows of weight 0 have a part in the loss"
        leaf = logits.detach().requires_grad_()
        nothing = case.task.loss(leaf, target.where(torch.zeros_like(target.labelled)), ones)
        torch.autograd.backward(nothing)
        assert nothing == 0 and leaf.grad is not None and not leaf.grad.any(), f"no labelled row gives {nothing}"

    def test_the_head_learns(self, make: MakeTokenTask, table: TokenTable) -> None:
        """Every parameter of the head receives a gradient, and 40 steps lower the loss; bf16 logits are taken."""
        case = token_case(make, table)
        head, features = case.task.build_head(DIM), case.features()
        target, ones = case.encode(), torch.ones(len(case.rows))
        optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
        losses: list[float] = []
        for _ in range(40):
            optimizer.zero_grad()
            loss = case.task.loss(with_shared(head, head(features)), target, ones)
            torch.autograd.backward(loss)
            for name, parameter in head.named_parameters():
                assert parameter.grad is not None and parameter.grad.isfinite().all(), f"{name} has no finite gradient"
                assert losses or parameter.grad.any(), f"{name}'s gradient is zero"
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0], f"the loss does not fall: {losses[0]} to {losses[-1]}"
        half = case.task.loss(with_shared(head, head(features)).to(torch.bfloat16), target, ones)
        assert half.isfinite(), "bf16 logits give a loss that is not finite"

    def test_divergence_is_a_finite_number_a_row(self, make: MakeTokenTask, table: TokenTable) -> None:
        """0 or more, 0 for equal predictions, a row's own, in float32; for `Divergent` tasks."""
        case, logits, other, real = _two(make, table)
        apart = case.task.divergence(logits, other, real)
        assert apart.shape == (len(case.rows),) and apart.isfinite().all(), f"the divergence is {apart.shape}"
        assert (apart >= -1e-6).all() and apart.mean() > 1e-4, "different predictions do not diverge"
        row = case.task.divergence(logits[3:4], other[3:4], real[3:4])
        assert torch.allclose(row, apart[3:4], rtol=1e-4, atol=1e-7), "a row's divergence depends on the other rows"
        same = case.task.divergence(logits, logits.detach(), real)
        assert torch.allclose(same, torch.zeros_like(same), atol=1e-6), "equal predictions diverge"
        extreme = case.task.divergence(1e4 * logits, -1e4 * logits, real)
        assert extreme.isfinite().all(), "extreme logits give a divergence that is not finite"
        half = case.task.divergence(logits.bfloat16(), other.bfloat16(), real)
        assert half.dtype == torch.float32, f"bf16 logits give a divergence in {half.dtype}"

    def test_padding_does_not_diverge(self, make: MakeTokenTask, table: TokenTable) -> None:
        """What stands at padding changes no divergence, nor do more padding and rows without a token; others learn."""
        case, logits, other, real = _two(make, table)
        apart = case.task.divergence(logits, other, real)
        padding = with_zero_rows(~real.unsqueeze(2), case.task.num_shared)
        noisy = case.task.divergence(
            logits + 50 * torch.randn_like(logits) * padding, other + 50 * torch.randn_like(other) * padding, real
        )
        assert torch.allclose(apart, noisy, rtol=1e-4, atol=1e-6), "padding has a part in the divergence"
        wide = [torch.nn.functional.pad(values, (0, 0, 0, 5)) for values in (logits, other)]
        longer = case.task.divergence(*wide, torch.nn.functional.pad(real, (0, 5)))
        assert torch.allclose(apart, longer, rtol=1e-4, atol=1e-6), "the divergence depends on the padding"
        none = case.task.divergence(logits, other, torch.zeros_like(real))
        assert not none.any(), "rows without a token diverge"
        for grad in torch.autograd.grad(apart.sum(), (logits, other)):
            assert grad.isfinite().all() and grad.any(), "a prediction receives no gradient"

    def test_windows_are_answered_as_the_unsplit_text(self, make: MakeTokenTask, table: TokenTable) -> None:
        """A text in overlapping windows has the targets, losses and answers of the text in one window."""
        case = token_case(make, table)
        split = token_case(make, table, max_tokens=WINDOW, task=copy.deepcopy(case.task))
        assert (split.examples.columns[split.reads].sizes > WINDOW).any(), "no text of the table needs two windows"
        target, again, logits = case.encode(), split.encode(), case.logits().detach()
        assert target.values.shape == again.values.shape, "a text in windows has other tokens"
        assert torch.equal(target.values, again.values), "a text in windows has other targets"
        terms = case.task.terms(logits, target), split.task.terms(logits, again)
        assert torch.allclose(*terms), "a text in windows has another loss"
        assert json_of(case.answers(logits)) == json_of(split.answers(logits)), "a text in windows has other answers"

    def test_the_state_restores_it(self, make: MakeTokenTask, table: TokenTable) -> None:
        """`state` is JSON, and the task that is made from it has the same targets, answers and output."""
        case = token_case(make, table)
        answers = case.answers()
        if isinstance(case.task, Thresholded):
            case.task.tune(answers, case.truth)
        again = type(case.task).from_state(TARGET, json.loads(json.dumps(case.task.state(), allow_nan=False)))
        assert again.state() == case.task.state(), "the state is not kept"
        restored = token_case(make, table, task=again)
        assert torch.equal(restored.encode().values, case.encode().values), "encoding differs after the state"
        assert json_of(restored.answers()) == json_of(case.answers()), "answers differ after the state"
        assert json_of(again.columns(answers)) == json_of(case.task.columns(answers)), "output differs after the state"


def _raw(case: TokenCase, row: int) -> Any:
    """Return a target's cell as `resolve` is given it."""
    return raw_targets(case.examples.table, case.task, case.rows[[row]])[0]


def _two(make: MakeTokenTask, table: TokenTable) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Return the case of a task with a divergence, two predictions for its rows, and which tokens are real."""
    case = token_case(make, table)
    if not isinstance(case.task, Divergent):
        raise unittest.SkipTest("the task has no divergence")
    logits = case.logits().detach()
    other = logits + 0.5 * case.logits(seed=1).detach()
    return case, logits.requires_grad_(), other.requires_grad_(), torch.from_numpy(case.tokens().real)


def _raises(kind: type[E], call: Callable[[], Any], message: str) -> E:
    """Return the error that a call raises; an assertion error with the message if it raises none of this kind."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(message)


def _padded(tokens: TextTokens, num: int) -> TextTokens:
    """Return tokens with some more padding."""
    spans = np.pad(tokens.spans, ((0, 0), (0, num), (0, 0)))
    spans[:, tokens.spans.shape[1] :, 0] = -1
    return TextTokens(spans, np.pad(tokens.real, ((0, 0), (0, num))), tokens.texts)
