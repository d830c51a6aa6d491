import pytest
import torch

from fusetune.errors import ConfigError
from fusetune.fusion._columns import kept_columns
from fusetune.fusion.attention import AttentionFusion
from fusetune.fusion.base import Fused, Fusion
from fusetune.fusion.bottleneck import BottleneckFusion
from fusetune.fusion.concat import ConcatFusion
from fusetune.fusion.convolution import ConvolutionFusion
from fusetune.fusion.film import FilmFusion
from fusetune.fusion.gated import GatedFusion
from fusetune.fusion.low_rank import LowRankFusion
from fusetune.fusion.mixture import MixtureFusion
from fusetune.registry import FUSIONS
from fusetune.testing.fusion import COLUMNS, DIM, check_fusion, check_grid, check_one_column, check_padding, make_inputs
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

    class Padded(ConcatFusion):
        """Counts tokens that are not real."""

        def forward(self, columns, present):
            return super().forward(
                {n: Tokens(t.values.nan_to_num(), t.mask[:, :1] & torch.ones_like(t.mask)) for n, t in columns.items()},
                present,
            )

    class Several(ConcatFusion):
        """Needs no perceptron where there is but one column."""

        def mix(self, vectors, kept):
            return super().mix(vectors, kept) if len(self.columns) > 1 else (vectors, vectors[:, 0])

    class Idle(ConcatFusion):
        """Has a parameter that nothing uses."""

        def __init__(self, columns, dim):
            super().__init__(columns, dim)
            self.idle = torch.nn.Parameter(torch.zeros(3))

    with pytest.raises(AssertionError):
        check_fusion(Leaky)
    with pytest.raises(AssertionError, match="idle has no gradient"):
        check_fusion(Idle)
    with pytest.raises(AssertionError, match="how far it is padded"):
        check_padding(Padded)
    with pytest.raises(AssertionError, match="a second picture"):
        check_grid(Padded)
    with pytest.raises(AssertionError, match=r"mlp.0.weight.* has no gradient"):
        check_one_column(Several)


@pytest.mark.parametrize("name", list(FUSIONS))
def test_every_fusion_learns_what_only_two_columns_together_tell(name):
    """The sign of a product, on rows never seen: each column alone, and any sum over columns, is at chance."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    columns = COLUMNS[:2]
    fusion, head = FUSIONS.get(name)(columns, 8, dropout=0.0, modality_dropout=0.0), torch.nn.Linear(8, 1)
    optimizer = torch.optim.Adam([*fusion.parameters(), *head.parameters()], 5e-3)

    def draw(rows):
        values = torch.randn(rows, 2, 1, 8, generator=generator)
        there = torch.ones(rows, 1, dtype=torch.bool)
        tokens = {column: Tokens(values[:, place], there) for place, column in enumerate(columns)}
        pooled = fusion(tokens, dict.fromkeys(columns, there[:, 0])).pooled
        return head(pooled).squeeze(1), (values[:, 0, 0, 0] * values[:, 1, 0, 0] > 0).float()

    for _ in range(150):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(*draw(128))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        guesses, truth = draw(2000)
    assert ((guesses > 0) == (truth > 0)).float().mean() > 0.7


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


@pytest.mark.parametrize(
    "make",
    [
        lambda columns, dim: ConcatFusion(columns, dim, skip=False, depth=3),
        lambda columns, dim: AttentionFusion(columns, dim, num_heads=1, depth=1),
        lambda columns, dim: BottleneckFusion(columns, dim, num_heads=1, depth=1, num_latents=1),
        lambda columns, dim: ConvolutionFusion(columns, dim, kernel_size=1, depth=2),
        lambda columns, dim: LowRankFusion(columns, dim, rank=1),
        lambda columns, dim: FilmFusion(columns, dim, by=columns[-1], skip=False),
        lambda columns, dim: MixtureFusion(columns, dim, num_experts=3, top_k=3, depth=2),
    ],
)
def test_the_contract_holds_with_other_options(make):
    check_fusion(make)
