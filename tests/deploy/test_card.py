"""The model card says what the model reads, predicts, how well, and how to use it."""

from __future__ import annotations

import dataclasses

from fusetune.deploy.card import card, write_card


def test_it_says_what_a_user_needs(fitted):
    text = (fitted.folder / "README.md").read_text(encoding="utf-8")
    assert text == card(fitted.bundle, fitted.results)
    for part in (
        *("# Predicts `label`", "fusetune predict . new.csv", 'ft.load(".")', "binary: no, yes"),
        *(
            "| note | text |",
            "| price | number | learned here |",
            "| tuned |",
            "| frozen probe |",
            "| constant guess |",
        ),
        *(fitted.bundle.fingerprint, "- torch ", "On 20 test rows"),
    ):
        assert part in text, part
    assert "nan" not in text


def test_names_cannot_break_its_tables(fitted):
    modalities = {"a|b\nc\\": fitted.bundle.modalities["price"]}
    text = card(dataclasses.replace(fitted.bundle, modalities=modalities), None)
    assert "| a\\|b c\\\\ | number |" in text
    assert "How well" not in text


def test_it_is_written_without_results_too(fitted, tmp_path):
    assert (
        write_card(fitted.bundle, None, tmp_path).read_text().partition("---\n\n")[2].startswith("# Predicts `label`")
    )
