"""Which kind finds itself in which column."""

import numpy as np
import pytest

from fusetune.registry import MODALITIES
from fusetune.testing.modalities import png_bytes, tone, wav_bytes

RNG = np.random.default_rng(0)
WORDS = [
    "the",
    "phone",
    "fell",
    "broke",
    "after",
    "update",
    "screen",
    "battery",
    "great",
    "slow",
    "refund",
    "please",
    "never",
    "works",
    "colour",
    "price",
]
PAIRS = [f"{first} {second}" for first in WORDS for second in WORDS]


def sentences(num, words):
    return [" ".join(RNG.choice(WORDS, words)) for _ in range(num)]


COLUMNS = {
    "floats": ([f"{value:.3f}" for value in RNG.normal(size=200)], "number"),
    "stars": ([int(value) for value in RNG.integers(1, 6, 200)], "number"),
    "years with two ranges": ([str(1950 + number % 70) for number in range(198)] + ["2007–2019"] * 2, "number"),
    "codes": ([f"{number % 40:05d}" for number in range(200)], "category"),
    "colours": (list(RNG.choice(["red", "green", "dark blue"], 200)), "category"),
    "few rows": (["a", "b", "a", "a", "b", "a"], "category"),
    "booleans": ([True, False] * 50, "category"),
    "answers of a form": (["I strongly agree with this", "I do not agree with this at all"] * 100, "category"),
    "reviews": (sentences(200, 12), "text"),
    "titles": (list(RNG.permutation(PAIRS)[:200]), "text"),
    "few reviews": (sentences(8, 12), "text"),
    "lists of names": ([", ".join(RNG.choice(WORDS, 4)) for _ in range(200)], "text"),
    "Chinese": (["今天天气很好我们去公园" + chr(0x4E00 + number) for number in range(200)], "text"),
    "Thai": (["วันนี้อากาศดีมาก" + str(number) for number in range(200)], "text"),
    "reviews that name pictures": (
        [f"{text} see photo.png" for text in sentences(200, 9)][:100] + sentences(140, 9),
        "text",
    ),
    "picture paths": ([f"images/{number}.JPG" for number in range(100)], "image"),
    "several pictures": ([f"{number}.png; {number}b.webp" for number in range(100)], "image"),
    "picture bytes": ([png_bytes((number, 0, 0)) for number in range(20)], "image"),
    "picture structs": ([{"bytes": png_bytes((number, 0, 0)), "path": "x"} for number in range(20)], "image"),
    "picture URLs": ([f"https://example.org/{number}.png?size=2" for number in range(100)], "image"),
    "sound paths": ([f"calls/{number % 7}.mp3" for number in range(100)], "audio"),
    "sound bytes": ([wav_bytes(tone(100 + number)) for number in range(20)], "audio"),
    "decoded sounds": ([{"array": tone(100.0), "sampling_rate": 8000, "path": None}] * 5, "audio"),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_the_right_kind_is_surest(name, tmp_path):
    values, kind = COLUMNS[name]
    found = {known: MODALITIES.get(known).detect(values, base_dir=tmp_path) for known in MODALITIES}
    assert max(found, key=lambda known: found[known].confidence) == kind, found


def test_missing_files_are_named_in_the_reason(tmp_path):
    (tmp_path / "here.png").write_bytes(png_bytes((0, 0, 0)))
    found = MODALITIES.get("image").detect(["here.png", "gone.png"], base_dir=tmp_path)
    assert found.confidence > 0.9
    assert "1 of 2" in found.reason and "'gone.png'" in found.reason


def test_urls_are_named_in_the_reason(tmp_path):
    found = MODALITIES.get("audio").detect(["http://example.org/a.wav"], base_dir=tmp_path)
    assert "1 are URLs" in found.reason


def test_identifiers_beyond_a_float_are_no_numbers(tmp_path):
    values = [str(2**60 + number) for number in range(50)]
    found = MODALITIES.get("number").detect(values, base_dir=tmp_path)
    assert found.confidence <= 0.3 and "2^53" in found.reason
