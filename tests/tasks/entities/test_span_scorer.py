"""The head that scores spans: scores, loss and answers against loops over all spans."""

import itertools
import math

import numpy as np
import pytest
import torch

from fusetune.errors import BadCell, ConfigError
from fusetune.modalities.passages import text_tokens
from fusetune.tasks.entities.span_scorer import NO_SPAN, SIZE, SpanScorer, overlap_of, overlaps_in
from fusetune.tasks.entities.task import EntitiesTask
from fusetune.tasks.token_head import with_shared

CLASSES = ["person", "place"]


def tokens_of(*texts):
    tables = []
    for text in texts:
        spans, start = [], 0
        for word in text.split(" "):
            spans.append([0, start, start + len(word)])
            start += len(word) + 1
        tables.append(np.array(spans, dtype=np.int32))
    return text_tokens(tables, [[text] for text in texts])


TEXTS = ("aa bb cc dd ee", "ff gg", "h")
CELLS = [
    [(0, 8, "place"), (3, 5, "person"), (3, 5, "place"), (6, 11, "person")],
    [(0, 5, "person"), (3, 5, "unheard of")],
    [],
]


def random_logits(scorer, tokens, seed=0):
    torch.manual_seed(seed)
    head = scorer.build(6)
    torch.nn.init.normal_(head.shared)
    logits = 2 * head(torch.randn(*tokens.real.shape, 6)).masked_fill(~torch.from_numpy(tokens.real).unsqueeze(2), 0)
    return with_shared(head, logits).detach()


def score(scorer, logits, row, first, last, label):
    """The formula of the module's docstring, for one span."""
    num, own = len(CLASSES), logits[row, scorer.num_shared :]
    width = logits[row, : scorer.num_shared].flatten()[(last - first) * num + label]
    query, key = own[first, 2 * num : 2 * num + SIZE], own[last, 2 * num + SIZE :]
    return own[first, label] + own[last, num + label] + width + query @ key / math.sqrt(SIZE)


def candidates(tokens, row, longest):
    own = tokens.spans[row]
    num = int(tokens.real[row].sum())
    return [
        (first, last)
        for first, last in itertools.combinations_with_replacement(range(num), 2)
        if first == last or own[last, 2] - own[first, 1] <= longest
    ]


@pytest.mark.parametrize("longest", [1, 5, 8, 40])
def test_the_loss_is_the_cross_entropy_of_all_spans(longest):
    scorer, tokens = SpanScorer(CLASSES, longest=longest), tokens_of(*TEXTS)
    logits, target = random_logits(scorer, tokens), scorer.encode(CELLS, tokens)
    expected = []
    for row, cells in enumerate(CELLS):
        total = 0.0
        for (first, last), label in itertools.product(candidates(tokens, row, longest), range(2)):
            own = tokens.spans[row]
            truth = (int(own[first, 1]), int(own[last, 2]), CLASSES[label]) in cells
            probability = torch.sigmoid(score(scorer, logits, row, first, last, label))
            total -= float(torch.log(probability if truth else 1 - probability))
        expected.append(total)
    assert scorer.terms(logits, target).tolist() == pytest.approx(expected, rel=1e-4)
    assert target.sizes.tolist() == [5, 2, 1] and target.labelled.all()


def test_targets_hold_every_label_of_a_span_and_no_span_that_is_too_long():
    tokens = tokens_of(*TEXTS)
    encoded = SpanScorer(CLASSES, longest=8).encode(CELLS, tokens).values
    assert encoded.shape[2:] == (3, 2), "three tokens have 8 characters, and one span has two labels"
    assert encoded[0, 1, 0].tolist() == [1, 2] and encoded[0, 0, 2].tolist() == [2, 0]
    assert (encoded[2, 1:] == NO_SPAN).all() and encoded[1, 0, 1].tolist() == [1, 0]
    short = SpanScorer(CLASSES, longest=5).encode(CELLS, tokens).values
    assert short.shape[2] == 2 and (short[0, 0] <= 0).all()


@pytest.mark.parametrize("overlaps", [(), ("nested",), ("nested", "equal"), ("nested", "crossing", "equal")])
def test_answers_are_the_most_probable_spans_that_may_stand_together(overlaps):
    scorer, tokens = SpanScorer(CLASSES, longest=8, overlaps=overlaps), tokens_of(*TEXTS)
    for seed in range(5):
        logits = random_logits(scorer, tokens, seed).double()
        for row, found in enumerate(scorer.entities(logits, tokens)):
            own = tokens.spans[row]
            likely = [
                (float(score(scorer, logits, row, *place, label)), *place, label)
                for place in candidates(tokens, row, 8)
                for label in range(2)
            ]
            expected = []
            for value, first, last, label in sorted(likely, reverse=True):
                span = (int(own[first, 1]), int(own[last, 2]))
                if value > 0 and all(overlap_of(span, other[:2]) in (None, *overlaps) for other in expected):
                    expected.append((*span, CLASSES[label], 1 / (1 + math.exp(-value))))
            assert [e[:3] for e in found] == [e[:3] for e in sorted(expected)]
            assert [e[3] for e in found] == pytest.approx([e[3] for e in sorted(expected)])


