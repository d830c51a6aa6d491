"""The fusions of one vector a column against the formulas in their docstrings."""

import pytest
import torch
from torch.nn import functional as F

from fusetune.fusion.concat import ConcatFusion
from fusetune.fusion.convolution import ConvolutionFusion
from fusetune.fusion.film import FilmFusion
from fusetune.fusion.low_rank import LowRankFusion
from fusetune.fusion.mixture import MixtureFusion
from fusetune.testing.fusion import COLUMNS, DIM, make_inputs
from fusetune.types import Tokens


def vectors(columns=COLUMNS, rows=4, dim=DIM):
    """One token a column in each row, as the fusion's inputs and as (rows, columns, dim)."""
    values = torch.randn(rows, len(columns), dim)
    there = torch.ones(rows, 1, dtype=torch.bool)
    tokens = {name: Tokens(values[:, place : place + 1], there) for place, name in enumerate(columns)}
    return tokens, dict.fromkeys(columns, there[:, 0]), values


class TestLowRank:
    def test_it_is_a_linear_map_of_the_outer_product(self):
        torch.manual_seed(0)
        fusion = LowRankFusion(COLUMNS, 3, rank=2).eval()
        tokens, present, values = vectors(rows=5, dim=3)
        ones = torch.cat([values, torch.ones(5, 3, 1)], 2)  # (rows, columns, 4)
        outer = torch.einsum("na,nb,nc->nabc", *ones.unbind(1))
        weights = torch.einsum("raf,rbf,rcf->abcf", *fusion.factors)
        expected = fusion.norm(torch.einsum("nabc,abcf->nf", outer, weights))
        torch.testing.assert_close(fusion(tokens, present).pooled, expected, atol=1e-5, rtol=0)

    def test_an_absent_column_is_neutral(self):
        torch.manual_seed(0)
        fusion = LowRankFusion(COLUMNS, 3, rank=2).eval()
        fewer = LowRankFusion(COLUMNS[1:], 3, rank=2).eval()
        fewer.factors.data = fusion.factors.data[1:].clone()
        tokens, present, _ = vectors(rows=5, dim=3)
        present[COLUMNS[0]] = torch.zeros(5, dtype=torch.bool)
        torch.testing.assert_close(fusion(tokens, present).pooled, fewer(tokens, present).pooled)

    def test_many_columns_neither_vanish_nor_explode(self):
        """At the start, the product of twenty columns varies about as that of two, forth and back."""
        spreads, slopes = [], []
        for num in (2, 20):
            torch.manual_seed(0)
            columns = [f"c{place}" for place in range(num)]
            fusion = LowRankFusion(columns, 64, dropout=0.0, modality_dropout=0.0)
            found = []
            fusion.norm.register_forward_pre_hook(lambda _, args, found=found: found.append(args[0]))
            tokens, present, _ = vectors(columns, 256, 64)
            pooled = fusion(tokens, present).pooled
            (pooled * torch.randn_like(pooled)).sum().backward()
            spreads.append(found[0].std().item())
            slopes.append(fusion.factors.grad.abs().amax((1, 2, 3)))
        assert 0.5 < spreads[1] / spreads[0] < 2
        assert slopes[1].max() / slopes[1].min() < 10 and 0.1 < slopes[1].mean() / slopes[0].mean() < 10

    def test_products_are_float32_under_autocast(self):
        fusion = LowRankFusion([f"c{place}" for place in range(10)], 8).eval()
        tokens, present, _ = vectors(fusion.columns, 3, 8)
        loud = {name: Tokens(part.values * 30, part.mask) for name, part in tokens.items()}
        with torch.autocast("cpu", torch.float16):  # 30 ** 10 is far beyond its 65504
            pooled = fusion(loud, present).pooled
        assert pooled.dtype == torch.float32 and pooled.isfinite().all()


class TestFilm:
    def test_at_the_start_it_is_concat(self):
        torch.manual_seed(0)
        film, concat = FilmFusion(COLUMNS, DIM, by="image").eval(), ConcatFusion(COLUMNS, DIM).eval()
        concat.load_state_dict({name: value for name, value in film.state_dict().items() if "film" not in name})
        torch.testing.assert_close(film(*make_inputs()).pooled, concat(*make_inputs()).pooled)

    @pytest.mark.parametrize("by", COLUMNS)
    def test_it_scales_and_shifts_the_other_columns(self, by):
        torch.manual_seed(0)
        film, concat = FilmFusion(COLUMNS, DIM, by=by).eval(), ConcatFusion(COLUMNS, DIM).eval()
        torch.nn.init.normal_(film.film.weight, std=0.3)
        torch.nn.init.normal_(film.film.bias)
        concat.load_state_dict({name: value for name, value in film.state_dict().items() if "film" not in name})
        tokens, present, values = vectors()
        present[by] = torch.tensor([True, True, False, True])  # the third row is not modulated
        place = COLUMNS.index(by)
        weight, bias = film.film.weight.view(2, 2, DIM, DIM), film.film.bias.view(2, 2, DIM)
        expected = values.clone()
        for row in (0, 1, 3):
            for number, other in enumerate(column for column in range(3) if column != place):
                scale, shift = (weight[number, i] @ values[row, place] + bias[number, i] for i in (0, 1))
                expected[row, other] = (1 + scale) * values[row, other] + shift
        changed = {
            name: Tokens(expected[:, column : column + 1], tokens[name].mask) for column, name in enumerate(COLUMNS)
        }
        fused = film(tokens, present)
        torch.testing.assert_close(fused.pooled, concat(changed, present).pooled, atol=1e-5, rtol=1e-5)
        for place, name in enumerate(COLUMNS):
            found = fused.tokens[name]
            kept = found.mask[:, 0]
            torch.testing.assert_close(found.values[kept, 0], expected[kept, place], atol=1e-5, rtol=1e-5)

    def test_the_first_column_modulates_by_default_and_a_single_one_nothing(self):
        assert FilmFusion(COLUMNS, DIM).by == 0
        assert FilmFusion(COLUMNS[:1], DIM, by=COLUMNS[0]).film is None


