"""The fusions by attention against torch's own modules and against plain loops over the columns."""

import pytest
import torch
from torch import nn

from fusetune.fusion._attention import AttentionBlock
from fusetune.fusion.attention import AttentionFusion
from fusetune.fusion.bottleneck import BottleneckFusion
from fusetune.fusion.cross_attention import CrossAttentionFusion
from fusetune.testing.fusion import COLUMNS, DIM, make_inputs
from fusetune.types import Tokens


def torchs_attention(block: AttentionBlock) -> nn.MultiheadAttention:
    """Torch's attention with the block's weights."""
    attention = nn.MultiheadAttention(DIM, block.num_heads, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight.copy_(block.qkv.weight)
        attention.in_proj_bias.zero_()
        attention.out_proj.load_state_dict(block.out.state_dict())
    return attention


def by_torch(block: AttentionBlock, tokens: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """The block, all of the context being seen, with torch's attention."""
    keys = block.norm_attention(context)
    tokens = tokens + torchs_attention(block)(block.norm_attention(tokens), keys, keys, need_weights=False)[0]
    return tokens + block.mlp(block.norm_mlp(tokens))


def real(tokens: Tokens, row: int) -> torch.Tensor:
    """A row's real tokens: (1, tokens, dim)."""
    return tokens.values[row][tokens.mask[row]].unsqueeze(0)


def present_parts(fused, parts, present, row):
    """The fused tokens of a row's present columns beside those parts of a sequence that stand for them."""
    for name, part in zip(COLUMNS, parts, strict=True):
        if present[name][row]:
            yield real(fused.tokens[name], row), part
        else:
            assert not fused.tokens[name].mask[row].any()


def placed(fusion, tokens, present, row):
    """Each column's real tokens in a row with their embedding, or its null token: a list of (1, tokens, dim)."""
    return [
        (real(tokens[name], row) if present[name][row] else fusion.null[place].view(1, 1, -1)) + fusion.column[place]
        for place, name in enumerate(fusion.columns)
    ]


def test_the_block_agrees_with_torchs_encoder_layer():
    torch.manual_seed(0)
    ours = AttentionBlock(DIM, num_heads=4, dropout=0.0)
    theirs = nn.TransformerEncoderLayer(
        DIM, 4, 4 * DIM, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).train()
    with torch.no_grad():
        theirs.self_attn.load_state_dict(torchs_attention(ours).state_dict())
        for name, module in (
            ("linear1", ours.mlp[0]),
            ("linear2", ours.mlp[3]),
            ("norm1", ours.norm_attention),
            ("norm2", ours.norm_mlp),
        ):
            theirs.get_submodule(name).load_state_dict(module.state_dict())
    tokens, mask = torch.randn(3, 5, DIM), torch.rand(3, 5) < 0.6
    mask[:, 0] = True
    assert torch.allclose(ours(tokens, mask), theirs(tokens, src_key_padding_mask=~mask), atol=1e-5)


def test_the_block_with_a_context_agrees_with_torchs_attention():
    torch.manual_seed(0)
    block = AttentionBlock(DIM, num_heads=4, dropout=0.0)
    nn.init.normal_(block.norm_attention.weight)
    tokens, context = torch.randn(3, 5, DIM), torch.randn(3, 4, DIM)
    whole = torch.ones(3, 4, dtype=torch.bool)
    torch.testing.assert_close(block(tokens, whole, context), by_torch(block, tokens, context), atol=1e-5, rtol=0)
    seen = torch.rand(3, 5, 4) < 0.5  # each query has keys of its own
    seen[:, :, 0] = True
    keys = block.norm_attention(context)
    attended = torchs_attention(block)(
        block.norm_attention(tokens), keys, keys, attn_mask=~seen.repeat_interleave(4, 0), need_weights=False
    )[0]
    expected = tokens + attended
    expected = expected + block.mlp(block.norm_mlp(expected))
    torch.testing.assert_close(block(tokens, seen, context), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_attention_gives_what_the_blocks_make_of_all_tokens(depth):
    torch.manual_seed(0)
    fusion = AttentionFusion(COLUMNS, DIM, depth=depth).eval()
    tokens, present = make_inputs()
    asked = []
    fusion.blocks[-1].register_forward_hook(lambda _module, inputs, _output: asked.append(inputs[0].shape[1]))
    with torch.no_grad():
        fused = fusion(tokens, present)
        assert asked == [1]  # the last block answers the query alone until somebody asks for more
        for row in range(len(present[COLUMNS[0]])):
            parts = placed(fusion, tokens, present, row)
            whole = torch.cat([fusion.query.view(1, 1, -1), *parts], 1)
            for block in fusion.blocks:
                whole = by_torch(block, whole, whole)
            whole = fusion.norm(whole)
            torch.testing.assert_close(fused.pooled[row], whole[0, 0], atol=1e-5, rtol=0)
            sizes = [part.shape[1] for part in parts]
            for found, expected in present_parts(fused, whole[:, 1:].split(sizes, 1), present, row):
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert asked == [1, sum(part.values.shape[1] for part in fused.tokens.values())]


def test_cross_attention_is_each_columns_attention_to_the_others():
    torch.manual_seed(0)
    fusion = CrossAttentionFusion(COLUMNS, DIM, depth=2).eval()
    tokens, present = make_inputs()
    with torch.no_grad():
        fused = fusion(tokens, present)
        for row in range(len(present[COLUMNS[0]])):
            parts = placed(fusion, tokens, present, row)
            for block in fusion.blocks:
                others = [torch.cat(parts[:place] + parts[place + 1 :], 1) for place in range(len(parts))]
                parts = [by_torch(block, part, rest) for part, rest in zip(parts, others, strict=True)]
            everything = torch.cat(parts, 1)
            for found, expected in present_parts(fused, parts, present, row):
                torch.testing.assert_close(found, fusion.norm(expected), atol=1e-5, rtol=0)
            pooled = fusion.norm(by_torch(fusion.reader, fusion.query.view(1, 1, -1), everything))[0, 0]
            torch.testing.assert_close(fused.pooled[row], pooled, atol=1e-5, rtol=0)


def test_a_single_column_attends_to_itself():
    torch.manual_seed(0)
    fusion = CrossAttentionFusion(COLUMNS[2:], DIM, depth=1).eval()
    values = torch.randn(2, 3, DIM)
    there = torch.ones(2, 3, dtype=torch.bool)
    with torch.no_grad():
        fused = fusion({COLUMNS[2]: Tokens(values, there)}, {COLUMNS[2]: there[:, 0]})
        own = values + fusion.column[0]
        expected = fusion.norm(by_torch(fusion.blocks[0], own, own))
    torch.testing.assert_close(fused.tokens[COLUMNS[2]].values, expected, atol=1e-5, rtol=0)


def test_bottleneck_is_each_columns_attention_to_itself_and_the_shared_tokens():
    torch.manual_seed(0)
    fusion = BottleneckFusion(COLUMNS, DIM, depth=3, num_latents=2).eval()
    tokens, present = make_inputs()
    with torch.no_grad():
        fused = fusion(tokens, present)
        for row in range(len(present[COLUMNS[0]])):
            parts, shared = placed(fusion, tokens, present, row), fusion.latents.unsqueeze(0)
            for block in fusion.blocks:
                copies = [by_torch(block, shared, part) for part in parts]
                parts = [by_torch(block, part, torch.cat([part, shared], 1)) for part in parts]
                counting = [copy for copy, name in zip(copies, COLUMNS, strict=True) if present[name][row]]
                shared = torch.stack(counting).mean(0)
            everything = torch.cat([*parts, shared], 1)
            for found, expected in present_parts(fused, parts, present, row):
                torch.testing.assert_close(found, fusion.norm(expected), atol=1e-5, rtol=0)
            pooled = fusion.norm(by_torch(fusion.reader, fusion.query.view(1, 1, -1), everything))[0, 0]
            torch.testing.assert_close(fused.pooled[row], pooled, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("depth", "flows"), [(1, False), (2, True)])
def test_columns_exchange_through_the_shared_tokens_alone(depth, flows):
    """What one column tells is in the shared tokens after a block, and in the other columns after the next."""
    torch.manual_seed(0)
    fusion = BottleneckFusion(COLUMNS[:2], DIM, depth=depth).eval()
    there = torch.ones(1, 1, dtype=torch.bool)
    one, two, other = (Tokens(torch.randn(1, 1, DIM), there) for _ in range(3))
    present = dict.fromkeys(COLUMNS[:2], there[0])
    with torch.no_grad():
        before = fusion({COLUMNS[0]: one, COLUMNS[1]: two}, present)
        after = fusion({COLUMNS[0]: one, COLUMNS[1]: other}, present)
    first, second = ([fused.tokens[name].values for fused in (before, after)] for name in COLUMNS[:2])
    assert not torch.allclose(*second) and not torch.allclose(before.pooled, after.pooled)
    assert torch.equal(*first) != flows
