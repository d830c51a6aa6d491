import itertools

import numpy as np
import pytest
import torch

from fusetune.errors import BadCell, ConfigError, TableError
from fusetune.modalities.passages import text_tokens
from fusetune.tasks.entities.tagging import allowed, best_path, spans_of_tags, tag_tokens
from fusetune.tasks.entities.task import EntitiesTask
from fusetune.tasks.entities.words import splits_word

TEXT = "Ada met Bo in Rome"


def fitted():
    task = EntitiesTask("tags")
    task.fit([[(0, 3, "person")], [(14, 18, "place")], None])
    return task


def tokens_of(text):
    spans, start = [], 0
    for word in text.split(" "):
        spans.append([0, start, start + len(word)])
        start += len(word) + 1
    return np.array(spans, dtype=np.int32)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["B-A", "I-A", "O", "B-B"], [(0, 4, "A"), (7, 8, "B")]),
        (["I-A", "I-B", "O", "O"], [(0, 2, "A"), (3, 4, "B")]),
        (["B-A", "B-A", "I-A", "O"], [(0, 2, "A"), (3, 6, "A")]),
        (["B-A", "E-A", "S-A", "S-A"], [(0, 4, "A"), (5, 6, "A"), (7, 8, "A")]),
        (["B-A", "L-A", "U-B", "I-B"], [(0, 4, "A"), (5, 6, "B"), (7, 8, "B")]),
        (["A", "A", "O", "B"], [(0, 4, "A"), (7, 8, "B")]),
    ],
)
def test_tags_of_several_schemes_become_spans(tags, expected):
    assert spans_of_tags(tags, ["aa", "b", "c", "d"]) == expected


def test_cells_in_several_forms_are_the_same_entities():
    task, words = EntitiesTask("tags"), TEXT.split()
    expected = [(0, 3, "person"), (14, 18, "place")]
    spans = [{"start": 14, "end": 18, "label": "place"}, {"start": 0, "end": 3, "label": "person"}]
    tags = ["B-person", "O", "O", "O", "B-place"]
    assert task.resolve(tags, words, row=0) == task.resolve(tags, TEXT, row=0) == expected
    assert task.resolve(spans, TEXT, row=0) == expected
    assert task.resolve('[{"start": 0, "end": 3, "label": "person"}]', TEXT, row=0) == expected[:1]
    assert task.resolve("[]", TEXT, row=0) == []
    assert task.resolve([(14, 18, "place"), [0, 3, "person"]], TEXT, row=0) == expected
    assert task.resolve('[[0, 3, "person"], [14, 18, "place"]]', TEXT, row=0) == expected


def test_lists_of_triples_are_found_to_be_entities():
    assert EntitiesTask.detect(['[[0, 3, "person"]]', "[]"]).confidence > 0.9
    assert EntitiesTask.detect(["[[0, 3], [1, 2]]", "[]"]).confidence == 0


def test_tags_of_a_text_are_where_its_words_are():
    """However many spaces stand between the words."""
    task, text = EntitiesTask("tags"), "  Ada  met\tBo "
    spans = task.resolve(["B-person", "O", "B-person"], text, row=0)
    assert [text[start:end] for start, end, _ in spans] == ["Ada", "Bo"]


def test_tags_without_a_text_are_refused():
    with pytest.raises(BadCell, match="1 tags for 0 words"):
        EntitiesTask("tags").resolve(["B-person"], None, row=3)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (["O"], "1 tags for 5 words"),
        ([{"start": 3, "end": 90, "label": "x"}], "3 to 90 does not lie in the text of 18"),
        ([{"start": 0, "label": "x"}], "no span"),
        ([{"start": 0.5, "end": 3, "label": "x"}], "no whole number"),
        ([{"start": True, "end": 3, "label": "x"}], "no whole number"),
        ([{"start": 0, "end": float("inf"), "label": "x"}], "no span"),
        ([{"start": 0, "end": "three", "label": "x"}], "no span"),
        ([{"start": 0, "end": 3, "label": None}], "no label"),
        ([[0, 3]], "no span"),
        ([[0, 3, "x"], "x"], "no span"),
        ([7], "no span"),
        ("[" * 100_000, "type str"),
        ("a string", "type str"),
    ],
)
def test_annotations_that_do_not_fit_are_refused_with_the_reason(value, why):
    with pytest.raises(BadCell, match=why):
        EntitiesTask("tags").resolve(value, TEXT, row=7)


def test_no_entity_at_all_cannot_be_learned():
    with pytest.raises(TableError, match="no train row has an entity"):
        EntitiesTask("tags").fit([[], None])


def test_right_tags_give_the_spans_back():
    task = fitted()
    tokens = text_tokens([tokens_of(TEXT), tokens_of("Bo")], [[TEXT], ["Bo"]])
    cells = [[(0, 3, "person"), (4, 10, "place"), (14, 18, "place")], []]
    target = task.encode(cells, tokens)
    assert target.values[0].tolist() == [1, 3, 4, 0, 3] and target.sizes.tolist() == [5, 1]
    logits = torch.nn.functional.one_hot(target.values.clamp(min=0), 5).float() * 20
    answers = task.answers(logits, tokens)
    assert [(e["start"], e["end"], e["label"]) for e in answers[0]] == cells[0] and answers[1] == []
    assert answers[0][1]["text"] == "met Bo" and answers[0][0]["score"] > 0.99
    found = task.evaluate(answers, task.truth(cells))
    assert found["f1"] == found["precision"] == found["recall"] == 1.0
    assert float(task.loss(logits, target, torch.ones(2))) < 1e-4


