"""What every fusion must do, for fusions here and for plug-ins' authors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from fusetune.fusion.base import Fused, Fusion
from fusetune.types import Tokens

COLUMNS = ("text", "image", "number")
DIM = 16
MakeFusion = Callable[[Sequence[str], int], Fusion]


def make_inputs(
    columns: Sequence[str] = COLUMNS, *, dim: int = DIM, absent: float = 0.0, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tokens], dict[str, Tensor]]:
    """A batch with one row for every subset of the columns that is not empty; the first row has all of them.

    Column number c has 1 + 2c tokens, not all of them real. Tokens that are not real hold `absent`.

    Args:
        columns: their names.
        dim: features of a token.
        absent: what stands where nothing is real.
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
    """Hold a fusion to its contract.

    Args:
        make: `make(columns, dim)` builds one; `dim` will be 16.

    Raises:
        AssertionError: the contract is broken; the message says where.
    """
    torch.manual_seed(0)
    for check in (
        check_shapes,
        check_gradients,
        check_absent_values,
        check_row_order,
        check_dropped_as_absent,
        check_state,
        check_double,
        check_one_column,
        check_empty_column,
        check_padding,
        check_grid,
    ):
        check(make)


def _run(fusion: Fusion, inputs: tuple[dict[str, Tokens], dict[str, Tensor]]) -> Fused:
    fused = fusion(*inputs)
    assert isinstance(fused, Fused), f"forward returned {type(fused).__name__}, not Fused"
    return fused


def check_shapes(make: MakeFusion) -> None:
    """Every subset of columns gives finite output of the right shape, in training and in evaluation."""
    for mode in (True, False):
        inputs = make_inputs()
        fused = _run(make(COLUMNS, DIM).train(mode), inputs)
        rows = len(inputs[1][COLUMNS[0]])
        assert fused.pooled.shape == (rows, DIM), f"pooled is {tuple(fused.pooled.shape)}, not {(rows, DIM)}"
        assert fused.pooled.isfinite().all(), f"pooled is not finite (training={mode})"
        values, mask = fused.tokens.values, fused.tokens.mask
        assert values.shape[:2] == mask.shape and values.shape[0] == rows and mask.dtype == torch.bool
        assert values[mask].isfinite().all(), f"a real fused token is not finite (training={mode})"


def check_gradients(make: MakeFusion) -> None:
    """Every parameter receives a gradient that is finite and not all zero from a batch with absences."""
    fusion = make(COLUMNS, DIM).eval()
    inputs = make_inputs(absent=float("nan"))
    pooled = _run(fusion, inputs).pooled
    torch.autograd.backward((pooled * torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1))).sum())
    for name, parameter in fusion.named_parameters():
        assert parameter.requires_grad, f"{name} is not trained"
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.isfinite().all(), f"{name}'s gradient is not finite"
        # rounding leaves about 1e-8 where the exact gradient is zero
        assert parameter.grad.abs().max() > 1e-6, f"{name}'s gradient is zero"


def check_absent_values(make: MakeFusion) -> None:
    """What stands in the place of an absent column, or of a masked token, changes nothing."""
    fusion = make(COLUMNS, DIM).eval()
    with torch.no_grad():
        plain = _run(fusion, make_inputs()).pooled
        for absent in (1.0, 1e30, float("inf"), float("nan")):
            other = _run(fusion, make_inputs(absent=absent)).pooled
            assert torch.equal(plain, other), f"the output changes when absent values are {absent}"
        tokens, present = make_inputs()
        hidden = dict.fromkeys(tokens, torch.ones_like(present[COLUMNS[0]]))
        loud = {
            name: Tokens(torch.randn_like(part.values), torch.ones_like(part.mask)) for name, part in tokens.items()
        }
        for name in COLUMNS[1:]:
            hidden[name] = torch.zeros_like(hidden[name])
        first = _run(fusion, (loud, hidden)).pooled
        loud = {name: part if name == COLUMNS[0] else Tokens(part.values * 2, part.mask) for name, part in loud.items()}
        assert torch.equal(first, _run(fusion, (loud, hidden)).pooled), "`present` is not heeded where the mask is set"


