"""Augmentation: each transform by itself, its draws, and what it may not touch."""

from __future__ import annotations

import json
import wave

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fusetune.backbones.load import load_backbone
from fusetune.errors import BackboneError, ConfigError
from fusetune.modalities.audio import AudioModality
from fusetune.modalities.augment.image import BINS, ImageAugmenter, _operations
from fusetune.modalities.augment.paraphrase import Paraphrases
from fusetune.modalities.augment.tabular import CellAugmenter
from fusetune.modalities.augment.text import TextAugmenter, read_synonyms
from fusetune.modalities.category import CategoryModality
from fusetune.modalities.number import NumberModality
from fusetune.modalities.text import TextModality

HERE = None


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def words(options: dict, text: str, seed: int = 0) -> str:
    """What the tokenizer is given."""
    said = []
    augmenter = TextAugmenter(options, tokenize=lambda found: said.append(found) or np.zeros(1))
    augmenter(text, "unchanged", rng(seed), HERE)
    return said[0] if said else text


@given(st.text(max_size=60), st.integers(0, 9), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_words_stay_the_texts_own(text, seed, drop, swap):
    found = words({"word_dropout": drop, "swap": swap}, text, seed)
    assert not set(found.split()) - set(text.split())
    assert bool(found.split()) == bool(text.split())
    assert sorted(words({"swap": swap}, text, seed).split()) == sorted(text.split())
    assert words({"word_dropout": 0.0, "swap": 0.0}, text, seed) == text


def test_words_are_left_out_and_swapped_at_their_rates():
    text = " ".join(f"w{n}" for n in range(400))
    kept = np.mean([len(words({"word_dropout": 0.3}, text, seed).split()) / 400 for seed in range(20)])
    assert kept == pytest.approx(0.7, abs=0.02)
    assert words({"word_dropout": 1.0}, text).startswith("w") and len(words({"word_dropout": 1.0}, text).split()) == 1
    moved = [
        sum(a != b for a, b in zip(words({"swap": 0.2}, text, s).split(), text.split(), strict=True)) for s in range(9)
    ]
    assert np.mean(moved) / 400 == pytest.approx(0.2, abs=0.04)


def test_synonyms_of_a_file_and_of_wordnet(tmp_path):
    (tmp_path / "mine.tsv").write_text("big\tlarge,huge\nnothing here\nCar\tauto, automobile\n")
    found = read_synonyms(tmp_path / "mine.tsv")
    assert found == {"big": ("large", "huge"), "car": ("auto", "automobile")}
    wordnet = tmp_path / "dict"
    wordnet.mkdir()
    (wordnet / "data.noun").write_text(
        "  1 This software and database\n"
        "02958343 06 n 05 car 0 auto 0 automobile 0 machine 6 motorcar 0 001 @ 03791235 n 0000 | a motor vehicle\n"
        "00001740 03 n 01 entity 0 000 | that which is\n"
        "00002137 03 n 02 ice_cream 0 gelato(ip) 0 000 | sweet\n"
    )
    found = read_synonyms(wordnet)
    assert set(found["car"]) == {"auto", "automobile", "machine", "motorcar"} and "entity" not in found
    assert found["gelato"] == ("ice cream",)
    said = {
        words({"synonyms": {"file": str(tmp_path / "mine.tsv"), "rate": 1.0}}, "A Big, small car.", seed)
        for seed in range(9)
    }
    assert said == {f"A {big}, small {car}." for big in ("Large", "Huge") for car in ("auto", "automobile")}
    for path in (tmp_path / "none.tsv", wordnet / "data.noun"):
        with pytest.raises(ConfigError, match="synonyms"):
            read_synonyms(path)


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory):
    """A random tiny T5 with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("t5")
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"w{n}": n + 3 for n in range(40)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(vocab_size=43, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, 1)
    model.save_pretrained(folder)
    return folder


def test_paraphrases_are_made_once_kept_and_chained(seq2seq, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSETUNE_CACHE", str(tmp_path / "cache"))
    texts = ["w1 w2 w3", "w4", "w5 w6 w7 w8"]
    made = Paraphrases([str(seq2seq)], max_tokens=8)
    made.fill(texts)
    assert any(made.of(text) != text for text in texts)
    (kept,) = (tmp_path / "cache" / "paraphrases").glob("*.jsonl")
    assert [json.loads(line)[0] for line in kept.read_text().splitlines()] == texts
    monkeypatch.setattr(Paraphrases, "_through", lambda *_: pytest.fail("made again"))
    again = Paraphrases([str(seq2seq)], max_tokens=8)
    again.fill(texts[:2])
    assert [again.of(text) for text in texts] == [made.of(text) for text in texts] and again.of("new") == "new"
    monkeypatch.undo()
    monkeypatch.setenv("FUSETUNE_CACHE", str(tmp_path / "cache"))
    twice = Paraphrases([str(seq2seq), str(seq2seq)], max_tokens=8)
    twice.fill(texts)
    once = Paraphrases([str(seq2seq)], max_tokens=8)
    once.fill([made.of(text) for text in texts])
    assert [twice.of(text) for text in texts] == [once.of(made.of(text)) for text in texts]


def test_what_is_no_seq2seq_model_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSETUNE_CACHE", str(tmp_path))
    with pytest.raises(BackboneError, match="the model that paraphrases cannot be loaded"):
        Paraphrases([tiny("bert")], max_tokens=8).fill(["w1"])


def test_a_text_is_said_in_other_words_at_its_rate(seq2seq, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSETUNE_CACHE", str(tmp_path))
    modality = TextModality("t", backbone=load_backbone(tiny("bert"), "text"))
    augmenter = modality.augmenter(paraphrase={"model": str(seq2seq), "rate": 0.5, "max_tokens": 6})
    monkeypatch.setattr(Paraphrases, "_through", lambda self, folder, texts, progress: [f"w9 {text}" for text in texts])
    augmenter.prepare(["w1 w2", "w3"], np.array([0, 1, -1]), None)
    assert augmenter.paraphrases.of("w1 w2") == "w9 w1 w2"
    own = modality.decode("w1 w2", row=0, base_dir=None)
    other = modality.decode(augmenter.paraphrases.of("w1 w2"), row=0, base_dir=None)
    found = [augmenter("w1 w2", own, rng(seed), HERE) for seed in range(40)]
    same = sum(np.array_equal(tokens, own) for tokens in found)
    assert 10 <= same <= 30 and all(np.array_equal(t, own) or np.array_equal(t, other) for t in found)


def picture(seed: int = 0, size: tuple[int, int] = (20, 24)) -> np.ndarray:
    return rng(seed).integers(0, 256, (3, *size), dtype=np.uint8)


@pytest.mark.parametrize(
    "options", [{"flip": 1.0}, {"crop": 0.3}, {"color": 0.5}, {"rand": True}, {"trivial": True}, {"erasing": 1.0}]
)
def test_pictures_keep_shape_and_type_and_the_original(options):
    augmenter = ImageAugmenter(options)
    for seed in range(25):
        example = [picture(1), picture(2, (9, 7))]
        kept = [part.copy() for part in example]
        found = augmenter("a.png", example, rng(seed), HERE)
        assert [part.shape for part in found] == [part.shape for part in example]
        assert all(part.dtype == np.uint8 and part.flags.c_contiguous for part in found)
        assert all(np.array_equal(a, b) for a, b in zip(example, kept, strict=True))
    again = augmenter("a.png", example, rng(24), HERE)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    others = [augmenter("a.png", example, rng(seed), HERE)[0].tobytes() for seed in range(20)]
    assert len(set(others)) > 1 or "flip" in options


def test_flips_and_probabilities():
    example = [picture()]
    twice = ImageAugmenter({"flip": 1.0})("", ImageAugmenter({"flip": 1.0})("", example, rng(), HERE), rng(), HERE)
    assert np.array_equal(twice[0], example[0])
    for options in ({"flip": 0.0}, {"erasing": 0.0}, {"color": 0.0}, {"crop": 1.0, "flip": None, "erasing": False}):
        if "crop" not in options:
            assert np.array_equal(ImageAugmenter(options)("", example, rng(3), HERE)[0], example[0])
    flipped = [
        not np.array_equal(ImageAugmenter({"flip": 0.3})("", example, rng(s), HERE)[0], example[0]) for s in range(300)
    ]
    assert np.mean(flipped) == pytest.approx(0.3, abs=0.08)


def test_erasing_changes_a_rectangle_of_the_papers_size():
    for seed in range(30):
        example = picture(5, (40, 40))
        found = ImageAugmenter({"erasing": 1.0})("", [example], rng(seed), HERE)[0]
        rows, columns = np.nonzero((found != example).any(0))
        area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert 0.005 < area / 1600 <= 0.4
        outside = np.ones((40, 40), dtype=bool)
        outside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = False
        assert np.array_equal(found[:, outside], example[:, outside])


@pytest.mark.parametrize("wide", [True, False])
def test_operations_at_no_strength_change_nothing_and_at_full_do(wide):
    image = Image.fromarray(picture(3, (32, 32)).transpose(1, 2, 0))
    always = ("autocontrast", "equalize")
    for name, (operation, _) in _operations(wide).items():
        if name not in always:
            assert np.array_equal(np.asarray(operation(image, 0.0)), np.asarray(image)), name
        if name != "identity" and name != "autocontrast":
            assert not np.array_equal(np.asarray(operation(image, 1.0)), np.asarray(image)), name
    assert len(_operations(wide)) == 14 and BINS == 30
    assert np.array_equal(np.asarray(_operations(True)["equalize"][0](image, 0)), np.asarray(ImageOps.equalize(image)))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    samples = (np.sin(np.arange(8000) / 20) * 8000 + 1000).astype("<i2")
    with wave.open(str(folder / "a.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16000)
        file.writeframes(samples.tobytes())
    return folder


def raw(modality: AudioModality, options: dict, folder, seed: int) -> np.ndarray:
    """The samples that the backbone's processor gets."""
    augmenter, seen = modality.augmenter(**options), []
    augmenter.prepare_samples = lambda found: seen.append(found) or found
    augmenter("a.wav", None, rng(seed), folder)
    return seen[0]


