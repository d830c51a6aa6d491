"""What was computed before is what would be computed: losses with the cache are those without it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fusetune
from fusetune.data.storage.feature_cache import ENDING, FeatureCache
from fusetune.inference import predict as inference
from fusetune.training import trunk


@pytest.fixture
def settings(tiny, quick):
    return quick | {
        "text": {"name": tiny("bert"), "freeze": "bottom:2"},
        "image": {"name": tiny("vit"), "freeze": "bottom:2"},
        "columns": {"voice": {"role": "ignore"}},
        "trainer": {
            "epochs": 2,
            "head_epochs": 1,
            "trackers": [],
            "batch_size": 8,
            "precision": "no",
            "patience": None,
        },
    }


def fit(tables, settings, cache, out, **changes):
    merged = settings | {"data": {"cache": str(cache)}} | changes
    return fusetune.fit(
        tables["train"], target="label", val=tables["val"], test=tables["test"], out=out, config=merged, progress=False
    )


def curve(tuned):
    return np.nan_to_num([(point.train_loss, point.val_loss) for point in tuned.results.curve.points])


@pytest.mark.parametrize("image", ["vit", "resnet"])
def test_losses_are_those_of_whole_passes(shop_tables, settings, tmp_path, monkeypatch, tiny, image):
    settings["image"] = {"name": tiny(image), "freeze": "bottom:2"}
    used = []
    real = trunk.Trunk.__call__
    monkeypatch.setattr(trunk.Trunk, "__call__", lambda self, places: used.append(self.column) or real(self, places))
    plain = fit(shop_tables, settings, "none", tmp_path / "plain")
    assert not used
    cold = fit(shop_tables, settings, tmp_path / "cache", tmp_path / "cold")
    assert {column.modality.column for column in used} == {"note", "photo"}
    np.testing.assert_allclose(curve(cold), curve(plain), atol=1e-5, rtol=0)
    encoded = []
    monkeypatch.setattr(trunk, "run_to", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr(inference, "_add_to_store", lambda store, digests, *rest, **_: encoded.extend(digests) or store)
    warm = fit(shop_tables, settings, tmp_path / "cache", tmp_path / "warm")
    assert np.array_equal(curve(warm), curve(cold)) and not encoded
    for name, value in cold.bundle.model.state_dict().items():
        assert torch.equal(value, warm.bundle.model.state_dict()[name]), name
    # what was cached took no part in what is saved
    test = shop_tables["test"]
    assert fusetune.load(tmp_path / "warm").predict(test)["label"] == warm.predict(test)["label"]


def test_other_weights_or_layers_share_nothing(shop_tables, settings, tmp_path, tiny):
    cache = tmp_path / "cache"
    fit(shop_tables, settings, cache, tmp_path / "a")
    folders = set(cache.iterdir())
    other = settings | {"text": {"name": tiny("roberta"), "freeze": "bottom:2"}}
    fit(shop_tables, other, cache, tmp_path / "b")
    assert len(set(cache.iterdir())) == len(folders) + 2  # roberta's output and its first layer


@pytest.mark.parametrize(
    ("number", "changes"),
    [
        (4, {}),
        (2, {"augment": {"text": {"word_dropout": 0.2}, "image": {"flip": True}}}),  # validation rows alone
        (0, {"trainer": {"epochs": 1, "head_epochs": 1, "trackers": [], "adversarial": "fgm"}}),
        (0, {"objectives": {"vat": {}}}),
    ],
)
def test_not_where_inputs_are_changed(shop_tables, settings, tmp_path, monkeypatch, number, changes):
    monkeypatch.setattr(trunk, "_compute_trunk", lambda model, encoder, number, column, *_: filled.append(column))
    filled: list = []
    fit(shop_tables, settings, tmp_path / "cache", tmp_path / "m", **changes)
    assert len(filled) == number


def test_a_cache_that_cannot_be_written_stops_nothing(shop_tables, settings, tmp_path):
    (tmp_path / "cache").write_text("a file stands where the folder should be")
    with pytest.warns(UserWarning, match="not stored"):
        tuned = fit(shop_tables, settings, tmp_path / "cache", tmp_path / "m")
    assert any("run in every epoch" in warning for warning in tuned.results.warnings)


def test_an_interrupted_filling_goes_on(shop_tables, settings, tmp_path, monkeypatch):
    from fusetune.data.storage import feature_cache as store

    monkeypatch.setattr(store, "SEGMENT_BYTES", 1)
    monkeypatch.setattr(trunk, "BATCH", 16)
    ran = []
    real = trunk.run_to

    def stopping(backbone, number, tensors):
        ran.append(backbone.kind)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return real(backbone, number, tensors)

    monkeypatch.setattr(trunk, "run_to", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit(shop_tables, settings, tmp_path / "cache", tmp_path / "a")
    first = len(ran)
    kept = len(list((tmp_path / "cache").glob(f"*/*{ENDING}")))
    fit(shop_tables, settings, tmp_path / "cache", tmp_path / "b")
    assert len(list((tmp_path / "cache").glob(f"*/*{ENDING}"))) > kept
    again = len(ran) - first
    whole: list = []
    monkeypatch.setattr(trunk, "run_to", lambda *given: whole.append(1) or real(*given))
    fit(shop_tables, settings, tmp_path / "other", tmp_path / "c")
    # The interrupted run kept the batches that it had filled; its first pass measured the outputs' size, as each run's.
    assert again == len(whole) - 1


def test_cache_of_the_settings(tmp_path):
    from fusetune.config.config import Config

    config = Config.build({"data": {"cache": str(tmp_path), "cache_gib": 3}})
    found = FeatureCache.of(config.data.cache, config.data.cache_gib)
    assert found is not None and (found.folder, found.limit) == (tmp_path, 3 * 2**30)
