"""`LanguageModel` beside transformers: log-likelihoods, padding, files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model, save_file, save_model
from transformers import AutoModelForSeq2SeqLM

from fusetune.backbones.adapters import adapt
from fusetune.backbones.language import Embedded, LanguageModel
from fusetune.backbones.load import restore_backbone
from fusetune.backbones.load_language import load_language
from fusetune.config.adapter import AdapterConfig
from fusetune.errors import BackboneError
from fusetune.testing.tiny_models import VOCAB, WRITERS

PROMPTS = [[7, 8, 9, 10, 11], [12], [13, 14, 15]]
ANSWERS = [[20, 3], [21, 22, 23, 24, 3], [25, 26, 3]]


def padded(rows, filler):
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])


def scores(language: LanguageModel, prompts, answers):
    prompt = Embedded(language.embed(padded(prompts, 0)), torch.tensor([len(row) for row in prompts]))
    return language.log_likelihoods(prompt, padded(answers, -1))


@pytest.fixture(scope="module", params=WRITERS)
def language(request, tiny) -> LanguageModel:
    return load_language(tiny(request.param)).eval()


def test_log_likelihoods_are_those_of_transformers(language):
    found = scores(language, PROMPTS, ANSWERS)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        ids, labels = torch.tensor([prompt]), torch.tensor([answer])
        if language.seq2seq:
            logits = language.model(input_ids=ids, labels=labels).logits[0]
        else:
            logits = language.model(input_ids=torch.cat([ids, labels], 1)).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)
        torch.testing.assert_close(found[row, : len(answer), 0], expected[range(len(answer)), answer])
        torch.testing.assert_close(found[row, : len(answer), 1], expected.mean(-1))
        assert not found[row, len(answer) :].any()


def test_rows_of_a_batch_are_as_one_by_one(language):
    together = scores(language, PROMPTS, ANSWERS)
    for row, pair in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        alone = scores(language, [pair[0]], [pair[1]])[0]
        torch.testing.assert_close(together[row, : len(pair[1])], alone)


def test_the_head_in_pieces_gives_the_same_numbers_and_gradients(language, monkeypatch):
    def gradient():
        language.zero_grad()
        found = scores(language, PROMPTS, ANSWERS)
        found[..., 0].sum().backward()
        return found.detach(), language.model.get_input_embeddings().weight.grad.clone()

    whole = gradient()
    monkeypatch.setattr("fusetune.backbones.language.CHUNK", 2 * language.vocabulary)
    for one, other in zip(whole, gradient(), strict=True):
        torch.testing.assert_close(one, other)


def test_padding_moves_before_prompts_that_are_continued():
    values = torch.arange(12.0).view(2, 3, 2)
    moved, mask = Embedded(values, torch.tensor([3, 1])).at_the_end()
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert torch.equal(moved[0], values[0]) and torch.equal(moved[1, 2], values[1, 0])


def test_blocks_hold_each_parameter_once(language):
    ids = [id(p) for _, block in language.blocks() for p in block.parameters()]
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in language.model.parameters()}


def test_an_adapter_on_all_linear_layers_leaves_the_head_alone(tiny):
    language = load_language(tiny("llama_writer"))
    before = scores(language, PROMPTS, ANSWERS)
    adapt(language, AdapterConfig(name="lora", rank=2, targets="linear"))
    assert language.adapted and not any("lm_head" in path for path in language.adapted)
    torch.testing.assert_close(scores(language, PROMPTS, ANSWERS), before)


def test_a_saved_model_is_restored_with_its_head(language, tmp_path: Path):
    language.save(tmp_path)
    restored = restore_backbone(tmp_path)
    assert isinstance(restored, LanguageModel)
    restored.load_state_dict(language.state_dict())
    torch.testing.assert_close(scores(restored.eval(), PROMPTS, ANSWERS), scores(language, PROMPTS, ANSWERS))
    assert restored.end_ids == [VOCAB["[SEP]"]]


def test_a_head_of_its_own_is_saved_and_restored(tiny, tmp_path: Path):
    """T5's configs say in transformers that the head is tied, which flan-t5's is not."""
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny("t5_writer"))
    shutil.copytree(tiny("t5_writer"), tmp_path / "own")
    weights = {name: value.clone() for name, value in model.state_dict().items() if "embed_tokens" not in name}
    weights["lm_head.weight"] = torch.randn_like(weights["lm_head.weight"])
    save_file(weights, tmp_path / "own" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "own" / "config.json").read_text()) | {"tie_word_embeddings": False}
    config.pop("scale_decoder_outputs", None)
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    language = load_language(str(tmp_path / "own")).eval()
    language.save(tmp_path / "saved")
    restored = restore_backbone(tmp_path / "saved").eval()
    save_model(language, str(tmp_path / "weights.safetensors"))
    load_model(restored, str(tmp_path / "weights.safetensors"))
    torch.testing.assert_close(scores(restored, PROMPTS, ANSWERS), scores(language, PROMPTS, ANSWERS))
    assert not language.config.scale_decoder_outputs and not restored.config.scale_decoder_outputs
    restored.save(tmp_path / "again")
    assert not json.loads((tmp_path / "again" / "backbone.json").read_text())["tied"]


@pytest.mark.parametrize("name", ["bert", "vit", "llama"])
def test_models_that_cannot_write_are_refused(tiny, name):
    with pytest.raises(BackboneError):
        load_language(tiny(name))


def test_a_tokenizer_without_an_end_is_refused(tiny, tmp_path: Path):
    import shutil

    folder = tmp_path / "endless"
    shutil.copytree(tiny("llama_writer"), folder)
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text())
        content.pop("eos_token", None)
        content["eos_token_id"] = None
        (folder / name).write_text(json.dumps(content))
    with pytest.raises(BackboneError, match="ends a text"):
        load_language(str(folder)).frame("auto", "", ends_in_space=False)
