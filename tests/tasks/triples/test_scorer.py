import math

import numpy as np
import pytest
import torch

from fusetune.modalities.passages import text_tokens
from fusetune.tasks.entities.tagging import IGNORED
from fusetune.tasks.token_head import with_shared
from fusetune.tasks.triples.cells import Triples, read_triples
from fusetune.tasks.triples.scorer import DISTANCES, SIZE, Pairing, PairScorer

TEXT = "Ada met Bo in Rome"
SPANS = [(0, 3, "person"), (8, 10, "person"), (14, 18, "town")]
RELATIONS = ["in", "met", "saw"]


def tokens_of(*texts):
    spans = []
    for text in texts:
        starts = np.cumsum([0, *(len(word) + 1 for word in text.split(" "))])[:-1]
        spans.append(
            np.array([[0, s, s + len(w)] for s, w in zip(starts, text.split(" "), strict=True)], dtype=np.int32)
        )
    return text_tokens(spans, [[text] for text in texts])


def cell(relations, spans=SPANS, text=TEXT):
    relations = [{"head": head, "label": label, "tail": tail} for head, label, tail in relations]
    return read_triples({"entities": spans, "relations": relations}, None, text, row=0, column="graph")


def scorer(**pairing):
    return PairScorer(["person", "town"], RELATIONS, unit="word", pairing=Pairing(**pairing))


def random_logits(own, rows, tokens, seed=0):
    """As the model gives them, of random features."""
    torch.manual_seed(seed)
    head = own.build(6)
    torch.nn.init.normal_(head.shared)
    return with_shared(head, head(torch.randn(rows, tokens, 6))).detach().double()


def score_by_formula(own, logits, row, head, tail):
    """The scores of the classes from one token to another, as the module's docstring has them."""
    num, tags = len(RELATIONS) + 1, own.tagger.num_tags
    shared = logits[row, : own.num_shared].flatten()
    one, two = logits[row, own.num_shared + head], logits[row, own.num_shared + tail]
    queries, keys = one[tags + 2 * num : tags + 2 * num + SIZE], two[tags + 2 * num + SIZE :]
    scores = []
    for label in range(num):
        weights = shared[label * SIZE : (label + 1) * SIZE]
        far = sum(abs(tail - head) >= least for least in DISTANCES) + (len(DISTANCES) + 1) * (tail < head)
        value = one[tags + label] + two[tags + num + label] + (weights * queries * keys).sum() / math.sqrt(SIZE)
        scores.append(float(value + shared[num * SIZE + far * num + label]))
    return scores


def loss_by_formula(scores, right):
    """Of one pair: Zhou et al. 2021, equations 9 and 10."""
    exps = np.exp(scores)
    first = -sum(math.log(exps[r] / (exps[0] + sum(exps[o] for o in right))) for r in right)
    others = sum(value for label, value in enumerate(exps) if label not in right)
    return first - math.log(exps[0] / others)