def check_row_order(make: MakeFusion) -> None:
    """Each row is fused by itself: the rows in another order give the same vectors in that order."""
    fusion = make(COLUMNS, DIM).eval()
    tokens, present = make_inputs()
    order = torch.randperm(len(present[COLUMNS[0]]), generator=torch.Generator().manual_seed(2))
    shuffled = {name: Tokens(part.values[order], part.mask[order]) for name, part in tokens.items()}
    with torch.no_grad():
        plain = _run(fusion, (tokens, present)).pooled
        other = _run(fusion, (shuffled, {name: there[order] for name, there in present.items()})).pooled
        alone = _run(
            fusion,
            (
                {name: Tokens(part.values[:1], part.mask[:1]) for name, part in tokens.items()},
                {name: there[:1] for name, there in present.items()},
            ),
        ).pooled
    assert torch.allclose(plain[order], other, atol=1e-5), "a row's vector depends on its place in the batch"
    assert torch.allclose(plain[:1], alone, atol=1e-5), "a row's vector depends on the other rows"


def check_dropped_as_absent(make: MakeFusion) -> None:
    """That a column is absent is seen: a row does not give the same vector with it and without it."""
    fusion = make(COLUMNS, DIM).eval()
    with torch.no_grad():
        pooled = _run(fusion, make_inputs()).pooled
    distances = torch.cdist(pooled, pooled) + torch.eye(len(pooled)) * 1e9
    assert distances.min() > 1e-4, "two different rows give the same vector"


def check_state(make: MakeFusion) -> None:
    """A second fusion with the first one's state gives the same output."""
    first, second = make(COLUMNS, DIM).eval(), make(COLUMNS, DIM).eval()
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        same = torch.equal(_run(first, make_inputs()).pooled, _run(second, make_inputs()).pooled)
    assert same, "the state does not hold everything that the output depends on"


def check_double(make: MakeFusion) -> None:
    """float64 works, and agrees with float32."""
    fusion = make(COLUMNS, DIM).eval()
    with torch.no_grad():
        single = _run(fusion, make_inputs()).pooled
        double = _run(fusion.double(), make_inputs(dtype=torch.float64)).pooled
    assert double.dtype == torch.float64, f"float64 became {double.dtype}"
    assert torch.allclose(single.double(), double, atol=1e-4), "float32 and float64 disagree"


def check_one_column(make: MakeFusion) -> None:
    """One column is enough, in training and in evaluation, and leaves no parameter out of the gradient's way."""
    for mode in (True, False):
        fusion = make(COLUMNS[:1], DIM).train(mode)
        pooled = _run(fusion, make_inputs(COLUMNS[:1])).pooled
        assert pooled.isfinite().all(), "one column gives output that is not finite"
        torch.autograd.backward(pooled.square().sum())
        without = [name for name, parameter in fusion.named_parameters() if parameter.grad is None]
        assert not without, f"with one column, {', '.join(without)} has no gradient"


def check_empty_column(make: MakeFusion) -> None:
    """A column that no row of the batch has, with no token at all, is fused as an absent one."""
    fusion = make(COLUMNS[:2], DIM).eval()
    tokens, present = make_inputs(COLUMNS[:1])
    rows = len(present[COLUMNS[0]])
    present[COLUMNS[1]] = torch.zeros(rows, dtype=torch.bool)
    results = []
    with torch.no_grad():
        for num in (0, 1, 3):
            empty = Tokens(torch.zeros(rows, num, DIM), torch.zeros(rows, num, dtype=torch.bool))
            results.append(_run(fusion, ({**tokens, COLUMNS[1]: empty}, present)).pooled)
    assert torch.allclose(results[0], results[1], atol=1e-6) and torch.allclose(results[0], results[2], atol=1e-6)


def check_padding(make: MakeFusion) -> None:
    """Tokens that are not real change nothing when there are more of them."""
    fusion = make(COLUMNS, DIM).eval()
    tokens, present = make_inputs()
    longer = {
        name: Tokens(F.pad(part.values, (0, 0, 0, 2), value=torch.nan), F.pad(part.mask, (0, 2)))
        for name, part in tokens.items()
    }
    with torch.no_grad():
        plain, other = _run(fusion, (tokens, present)).pooled, _run(fusion, (longer, present)).pooled
    assert torch.allclose(plain, other, atol=1e-6), "a row's vector depends on how far it is padded"


def check_grid(make: MakeFusion) -> None:
    """Maps are fused, whole ones that are not real change nothing, and every parameter still gets a gradient."""
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
    torch.autograd.backward(other.square().sum())
    broken = [name for name, p in fusion.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not broken, f"with a map, the gradient of {', '.join(broken)} is missing or not finite"
