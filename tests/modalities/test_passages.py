from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from fusetune.backbones.load import load_backbone
from fusetune.errors import BadCell, ConfigError
from fusetune.modalities.passages import START, TEXT, TOKEN, rows_of, text_tokens
from fusetune.modalities.text import TextModality

WORDS = [f"w{number % 40}" for number in range(60)]


@pytest.fixture(scope="module")
def encoder(tiny):
    return lambda **options: load_backbone(tiny("bert"), "text", **options).eval()


def encode(modality, cells):
    examples = [modality.decode(cell, row=0, base_dir=None) for cell in cells]
    with torch.no_grad():
        return examples, modality.backbone(**modality.collate(examples))


def test_every_token_of_a_text_is_given_once_with_its_characters(encoder):
    modality = TextModality("t", backbone=encoder(), read="tokens")
    text = "w1  w2, w3"
    (example, other), tokens = encode(modality, [text, ["w1", "w2"]])
    spans = modality.tokens(example)
    assert [text[start:end] for _, start, end in spans] == ["w1", "w2", ",", "w3"]
    assert tokens.mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert modality.texts(["w1", "w2"], row=0) == ["w1 w2"] and len(modality.tokens(other)) == 2


@pytest.mark.parametrize("words", [1, 6, 7, 8, 13, 20, 30])
def test_windows_give_the_tokens_of_the_unsplit_text(encoder, words):
    short, whole = (TextModality("t", backbone=encoder(max_tokens=size), read="tokens") for size in (9, 32))
    text = " ".join(WORDS[:words])
    in_windows, at_once = (m.decode(text, row=0, base_dir=None) for m in (short, whole))
    assert (short.tokens(in_windows) == whole.tokens(at_once)).all() and len(whole.tokens(at_once)) == words
    numbers = rows_of(in_windows)[:, TOKEN]
    assert sorted(numbers[numbers >= 0]) == list(range(words))
    assert short.num_truncated == 0


