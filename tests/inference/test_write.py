"""Answers of rows: order, equal rows once, choices, stop texts, streams."""

import numpy as np
import pytest
import torch

from fusetune.backbones.load_language import load_language
from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.inference import write as writing
from fusetune.inference.decoding import Decoding
from fusetune.inference.token_loss import token_losses
from fusetune.inference.write import stream, write
from fusetune.modalities.prompt import PromptModality
from fusetune.models.build import build_model, give_tokenizers
from fusetune.tasks.text.task import GenerateTask

TEXTS = ["w1 w2 w3", "w4", "w5 w6", "w4", "w7 w8 w9 w10 w11 w12", "w13 w14"]


@pytest.fixture(scope="module", params=["llama_writer", "t5_writer"])
def parts(request, tiny):
    table = Table.from_records([{"a": text, "out": "w1 w2"} for text in TEXTS]).with_joined({"prompt": ["a"]})
    language = load_language(tiny(request.param))
    with torch.no_grad():
        torch.manual_seed(1)
        for parameter in language.model.parameters():
            parameter.normal_(0, 0.5)
    prompt = PromptModality("prompt", backbone=language, join=["a"], template="{a}")
    task = GenerateTask("out")
    task.prompt = "prompt"
    give_tokenizers({"out": task}, {"prompt": prompt})
    examples = Examples(table, {"prompt": prompt}, {"out": task})
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    return build_model({"prompt": prompt}, {"out": task}, NamedConfig()), task, examples


def answers(parts, decoding=Decoding(8), rows=None):  # noqa: B008
    model, task, examples = parts
    return write(model, "out", task, examples, examples.used if rows is None else np.array(rows), decoding)


def test_answers_come_in_the_rows_order_whatever_the_batches(parts, monkeypatch):
    together = answers(parts)
    monkeypatch.setattr(writing, "ROWS", {"cpu": 2})
    by_two = answers(parts)
    alone = [answers(parts, rows=[row]).texts[0] for row in range(len(TEXTS))]
    assert list(together.texts) == list(by_two.texts) == alone
    np.testing.assert_allclose(together.log_probabilities, by_two.log_probabilities, atol=1e-4)
    assert answers(parts, rows=[5, 0]).texts.tolist() == [alone[5], alone[0]]


def test_equal_rows_are_written_once_unless_drawn(parts, monkeypatch):
    rows = []
    original = writing._written

    def counted(model, name, task, batch, decoding):
        rows.append(len(batch))
        return original(model, name, task, batch, decoding)

    monkeypatch.setattr(writing, "_written", counted)
    found = answers(parts)
    assert sum(rows) == len(set(TEXTS)) and found.texts[1] == found.texts[3]
    rows.clear()
    answers(parts, Decoding(4, temperature=1.0))
    assert sum(rows) == len(TEXTS)


def test_why_an_answer_ends_is_told(parts):
    found = answers(parts, Decoding(2))
    assert set(found.finish) <= {"end", "length"} and "length" in set(answers(parts, Decoding(1)).finish)


def test_answers_end_before_stop_texts(parts):
    whole = answers(parts)
    row = int(np.argmax([len(set(text.split())) for text in whole.texts]))
    words = whole.texts[row].split()
    stop = next(word for word in words[1:] if word != words[0])
    found = answers(parts, Decoding(8, stop=(stop,)))
    assert found.texts[row] == whole.texts[row].split(stop)[0].strip() and found.finish[row] == "stop"


def test_choices_are_compared_by_their_likelihood(parts):
    model, task, examples = parts
    choices = ("w1", "w2 w3", "w20 w21 w22")
    found = answers(parts, Decoding(8, choices=choices))
    scores = []
    for choice in choices:
        table = Table.from_records([{"a": text, "out": choice} for text in TEXTS]).with_joined({"prompt": ["a"]})
        other = Examples(table, {"prompt": examples.columns["prompt"].modality}, {"out": task})
        other.prepare(on_bad_cell="reject")
        task.max_tokens = 8
        scores.append(-token_losses(model, "out", other, other.used)[0])
    best = np.stack(scores, 1)
    assert list(found.texts) == [choices[index] for index in best.argmax(1)] and set(found.finish) == {"choice"}
    expected = best - np.log(np.exp(best).sum(1, keepdims=True))
    np.testing.assert_allclose(found.log_probabilities, expected.max(1), atol=1e-4)


def test_a_stream_s_pieces_are_the_answer(parts):
    model, task, examples = parts
    whole = answers(parts)
    for row in range(3):
        pieces = list(stream(model, "out", task, examples, Decoding(8), index=row))
        assert "".join(pieces) == whole.texts[row]
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    word = whole.texts[0].split()[-1]
    assert (
        "".join(stream(model, "out", task, examples, Decoding(8, stop=(word,))))
        == whole.texts[0].split(word)[0].strip()
    )


def test_no_rows_have_no_answers(parts):
    assert len(answers(parts, rows=[]).texts) == 0
