"""The conditional random field against sums over all sequences of tags."""

import itertools

import numpy as np
import pytest
import torch

from fusetune.modalities.passages import text_tokens
from fusetune.tasks.entities import crf
from fusetune.tasks.entities.taggers import CrfTagger, Tagger
from fusetune.tasks.entities.tagging import allowed, best_path
from fusetune.tasks.entities.task import EntitiesTask
from fusetune.tasks.token_head import with_shared

TAGS = 5


def scores_of(emissions, transitions, length):
    """Return every sequence of tags of a row's tokens and its score."""
    paths = list(itertools.product(range(TAGS), repeat=length))
    found = []
    for path in paths:
        score = transitions[-2][path[0]] + transitions[-1][path[-1]]
        score = score + sum(emissions[token][tag] for token, tag in enumerate(path))
        found.append(score + sum(transitions[one][two] for one, two in itertools.pairwise(path)))
    return paths, torch.stack(found)


@pytest.fixture
def case():
    torch.manual_seed(0)
    lengths = [4, 1, 3]
    mask = torch.arange(4) < torch.tensor(lengths).unsqueeze(1)
    return torch.randn(3, 4, TAGS), torch.randn(TAGS + 2, TAGS), mask, lengths


def test_the_partition_is_the_sum_over_all_sequences(case):
    emissions, transitions, mask, lengths = case
    expected = [scores_of(emissions[row], transitions, n)[1].logsumexp(0) for row, n in enumerate(lengths)]
    torch.testing.assert_close(crf.log_partition(emissions, transitions, mask), torch.stack(expected))


def test_the_likelihood_is_the_share_of_the_sequences_that_fit(case):
    emissions, transitions, _, lengths = case
    tags = torch.tensor([[1, 2, crf.UNKNOWN, 0], [3, -101, -101, -101], [crf.UNKNOWN, 3, 4, -101]])
    expected = []
    for row, length in enumerate(lengths):
        paths, scores = scores_of(emissions[row], transitions, length)
        known = tags[row, :length].tolist()
        fits = [
            all(tag in (given, given if given >= 0 else tag) for tag, given in zip(path, known, strict=True))
            for path in paths
        ]
        expected.append(scores.logsumexp(0) - scores[torch.tensor(fits)].logsumexp(0))
    found = crf.negative_log_likelihood(emissions, transitions, tags)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)
    assert (found >= 0).all()


def test_marginals_are_sums_over_the_sequences_with_a_tag(case):
    emissions, transitions, mask, lengths = (
        part.double() if part is not case[3] and part.is_floating_point() else part for part in case
    )
    found = crf.log_marginals(emissions, transitions, mask).exp()
    for row, length in enumerate(lengths):
        paths, scores = scores_of(emissions[row], transitions, length)
        shares = scores.softmax(0)
        for token, tag in itertools.product(range(length), range(TAGS)):
            share = sum(float(p) for p, path in zip(shares, paths, strict=True) if path[token] == tag)
            assert float(found[row, token, tag]) == pytest.approx(share, abs=1e-9)


def test_the_best_path_is_the_allowed_one_of_the_highest_score(case):
    emissions, transitions, _, _ = case
    may = allowed(2)
    paths, scores = scores_of(emissions[0], transitions, 4)
    fits = [may[-1, path[0]] and all(may[path[t - 1], path[t]] for t in range(1, 4)) for path in paths]
    best = paths[int(scores.masked_fill(~torch.tensor(fits), -np.inf).argmax())]
    assert tuple(best_path(emissions[0].numpy(), may, transitions=transitions.numpy())) == best