def test_a_text_that_fits_has_the_vectors_of_its_own_pass(encoder):
    backbone = encoder(pool="none")
    plain, read = TextModality("t", backbone=backbone), TextModality("t", backbone=backbone, read="tokens")
    cells = ["w1 w2 w3", "w4"]
    _, every = encode(plain, cells)
    _, tokens = encode(read, cells)
    torch.testing.assert_close(tokens.values[0], every.values[0, 1:4], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(tokens.values[1, 0], every.values[1, 1], atol=1e-6, rtol=1e-5)
    assert not tokens.values[1, 1:].any()


def test_a_cell_in_windows_has_the_same_vectors_alone_and_among_others(encoder):
    modality = TextModality("t", backbone=encoder(max_tokens=12), read="tokens")
    long, short = " ".join(WORDS[:30]), "w1 w2"
    _, alone = encode(modality, [long])
    _, among = encode(modality, [short, long, short])
    torch.testing.assert_close(among.values[1], alone.values[0], atol=1e-5, rtol=1e-4)
    assert among.mask.sum(1).tolist() == [2, 30, 2]


def test_a_pair_is_read_with_the_tokenizers_own_template(encoder):
    backbone = encoder()
    modality = TextModality("a + b", backbone=backbone, join=["a", "b"])
    example = modality.decode(["w1 w2", "w3"], row=0, base_dir=None)
    expected = backbone.inputs.processor("w1 w2", "w3")
    tensors = modality.collate([example])
    assert tensors["input_ids"][0].tolist() == expected["input_ids"]
    assert tensors["token_type_ids"][0].tolist() == expected["token_type_ids"]
    with torch.no_grad():
        hidden = backbone.model(**{name: torch.tensor([value]) for name, value in expected.items()})
        pooled = backbone(**tensors)
    torch.testing.assert_close(
        pooled.values[0, 0],
        backbone.as_tokens(
            hidden.last_hidden_state, torch.ones(1, len(expected["input_ids"])).bool(), hidden.pooler_output
        ).values[0, 0],
        atol=1e-6,
        rtol=1e-5,
    )


def test_a_long_pair_is_cut_where_it_was_asked_and_counted(encoder):
    first, second = " ".join(WORDS[:20]), " ".join(WORDS[20:26])
    for cut, kept in (("a", (4, 6)), ("longest", (5, 5))):
        modality = TextModality("a + b", backbone=encoder(max_tokens=13), join=["a", "b"], cut=cut)
        example = modality.decode([first, second], row=0, base_dir=None)
        texts = rows_of(example)[:, TEXT]
        assert ((texts == 0).sum(), (texts == 1).sum()) == kept
        assert modality.num_truncated == 1


def test_answers_have_a_token_for_none_and_windows_over_the_context(encoder):
    modality = TextModality("q + c", backbone=encoder(max_tokens=20), join=["q", "c"], read="answer")
    context = " ".join(WORDS[:40])
    example, tokens = encode(modality, [["w1 w2", context]])
    spans = modality.tokens(example[0])
    assert spans[0].tolist() == [-1, 0, 0] and tokens.mask.sum() == 41
    assert [context[start:end] for _, start, end in spans[1:]] == context.split()
    assert (spans[1:, 0] == 1).all()


def test_choices_are_tokens_each_read_with_the_texts_before(encoder):
    backbone = encoder()
    modality = TextModality("q + x", backbone=backbone, join=["q", ["x"]], read="choices")
    pair = TextModality("q + x", backbone=backbone, join=["q", "x"])
    cells = [["w1 w2", ["w3", "w4 w5", "w6"]], ["w7", ["w8"]]]
    examples, tokens = encode(modality, cells)
    assert tokens.mask.tolist() == [[True] * 3, [True, False, False]]
    _, one = encode(pair, [["w1 w2", "w4 w5"]])
    torch.testing.assert_close(tokens.values[0, 1], one.values[0, 0], atol=1e-5, rtol=1e-4)
    assert modality.tokens(examples[0])[:, 0].tolist() == [0, 1, 2]
    with pytest.raises(BadCell, match="no choice"):
        modality.decode(["w1", []], row=3, base_dir=None)


def test_blank_choices_have_no_token_and_keep_the_others_numbers(encoder):
    modality = TextModality("q + x", backbone=encoder(), join=["q", ["x", "y", "z"]], read="choices")
    full, partly = encode(modality, [["w1", ["w2", "w3", "w4"]], ["w1", ["w2", None, "w4"]]])[1].values
    example = modality.decode(["w1", ["w2", " ", "w4"]], row=0, base_dir=None)
    assert modality.tokens(example).tolist() == [[0, 0, 0], [2, 0, 0]]
    torch.testing.assert_close(partly[:2], full[[0, 2]], atol=1e-5, rtol=1e-4)
    assert modality.texts(["w1", ["w2", None, "w4"]], row=0) == ["w1", "w2", "", "w4"]
    with pytest.raises(BadCell, match="no choice"):
        modality.decode(["w1", [None, ""]], row=3, base_dir=None)


def test_the_last_text_before_is_read_beside_the_choice(encoder):
    """(context, question choice): a context that is too long is cut, never the question."""
    backbone = encoder()
    modality = TextModality("c + q + x", backbone=backbone, join=["c", "q", ["x"]], read="choices")
    together = modality.token_ids(modality.decode(["w1 w2", "w3", ["w4 w5"]], row=0, base_dir=None))
    assert together.tolist() == backbone.inputs.processor("w1 w2", "w3 w4 w5")["input_ids"]
    alone = modality.token_ids(modality.decode([None, "w3", ["w4"]], row=0, base_dir=None))
    assert alone.tolist() == backbone.inputs.processor("w3 w4")["input_ids"]
    assert modality.num_truncated == 0
    question, choice = (backbone.inputs.processor(word, add_special_tokens=False)["input_ids"] for word in ("w3", "w4"))
    long = modality.token_ids(modality.decode(["w1 " * 200, "w3", ["w4"]], row=0, base_dir=None)).tolist()
    assert len(long) == backbone.max_tokens and long[-3:-1] == [*question, *choice] and modality.num_truncated == 1


def test_how_a_text_is_read_survives_saving(encoder):
    backbone = encoder()
    modality = TextModality("q + x", backbone=backbone, join=["q", ["x", "y"]], read="choices", cut="q")
    again = TextModality.from_state("q + x", modality.state(), backbone)
    assert (again.read, again.join, again.passages) == (modality.read, modality.join, modality.passages)
    assert TextModality("t", backbone=backbone).state() == {}


def test_texts_read_token_by_token_are_not_augmented(encoder):
    with pytest.raises(ConfigError, match="token by token"):
        TextModality("t", backbone=encoder(), read="tokens").augmenter(delete=0.1)


def test_rows_tokens_are_padded():
    spans = np.array([[0, 0, 2], [0, 3, 5]], dtype=np.int32)
    tokens = text_tokens([spans, None], [["w1 w2"], []])
    assert tokens.real.tolist() == [[True, True], [False, False]]
    assert tokens.spans[1].tolist() == [[-1, 0, 0]] * 2 and tokens.spans[0, 1].tolist() == [0, 3, 5]
    assert tokens.spans.shape[2] == 3 and START == 3


def test_marked_entities_are_two_vectors_side_by_side(encoder):
    backbone = encoder()
    modality = TextModality("t", backbone=backbone, read="markers")
    examples, tokens = encode(modality, ["w1 <e1>w2</e1> w3 <e2>w4 w5</e2>", "<e2>w6</e2> w7 <e1>w8</e1>"])
    assert modality.joined == 2 and tokens.values.shape[:2] == (2, 2) and tokens.mask.all()
    plain = backbone.inputs.processor("w1 @ w2 @ w3 # w4 w5 #")["input_ids"]
    assert modality.token_ids(examples[0]).tolist() == plain
    with torch.no_grad():
        hidden = backbone.model(input_ids=torch.tensor([plain])).last_hidden_state[0]
    torch.testing.assert_close(tokens.values[0], hidden[[2, 6]], atol=1e-5, rtol=1e-4)


def test_marked_entities_far_into_a_long_text_are_read(encoder):
    modality = TextModality("t", backbone=encoder(max_tokens=16), read="markers")
    text = " ".join([*WORDS[:40], "<e1>w1</e1>", "w2", "<e2>w3</e2>", *WORDS[:10]])
    _, tokens = encode(modality, [text])
    assert tokens.mask.all()
    with pytest.raises(BadCell, match="more than 16 tokens apart"):
        modality.decode(" ".join(["<e1>w1</e1>", *WORDS, "<e2>w3</e2>"]), row=0, base_dir=None)


@pytest.mark.parametrize(
    "text", ["w1 w2", "<e1>w1</e1> w2", "<e1>w1</e1> <e1>w2</e1> <e2>w3</e2>", "</e1>w1<e1> <e2>w</e2>"]
)
def test_texts_without_two_marked_entities_are_refused(encoder, text):
    with pytest.raises(BadCell, match="tags in the text"):
        TextModality("t", backbone=encoder(), read="markers").decode(text, row=0, base_dir=None)


def test_cells_are_read_alike_by_threads_at_the_same_time(encoder):
    """A tokenizer keeps the truncation of its last call, so that each way of calling has a tokenizer of its own."""
    backbone = encoder(max_tokens=12)
    pairs = TextModality("a + b", backbone=backbone, read="answer", join=["a", "b"])
    plain = TextModality("c", backbone=backbone)
    cells = [["w1 ?", " ".join(WORDS[place : place + 20])] for place in range(40)] * 5
    expected = [pairs.decode(cell, row=0, base_dir=None) for cell in cells]
    text = plain.decode(" ".join(WORDS), row=0, base_dir=None)
    before = backbone.inputs.processor.backend_tokenizer.truncation
    with ThreadPoolExecutor(8) as threads:
        again = list(threads.map(lambda cell: pairs.decode(cell, row=0, base_dir=None), cells))
        texts = list(threads.map(lambda _: plain.decode(" ".join(WORDS), row=0, base_dir=None), cells))
    assert all(np.array_equal(one, two) for one, two in zip(expected, again, strict=True))
    assert all(np.array_equal(text, other) for other in texts)
    assert backbone.inputs.processor.backend_tokenizer.truncation == before, "windows change how plain texts are cut"