def test_scores_are_those_of_the_formula():
    own = scorer()
    logits = random_logits(own, 2, 40)
    firsts = torch.tensor([[3, 1, 39], [0, 8, 7]])
    scores = own.scores(logits, firsts)
    for row in range(2):
        for i in range(3):
            for j in range(3):
                expected = score_by_formula(own, logits, row, int(firsts[row, i]), int(firsts[row, j]))
                np.testing.assert_allclose(scores[row, i, j].numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("window", [None, 2, 1])
def test_the_loss_is_that_of_all_tags_and_all_pairs_in_the_window(window):
    own = scorer(window=window, weight=0.7)
    tokens = tokens_of(TEXT, "Bo met Ada", "Bo")
    values = [
        cell([(0, "met", 1), (0, "saw", 1), (1, "in", 2), (2, "in", 1)]),
        None,
        cell([], [(0, 2, "person")], "Bo"),
    ]
    target, logits = own.encode(values, tokens), random_logits(own, 3, 5)
    assert target.labelled.tolist() == [True, False, True] and target.sizes.tolist() == [5, 3, 1]
    tags = torch.nn.functional.cross_entropy(
        logits[0, own.num_shared :, :5], torch.tensor([1, 0, 1, 0, 3]), reduction="sum"
    )
    right = {(0, 2): [2, 3], (2, 4): [1], (4, 2): [1]}
    places = {0: 0, 2: 2, 4: 4}  # of first tokens, and the words before them
    pairs = sum(
        loss_by_formula(score_by_formula(own, logits, 0, i, j), right.get((i, j), []))
        for i in places
        for j in places
        if i != j and (window is None or abs(places[i] - places[j]) <= window)
    )
    terms = own.terms(logits, target)
    assert float(terms[0]) == pytest.approx(float(tags) + 0.7 * pairs, rel=1e-9)
    last = torch.nn.functional.cross_entropy(logits[2, own.num_shared :, :5][:1], torch.tensor([1]))
    assert float(terms[2]) == pytest.approx(float(last))


def test_a_pair_with_an_unknown_relation_has_no_loss():
    own, tokens = scorer(), tokens_of(TEXT)
    logits = random_logits(own, 1, 5)
    known, unknown = (own.terms(logits, own.encode([cell([(0, label, 2)])], tokens)) for label in ("in", "flew to"))
    difference = loss_by_formula(score_by_formula(own, logits, 0, 0, 4), [1])
    assert float(known - unknown) == pytest.approx(difference)


def test_entities_of_an_unknown_type_are_paired_but_not_tagged():
    own, tokens = scorer(), tokens_of(TEXT)
    target = own.encode([cell([(0, "in", 1)], [(0, 3, "dog"), (14, 18, "town")])], tokens)
    assert target.values[0, :, 0].tolist() == [IGNORED, 0, 0, 0, 3] and target.sizes.tolist() == [4]
    assert target.values[0, :, 1].tolist() == [1, 0, 0, 0, 5] and target.values[0, 0, 2] == 5


def test_an_entity_within_a_word_stands_at_its_words_first_token():
    text = "Maunalua met Bo"
    pieces = [[0, 0, 2], [0, 2, 5], [0, 5, 8], [0, 9, 12], [0, 13, 15]]
    tokens = text_tokens([np.array(pieces, dtype=np.int32)], [[text]])
    value = cell([(0, "met", 1)], [(5, 8, "person"), (13, 15, "person")], text)
    target = scorer().encode([value], tokens)
    assert target.values[0, :, 1].tolist() == [1, 0, 0, 0, 3] and target.values[0, 0, 2:].tolist() == [5, 2]


def logits_for(own, tags, heads):
    """Logits that are sure of tags, with the scores of relations at head tokens, by (token, class)."""
    logits = torch.zeros(1, own.num_shared + len(tags), own.num_logits)
    for token, tag in enumerate(tags):
        logits[0, own.num_shared + token, tag] = 30
    for (token, label), score in heads.items():
        logits[0, own.num_shared + token, own.tagger.num_tags + label] = score
    return logits


def test_answers_are_relations_above_none_between_predicted_entities():
    tokens, tags = tokens_of(TEXT), [1, 0, 1, 0, 3]
    heads = {(0, 1): 1.0, (0, 2): 2.0, (2, 3): 1.0, (2, 0): 3.0, (1, 1): 9.0}
    one, many = (scorer(several=several).found(logits_for(scorer(), tags, heads), tokens) for several in (False, True))
    (entities, relations), (_, all_relations) = *one, *many
    assert [entity[:3] for entity in entities] == SPANS
    assert [relation[:3] for relation in relations] == [(0, 1, "met"), (0, 2, "met")]
    assert [relation[3] for relation in relations] == pytest.approx([1 / (1 + math.exp(-2))] * 2)
    assert {relation[:3] for relation in all_relations} == {(0, 1, "met"), (0, 1, "in"), (0, 2, "met"), (0, 2, "in")}
    ((_, near),) = scorer(window=2).found(logits_for(scorer(), tags, heads), tokens)
    assert [relation[:3] for relation in near] == [(0, 1, "met")]
    assert scorer().found(logits_for(scorer(), [1, 0, 0, 0, 0], heads), tokens) == [(entities[:1], [])]


def test_more_relations_of_a_head_than_any_train_row_has_are_encoded():
    value = cell([(0, "met", 1), (0, "in", 2), (0, "saw", 2)])
    assert scorer(most=1).encode([value], tokens_of(TEXT)).values.shape == (1, 5, 2 + 2 * 3)
    assert scorer(most=4).encode([Triples()], tokens_of("Bo")).values.shape == (1, 1, 2 + 2 * 4)
