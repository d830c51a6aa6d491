"""The head for masked tokens is that of transformers' models, with the checkpoint's weights or tied word embeddings."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForMaskedLM

from fusetune.backbones.load import load_backbone
from fusetune.backbones.masked_head import MaskedHead
from fusetune.backbones.word_embeddings import word_embeddings
from fusetune.errors import ConfigError


def inputs_of(encoder, texts):
    return encoder.collate_text([encoder.tokenize(text) for text in texts])


def test_a_checkpoints_head_gives_its_models_logits_and_loss(tiny):
    folder = tiny("bert_mlm")
    encoder, model = load_backbone(folder, "text"), AutoModelForMaskedLM.from_pretrained(folder).eval()
    head = MaskedHead(encoder).eval()
    tensors = inputs_of(encoder, ["w1 w2 w3 w4", "w5 w6"])
    masked = tensors["input_ids"].clone()
    masked[0, 2] = masked[1, 1] = head.mask_id
    chosen = masked == head.mask_id
    with torch.no_grad():
        hidden, _, _ = encoder.hidden_states(**{**tensors, "input_ids": masked})
        ours = head(hidden[chosen])
        labels = tensors["input_ids"].masked_fill(~chosen, -100)
        theirs = model(input_ids=masked, attention_mask=tensors["attention_mask"], labels=labels)
    assert not head.is_new and ours.shape == (2, head.num_tokens)
    assert torch.allclose(ours, theirs.logits[chosen], atol=1e-5)
    loss = torch.nn.functional.cross_entropy(ours, tensors["input_ids"][chosen])
    assert float(loss) == pytest.approx(float(theirs.loss), abs=1e-5)


def test_a_new_head_is_tied_to_the_word_embeddings_without_owning_them(tiny):
    encoder = load_backbone(tiny("bert_with_mask"), "text")
    head, table = MaskedHead(encoder).eval(), word_embeddings(encoder).weight
    assert head.is_new and not any(parameter is table for parameter in head.parameters())
    hidden = torch.randn(3, encoder.dim, requires_grad=True)
    before = head(hidden)
    before.sum().backward()
    assert table.grad is not None and table.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in head.parameters())
    with torch.no_grad():
        table.mul_(2)
        head.bias.zero_()
        assert torch.allclose(head(hidden), 2 * before, atol=1e-5), "the embeddings are those of the encoder"


def test_a_new_heads_bias_starts_as_the_tokens_frequencies(tiny):
    head, counts = MaskedHead(load_backbone(tiny("bert_with_mask"), "text")), torch.zeros(45)
    counts[5] = 55
    head.set_frequencies(counts)
    frequencies = head.bias.detach().exp()
    assert float(frequencies.sum()) == pytest.approx(1) and float(frequencies[5]) == pytest.approx(56 / 100)
    own = MaskedHead(load_backbone(tiny("bert_mlm"), "text"))
    before = own.bias.clone()
    own.set_frequencies(counts)
    assert torch.equal(own.bias, before), "a checkpoint's bias stays"


@pytest.mark.parametrize("name", ["bert", "t5", "gpt2"])
def test_an_encoder_without_a_mask_token_is_refused(tiny, name):
    with pytest.raises(ConfigError, match=r"mask token(.|\n)*simcse"):
        MaskedHead(load_backbone(tiny(name), "text"))


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "albert", "electra", "deberta-v2", "mpnet", "modernbert"])
def test_heads_of_other_models_are_found(tmp_path, kind):
    from transformers import AutoConfig

    from fusetune.testing.tiny_masked import add_mask_token
    from fusetune.testing.tiny_models import SMALL, VOCAB

    sizes = dict(SMALL) if kind != "distilbert" else {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
    if kind == "modernbert":
        sizes |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(
        AutoConfig.for_model(kind, vocab_size=len(VOCAB) + 1, max_position_embeddings=40, **sizes)
    ).eval()
    model.save_pretrained(tmp_path)
    add_mask_token(tmp_path)
    encoder = load_backbone(str(tmp_path), "text")
    head, tensors = MaskedHead(encoder).eval(), inputs_of(encoder, ["w1 w2 w3 w4"])
    with torch.no_grad():
        hidden, _, _ = encoder.hidden_states(**tensors)
        assert not head.is_new
        assert torch.allclose(head(hidden[0]), model(**tensors).logits[0], atol=1e-4)
