"""Every registered fusion keeps the contract, and each rule of the contract finds what breaks it."""

from functools import partial

import pytest
import torch
from torch import nn

from fusetune.errors import ConfigError
from fusetune.fusion._columns import present_columns
from fusetune.fusion.attention import AttentionFusion
from fusetune.fusion.base import Fused, Fusion
from fusetune.fusion.bottleneck import BottleneckFusion
from fusetune.fusion.concat import ConcatFusion
from fusetune.fusion.convolution import ConvolutionFusion
from fusetune.fusion.film import FilmFusion
from fusetune.fusion.gated import GatedFusion
from fusetune.fusion.low_rank import LowRankFusion
from fusetune.fusion.mean import MeanFusion
from fusetune.fusion.mixture import MixtureFusion
from fusetune.registry import FUSIONS
from fusetune.testing.fusion import COLUMNS, DIM, FusionContract, check_fusion, make_inputs
from fusetune.testing.rules import broken_rules, rules_of
from fusetune.types import Tokens


@pytest.mark.parametrize("make", [FUSIONS.get(name) for name in FUSIONS], ids=list(FUSIONS))
class TestRegistered(FusionContract):
    pass


@pytest.mark.parametrize(
    "make",
    [
        partial(ConcatFusion, skip=False, depth=3),
        partial(AttentionFusion, num_heads=1, depth=1),
        partial(BottleneckFusion, num_heads=1, depth=2, num_latents=1),
        partial(ConvolutionFusion, kernel_size=1, depth=2),
        partial(LowRankFusion, rank=1),
        partial(FilmFusion, by=COLUMNS[0], skip=False),
        partial(MixtureFusion, num_experts=3, top_k=3, depth=2),
    ],
    ids=lambda make: make.func.__name__,
)
class TestOtherOptions(FusionContract):
    test_it_learns_what_only_two_columns_tell = None  # the smallest learn it, but not in 150 steps


def test_modality_dropout_keeps_one_column_a_row_and_drops_at_its_rate():
    torch.manual_seed(0)
    rows = 4000
    tokens = {name: Tokens(torch.zeros(rows, 1, 2), torch.ones(rows, 1, dtype=torch.bool)) for name in COLUMNS}
    present = {name: torch.ones(rows, dtype=torch.bool) for name in COLUMNS}
    present[COLUMNS[2]][:2000] = False
    counted = present_columns(COLUMNS, tokens, present, drop=0.3, training=True)
    assert counted.any(1).all() and not counted[:2000, 2].any()
    # a column goes with probability 0.3, unless all the others went too and it is the one that stays
    assert counted[2000:].float().mean().item() == pytest.approx(0.7 + 0.3**3 / 3, abs=0.02)
    heavy = present_columns(COLUMNS, tokens, present, drop=0.99, training=True)
    assert heavy.any(1).all()
    assert heavy[2000:].float().mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.06)  # each as likely to stay


def test_a_row_without_columns_is_refused():
    tokens, present = make_inputs()
    present = {name: torch.zeros_like(there) for name, there in present.items()}
    with pytest.raises(AssertionError, match="without any column"):
        AttentionFusion(COLUMNS, DIM)(tokens, present)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttentionFusion(COLUMNS, 10, num_heads=4), "num_heads"),
        (lambda: AttentionFusion(COLUMNS, 8, depth=0), "depth"),
        (lambda: ConcatFusion(COLUMNS, 8, depth=0), "depth"),
        (lambda: GatedFusion(COLUMNS, 8, dropout=1.0), "dropout"),
        (lambda: ConcatFusion(COLUMNS, 8, modality_dropout=-0.1), "modality_dropout"),
        (lambda: BottleneckFusion(COLUMNS, 8, num_latents=0), "num_latents"),
        (lambda: ConvolutionFusion(COLUMNS, 8, kernel_size=2), "kernel_size"),
        (lambda: ConvolutionFusion(COLUMNS, 8, depth=0), "depth"),
        (lambda: LowRankFusion(COLUMNS, 8, rank=0), "rank"),
        (lambda: FilmFusion(COLUMNS, 8, by="imagge"), "did you mean 'image'"),
        (lambda: MixtureFusion(COLUMNS, 8, num_experts=0), "num_experts"),
        (lambda: MixtureFusion(COLUMNS, 8, num_experts=2, top_k=3), "1 to 2"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


class Plain(Fusion):
    """A sound fusion with no settings at all; the planted faults below are changes of it."""

    interacts = True

    def __init__(self, columns, dim):
        super().__init__(columns, dim)
        self.null = nn.Parameter(torch.randn(len(self.columns), dim) * 0.1)
        wide = len(self.columns) * dim
        self.mlp = nn.Sequential(nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, dim))

    def tokens(self, columns, present):
        found = {}
        for name in self.columns:
            mask = columns[name].mask & present[name].unsqueeze(1)
            found[name] = Tokens(columns[name].values.masked_fill(~mask.unsqueeze(-1), 0), mask)
        return found

    def vectors(self, tokens):
        means = torch.stack([part.mean() for part in tokens.values()], 1)
        there = torch.stack([part.mask.any(1) for part in tokens.values()], 1)
        return torch.where(there.unsqueeze(-1), means, self.null.to(means.dtype))

    def forward(self, columns, present):
        tokens = self.tokens(columns, present)
        return Fused(tokens, self.mlp(self.vectors(tokens).flatten(1)))