def test_tokens_that_go_on_with_a_word_are_left_out_of_the_sequence():
    emissions, transitions = torch.randn(1, 4, TAGS).double(), torch.randn(TAGS + 2, TAGS).double()
    tags = torch.tensor([[1, crf.PADDING, 2, 0]])
    first = crf.negative_log_likelihood(emissions, transitions, tags)
    kept = crf.negative_log_likelihood(emissions[:, [0, 2, 3]], transitions, tags[:, [0, 2, 3]])
    torch.testing.assert_close(first, kept)
    mask = tags != crf.PADDING
    marginals = crf.log_marginals(emissions, transitions, mask)[:, [0, 2, 3]]
    alone = crf.log_marginals(emissions[:, [0, 2, 3]], transitions, torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(marginals, alone)


def test_extreme_scores_stay_finite():
    for scale in (1e-3, 1e3):
        emissions = (torch.randn(2, 6, TAGS) * scale).requires_grad_()
        transitions = (torch.randn(TAGS + 2, TAGS) * min(scale, 30)).requires_grad_()
        loss = crf.negative_log_likelihood(emissions, transitions, torch.randint(0, TAGS, (2, 6))).sum()
        loss.backward()
        assert loss.isfinite() and emissions.grad.isfinite().all() and transitions.grad.isfinite().all()


def test_gradients_are_those_of_finite_differences():
    emissions = torch.randn(2, 3, TAGS, dtype=torch.double, requires_grad=True)
    transitions = torch.randn(TAGS + 2, TAGS, dtype=torch.double, requires_grad=True)
    tags = torch.tensor([[1, 2, 0], [crf.UNKNOWN, 3, crf.PADDING]])
    assert torch.autograd.gradcheck(crf.negative_log_likelihood, (emissions, transitions, tags))


def tokens_of(*texts):
    tables = []
    for text in texts:
        spans, start = [], 0
        for word in text.split(" "):
            spans.append([0, start, start + len(word)])
            start += len(word) + 1
        tables.append(np.array(spans, dtype=np.int32))
    return text_tokens(tables, [[text] for text in texts])


CELLS = [[(0, 3, "person")], [(0, 2, "place")], None]


def test_without_transitions_the_field_is_a_softmax_a_token():
    tokens = tokens_of("Ada met Bo", "Bo met", "Bo")
    plain, field = Tagger(["person", "place"]), CrfTagger(["person", "place"])
    logits = torch.randn(3, 3, TAGS)
    with_rows = torch.cat([torch.zeros(3, field.num_shared, TAGS), logits], 1)
    ours, theirs = field.encode(CELLS, tokens), plain.encode(CELLS, tokens)
    assert ours.sizes.tolist() == theirs.sizes.tolist() and ours.labelled.tolist() == theirs.labelled.tolist()
    torch.testing.assert_close(field.terms(with_rows, ours)[:2], plain.terms(logits, theirs)[:2])
    one, two = field.entities(with_rows, tokens), plain.entities(logits, tokens)
    for ours, theirs in zip(one, two, strict=True):
        assert [e[:3] for e in ours] == [e[:3] for e in theirs]
        assert [e[3] for e in ours] == pytest.approx([e[3] for e in theirs])


def test_the_head_learns_transitions_and_what_it_learned_is_answered():
    torch.manual_seed(0)
    task = EntitiesTask("tags", head="crf")
    task.fit([[(0, 3, "person")], [(0, 2, "place")]])
    head, tokens = task.build_head(8), tokens_of("Ada met Bo", "Bo met")
    target, features = task.encode(CELLS[:2], tokens), torch.randn(2, 3, 8)
    assert task.num_shared == TAGS + 2 and head.shared.shape == (TAGS + 2, TAGS)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(120):
        logits = head(features).masked_fill(~torch.from_numpy(tokens.real).unsqueeze(2), 0)
        loss = task.loss(with_shared(head, logits), target, torch.ones(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01 and head.shared.detach().abs().max() > 0.1
    answers = task.answers(with_shared(head, logits), tokens)
    assert [[(e["start"], e["end"], e["label"]) for e in row] for row in answers] == CELLS[:2]
    restored = EntitiesTask.from_state("tags", task.state())
    assert (
        restored.num_shared == task.num_shared
        and restored.answers(with_shared(head, logits), tokens).tolist() == answers.tolist()
    )


def test_no_rows_have_a_loss():
    field = CrfTagger(["person", "place"])
    target = field.encode([], text_tokens([], []))
    assert field.terms(torch.zeros(0, field.num_shared, TAGS), target).shape == (0,)
