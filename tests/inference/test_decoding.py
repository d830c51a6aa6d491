"""Decoding beside transformers' `generate`: greedy, beams; draws by row; batches as one by one."""

import numpy as np
import pytest
import torch

from fusetune.backbones.language import Embedded, LanguageModel
from fusetune.backbones.load_language import load_language
from fusetune.inference.decoding import Decoding, beam_search, decode
from fusetune.testing.tiny_models import WRITERS

PROMPTS = [[7, 8, 9, 10, 11], [12], [13, 14, 15], [16, 17]]


def embedded(language: LanguageModel, prompts) -> Embedded:
    longest = max(map(len, prompts))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in prompts])
    return Embedded(language.embed(ids), torch.tensor([len(row) for row in prompts]))


@pytest.fixture(scope="module", params=WRITERS)
def language(request, tiny) -> LanguageModel:
    model = load_language(tiny(request.param)).eval()
    with torch.no_grad():  # so that tokens differ, and some answers end early
        torch.manual_seed(1)
        model.model.get_output_embeddings().weight.normal_(0, 0.7)
    return model


def written(language, prompts, decoding, ids=None):
    answers, scores = [[] for _ in prompts], np.zeros(len(prompts))
    with torch.no_grad():
        for step in decode(language, embedded(language, prompts), decoding, list(ids or range(len(prompts)))):
            for row, token in zip(step.rows, step.ids, strict=True):
                answers[row].append(int(token))
            scores[step.rows] += step.log_probabilities
    return answers, scores


def theirs(language, prompt, **options):
    ids = torch.tensor([prompt])
    end = language.end_ids[0]
    with torch.no_grad():
        out = language.model.generate(
            ids, max_new_tokens=8, do_sample=False, eos_token_id=end, pad_token_id=0, **options
        )
    new = out[0, 1:] if language.seq2seq else out[0, len(prompt) :]
    ids = new.tolist()
    return ids[: ids.index(end) + 1] if end in ids else ids


def test_greedy_answers_are_those_of_transformers(language):
    answers, _ = written(language, PROMPTS, Decoding(8))
    assert answers == [theirs(language, prompt) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in answers}) > 1


def test_beams_are_those_of_transformers(language):
    found = beam_search(language, embedded(language, PROMPTS), Decoding(8, beams=3))
    assert found == [theirs(language, prompt, num_beams=3) for prompt in PROMPTS]


def test_log_probabilities_are_those_of_the_answers(language):
    answers, scores = written(language, PROMPTS, Decoding(8))
    longest = max(map(len, answers))
    padded = torch.tensor([[*row, *[-1] * (longest - len(row))] for row in answers])
    with torch.no_grad():
        expected = language.log_likelihoods(embedded(language, PROMPTS), padded)[..., 0].sum(1)
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("options", [{"top_p": 0.8}, {"top_k": 5}, {}])
def test_draws_depend_on_seed_and_row_alone(language, options):
    decoding = Decoding(8, temperature=1.0, seed=3, **options)
    together, _ = written(language, PROMPTS, decoding, ids=[5, 6, 7, 8])
    alone = [
        written(language, [prompt], decoding, ids=[row])[0][0]
        for prompt, row in zip(PROMPTS, [5, 6, 7, 8], strict=True)
    ]
    assert together == alone
    others, _ = written(language, PROMPTS, Decoding(8, temperature=1.0, seed=4, **options), ids=[5, 6, 7, 8])
    assert others != together


def test_draws_follow_the_probabilities(tiny):
    language = load_language(tiny("llama_writer")).eval()
    prompt = [PROMPTS[0]] * 400
    answers, _ = written(language, prompt, Decoding(1, temperature=1.0))
    with torch.no_grad():
        logits = language.model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
    share = np.bincount([answer[0] for answer in answers], minlength=len(logits)) / 400
    assert np.abs(share - logits.softmax(-1).numpy()).sum() < 0.45  # about 0.26 by chance


def test_top_k_of_one_is_greedy(language):
    greedy, _ = written(language, PROMPTS, Decoding(6))
    assert written(language, PROMPTS, Decoding(6, temperature=2.0, top_k=1))[0] == greedy
    assert written(language, PROMPTS, Decoding(6, temperature=1.0, top_p=1e-6))[0] == greedy


def test_suppressed_tokens_are_never_written_and_probabilities_stay_the_models(language, monkeypatch):
    answers, _ = written(language, PROMPTS, Decoding(8))
    first = answers[0][0]
    monkeypatch.setattr(language, "suppressed", [first])
    others, scores = written(language, PROMPTS, Decoding(8))
    drawn, _ = written(language, PROMPTS, Decoding(8, temperature=1.0))
    assert all(first not in answer for answer in [*others, *drawn]) and others != answers
    longest = max(map(len, others))
    padded = torch.tensor([[*row, *[-1] * (longest - len(row))] for row in others])
    with torch.no_grad():
        expected = language.log_likelihoods(embedded(language, PROMPTS), padded)[..., 0].sum(1)
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-4)
