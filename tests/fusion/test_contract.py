import pytest
import torch

from fusetune.errors import ConfigError
from fusetune.fusion._columns import kept_columns
from fusetune.fusion.attention import AttentionFusion
from fusetune.fusion.base import Fused, Fusion
from fusetune.fusion.concat import ConcatFusion
from fusetune.fusion.gated import GatedFusion
from fusetune.registry import FUSIONS
from fusetune.testing.fusion import COLUMNS, DIM, check_fusion, make_inputs
from fusetune.types import Tokens


@pytest.mark.parametrize("name", list(FUSIONS))
def test_every_registered_fusion_keeps_the_contract(name):
    check_fusion(FUSIONS.get(name))


@pytest.mark.parametrize("name", list(FUSIONS))
def test_modality_dropout_hides_nothing_in_evaluation(name):
    fusion = FUSIONS.get(name)(COLUMNS, DIM, modality_dropout=0.9).eval()
    assert torch.equal(fusion(*make_inputs()).pooled, fusion(*make_inputs()).pooled)


@pytest.mark.parametrize("name", list(FUSIONS))
def test_a_dropped_column_is_exactly_an_absent_one(name, monkeypatch):
    fusion = FUSIONS.get(name)(COLUMNS, DIM, dropout=0.0, modality_dropout=0.5).train()
    tokens, _ = make_inputs()
    full = {key: Tokens(part.values[:1], torch.ones_like(part.mask[:1])) for key, part in tokens.items()}
    there = {key: torch.tensor([True]) for key in COLUMNS}
    monkeypatch.setattr(torch, "rand", lambda shape, device=None: torch.tensor([[0.9, 0.1, 0.6]]))
    dropped = fusion(full, there).pooled
    fusion.eval()
    assert torch.equal(dropped, fusion(full, {**there, COLUMNS[1]: torch.tensor([False])}).pooled)


def test_modality_dropout_keeps_one_column_a_row_and_drops_at_its_rate():
    torch.manual_seed(0)
    rows = 4000
    tokens = {name: Tokens(torch.zeros(rows, 1, 2), torch.ones(rows, 1, dtype=torch.bool)) for name in COLUMNS}
    present = {name: torch.ones(rows, dtype=torch.bool) for name in COLUMNS}
    present[COLUMNS[2]][:2000] = False
    kept = kept_columns(COLUMNS, tokens, present, drop=0.3, training=True)
    assert kept.any(1).all() and not kept[:2000, 2].any()
    # a column goes with probability 0.3, unless all the others went too and it is the one that stays
    assert kept[2000:].float().mean().item() == pytest.approx(0.7 + 0.3**3 / 3, abs=0.02)
    heavy = kept_columns(COLUMNS, tokens, present, drop=0.99, training=True)
    assert heavy.any(1).all()
    assert heavy[2000:].float().mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.06)  # each as likely to stay


def test_a_row_without_columns_is_refused():
    tokens, present = make_inputs()
    present = {name: torch.zeros_like(there) for name, there in present.items()}
    with pytest.raises(AssertionError, match="without any column"):
        AttentionFusion(COLUMNS, DIM)(tokens, present)


def test_the_contract_catches_fusions_that_break_it():
    class Leaky(Fusion):
        """Multiplies absent values by zero, so that a NaN among them gets through."""

        def __init__(self, columns, dim):
            super().__init__(columns, dim)
            self.linear = torch.nn.Linear(dim, dim)

        def forward(self, columns, present):
            total = sum(
                self.linear(columns[n].values.mean(1)) * present[n].unsqueeze(1) * (i + 1)
                for i, n in enumerate(self.columns)
            )
            return Fused(Tokens(total.unsqueeze(1), torch.ones(len(total), 1, dtype=torch.bool)), total)

    class Idle(ConcatFusion):
        """Has a parameter that nothing uses."""

        def __init__(self, columns, dim):
            super().__init__(columns, dim)
            self.idle = torch.nn.Parameter(torch.zeros(3))

    with pytest.raises(AssertionError):
        check_fusion(Leaky)
    with pytest.raises(AssertionError, match="idle has no gradient"):
        check_fusion(Idle)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttentionFusion(COLUMNS, 10, num_heads=4), "num_heads"),
        (lambda: AttentionFusion(COLUMNS, 8, depth=0), "depth"),
        (lambda: ConcatFusion(COLUMNS, 8, depth=0), "depth"),
        (lambda: GatedFusion(COLUMNS, 8, dropout=1.0), "dropout"),
        (lambda: ConcatFusion(COLUMNS, 8, modality_dropout=-0.1), "modality_dropout"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_concat_options():
    plain = ConcatFusion(COLUMNS, DIM, skip=False, depth=2).eval()
    assert plain.skip is None
    check_fusion(lambda columns, dim: ConcatFusion(columns, dim, skip=False, depth=3))
    check_fusion(lambda columns, dim: AttentionFusion(columns, dim, num_heads=1, depth=1))


def test_attention_agrees_with_torchs_encoder_layer():
    torch.manual_seed(0)
    from fusetune.fusion.attention import AttentionBlock

    ours = AttentionBlock(DIM, num_heads=4, dropout=0.0)
    theirs = torch.nn.TransformerEncoderLayer(
        DIM, 4, 4 * DIM, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).train()
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(ours.qkv.weight)
        theirs.self_attn.in_proj_bias.zero_()
        for name, module in (
            ("self_attn.out_proj", ours.out),
            ("linear1", ours.mlp[0]),
            ("linear2", ours.mlp[3]),
            ("norm1", ours.norm_attention),
            ("norm2", ours.norm_mlp),
        ):
            theirs.get_submodule(name).load_state_dict(module.state_dict())
    tokens, mask = torch.randn(3, 5, DIM), torch.rand(3, 5) < 0.6
    mask[:, 0] = True
    assert torch.allclose(ours(tokens, mask), theirs(tokens, src_key_padding_mask=~mask), atol=1e-5)
