"""Templates of prompts: columns in braces, lines that are left out."""

import pytest

from fusetune.errors import ConfigError
from fusetune.modalities.template import Template, default_template


def test_columns_are_filled_in_and_braces_are_written_twice():
    template = Template("{{a}} {b c}, {b c}: {d}")
    assert template.columns == ("b c", "d")
    assert template.fill({"b c": "x{y}", "d": None}) == "{a} x{y}, x{y}: "


def test_a_line_is_left_out_where_all_of_its_columns_are_missing():
    template = Template("{title} by {author}\nyear: {year}\nsummary:")
    assert template.fill({"title": None, "author": "A", "year": None}) == " by A\nsummary:"
    assert template.fill({"title": None, "author": None, "year": "1999"}) == "year: 1999\nsummary:"


@pytest.mark.parametrize("text", ["{a", "a}", "{}", "{ }", "{a} {b"])
def test_open_and_empty_braces_are_refused(text):
    with pytest.raises(ConfigError, match="brace"):
        Template(text)


def test_names_that_are_no_columns_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="title"):
        Template("{titel}").check(["title", "year"], where="prompt.template")
    with pytest.raises(ConfigError, match="names no column"):
        Template("Say something.").check(["title"], where="prompt.template")


def test_the_default_template_names_each_column_and_the_target():
    text = default_template(["en", "odd {name}"][:1], "de {x}")
    assert Template(text).fill({"en": "A man."}) == "en: A man.\nde {x}:"