def test_sounds(tiny, sound):
    modality = AudioModality("v", backbone=load_backbone(tiny("wav2vec2"), "audio"))
    plain = raw(modality, {"gain": 1e-9}, sound, 0)
    for seed in range(10):
        louder = raw(modality, {"gain": 6.0}, sound, seed)
        factors = louder[np.abs(plain) > 0.01] / plain[np.abs(plain) > 0.01]
        assert np.ptp(factors) < 1e-3 and 10 ** (-0.3) - 1e-3 <= factors[0] <= 10**0.3 + 1e-3
        noisy = raw(modality, {"noise": 20.0}, sound, seed)
        ratio = 10 * np.log10(np.mean(plain**2) / np.mean((noisy - plain) ** 2))
        assert 19 <= ratio <= 41
        moved = raw(modality, {"shift": 0.2}, sound, seed)
        lag = int(np.argmax(np.correlate(moved, plain, "full"))) - (len(plain) - 1)
        assert abs(lag) <= 0.2 * len(plain) + 320 and len(moved) == len(plain)  # up to the sine's period
        fast = raw(modality, {"speed": 0.1}, sound, seed)
        assert len(plain) / 1.101 - 2 <= len(fast) <= len(plain) / 0.899 + 2
    example = modality.decode("a.wav", row=0, base_dir=sound)
    found = modality.augmenter(gain=True, noise=True, shift=True, speed=True)("a.wav", example, rng(1), sound)
    assert found.dtype == example.dtype and found.ndim == example.ndim and np.isfinite(found).all()
    with pytest.raises(ConfigError, match="this backbone reads samples"):
        modality.augmenter(spec=True)