def test_a_label_that_no_train_row_has_counts_as_missed_and_gives_no_loss():
    task = fitted()
    tokens = text_tokens([tokens_of(TEXT)], [[TEXT]])
    cells = [[(0, 3, "person"), (4, 10, "animal")]]
    task.check(cells[0], row=0)
    target = task.encode(cells, tokens)
    assert target.values[0].tolist() == [1, -100, -100, 0, 0] and target.sizes.tolist() == [3]
    answers = task.answers(torch.nn.functional.one_hot(target.values.clamp(min=0), 5).float() * 20, tokens)
    found = task.evaluate(answers, task.truth(cells))
    assert found["precision"] == found["f1_person"] == 1.0 and found["recall"] == 0.5
    (warning,) = task.warnings(answers, task.truth(cells))
    assert "'animal' (1)" in warning and task.warnings(answers, task.truth([[(0, 3, "person")]])) == []


def test_the_loss_is_torchs_mean_over_all_tokens():
    task = fitted()
    tokens = text_tokens([tokens_of(TEXT), tokens_of("Bo met")], [[TEXT], ["Bo met"]])
    target = task.encode([[(0, 3, "person")], [(0, 2, "person")]], tokens)
    logits = torch.randn(2, 5, 5)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.values.flatten(), ignore_index=-100)
    torch.testing.assert_close(task.loss(logits, target, torch.ones(2)), expected)


def test_the_most_likely_allowed_tags_are_found():
    rng = np.random.default_rng(0)
    may = allowed(2)
    for _ in range(20):
        scores = rng.normal(size=(4, 5))
        paths = [
            path
            for path in itertools.product(range(5), repeat=4)
            if may[-1, path[0]] and all(may[one, two] for one, two in itertools.pairwise(path))
        ]
        best = max(paths, key=lambda path: sum(scores[place, tag] for place, tag in enumerate(path)))
        assert tuple(best_path(scores, may)) == best


def test_metrics_are_seqevals_strict_scores():
    task = fitted()
    truth = task.truth([[(0, 3, "person"), (14, 18, "place")], [(0, 2, "person")]])
    answers = np.empty(2, dtype=object)
    answers[:] = [
        [{"start": 0, "end": 3, "label": "person"}, {"start": 11, "end": 18, "label": "place"}],
        [{"start": 0, "end": 2, "label": "place"}],
    ]
    found = task.evaluate(answers, truth)
    assert found["precision"] == found["recall"] == pytest.approx(1 / 3)
    assert found["f1_person"] == pytest.approx(2 / 3) and found["f1_place"] == 0.0
    weighted = task.evaluate(answers, truth, np.array([1.0, 0.0]))
    assert weighted["precision"] == weighted["recall"] == 0.5


def test_a_span_within_a_token_marks_the_token():
    tags = np.zeros(5, dtype=np.int64)
    tag_tokens(tags, tokens_of(TEXT), [(5, 6, "place")], ["person", "place"])
    assert tags.tolist() == [0, 3, 0, 0, 0]


def test_words_are_not_split_unless_train_entities_split_them():
    text = "Maunalua met Bo"
    pieces = [[0, 0, 2], [0, 2, 5], [0, 5, 8], [0, 9, 12], [0, 13, 15]]
    tokens = text_tokens([np.array(pieces, dtype=np.int32)], [[text]])
    task = EntitiesTask("tags")
    whole = [task.resolve([{"start": 0, "end": 8, "label": "person"}], text, row=0)]
    within = [task.resolve([{"start": 2, "end": 8, "label": "person"}], text, row=0)]
    for cells, expected, tags in ((whole, (0, 8), [1, -100, -100, 0, 0]), (within, (2, 8), [0, 1, 2, 0, 0])):
        task.fit(cells)
        target = task.encode(cells, tokens)
        assert target.values[0].tolist() == tags and target.sizes.tolist() == [sum(tag >= 0 for tag in tags)]
        logits = torch.nn.functional.one_hot(target.values.clamp(min=0), 3).float() * 9
        logits[0, 1, 0] += 5 if expected == (0, 8) else 0  # of a token that goes on with a word: not read
        (entity,) = task.answers(logits, tokens)[0]
        assert (entity["start"], entity["end"]) == expected
        (entity,) = EntitiesTask.from_state("tags", task.state()).answers(logits, tokens)[0]
        assert (entity["start"], entity["end"]) == expected


def test_words_of_scripts_without_spaces_have_one_character():
    words = [("東京都", 1, False), ("at 5.30", 4, False), ("été", 1, True), ("don't", 1, True), ("don't", 4, False)]
    assert [splits_word(text, at, "word") for text, at, _ in words] == [expected for *_, expected in words]


def test_entities_of_listed_words_begin_and_end_with_spaces_and_those_of_sentences_with_letters():
    task = EntitiesTask("tags")
    listed = task.resolve(["O", "B-person", "O"], ["by", "@ada_l", "!"], row=0)
    task.fit([listed])
    assert task.unit == "spaced"
    task.fit([task.resolve([{"start": 3, "end": 6, "label": "person"}], "by Ada, now", row=0)])
    assert task.unit == "word"
    task.fit([task.resolve([{"start": 3, "end": 5, "label": "person"}], "by Ada, now", row=0)])
    assert task.unit == "token"


def test_an_unknown_head_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="crf"):
        EntitiesTask("tags", head="crff")


def test_the_state_of_an_earlier_version_is_a_softmax_over_tokens():
    task = EntitiesTask.from_state("tags", {"text": "words", "classes": ["a"], "counts": [3]})
    assert (task.head, task.head_used, task.unit, task.num_shared) == ("softmax", "softmax", "token", 0)
    assert EntitiesTask.from_state("tags", task.state()).state() == task.state()
