"""The contract suite of fusions, with one test for each rule.

@pytest.mark.parametrize("make", [MyFusion, partial(MyFusion, scale=2.0)])
class TestMyFusion(FusionContract):
    pass
"""

from __future__ import annotations

import inspect
import unittest
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fusetune.fusion.base import Fused, Fusion
from fusetune.testing.rules import Contract, check
from fusetune.types import Tokens

COLUMNS = ("text", "image", "number")
DIM = 16
MakeFusion = Callable[..., Fusion]
"""`make(columns, dim, **settings)`: the class, or a `functools.partial` of it."""
Inputs = tuple[dict[str, Tokens], dict[str, Tensor]]


def make_inputs(
    columns: Sequence[str] = COLUMNS, *, dim: int = DIM, absent: float = 0.0, dtype: torch.dtype = torch.float32
) -> Inputs:
    """Return a batch with one row for every non-empty subset of the columns; the first row has all columns.

    Column number c has 1 + 2c tokens, some of which are padding.

    Args:
        columns: their names.
        dim: features of a token.
        absent: the value of tokens that are not real.
        dtype: of the tokens.
    """
    generator = torch.Generator().manual_seed(7)
    subsets = torch.tensor([row for row in product([True, False], repeat=len(columns)) if any(row)])
    tokens, present = {}, {}
    for place, name in enumerate(columns):
        num = 1 + 2 * place
        there = subsets[:, place]
        real = torch.rand(len(subsets), num, generator=generator) < 0.7
        real[:, 0] = True
        mask = real & there.unsqueeze(1)
        values = torch.randn(len(subsets), num, dim, generator=generator).to(dtype)
        tokens[name] = Tokens(values.masked_fill(~mask.unsqueeze(-1), absent), mask)
        present[name] = there
    return tokens, present


def check_fusion(make: MakeFusion) -> None:
    """Check a fusion by all rules of `FusionContract`.

    Args:
        make: `make(columns, dim)` builds a fusion; `dim` is 16, and once 8.

    Raises:
        AssertionError: rules are broken; the message lists all of them.
    """
    check(FusionContract, make=make)


