"""Chats of which all of the assistant's messages are learned in one pass."""

import shutil

import pytest
import torch

from fusetune.backbones.load_language import load_language
from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.errors import BadCell, ConfigError
from fusetune.modalities.prompt import PromptModality
from fusetune.models.build import build_model, give_tokenizers
from fusetune.tasks.text.task import GenerateTask

TURNS = "{% for m in messages %}[CLS] {{ m.content }} [SEP] {% endfor %}{% if add_generation_prompt %}[CLS] {% endif %}"
FORGETS = (
    "{% for m in messages %}[CLS] {% if loop.last or m.role == 'user' %}{{ m.content }}{% else %}"
    "{{ m.content.split('w30')[-1] }}{% endif %} [SEP] {% endfor %}{% if add_generation_prompt %}[CLS] {% endif %}"
)
"""Without the reasoning, which ends in w30, of earlier turns."""


def chat(*texts: str, weights: dict[int, int] | None = None) -> list[dict[str, object]]:
    messages = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
    for at, weight in (weights or {}).items():
        messages[at]["weight"] = weight
    return messages


@pytest.fixture(scope="module", params=["llama_writer", "gpt2_writer"])
def folder(request, tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("turns") / request.param
    shutil.copytree(tiny(request.param), path)
    (path / "chat_template.jinja").write_text(TURNS)
    return path


def modality(folder, **options) -> PromptModality:
    return PromptModality("prompt", backbone=load_language(str(folder)), messages="chat", join=["chat"], **options)


def scores(folder, chats, turns: str) -> torch.Tensor:
    """Return the log-probabilities of the learned tokens, summed by row, and their number, (rows, 2)."""
    table = Table.from_records([{"chat": cell} for cell in chats]).with_joined({"prompt": ["chat"]})
    task = GenerateTask("chat")
    task.look(chats)
    task.prompt = "prompt"
    modalities = {"prompt": modality(folder, turns=turns)}
    give_tokenizers({"chat": task}, modalities)
    examples = Examples(table, modalities, {"chat": task})
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    model = build_model(modalities, {"chat": task}, NamedConfig(name="attention")).eval()
    batch = examples.batch(examples.used)
    with torch.no_grad():
        sums = model(batch).logits["chat"][..., 0].sum(1)
    return torch.stack([sums, batch.targets["chat"].sizes], 1)


def test_all_turns_in_one_pass_are_each_turn_by_itself(folder):
    long = chat("w1 w2", "w3", "w4", "w5 w6", "w7 w8", "w9")
    short = chat("w1", "w2 w3 w4")
    together = scores(folder, [long, short], "all")
    alone = scores(folder, [long[:2], long[:4], long, short], "last")
    torch.testing.assert_close(together, torch.stack([alone[:3].sum(0), alone[3]]), atol=1e-5, rtol=1e-5)


def test_messages_with_the_weight_0_are_read_and_not_learned(folder):
    plain, unweighted = (chat("w1 w2", "w3", "w4", "w5 w6", weights=weights) for weights in ({}, {1: 0}))
    both = scores(folder, [plain, unweighted], "all")
    alone = scores(folder, [plain[:2], plain], "last")
    torch.testing.assert_close(both, torch.stack([alone.sum(0), alone[1]]), atol=1e-5, rtol=1e-5)


def test_the_prompt_is_that_of_the_last_turn_and_keeps_the_latest_turns(folder):
    cell = chat("w1 w2", "w3", "w4", "w5 w6", "w7", "w8")
    every, last = modality(folder, turns="all"), modality(folder)
    full = len(last.decode([cell], row=0, base_dir=None))
    for most in (full, full - 1, 9):
        every.max_tokens = last.max_tokens = most
        every._turn_ids.clear()
        ids = every.decode([cell], row=0, base_dir=None)
        assert ids.tolist() == last.decode([cell], row=0, base_dir=None).tolist() and len(ids) <= most
        marked = every.earlier_turns([cell])
        assert [-2 - token if token < 0 else token for token in marked] == ids[len(ids) - len(marked) :].tolist()
        texts = every.backbone.decode([token for token in marked if token >= 0])
        assert ("w5 w6" in texts) == (most > 9) and ("w3" in texts) == (most == full)
        assert "w4" not in texts and "w8" not in texts


def test_a_template_that_changes_earlier_turns_is_refused_by_row(folder, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    (path / "chat_template.jinja").write_text(FORGETS)
    every = modality(path, turns="all")
    every.decode([chat("w1", "w2", "w3", "w4")], row=0, base_dir=None)
    with pytest.raises(BadCell, match="another way"):
        every.decode([chat("w1", "w9 w30 w2", "w3", "w4")], row=7, base_dir=None)


def test_other_models_and_other_targets_have_no_turns(tiny):
    with pytest.raises(ConfigError, match="decoder"):
        modality(tiny("t5_writer"), turns="all")
    with pytest.raises(ConfigError, match="chats"):
        PromptModality("prompt", backbone=load_language(tiny("llama_writer")), template="{a}", join=["a"], turns="all")