class TestMixture:
    @pytest.mark.parametrize("top_k", [None, 1, 2, 5])
    def test_experts_answer_by_the_routers_weights(self, top_k):
        torch.manual_seed(0)
        fusion = MixtureFusion(COLUMNS, DIM, num_experts=5, top_k=top_k).eval()
        tokens, present, values = vectors()
        joint = values.flatten(1)
        for row, pooled in enumerate(fusion(tokens, present).pooled):
            votes = fusion.router(joint[row])
            chosen = votes.argsort(descending=True)[: top_k or 5]
            weights = votes[chosen].exp() / votes[chosen].exp().sum()
            answer = sum(
                weight * fusion.experts[int(expert)](joint[row]) for expert, weight in zip(chosen, weights, strict=True)
            )
            torch.testing.assert_close(pooled, fusion.norm(answer), atol=1e-5, rtol=0)

    def test_an_expert_that_no_row_chooses_does_not_matter(self):
        torch.manual_seed(0)
        fusion = MixtureFusion(COLUMNS, DIM, top_k=2).eval()
        with torch.no_grad():
            fusion.router.bias[1] = -1e3
        tokens, present, _ = vectors()
        before = fusion(tokens, present).pooled
        before.sum().backward()
        assert fusion.experts[1][0].weight.grad.abs().max() == 0
        torch.nn.init.normal_(fusion.experts[1][0].weight)
        torch.testing.assert_close(fusion(tokens, present).pooled, before)


class TestConvolution:
    def test_a_picture_stays_a_map_and_its_class_token_out_of_it(self):
        torch.manual_seed(0)
        fusion = ConvolutionFusion(COLUMNS, DIM).eval()
        values = torch.randn(1, 2 * 13, DIM)  # two pictures, each a class token and 3 by 4 places
        spread = fusion.convolve(Tokens(values, torch.ones(1, 26, dtype=torch.bool), (1, 3, 4))).values
        for start in (0, 13):
            assert torch.equal(spread[0, start], values[0, start])
            picture = torch.empty(1, DIM, 3, 4)
            for row in range(3):
                for column in range(4):
                    picture[0, :, row, column] = values[0, start + 1 + 4 * row + column]
            around = F.conv2d(picture, fusion.depthwise.weight, padding=1, groups=DIM)
            added = F.gelu(F.conv2d(around, fusion.pointwise.weight, fusion.pointwise.bias))
            for row in range(3):
                for column in range(4):
                    expected = (picture + added)[0, :, row, column]
                    found = spread[0, start + 1 + 4 * row + column]
                    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    def test_a_text_is_convolved_along_its_tokens(self):
        torch.manual_seed(0)
        fusion = ConvolutionFusion(COLUMNS, DIM, kernel_size=5).eval()
        values = torch.randn(1, 6, DIM)
        values[0, 4:] = torch.nan
        mask = torch.tensor([[True] * 4 + [False] * 2])
        spread = fusion.convolve(Tokens(values, mask)).values[:, :4]
        line = values[:, :4].transpose(1, 2)
        around = F.conv1d(line, fusion.depthwise.weight[:, :, 2], padding=2, groups=DIM)
        added = F.gelu(F.conv1d(around, fusion.pointwise.weight[:, :, 0], fusion.pointwise.bias))
        torch.testing.assert_close(spread, (line + added).transpose(1, 2), atol=1e-5, rtol=0)

    def test_the_columns_are_convolved_in_their_order(self):
        torch.manual_seed(0)
        fusion = ConvolutionFusion(COLUMNS, DIM, depth=2).eval()
        tokens, present, _ = vectors(rows=1)
        present[COLUMNS[1]] = torch.tensor([False])
        flat = {name: fusion.convolve(part).values for name, part in tokens.items()}
        sequence = torch.cat([flat[COLUMNS[0]], fusion.null[1].view(1, 1, -1), flat[COLUMNS[2]]], 1)
        for norm, layer in zip(fusion.norms, fusion.layers, strict=True):
            line = norm(sequence).transpose(1, 2)
            sequence = sequence + F.gelu(F.conv1d(line, layer.weight, layer.bias, padding=1)).transpose(1, 2)
        torch.testing.assert_close(fusion(tokens, present).pooled, fusion.norm(sequence.mean(1)), atol=1e-5, rtol=0)

    def test_height_and_width_matter(self):
        torch.manual_seed(0)
        fusion = ConvolutionFusion(COLUMNS, DIM).eval()
        values, mask = torch.randn(2, 12, DIM), torch.ones(2, 12, dtype=torch.bool)
        wide, high, line = (fusion.convolve(Tokens(values, mask, grid)).values for grid in ((0, 3, 4), (0, 4, 3), None))
        assert not torch.allclose(wide, high) and not torch.allclose(wide, line)