class FusionContract(Contract):
    """The rules of fusions. They take `make`: the class, or a `functools.partial` of it."""

    def test_pooled_is_one_finite_vector_a_row(self, make: MakeFusion) -> None:
        """Every subset of columns gives a finite vector of `dim` features, in training and in evaluation."""
        for mode in (True, False):
            inputs = make_inputs()
            fusion = make(COLUMNS, DIM).train(mode)
            assert (fusion.columns, fusion.dim) == (COLUMNS, DIM), "the attributes columns and dim are not as given"
            pooled = _run(fusion, inputs).pooled
            rows = len(inputs[1][COLUMNS[0]])
            assert pooled.shape == (rows, DIM), f"pooled is {tuple(pooled.shape)}, not {(rows, DIM)}"
            assert pooled.isfinite().all(), f"pooled is not finite (training={mode})"

    def test_every_parameter_receives_a_gradient(self, make: MakeFusion) -> None:
        """Gradients are finite and not all zero, from a batch with absent columns that hold NaN."""
        fusion = make(COLUMNS, DIM).eval()
        _backward(fusion, _run(fusion, make_inputs(absent=float("nan"))).pooled)
        for name, parameter in fusion.named_parameters():
            assert parameter.requires_grad, f"{name} is not trained"
            assert parameter.grad is not None, f"{name} has no gradient"
            assert parameter.grad.isfinite().all(), f"{name}'s gradient is not finite"
            # rounding leaves about 1e-8 where the exact gradient is zero
            assert parameter.grad.abs().max() > 1e-6, f"{name}'s gradient is zero"

    def test_absent_values_change_nothing(self, make: MakeFusion) -> None:
        """`pooled` does not depend on the values of tokens that are not real."""
        fusion = make(COLUMNS, DIM).eval()
        with torch.no_grad():
            plain = _run(fusion, make_inputs()).pooled
            for absent in (1.0, 1e30, float("inf"), float("nan")):
                other = _run(fusion, make_inputs(absent=absent)).pooled
                assert torch.equal(plain, other), f"the output changes when absent values are {absent}"

    def test_present_is_heeded_beside_the_mask(self, make: MakeFusion) -> None:
        """A column that `present` denies is absent, even where its mask says that tokens are real."""
        fusion = make(COLUMNS, DIM).eval()
        tokens, present = make_inputs()
        hidden = {name: torch.full_like(there, name == COLUMNS[0]) for name, there in present.items()}
        loud = {name: Tokens(torch.randn_like(t.values), torch.ones_like(t.mask)) for name, t in tokens.items()}
        louder = {
            name: part if name == COLUMNS[0] else Tokens(part.values * 2, part.mask) for name, part in loud.items()
        }
        with torch.no_grad():
            first, second = _run(fusion, (loud, hidden)).pooled, _run(fusion, (louder, hidden)).pooled
        assert torch.equal(first, second), "`present` is not heeded where the mask is set"

    def test_absence_is_seen(self, make: MakeFusion) -> None:
        """A row does not give the same vector with a column and without it."""
        with torch.no_grad():
            pooled = _run(make(COLUMNS, DIM).eval(), make_inputs()).pooled
        distances = torch.cdist(pooled, pooled) + torch.eye(len(pooled)) * 1e9
        assert distances.min() > 1e-4, "two different rows give the same vector"

    def test_rows_are_fused_by_themselves(self, make: MakeFusion) -> None:
        """A row's vector and fused tokens depend neither on its place in the batch nor on the other rows."""
        fusion = make(COLUMNS, DIM).eval()
        inputs = make_inputs()
        order = torch.randperm(len(inputs[1][COLUMNS[0]]), generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            plain = _run(fusion, inputs)
            for what, rows in (("place in the batch", order), ("other rows", torch.tensor([0]))):
                other = _run(fusion, _rows(inputs, rows))
                assert torch.allclose(plain.pooled[rows], other.pooled, atol=1e-5), (
                    f"a row's vector depends on its {what}"
                )

    def test_state_dict_holds_everything(self, make: MakeFusion) -> None:
        """A second fusion with the first one's state dict gives the same output."""
        first, second = make(COLUMNS, DIM).eval(), make(COLUMNS, DIM).eval()
        second.load_state_dict(first.state_dict())
        with torch.no_grad():
            same = torch.equal(_run(first, make_inputs()).pooled, _run(second, make_inputs()).pooled)
        assert same, "the state does not hold everything that the output depends on"

    def test_evaluation_is_deterministic(self, make: MakeFusion) -> None:
        """In evaluation two passes are equal: no dropout of features, tokens or columns."""
        options = {name: 0.9 for name in ("dropout", "modality_dropout") if name in _settings(make)}
        fusion = make(COLUMNS, DIM, **options).eval()
        with torch.no_grad():
            first, second = _run(fusion, make_inputs()), _run(fusion, make_inputs())
        assert torch.equal(first.pooled, second.pooled), "two passes in evaluation differ"

    def test_arguments_are_left_as_they_are(self, make: MakeFusion) -> None:
        """No argument is changed in place."""
        tokens, present = make_inputs(absent=7.0)
        _ = _run(make(COLUMNS, DIM).train(), (tokens, present)).tokens
        before = make_inputs(absent=7.0)
        for name in COLUMNS:
            assert torch.equal(tokens[name].values, before[0][name].values), f"the values of {name!r} were changed"
            assert torch.equal(tokens[name].mask, before[0][name].mask), f"the mask of {name!r} was changed"
            assert torch.equal(present[name], before[1][name]), f"present[{name!r}] was changed"

    def test_float64_agrees_with_float32(self, make: MakeFusion) -> None:
        """The output has the type of the tokens, and is the same within rounding."""
        fusion = make(COLUMNS, DIM).eval()
        with torch.no_grad():
            single = _run(fusion, make_inputs()).pooled
            double = _run(fusion.double(), make_inputs(dtype=torch.float64)).pooled
        assert double.dtype == torch.float64, f"float64 became {double.dtype}"
        assert torch.allclose(single.double(), double, atol=1e-4), "float32 and float64 disagree"

    def test_bf16_autocast_agrees_with_float32(self, make: MakeFusion) -> None:
        """Under bf16 autocast the output is about the same."""
        fusion = make(COLUMNS, DIM).eval()
        with torch.no_grad():
            plain = _run(fusion, make_inputs()).pooled
            with torch.autocast("cpu", dtype=torch.bfloat16):
                low = _run(fusion, make_inputs()).pooled
        assert low.isfinite().all(), "under bf16 autocast pooled is not finite"
        gap = float((plain - low.float()).abs().max())
        assert gap <= 0.05 * max(1.0, float(plain.abs().max())), f"under bf16 autocast pooled is off by {gap}"

    def test_one_column_is_enough(self, make: MakeFusion) -> None:
        """With a single column the output is finite and every parameter still receives a gradient."""
        for mode in (True, False):
            fusion = make(COLUMNS[:1], DIM).train(mode)
            pooled = _run(fusion, make_inputs(COLUMNS[:1])).pooled
            assert pooled.isfinite().all(), "one column gives output that is not finite"
            _backward(fusion, pooled)
            without = [name for name, parameter in fusion.named_parameters() if parameter.grad is None]
            assert not without, f"with one column, {', '.join(without)} has no gradient"

    def test_a_column_without_tokens_is_absent(self, make: MakeFusion) -> None:
        """A column that no row of the batch has may bring no token at all."""
        fusion = make(COLUMNS[:2], DIM).eval()
        tokens, present = make_inputs(COLUMNS[:1])
        rows = len(present[COLUMNS[0]])
        present[COLUMNS[1]] = torch.zeros(rows, dtype=torch.bool)
        results = []
        with torch.no_grad():
            for num in (0, 1, 3):
                empty = Tokens(torch.zeros(rows, num, DIM), torch.zeros(rows, num, dtype=torch.bool))
                results.append(_run(fusion, ({**tokens, COLUMNS[1]: empty}, present)).pooled)
        for other in results[1:]:
            assert torch.allclose(results[0], other, atol=1e-6), "the number of absent tokens changes the output"

    def test_padding_changes_nothing(self, make: MakeFusion) -> None:
        """Additional padding does not change the output."""
        fusion = make(COLUMNS, DIM).eval()
        tokens, present = make_inputs()
        longer = {
            name: Tokens(F.pad(part.values, (0, 0, 0, 2), value=torch.nan), F.pad(part.mask, (0, 2)))
            for name, part in tokens.items()
        }
        with torch.no_grad():
            plain, other = _run(fusion, (tokens, present)).pooled, _run(fusion, (longer, present)).pooled
        assert torch.allclose(plain, other, atol=1e-6), "a row's vector depends on how far it is padded"

    def test_maps_are_fused(self, make: MakeFusion) -> None:
        """Tokens with a grid are accepted, and an image that is not real changes nothing."""
        fusion = make(COLUMNS, DIM).eval()
        tokens, present = make_inputs()
        rows, grid = len(present[COLUMNS[1]]), (1, 2, 3)
        values = torch.randn(rows, 7, DIM, generator=torch.Generator().manual_seed(3))
        mask = present[COLUMNS[1]].unsqueeze(1).expand(rows, 7)
        one = Tokens(values.masked_fill(~mask.unsqueeze(2), torch.nan), mask, grid)
        two = Tokens(F.pad(one.values, (0, 0, 0, 7), value=torch.nan), F.pad(mask, (0, 7)), grid)
        plain = _run(fusion, ({**tokens, COLUMNS[1]: one}, present)).pooled
        other = _run(fusion, ({**tokens, COLUMNS[1]: two}, present)).pooled
        assert plain.isfinite().all(), "a map gives output that is not finite"
        assert torch.allclose(plain, other, atol=1e-5), "a second picture changes rows that do not have it"
        _backward(fusion, other)
        broken = [name for name, p in fusion.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not broken, f"with a map, the gradient of {', '.join(broken)} is missing or not finite"

    def test_a_dropped_column_is_an_absent_one(self, make: MakeFusion) -> None:
        """With `modality_dropout` near 1 each row is fused from one of its columns, as if the others were absent."""
        if "modality_dropout" not in _settings(make):
            raise unittest.SkipTest("the fusion has no modality_dropout")
        options = {"dropout": 0.0} if "dropout" in _settings(make) else {}
        fusion = make(COLUMNS, DIM, modality_dropout=0.99999, **options)
        inputs = _rows(make_inputs(), torch.zeros(12, dtype=torch.long))  # one row with all columns, twelve times
        with torch.no_grad():
            dropped = _run(fusion.train(), inputs).pooled
            fusion.eval()
            singles = [
                _run(
                    fusion,
                    (inputs[0], {name: torch.full_like(there, name == only) for name, there in inputs[1].items()}),
                )
                for only in COLUMNS
            ]
        for row, vector in enumerate(dropped):
            near = [bool(torch.allclose(vector, single.pooled[row], atol=1e-5)) for single in singles]
            assert any(near), "a row whose columns were dropped is not fused as one that lacks them"

    def test_it_learns_what_only_two_columns_tell(self, make: MakeFusion) -> None:
        """The sign of a product, on new rows: each column alone, and any sum over columns, is right for half."""
        columns, dim = COLUMNS[:2], 8
        fusion = make(columns, dim).eval()
        if not fusion.interacts:
            raise unittest.SkipTest("the fusion does not claim to relate columns")
        head, generator = torch.nn.Linear(dim, 1), torch.Generator().manual_seed(1)
        optimizer = torch.optim.Adam([*fusion.parameters(), *head.parameters()], 5e-3)

        def draw(rows: int) -> tuple[Tensor, Tensor]:
            values = torch.randn(rows, 2, 1, dim, generator=generator)
            there = torch.ones(rows, 1, dtype=torch.bool)
            tokens = {column: Tokens(values[:, place], there) for place, column in enumerate(columns)}
            logits = head(_run(fusion, (tokens, dict.fromkeys(columns, there[:, 0]))).pooled).squeeze(1)
            return logits, (values[:, 0, 0, 0] * values[:, 1, 0, 0] > 0).float()

        for _ in range(150):
            loss = F.binary_cross_entropy_with_logits(*draw(128))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        with torch.no_grad():
            logits, truth = draw(2000)
        right = float(((logits > 0) == (truth > 0)).float().mean())
        assert right > 0.7, f"after 150 steps {right:.0%} of the products' signs are right"

    def test_fused_tokens_have_a_shape_a_column(self, make: MakeFusion) -> None:
        """Each column has finite fused tokens, (batch, tokens, dim) with a mask: as many as came in, or one."""
        for mode in (True, False):
            tokens, present = make_inputs()
            fused = _run(make(COLUMNS, DIM).train(mode), (tokens, present)).tokens
            assert tuple(fused) == COLUMNS, f"fused tokens are of {tuple(fused)}, not of {COLUMNS}"
            for name, part in fused.items():
                rows, num, _ = tokens[name].values.shape
                shape = tuple(part.values.shape)
                assert shape in ((rows, num, DIM), (rows, 1, DIM)), f"fused tokens of {name!r} have the shape {shape}"
                assert part.mask.shape == shape[:2] and part.mask.dtype == torch.bool, "the mask is not (batch, tokens)"
                assert part.values[part.mask].isfinite().all(), f"a real fused token is not finite (training={mode})"

    def test_fused_tokens_are_real_where_the_column_is(self, make: MakeFusion) -> None:
        """An absent column has no real fused token, and a present one's are real where its own tokens are."""
        for absent in (0.0, float("nan")):
            tokens, present = make_inputs(absent=absent)
            fused = _run(make(COLUMNS, DIM).eval(), (tokens, present)).tokens
            for name, part in fused.items():
                there = (tokens[name].mask & present[name].unsqueeze(1)).any(1)
                assert not part.mask[~there].any(), f"fused tokens of {name!r} are called real where it is absent"
                own = tokens[name].mask if part.mask.shape == tokens[name].mask.shape else there.unsqueeze(1)
                assert torch.equal(part.mask[there], own[there]), f"fused tokens of {name!r} are real at other places"

    def test_absent_values_do_not_reach_fused_tokens(self, make: MakeFusion) -> None:
        """Whatever stands where nothing is real, real fused tokens are the same."""
        fusion = make(COLUMNS, DIM).eval()
        with torch.no_grad():
            plain, other = (_run(fusion, make_inputs(absent=absent)).tokens for absent in (0.0, float("nan")))
        for name in COLUMNS:
            real = plain[name].mask
            assert torch.equal(plain[name].values[real], other[name].values[real]), f"absent values reach {name!r}"

    def test_fused_tokens_are_of_their_row(self, make: MakeFusion) -> None:
        """A row's fused tokens depend neither on its place in the batch nor on the other rows."""
        fusion = make(COLUMNS, DIM).eval()
        inputs = make_inputs()
        order = torch.randperm(len(inputs[1][COLUMNS[0]]), generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            plain = _run(fusion, inputs).tokens
            for rows in (order, torch.tensor([0])):
                other = _run(fusion, _rows(inputs, rows)).tokens
                for name in COLUMNS:
                    mask = other[name].mask
                    first, second = plain[name].values[rows][mask], other[name].values[mask]
                    assert first.shape == second.shape and torch.allclose(first, second, atol=1e-5), (
                        f"a row's fused tokens of {name!r} depend on the other rows"
                    )

    def test_fused_tokens_follow_their_own_token(self, make: MakeFusion) -> None:
        """A fused token passes gradients on, and of a column's tokens the one in its own place moves it most."""
        fusion = make(COLUMNS, DIM).eval()
        for name in COLUMNS:
            tokens, present = _rows(make_inputs(), torch.tensor([0]))
            shape, generator = tokens[name].values.shape, torch.Generator().manual_seed(5)
            values = torch.randn(shape, generator=generator).requires_grad_()
            tokens[name] = Tokens(values, torch.ones_like(tokens[name].mask))
            fused = _run(fusion, (tokens, present)).tokens[name].values
            weight = torch.randn(fused.shape, generator=torch.Generator().manual_seed(4))
            assert fused.requires_grad, f"fused tokens of {name!r} have no gradient"
            for place in range(fused.shape[1]):
                scalar = (fused[:, place] * weight[:, place]).sum()
                (grad,) = torch.autograd.grad(scalar, values, retain_graph=True, allow_unused=True)
                moved = torch.zeros(values.shape[1]) if grad is None else grad[0].norm(dim=1)
                assert moved.max() > 1e-6, f"a fused token of {name!r} does not depend on the column's tokens"
                assert fused.shape[1] == 1 or int(moved.argmax()) == place, (
                    f"fused token {place} of {name!r} is moved most by token {int(moved.argmax())}"
                )


def _run(fusion: Fusion, inputs: Inputs) -> Fused:
    fused = fusion(*inputs)
    assert isinstance(fused, Fused), f"forward returned {type(fused).__name__}, not Fused"
    return fused


def _rows(inputs: Inputs, rows: Tensor) -> Inputs:
    tokens, present = inputs
    return (
        {name: Tokens(part.values[rows], part.mask[rows]) for name, part in tokens.items()},
        {name: there[rows] for name, there in present.items()},
    )


def _backward(fusion: Fusion, pooled: Tensor) -> None:
    """Run backward from a random linear form, as a plain sum is constant after a normalisation."""
    if not any(True for _ in fusion.parameters()):
        return
    weight = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1))
    torch.autograd.backward((pooled * weight).sum())


def _settings(make: Callable[..., Any]) -> list[str]:
    """Return the names of a fusion's keyword-only settings; a lambda has none."""
    return [p.name for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY]
