"""A plain folder beside the model that it was written from: transformers loads it, and it answers the same."""

import copy

import numpy as np
import pytest
import torch
import transformers

from fusetune.backbones.adapters import adapt
from fusetune.backbones.load_language import load_language
from fusetune.config.adapter import AdapterConfig
from fusetune.config.config import Config
from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.schema import Schema
from fusetune.data.table import Table
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.export.transformers_folder import save_transformers
from fusetune.errors import ConfigError
from fusetune.inference.decoding import Decoding
from fusetune.inference.write import write
from fusetune.modalities.prompt import PromptModality
from fusetune.models.build import build_model, give_tokenizers
from fusetune.tasks.text.task import GenerateTask

TEXTS = ["w1 w2 w3", "w4", "w5 w6", "w7 w8 w9 w10 w11 w12", "w13 w14"]
TEMPLATE = (
    "{% for turn in messages %}{{ 'w30 ' if turn['role'] == 'user' else 'w31 ' }}"
    "{{ turn['content'] }} [SEP] {% endfor %}{% if add_generation_prompt %}w31 {% endif %}"
)


def made(folder, *, adapter=False, chat=False):
    """Return a bundle of a language model with random weights, and its rows."""
    language = load_language(str(folder))
    if chat:
        language.tokenizer.chat_template = TEMPLATE
    if adapter:
        adapt(language, AdapterConfig(name="lora", rank=4))
    with torch.no_grad():
        torch.manual_seed(1)
        for parameter in language.model.parameters():
            parameter.normal_(0, 0.5)
    table = Table.from_records([{"a": text, "out": "w1 w2"} for text in TEXTS]).with_joined({"prompt": ["a"]})
    prompt = PromptModality("prompt", backbone=language, join=["a"], template="w20 {a}\nw21")
    task = GenerateTask("out")
    task.prompt = "prompt"
    give_tokenizers({"out": task}, {"prompt": prompt})
    examples = Examples(table, {"prompt": prompt}, {"out": task})
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    task.max_tokens = 9
    model = build_model({"prompt": prompt}, {"out": task}, NamedConfig())
    return Bundle(model, {"prompt": prompt}, {"out": task}, Schema({}, {}), Config()), examples


CASES = {
    "decoder": ("llama_writer", {}),
    "adapter": ("llama_writer", {"adapter": True}),
    "chat": ("llama_writer", {"chat": True}),
    "learned positions": ("gpt2_writer", {}),
    "encoder-decoder": ("t5_writer", {}),
    "encoder-decoder with an adapter": ("t5_writer", {"adapter": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_transformers_answers_the_same(tiny, tmp_path, case):
    name, options = CASES[case]
    bundle, examples = made(tiny(name), **options)
    task, language = bundle.tasks["out"], bundle.model.language
    before = copy.deepcopy(bundle.model.state_dict())
    assert save_transformers(bundle, tmp_path) == []
    assert all(value.equal(before[key]) for key, value in bundle.model.state_dict().items())
    auto = transformers.AutoModelForSeq2SeqLM if language.seq2seq else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = write(bundle.model, "out", task, examples, np.arange(len(TEXTS)), Decoding(task.max_tokens))
    assert len(set(ours.texts)) > 1
    for text, answer in zip(TEXTS, ours.texts, strict=True):
        prompt, options = f"w20 {text}\nw21", {"return_tensors": "pt", "return_token_type_ids": False}
        if case == "chat":
            prompt, options["add_special_tokens"] = f"w30 {prompt} [SEP] w31 ", False
            assert tokenizer.chat_template == language.tokenizer.chat_template
        ids = model.generate(**tokenizer(prompt, **options))[0]
        start = 0 if language.seq2seq else len(tokenizer(prompt, **options)["input_ids"][0])
        assert tokenizer.decode(ids[start:], skip_special_tokens=True).strip() == answer


def test_what_the_folder_lacks_is_told(tiny, tmp_path):
    bundle, _ = made(tiny("llama_writer"))
    bundle.modalities["prompt"].soft = ["photo"]
    (note,) = save_transformers(bundle, tmp_path)
    assert "photo" in note and note in (tmp_path / "README.md").read_text()
    with pytest.raises(ConfigError):
        save_transformers(Bundle(torch.nn.Linear(1, 1), {}, {}, Schema({}, {}), Config()), tmp_path)