def test_the_divergence_is_that_of_the_spans_labels():
    scorer, tokens = SpanScorer(CLASSES, longest=40), tokens_of(*TEXTS)
    one, two = random_logits(scorer, tokens), random_logits(scorer, tokens, 1)
    two[:, : scorer.num_shared] = one[:, : scorer.num_shared]
    expected = []
    for row, num in enumerate((5, 2, 1)):
        total = 0.0
        for place, label in itertools.product(candidates(tokens, row, 40), range(2)):
            p, q = (torch.sigmoid(score(scorer, logits, row, *place, label)) for logits in (one, two))
            total += float(p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q)))
        expected.append(total / num)
    real = torch.from_numpy(tokens.real)
    assert scorer.divergence(one, two, real).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert not scorer.divergence(one, one, real).any()


def test_overlaps_are_told_apart():
    assert overlap_of((0, 3), (3, 5)) is None and overlap_of((0, 3), (0, 3)) == "equal"
    assert (
        overlap_of((0, 3), (1, 3)) == overlap_of((1, 2), (0, 3)) == "nested"
        and overlap_of((0, 3), (2, 5)) == "crossing"
    )
    assert overlaps_in([(0, 9, "a"), (1, 2, "b"), (20, 30, "a")]) == ({"nested"}, 2)
    assert overlaps_in(CELLS[0]) == ({"nested", "equal", "crossing"}, 4)


def test_a_head_that_starts_from_a_probe_can_still_learn():
    """With its last layer at zero every score is 0, and after a few steps every parameter has moved."""
    scorer, tokens = SpanScorer(CLASSES, longest=8), tokens_of(*TEXTS)
    head, target = scorer.build(6), scorer.encode(CELLS, tokens)
    for parameter in list(head.children())[-1].parameters():
        torch.nn.init.zeros_(parameter)
    features = torch.randn(3, 5, 6)
    before = [parameter.detach().clone() for parameter in head.parameters()]
    assert not scorer.scores(with_shared(head, head(features)), 3).any()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        scorer.terms(with_shared(head, head(features)), target).sum().backward()
        optimizer.step()
    assert all((one != two).any() for one, two in zip(before, head.parameters(), strict=True))


def nested_cells(text, count=20):
    inner = {"start": 0, "end": 3, "label": "person"}
    outer = {"start": 0, "end": len(text), "label": "group"}
    return [[inner, outer]] * count


def test_overlapping_train_entities_choose_the_span_head_and_say_so():
    text, task = "Ada and Bo", EntitiesTask("spans")
    cells = [task.resolve(cell, text, row=0) for cell in nested_cells(text)]
    task.fit(cells)
    assert task.head_used == "span" and "100.0%" in task.choice and task.overlaps == ["nested"]
    task.check(cells[0], row=0)
    restored = EntitiesTask.from_state("spans", task.state())
    assert restored.state() == task.state() and restored.num_shared == task.num_shared
    flat = EntitiesTask("spans")
    flat.fit([*[spans[:1] for spans in cells] * 20, cells[0]])
    assert flat.head_used == "softmax" and flat.choice == ""
    with pytest.raises(BadCell, match="head=span"):
        flat.check(cells[0], row=3)


def test_longer_spans_than_nearly_all_are_left_out_and_counted():
    task = EntitiesTask("spans", head="span")
    task.fit([[(0, 4, "a")]] * 399 + [[(0, 90, "a")]])
    assert (task.longest, task.too_long) == (4, 1)
    assert any("longer than 4" in line for line in task.warnings(task.constant(task.truth([[]]), 1), task.truth([[]])))
    assert EntitiesTask("spans", head="span", max_length=7).max_length == 7
    with pytest.raises(ConfigError, match="max_length"):
        EntitiesTask("spans", max_length=0)


def test_a_long_text_takes_memory_in_proportion():
    scorer = SpanScorer(CLASSES, longest=30)
    tokens = tokens_of(" ".join(["word"] * 3000))
    logits = torch.zeros(1, scorer.num_shared + 3000, scorer.num_logits)
    logits[0, :, :4] = -9.0
    logits[0, scorer.num_shared + 2990, 0] = logits[0, scorer.num_shared + 2991, 2] = 20.0
    assert scorer.scores(logits, 6).shape == (1, 3000, 6, 2)
    assert scorer.encode([[]], tokens).values.shape == (1, 3000, 6, 1)
    (entity,) = scorer.entities(logits, tokens)[0]
    assert entity[:3] == (2990 * 5, 2990 * 5 + 9, "person")