class Tokenwise(Plain):
    """The same with other fused tokens."""

    def changed(self, name, part):
        return part

    def forward(self, columns, present):
        fused = super().forward(columns, present)
        return Fused({name: self.changed(name, part) for name, part in fused.tokens.items()}, fused.pooled)


def fused_tokens(change):
    """A fusion whose fused tokens are `change(values, mask)`."""
    return type("Changed", (Tokenwise,), {"changed": lambda self, name, part: Tokens(*change(part.values, part.mask))})


class LetsAbsentThrough(Plain):
    """Multiplies absent values by zero, so that a NaN among them gets through."""

    def tokens(self, columns, present):
        found = super().tokens(columns, present)
        return {name: Tokens(columns[name].values * part.mask.unsqueeze(-1), part.mask) for name, part in found.items()}


class LetsAbsentIntoTokens(Plain):
    def forward(self, columns, present):
        fused = super().forward(columns, present)
        leak = sum(t.values.sum((1, 2)).isnan().float() for t in columns.values()).view(-1, 1, 1)
        return Fused({name: Tokens(t.values + leak, t.mask) for name, t in fused.tokens.items()}, fused.pooled)


class IgnoresPresent(Plain):
    def tokens(self, columns, present):
        return super().tokens(columns, {name: torch.ones_like(there) for name, there in present.items()})


class CountsPadding(Plain):
    """Divides by the number of tokens, real or not."""

    def vectors(self, tokens):
        return super().vectors(tokens) / torch.tensor(
            [float(part.mask.shape[1] or 1) for part in tokens.values()]
        ).view(1, -1, 1).to(self.null)


class BatchNormalised(Plain):
    def vectors(self, tokens):
        vectors = super().vectors(tokens)
        return vectors - vectors.mean(0)


class NothingForAbsent(Plain):
    """Gives the mean of what is there, which one absent column may not change."""

    def __init__(self, columns, dim):
        super().__init__(columns, dim)
        self.null = None
        self.mlp = nn.Sequential(nn.Linear(dim, 64), nn.GELU(), nn.Linear(64, dim))

    def forward(self, columns, present):
        tokens = self.tokens(columns, present)
        first = next(part for part in tokens.values() if part.mask.shape[1])
        vector = first.mean() + 0 * sum(part.values.sum((1, 2)) for part in tokens.values()).unsqueeze(1)
        return Fused(tokens, self.mlp(vector))


class Idle(Plain):
    """Has a parameter that nothing uses."""

    def __init__(self, columns, dim):
        super().__init__(columns, dim)
        self.idle = nn.Parameter(torch.zeros(3))


class ManyColumnsOnly(Plain):
    """Needs no perceptron where there is but one column."""

    def forward(self, columns, present):
        tokens = self.tokens(columns, present)
        vectors = self.vectors(tokens)
        return Fused(tokens, self.mlp(vectors.flatten(1)) if len(self.columns) > 1 else vectors[:, 0])


class HiddenState(Plain):
    def __init__(self, columns, dim):
        super().__init__(columns, dim)
        self.shift = torch.randn(())

    def vectors(self, tokens):
        return super().vectors(tokens) + self.shift


class AlwaysNoisy(Plain):
    def vectors(self, tokens):
        vectors = super().vectors(tokens)
        return vectors + 1e-6 * torch.randn_like(vectors)


class InPlace(Plain):
    def tokens(self, columns, present):
        for name in self.columns:
            columns[name].values.data.masked_fill_(~columns[name].mask.unsqueeze(-1), 0)
        return super().tokens(columns, present)


class Single(Plain):
    def vectors(self, tokens):
        return super().vectors(tokens).float()

    def forward(self, columns, present):
        fused = super().forward(columns, present)
        return Fused(fused.tokens, fused.pooled.float())


class Overflows(Plain):
    def forward(self, columns, present):
        fused = super().forward(columns, present)
        scale = torch.inf if fused.pooled.dtype == torch.bfloat16 else 1
        return Fused(fused.tokens, fused.pooled * scale)


class WrongWidth(Plain):
    def forward(self, columns, present):
        fused = super().forward(columns, present)
        return Fused(fused.tokens, fused.pooled.repeat(1, 2))