def test_bands_of_a_spectrogram(sound):
    modality = AudioModality("v", backbone=load_backbone(None, "audio"))
    example = modality.decode("a.wav", row=0, base_dir=sound)
    patches, frames, filters = example.shape
    for seed in range(10):
        found = modality.augmenter(spec={"time": 0.25, "frequency": 0.5, "num": 1})("a.wav", example, rng(seed), sound)
        assert found.shape == example.shape and found.dtype == example.dtype
        flat = found.reshape(patches * frames, filters)
        mean = example.mean()
        masked = np.isclose(flat, mean)
        times, bands = masked.all(1).sum(), masked.all(0).sum()
        assert times <= 0.25 * len(flat) and bands <= 0.5 * filters
        rest = ~masked
        assert np.array_equal(flat[rest], example.reshape(flat.shape)[rest])
    assert modality.augmenter(gain=True, spec=True)("a.wav", example, rng(0), sound).ndim == 3


def test_numbers_and_categories():
    number = NumberModality("x")
    number.fit([1.0, 3.0, 5.0])
    noise = [number.augmenter(noise=0.5)(None, 2.0, rng(seed), HERE) for seed in range(400)]
    assert np.mean(noise) == pytest.approx(2.0, abs=0.15) and np.std(noise) == pytest.approx(0.5 * number.std, rel=0.1)
    swapped = number.augmenter(swap=0.25)
    swapped.prepare(["7", "9"], np.array([0, 1, 1, -1]), lambda code: [7.0, 9.0][code])
    found = [swapped(None, 2.0, rng(seed), HERE) for seed in range(600)]
    assert np.mean([value != 2.0 for value in found]) == pytest.approx(0.25, abs=0.06)
    assert sum(value == 9.0 for value in found) > sum(value == 7.0 for value in found) > 0
    category = CategoryModality("c").augmenter(swap=1.0)
    category.prepare(["a"], np.array([0]), lambda code: "a")
    assert category(None, "b", rng(), HERE) == "a"
    assert CellAugmenter("category", {"swap": 1.0})(None, "b", rng(), HERE) == "b"


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("text", {"word_drop": 0.1}, "augment.text has no setting 'word_drop'(.|\n)*word_dropout"),
        ("text", {"word_dropout": 1.5}, "augment.text.word_dropout is out of range"),
        ("text", {"synonyms": True}, "must name where synonyms are"),
        ("text", {"synonyms": {"file": "x", "rate": 2}}, "synonyms.rate is out of range"),
        ("text", {"paraphrase": {"modle": "x"}}, "no setting 'modle'"),
        ("text", {"paraphrase": True}, "must name a seq2seq model"),
        ("image", {"flip": "often"}, "augment.image.flip is out of range"),
        ("image", {"rand": {"magnitude": 31}}, "augment.image.rand is out of range"),
        ("image", {"mirror": True}, "no setting 'mirror'"),
        ("category", {"noise": 0.1}, "augment.category has no setting 'noise'"),
        ("number", {"noise": -1}, "augment.number.noise is out of range"),
    ],
)
def test_wrong_settings(kind, options, said):
    make = {
        "text": lambda: TextAugmenter(options, tokenize=lambda text: np.zeros(1)),
        "image": lambda: ImageAugmenter(options),
        "category": lambda: CategoryModality("c").augmenter(**options),
        "number": lambda: NumberModality("x").augmenter(**options),
    }[kind]
    with pytest.raises(ConfigError, match=said):
        make()
