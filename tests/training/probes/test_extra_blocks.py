"""N-grams and comparisons of columns in the probe: chosen where they help, the same in the model and after loading."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

import fusetune as ft
from fusetune.data.table import Table
from fusetune.modalities.ngrams import SECOND, Ngrams, character_ngrams_of, ngrams_of
from fusetune.models.understand import Understand
from fusetune.testing.tiny_models import WORDS, make
from fusetune.training.probes.selection import block_r2, select

NAMES = WORDS[:12]


def records(rows: int, *, pair: bool) -> list[dict[str, str]]:
    """Texts whose class is whether a word is in them, or whether two texts are equal."""
    rng = np.random.default_rng(0)
    made = []
    for place in range(rows):
        first = " ".join(rng.choice(NAMES, 6, replace=False))
        second = first if place % 2 else " ".join(rng.choice(NAMES, 6, replace=False))
        told = first == second if pair else NAMES[0] in first.split()
        made.append({"first": first, **({"second": second} if pair else {}), "label": "yes" if told else "no"})
    return made


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return str(make("bert", tmp_path_factory.mktemp("text") / "bert"))


@pytest.mark.parametrize("pair", [False, True])
def test_the_model_starts_as_the_probe_and_predicts_the_same_after_loading(backbone, tmp_path, pair):
    columns = {name: {"kind": "text"} for name in (["first", "second"] if pair else ["first"])}
    rows = records(240, pair=pair)
    config = {"text": {"name": backbone}, "columns": columns, "trainer": {"epochs": 0, "head_epochs": 0}}
    tuned = ft.fit(Table.from_records(rows), target="label", config=config, out=tmp_path / "run", progress=False)
    model = tuned.bundle.model
    assert isinstance(model, Understand)
    assert (model.pairs if pair else model.ngrams) is not None
    assert tuned.results is not None
    before, after = (tuned.results.tasks[0].first(kind) for kind in ("before", "after"))
    assert before is not None and after is not None
    assert before.metrics["accuracy"].value == pytest.approx(after.metrics["accuracy"].value)
    assert after.metrics["accuracy"].value > 0.8
    given = [{key: value for key, value in row.items() if key != "label"} for row in rows]
    given[0]["first"] = ""
    if not pair:
        given = given[1:]
    first = tuned.predict(Table.from_records(given)).to_pandas()
    again = ft.load(tmp_path / "run").predict(Table.from_records(given)).to_pandas()
    numbers = first.select_dtypes("number").columns
    assert len(numbers)
    np.testing.assert_allclose(first[numbers], again[numbers], atol=1e-6)


def test_ngrams_are_tf_idf_as_scikit_learn_has_it():
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 9, rng.integers(1, 12)).astype(np.int32) for _ in range(30)]
    found = Ngrams.fit(texts, ngrams_of, most=1000)
    assert found is not None
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2, token_pattern=r"\S+")
    wanted = vectorizer.fit_transform([" ".join(map(str, text)) for text in texts]).toarray()
    names = [[int(part) + 1 for part in name.split()] for name in vectorizer.get_feature_names_out()]
    keys = [parts[0] * SECOND + parts[1] if len(parts) == 2 else parts[0] for parts in names]
    np.testing.assert_allclose(found.matrix(texts).toarray(), wanted[:, np.argsort(keys)], atol=1e-6)
    again = Ngrams.from_state(found.state(), ngrams_of)
    np.testing.assert_array_equal(again.matrix(texts).toarray(), found.matrix(texts).toarray())


def test_character_ngrams_are_those_of_scikit_learn():
    texts = ["the Cat sat on", "cats saß naïve", "a catalogue of sats", "the"]
    vectorizer = TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(3, 5), min_df=2)
    wanted = vectorizer.fit_transform(texts).toarray()
    ids = [np.asarray([place]) for place in range(4)]
    found = Ngrams.fit(ids, lambda text: character_ngrams_of(text, lambda own: texts[own[0]]), most=1000)
    assert found is not None and found.matrix(ids).shape == wanted.shape
    # The columns are in the order of hashes: compare what does not depend on it.
    np.testing.assert_allclose((found.matrix(ids) @ found.matrix(ids).T).toarray(), wanted @ wanted.T, atol=1e-6)
    np.testing.assert_allclose(np.sort(found.matrix(ids).toarray()), np.sort(wanted), atol=1e-6)


def test_a_vocabulary_that_is_none_is_refused():
    with pytest.raises(ValueError):
        Ngrams.from_state({"keys": [5, 3], "counts": [2, 2], "rows": 9}, ngrams_of)


def test_loo_r2_is_that_of_leaving_each_row_out():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5))
    y = x @ rng.normal(size=(5, 1)) + rng.normal(size=(40, 1))
    centred = x - x.mean(0)
    wanted = []
    for penalty in 10.0 ** np.arange(0, -6, -1):
        # The mean of the features is taken over all rows, as the closed form has it.
        predicted = cross_val_predict(Ridge(penalty * 40), centred, y, cv=LeaveOneOut())
        wanted.append(1 - ((y - predicted.reshape(-1, 1)) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    assert block_r2(x, y) == pytest.approx(max(wanted), abs=0.02)


def test_blocks_that_tell_nothing_are_left_out():
    rng = np.random.default_rng(0)
    told = rng.normal(size=(80, 3))
    targets = told @ np.ones((3, 1)) + 0.3 * rng.normal(size=(80, 1))
    noise = {f"noise {place}": rng.normal(size=(80, 8)) for place in range(4)}
    found = select({"told": told, **noise}, dict.fromkeys(["told", *noise], 1.0), targets)
    assert found["told"] > 0
    assert sum(found[name] == 0 for name in noise) >= 3


def test_rows_without_a_text_have_no_ngrams():
    from fusetune.models.extras import NgramLinear
    from fusetune.types import Batch

    layer = NgramLinear({("t", "tokens"): 3}, [2]).eval()
    layer.start_from(("t", "tokens"), 0, torch.ones(3, 2))
    ngrams = {"t": {"tokens_ids": torch.tensor([[0, 1], [2, 0]]), "tokens_values": torch.tensor([[0.5, 0.5], [1, 0]])}}
    cells = {"t": torch.tensor([0, -1])}
    batch = Batch({}, cells, torch.ones(2), torch.arange(2), ngrams=ngrams)
    torch.testing.assert_close(layer(batch)[0], torch.tensor([[1.0, 1.0], [0.0, 0.0]]))


def test_character_ngrams_are_read_where_words_share_parts(backbone, tmp_path):
    """Of forty words ten begin with w3: tokens must learn each of them, characters one beginning."""
    rng = np.random.default_rng(0)
    others = [word for word in WORDS if not word.startswith("w3")]
    threes = [word for word in WORDS if word.startswith("w3") and len(word) == 3]
    rows = []
    for place in range(150):
        told = place % 2 == 0
        words = [*rng.choice(others, 4), rng.choice(threes) if told else rng.choice(others)]
        title = " ".join(rng.choice(others, 3))
        rows.append({"title": title, "text": " ".join(rng.permutation(words)), "label": "yes" if told else "no"})
    config = {
        "text": {"name": backbone},
        "columns": {"title": {"kind": "text"}, "text": {"kind": "text"}},
        "trainer": {"epochs": 0, "head_epochs": 0},
    }
    tuned = ft.fit(Table.from_records(rows), target="label", config=config, out=tmp_path / "run", progress=False)
    model = tuned.bundle.model
    assert isinstance(model, Understand) and model.ngrams is not None
    assert ("text", "characters") in model.ngrams.sources
    for name, modality in tuned.bundle.modalities.items():
        assert set(modality.ngrams) == {part for column, part in model.ngrams.sources if column == name}
    assert tuned.results is not None
    before, after = (tuned.results.tasks[0].first(kind) for kind in ("before", "after"))
    assert before is not None and after is not None
    assert before.metrics["accuracy"].value == pytest.approx(after.metrics["accuracy"].value)
    table = Table.from_records([{key: value for key, value in row.items() if key != "label"} for row in rows])
    first, again = (one.predict(table).to_pandas() for one in (tuned, ft.load(tmp_path / "run")))
    numbers = first.select_dtypes("number").columns
    np.testing.assert_allclose(first[numbers], again[numbers], atol=1e-6)
