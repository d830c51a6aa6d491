"""Prompts: cells in a template as ids, places of vectors, cutting."""

from pathlib import Path

import numpy as np
import pytest

from fusetune.backbones.load_language import load_language
from fusetune.errors import BadCell
from fusetune.modalities.prompt import CLOSE, OPEN, SOFT, PromptModality
from fusetune.testing.tiny_models import VOCAB

HERE = Path()


@pytest.fixture(scope="module")
def language(tiny):
    return load_language(tiny("llama_writer"))


def made(language, template: str, join, **options) -> PromptModality:
    return PromptModality("prompt", backbone=language, template=template, join=join, **options)


def read(modality: PromptModality, cell) -> list[int]:
    return modality.decode(cell, row=0, base_dir=HERE).tolist()


def test_a_prompt_is_its_text_s_ids(language):
    modality = made(language, "w1 {a}\nw2 {b}", ["a", "b"])
    assert read(modality, ["w3 w4", "w5"]) == [VOCAB[word] for word in ["w1", "w3", "w4", "w2", "w5"]]
    assert read(modality, ["w3", None]) == [VOCAB["w1"], VOCAB["w3"]]
    assert modality.text(["w3", None]) == "w1 w3"


def test_numbers_booleans_and_lists_are_words(language):
    modality = made(language, "{a}|{b}|{c}|{d}", list("abcd"))
    assert modality.text([3.0, True, ["x", None, 2], 0.5]) == "3|yes|x, 2|0.5"


def test_a_chat_in_a_template_is_its_transcript(language):
    chat = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    assert made(language, "{a} w9", ["a"]).text([chat]) == "User: w1\nAssistant: w2 w9"


def test_columns_of_vectors_have_places_where_the_row_has_them(language):
    modality = made(
        language, "w1 {photo} w2 {a}", ["a", {"present": ["photo", "sound"]}], soft=["photo"], soft_tokens=2
    )
    assert read(modality, ["w3", [True]]) == [VOCAB["w1"], -1, -2, VOCAB["w2"], VOCAB["w3"]]
    assert read(modality, ["w3", [False]]) == [VOCAB["w1"], VOCAB["w2"], VOCAB["w3"]]
    second = made(language, "{photo}{sound}", [{"present": ["photo", "sound"]}], soft=["photo", "sound"], soft_tokens=1)
    assert read(second, [[True, True]]) == [-1, -1 - SOFT]
    assert second.text([[True, True]]) == "<photo><sound>"


def test_cells_cannot_write_places_of_vectors(language):
    modality = made(language, "{a} {photo}", ["a", {"present": ["photo"]}], soft=["photo"], soft_tokens=1)
    assert read(modality, [f"{OPEN}0{CLOSE}", [True]]).count(-1) == 1


def test_a_long_prompt_is_cut_within_its_longest_cell(language):
    modality = made(language, "{a}\n{b}\nw9", ["a", "b"], max_tokens=8)
    ids = read(modality, [" ".join(["w1"] * 50), "w2 w3"])
    assert len(ids) <= 8 and ids[-3:] == [VOCAB[word] for word in ("w2", "w3", "w9")] and ids[0] == VOCAB["w1"]
    assert modality.num_truncated == 1
    assert len(read(modality, ["w1", "w2 w3"])) == 4 and modality.num_truncated == 1


def test_places_of_vectors_are_never_cut(language):
    modality = made(
        language, "{photo} {a} w9", ["a", {"present": ["photo"]}], soft=["photo"], soft_tokens=4, max_tokens=8
    )
    ids = read(modality, [" ".join(["w1"] * 50), [True]])
    assert ids[:4] == [-1, -2, -3, -4] and ids[-1] == VOCAB["w9"] and len(ids) <= 8


@pytest.mark.parametrize("cell", [[None], [""], ["   "], [[]]])
def test_a_row_with_nothing_to_read_is_refused(language, cell):
    with pytest.raises(BadCell, match="nothing to read"):
        read(made(language, "w1 {a}", ["a"]), cell)


def test_half_a_character_is_refused_with_its_column(language):
    with pytest.raises(BadCell, match="half a character"):
        read(made(language, "{a}", ["a"]), ["x\ud800"])


def test_answers_end_with_the_end_token(language):
    modality = made(language, "{a}", ["a"])
    assert modality.answer("w3 w4") == [VOCAB["w3"], VOCAB["w4"], VOCAB["[SEP]"]]


def test_state_is_restored(language):
    join = ["a", {"present": ["photo"]}]
    modality = made(language, "{a} {photo}", join, soft=["photo"], soft_tokens=3, system="w1", max_tokens=20, noise=1.0)
    again = PromptModality.from_state("prompt", modality.state(), language)
    cell = ["w3", [True]]
    assert again.state() == modality.state()
    assert np.array_equal(again.decode(cell, row=0, base_dir=HERE), modality.decode(cell, row=0, base_dir=HERE))
