"""Text: tokens, long cells, odd characters."""

from pathlib import Path

import numpy as np
import pytest

from fusetune.errors import BadCell
from fusetune.modalities.text import TextModality
from fusetune.modalities.words import MAX_CHARS
from fusetune.testing.modalities import TinyBackbone

HERE = Path(".")


class Recording(TinyBackbone):
    """Remembers how many characters it was given."""

    num_chars = 0

    def tokenize(self, text):
        self.num_chars += len(text)
        return super().tokenize(text)


def decode(cell, backbone=None):
    modality = TextModality("message", backbone=backbone or TinyBackbone("text"))
    return modality.decode(cell, row=4, base_dir=HERE), modality


def test_a_megabyte_is_read_no_further_than_the_backbone_does():
    backbone = Recording("text")
    text = "word and another " * 60_000
    tokens, modality = decode(text, backbone)
    assert backbone.num_chars < 2_000
    assert tokens.tolist() == TinyBackbone("text").tokenize(text).tolist()
    assert tokens.dtype == np.int32 and modality.size(tokens) == 16 and modality.num_truncated == 1


@pytest.mark.parametrize("text", [" " * 500_000 + "at the end", "x" * 1_000_000, "x" * 900_000 + " tail of words " * 9])
def test_a_long_run_without_words_is_read_to_its_end(text):
    backbone = Recording("text")
    tokens, _ = decode(text, backbone)
    assert tokens.tolist() == TinyBackbone("text").tokenize(text).tolist()
    assert backbone.num_chars <= 3 * len(text)


def test_a_run_without_words_is_read_no_further_than_the_limit():
    backbone = Recording("text")
    _, modality = decode("x" * 20_000_000, backbone)
    assert backbone.num_chars <= 3 * MAX_CHARS and modality.num_truncated == 1


def test_short_text_is_not_counted_as_truncated():
    _, modality = decode("a few words")
    assert modality.num_truncated == 0


@pytest.mark.parametrize("text", ["🙂👩‍👩‍👧 emoji", "שלום עולם مرحبا", "a\x00b", "null", "NA", " \u200b "])
def test_odd_characters_reach_the_tokenizer_unchanged(text):
    tokens, _ = decode(text)
    assert tokens.tolist() == TinyBackbone("text").tokenize(text).tolist()


@pytest.mark.parametrize(
    ("cell", "why"),
    [("cut \ud83d", "character 4 is half"), (b"bytes", "type bytes"), ([1], "type list"), ({}, "dict")],
)
def test_refuses_with_the_reason(cell, why):
    with pytest.raises(BadCell, match=why) as caught:
        decode(cell)
    assert (caught.value.row, caught.value.column) == (4, "message")
    str(caught.value).encode()


def test_numbers_in_a_text_column_are_read_as_written():
    assert decode(7)[0].tolist() == decode("7")[0].tolist()


def test_text_that_leaves_no_token_is_refused():
    class Silent(TinyBackbone):
        def tokenize(self, text):
            return np.zeros(0, dtype=np.int32)

    with pytest.raises(BadCell, match="nothing to read"):
        decode("   ", Silent("text"))