class NeedsTokens(Plain):
    def vectors(self, tokens):
        assert all(part.mask.shape[1] for part in tokens.values()), "a column has no token"
        return super().vectors(tokens)


class NoMaps(Plain):
    def tokens(self, columns, present):
        assert all(part.grid is None for part in columns.values()), "maps are not taken"
        return super().tokens(columns, present)


class DropsToZeros(Plain):
    """Hides a column by zeros, which is not how it treats an absent one."""

    def __init__(self, columns, dim, *, modality_dropout=0.1):
        super().__init__(columns, dim)
        self.rate = modality_dropout

    def vectors(self, tokens):
        vectors = super().vectors(tokens)
        drop = torch.rand(vectors.shape[:2]) < self.rate if self.training else torch.zeros(vectors.shape[:2]).bool()
        return vectors.masked_fill(drop.unsqueeze(-1), 0)


class Additive(Plain):
    """Adds the columns up, but claims that it relates them."""

    def __init__(self, columns, dim):
        super().__init__(columns, dim)
        self.mlp = nn.Linear(len(self.columns) * dim, dim)


def shifted(values, mask):
    return values.roll(1, 1), mask


FAULTS = [
    (LetsAbsentThrough, "every_parameter_receives_a_gradient absent_values_change_nothing padding_changes_nothing "
     "maps_are_fused"),
    (LetsAbsentIntoTokens, "absent_values_do_not_reach_fused_tokens"),
    (IgnoresPresent, "present_is_heeded_beside_the_mask"),
    (CountsPadding, "a_column_without_tokens_is_absent padding_changes_nothing maps_are_fused"),
    (BatchNormalised, "rows_are_fused_by_themselves"),
    (NothingForAbsent, "absence_is_seen it_learns_what_only_two_columns_tell"),
    (Idle, "every_parameter_receives_a_gradient one_column_is_enough maps_are_fused"),
    (ManyColumnsOnly, "one_column_is_enough"),
    (HiddenState, "state_dict_holds_everything"),
    (AlwaysNoisy, "evaluation_is_deterministic absent_values_change_nothing present_is_heeded_beside_the_mask "
     "state_dict_holds_everything"),
    (InPlace, "arguments_are_left_as_they_are"),
    (Single, "float64_agrees_with_float32"),
    (Overflows, "bf16_autocast_agrees_with_float32"),
    (WrongWidth, "pooled_is_one_finite_vector_a_row it_learns_what_only_two_columns_tell"),
    (NeedsTokens, "a_column_without_tokens_is_absent"),
    (NoMaps, "maps_are_fused"),
    (DropsToZeros, "a_dropped_column_is_an_absent_one"),
    (Additive, "it_learns_what_only_two_columns_tell"),
    (fused_tokens(lambda values, mask: (values[..., :-1], mask)), "fused_tokens_have_a_shape_a_column"),
    (fused_tokens(lambda values, mask: (values / mask.unsqueeze(-1), torch.ones_like(mask))),
     "fused_tokens_have_a_shape_a_column fused_tokens_are_real_where_the_column_is "
     "absent_values_do_not_reach_fused_tokens fused_tokens_are_of_their_row"),
    (fused_tokens(lambda values, mask: (values, torch.ones_like(mask))), "fused_tokens_are_real_where_the_column_is"),
    (fused_tokens(lambda values, mask: (values, mask.flip(1))), "fused_tokens_are_real_where_the_column_is"),
    (fused_tokens(lambda values, mask: (values - values.mean(0), mask)),
     "fused_tokens_are_of_their_row fused_tokens_follow_their_own_token"),
    (fused_tokens(lambda values, mask: (values.roll(1, 0), mask)), "fused_tokens_are_of_their_row"),
    (fused_tokens(lambda values, mask: (torch.zeros_like(values), mask)), "fused_tokens_follow_their_own_token"),
    (fused_tokens(lambda values, mask: (values.detach(), mask)), "fused_tokens_follow_their_own_token"),
    (fused_tokens(shifted), "fused_tokens_follow_their_own_token"),
]  # fmt: skip


def test_sound_fusions_pass():
    check_fusion(Plain)
    check_fusion(MeanFusion)


@pytest.mark.parametrize(("broken", "rules"), FAULTS)
def test_each_fault_breaks_its_rules(broken, rules):
    found = broken_rules(FusionContract, make=broken)
    assert {name.removeprefix("test_") for name in found} == set(rules.split()), found


def test_every_rule_is_shown_to_find_a_fault():
    shown = {f"test_{name}" for _, rules in FAULTS for name in rules.split()}
    assert shown == set(rules_of(FusionContract))


def test_one_call_names_every_broken_rule():
    with pytest.raises(AssertionError, match=r"(?s)receives_a_gradient: idle has no gradient.*one_column_is_enough"):
        check_fusion(Idle)
