"""Posts: what is written is what is stated, and a picture column is worth what the ceilings say."""

import json

import numpy as np
import pytest
from PIL import Image

import fusetune as ft
from fusetune.errors import ConfigError
from fusetune.samples.posts import AMBIGUOUS, CLEAR, LABELS, make_posts
from fusetune.testing import tiny_models

BOTH = frozenset({"text", "picture"})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("posts")
    return make_posts(90, 3, folder, missing=0.2, label_noise=0.1, splits={"train": 0.8, "test": 0.2})


def rows_of(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_files_hold_the_posts(written, tmp_path):
    rows = [row for file in written.tables.values() for row in rows_of(file)]
    assert rows == [written.cells(row) for row in range(90)] and list(rows[0]) == ["text", "picture", "entities"]
    there = {f"pictures/{file.name}" for file in (written.path / "pictures").iterdir()}
    assert there == {row["picture"] for row in rows if row["picture"]} and 0 < len(there) < 90
    for name in there:
        with Image.open(written.path / name) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (96, 96))
    again = make_posts(90, 3, tmp_path, missing=0.2, label_noise=0.1, splits={"train": 0.8, "test": 0.2})
    for name in (*there, "train.jsonl", "test.jsonl", "README.md"):
        assert (again.path / name).read_bytes() == (written.path / name).read_bytes()
    assert f"| text, picture | {written.ceilings[BOTH]:.4f} |" in (written.path / "README.md").read_text()


def test_spans_are_names_and_their_types_are_as_documented():
    posts = make_posts(3000, 1, label_noise=0.2)
    clear = {name: label for label, names in zip(LABELS, CLEAR, strict=True) for name in names}
    for text, spans in zip(posts.texts, posts.spans, strict=True):
        (first, *rest) = [(text[start:end], label) for start, end, label in spans]
        assert first[0] in AMBIGUOUS and all(clear[name] == label for name, label in rest)
        assert "{" not in text and text == text.strip()
    assert np.mean([len(spans) for spans in posts.spans]) == pytest.approx(1.5, abs=0.04)
    assert np.mean(posts.labels != posts.shown) == pytest.approx(0.2, abs=0.03)
    assert np.bincount(posts.shown) / 3000 == pytest.approx(1 / 3, abs=0.04)


def test_no_word_of_the_text_tells_the_type():
    posts = make_posts(4000, 2, label_noise=0.0)
    for name in AMBIGUOUS:
        own = [
            label
            for label, spans, text in zip(posts.labels, posts.spans, posts.texts, strict=True)
            if text[spans[0][0] : spans[0][1]] == name
        ]
        assert np.bincount(own, minlength=3) / len(own) == pytest.approx(1 / 3, abs=0.13)


@pytest.mark.parametrize(("missing", "label_noise"), [(0.0, 0.0), (0.0, 0.05), (0.3, 0.1)])
def test_ceilings_are_what_a_perfect_reader_reaches(missing, label_noise):
    posts = make_posts(6000, 4, missing=missing, label_noise=label_noise)
    assert posts.best_f1() == pytest.approx(posts.ceilings[BOTH], abs=0.015)
    assert posts.best_f1(["text"]) == pytest.approx(posts.ceilings[frozenset({"text"})], abs=0.015)


def test_leaving_a_name_out_counts_where_it_scores_higher():
    """With every picture missing a guess is right one time in three, which is more than half of the F1 of 0.5."""
    posts = make_posts(10, 0, missing=0.9, label_noise=0.5)
    assert posts.ceilings[frozenset({"text"})] == pytest.approx((0.5 + 1 / 3) / 1.5)
    assert posts.ceilings[BOTH] == pytest.approx((0.5 + 0.1 * 0.5 + 0.9 / 3) / 1.5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"n": 0}, "n=0"),
        ({"missing": 1.0}, "missing"),
        ({"label_noise": 0.6}, "label_noise"),
        ({"splits": {"a": 0.5}}, "splits"),
    ],
)
def test_bad_settings_are_refused(settings, named):
    with pytest.raises(ConfigError, match=named):
        make_posts(**settings)


def test_unknown_names_are_refused(written):
    with pytest.raises(ConfigError, match="did you mean 'picture'"):
        written.best_f1(["pictur"])
    with pytest.raises(ConfigError, match="train, test"):
        written.best_f1(split="dev")
    with pytest.raises(ConfigError, match="write"):
        _ = make_posts(1).tables


@pytest.mark.slow
def test_entities_with_the_picture_beat_those_without(tiny, tmp_path, monkeypatch):
    """A tiny text model that knows the words; without the picture the types are guesses."""
    posts = make_posts(360, 0, tmp_path / "posts", label_noise=0.0, splits={"train": 0.6, "val": 0.15, "test": 0.25})
    words = sorted({word for text in posts.texts for word in text.lower().split()})
    vocabulary = [*tiny_models.SPECIALS, *words]
    monkeypatch.setattr(tiny_models, "SMALL", {**tiny_models.SMALL, "hidden_size": 64, "intermediate_size": 96})
    monkeypatch.setattr(tiny_models, "VOCAB", {word: number for number, word in enumerate(vocabulary)})
    text, image = str(tiny_models.make("bert", tmp_path / "bert")), tiny("vit")
    found = {}
    for name, columns in (("both", {}), ("text", {"picture": {"role": "ignore"}})):
        tuned = ft.fit(
            str(posts.tables["train"]),
            target="entities",
            val=str(posts.tables["val"]),
            test=str(posts.tables["test"]),
            config={
                "text": text,
                "image": image,
                "columns": columns,
                "trainer": {"epochs": 4, "head_epochs": 10, "lr": 1e-3, "batch_size": 16, "trackers": []},
                "report": {"bootstrap": 0, "alone": "none"},
            },
            out=tmp_path / name,
            progress=False,
        )
        found[name] = tuned.results.tasks[0].first("after").metrics["f1"].value
    assert found["both"] > found["text"] + 0.08, found
    assert found["text"] < posts.ceilings[frozenset({"text"})] + 0.1, "the text tells the types"
