"""Categories: names, the vocabulary, and values never seen in training."""

from pathlib import Path

import pytest

from fusetune.errors import BadCell, ConfigError
from fusetune.modalities.category import CategoryModality
from fusetune.modalities.features.category import OTHER


def decode(cell):
    return CategoryModality("plan").decode(cell, row=2, base_dir=Path("."))


def fitted(examples, **options):
    modality = CategoryModality("plan", **options)
    modality.fit(examples)
    return modality


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        (" gold ", "gold"),
        ("NA", "NA"),
        ("00501", "00501"),
        (3, "3"),
        (3.0, "3"),
        (2.5, "2.5"),
        (True, "True"),
        ("שלום", "שלום"),
    ],
)
def test_reads(cell, name):
    assert decode(cell) == name


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        (b"x", "bytes"),
        ({}, "dict"),
        (" \t", "white space"),
        ("x" * 10**6, "1,000,000 characters"),
        ("\ud800", "half a"),
    ],
)
def test_refuses_with_the_reason(cell, why):
    with pytest.raises(BadCell, match=why):
        decode(cell)


def test_vocabulary_is_the_most_frequent_values():
    modality = fitted(["b"] * 3 + ["a"] * 3 + ["c"] * 2 + ["d"])
    assert modality.vocabulary == ["a", "b", "c"]
    assert fitted(["b", "b", "a", "c", "c", "c"], max_size=1).vocabulary == ["c"]
    assert fitted(["b", "a"]).vocabulary == ["a", "b"]


def test_unseen_and_rare_values_share_one_index():
    modality = fitted(["a", "a", "b", "b", "rare"])
    assert modality.collate(["b", "rare", "never seen", "a"])["values"].argmax(1).tolist() == [2, OTHER, OTHER, 1]
    assert modality.collate(["b", "never seen"])["values"].tolist() == [[0, 0, 1], [1, 0, 0]]
    assert modality.is_known("a") and not modality.is_known("rare")


def test_option_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="min_count of 1 or more"):
        CategoryModality("x", min_count=0)
