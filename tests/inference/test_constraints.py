"""What a constrained language model can write."""

import json
import re

import pytest
import torch

pytest.importorskip("llguidance")

from fusetune.backbones.language import Embedded
from fusetune.backbones.load_language import load_language
from fusetune.errors import ConfigError
from fusetune.inference.constraints import grammar_of
from fusetune.inference.decoding import Decoding, decode
from fusetune.inference.write import stream_prompt

REGEXES = [r"w1", r"w1( w2)*", r"(w3|w4 w5|w6 w7 w8)", r"w9( w8| w7){2}", r"(w5 )?w6( w7)?"]


@pytest.fixture(scope="module", params=["llama_writer", "gpt2_writer", "t5_writer"])
def language(request, tiny):
    language = load_language(tiny(request.param)).eval()
    with torch.no_grad():
        torch.manual_seed(2)
        for parameter in language.model.parameters():
            parameter.normal_(0, 0.5)
    return language


@torch.no_grad()
def answers(language, decoding, rows=4):
    """Return each row's text and whether it ended by itself."""
    torch.manual_seed(0)
    prompt = Embedded(language.embed(torch.randint(4, 40, (rows, 3))), torch.tensor([3] * rows))
    ids, ended, stuck = [[] for _ in range(rows)], [False] * rows, set()
    for step in decode(language, prompt, decoding, range(rows), stuck=stuck):
        for row, token, end in zip(step.rows, step.ids, step.ended, strict=True):
            ids[row].append(int(token))
            ended[row] = bool(end) and row not in stuck
    return [(language.decode(own).strip(), end) for own, end in zip(ids, ended, strict=True)]


@pytest.mark.parametrize("regex", REGEXES)
@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_nothing_but_the_expression_is_written(language, regex, temperature):
    for seed in range(1 if not temperature else 4):
        decoding = Decoding(12, temperature=temperature, seed=seed, grammar=grammar_of(regex, None))
        for text, ended in answers(language, decoding):
            if ended:
                assert re.fullmatch(regex, text), text
            else:  # as long as it may be, within an expression without a bound
                assert "*" in regex and re.match(regex, text), text


def test_an_answer_as_long_as_allowed_ends_within_the_expression(language):
    texts = answers(language, Decoding(2, grammar=grammar_of("w1 w2 w3 w4", None)))
    assert set(texts) == {("w1 w2", False)}


def test_answers_that_no_token_continues_end(language):
    for text, ended in answers(language, Decoding(12, temperature=2.0, grammar=grammar_of("w1x|w1 w2y|w3", None))):
        assert (text == "w3") if ended else text in ("w1", "w1 w2")


def test_a_stream_is_constrained(language):
    prompt = Embedded(language.embed(torch.tensor([[7, 8]])), torch.tensor([2]))
    pieces = stream_prompt(language, prompt, Decoding(8, grammar=grammar_of("w9 w8", None)), row=0)
    assert "".join(pieces) == "w9 w8"


@pytest.mark.parametrize("regex", ["(a", "(?=a)b", r"(a)\1", "[z-a]"])
def test_expressions_that_are_none_are_refused(regex):
    with pytest.raises(ConfigError, match="regex"):
        grammar_of(regex, None)


def test_schemas_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="json_schema"):
        grammar_of("", {"type": "objct"})
    assert json.loads(json.dumps(grammar_of("", {"type": "object", "properties": {"a": {"type": "integer"}}})))
    assert grammar_of("", None) is None
