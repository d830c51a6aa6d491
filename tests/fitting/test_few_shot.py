"""An untuned model whose prompt begins with answered train rows."""

import shutil

import numpy as np
import pytest

from fusetune.backbones.load_language import load_language
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.fitting.few_shot import with_answered_rows
from fusetune.modalities.prompt import PromptModality
from fusetune.models.build import give_tokenizers
from fusetune.tasks.text.task import GenerateTask
from fusetune.training.probes.probe import SplitRows

ROWS = [{"a": f"w{number} w{number + 1}", "out": f"w2{number}"} for number in range(1, 9)]
CHAT = "{% for m in messages %}[CLS] {{ m.content }} [SEP] {% endfor %}{% if add_generation_prompt %}[CLS] {% endif %}"


def parts(folder, template="w30 {a} w31"):
    table = Table.from_records(ROWS).with_joined({"prompt": ["a"]})
    task = GenerateTask("out")
    task.prompt = "prompt"
    prompt = PromptModality("prompt", backbone=load_language(str(folder)), join=["a"], template=template)
    give_tokenizers({"out": task}, {"prompt": prompt})
    examples = Examples(table, {"prompt": prompt}, {"out": task})
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    return examples, task, SplitRows.of("out", examples, {})


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    chat = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(tiny("llama_writer"), chat)
    (chat / "chat_template.jinja").write_text(CHAT)
    return {"plain": tiny("llama_writer"), "chat": chat, "t5": tiny("t5_writer")}


@pytest.mark.parametrize("name", ["plain", "chat", "t5"])
def test_prompts_begin_with_answered_rows(folders, name):
    examples, task, train = parts(folders[name])
    shown, num = with_answered_rows(examples, examples.used, task, train, num=2, answer_tokens=4, seed=0)
    assert num == 2
    before, after = (own.columns["prompt"] for own in (examples, shown))
    decode = before.modality.backbone.decode
    first, second = (
        [decode(ids.tolist()).removeprefix("[CLS] ") for ids in column.examples(column.codes)]
        for column in (before, after)
    )
    answered = {f"{row['a']} w31 {row['out']}" for row in ROWS}
    for own, longer in zip(first, second, strict=True):
        assert longer.endswith(own) and longer.count("w30") == 3
        assert sum(text in longer for text in answered) == 2
    assert len({text[: -len(own)] for own, text in zip(first, second, strict=True)}) == 1


def test_fewer_rows_or_none_where_no_more_fit(folders):
    examples, task, train = parts(folders["plain"])
    sizes = []
    for answer_tokens in (4, 40, 60, 90):
        shown = with_answered_rows(examples, examples.used, task, train, num=8, answer_tokens=answer_tokens, seed=0)
        sizes.append(0 if shown is None else shown[1])
        if shown is not None:
            column = shown[0].columns["prompt"]
            longest = int(column.costs(np.unique(column.codes)).max())
            assert longest + answer_tokens <= 96 and longest <= column.modality.max_tokens
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[2] and sizes[3] == 0
