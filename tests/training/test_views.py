"""Views of augmented cells: made once, used in turn, and what encoding the augmented cell gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fusetune
from fusetune.backbones import backbone
from fusetune.backbones.passes.boundary import BOUNDARY
from fusetune.inference.predict import evaluating
from fusetune.models.reader import FEATURES
from fusetune.training import stages

ROWS = 24


@pytest.fixture
def fit(shop_tables, tiny, quick, tmp_path, monkeypatch):
    """Fits with augmented notes and photos; gives the model and, as they were at its tune stage, the train rows."""
    caught = []
    real = stages.run_stage

    def caught_stage(learner, stage, train, *rest, **more):
        if stage.name == "tune":
            caught[:] = [learner.model, train, dict(train.views)]
            caught.append([train.batch(train.used[:ROWS], epoch=epoch) for epoch in range(4)])
        return real(learner, stage, train, *rest, **more)

    monkeypatch.setattr(stages, "run_stage", caught_stage)

    def run(out, *, cache, freeze="all", views=2, epochs=2):
        settings = quick | {
            "text": {"name": tiny("bert"), "freeze": freeze},
            "image": {"name": tiny("vit"), "freeze": freeze},
            "columns": {"voice": {"role": "ignore"}},
            "augment": {"text": {"word_dropout": 0.4}, "image": {"crop": 0.5}},
            "data": {"cache": str(cache), "views": views},
            "trainer": {"epochs": epochs, "head_epochs": 1, "trackers": [], "precision": "no", "patience": None},
        }
        tables = {name: shop_tables[name] for name in ("train", "val", "test")}
        tuned = fusetune.fit(
            tables["train"],
            target="label",
            val=tables["val"],
            test=tables["test"],
            out=tmp_path / out,
            config=settings,
            progress=False,
        )
        return tuned, *caught

    return run


@pytest.mark.parametrize("freeze", ["all", "bottom:2"])
def test_a_view_is_what_encoding_the_augmented_cell_gives(fit, tmp_path, freeze):
    _, model, train, views, batches = fit("views", cache=tmp_path / "cache", freeze=freeze)
    assert set(views) == {"note", "photo"} and all(len(found) == 2 for found in views.values())
    train = train.given(features={})  # without the views
    plain = [train.batch(train.used[:ROWS], epoch=view) for view in range(2)]
    for name in views:
        made = []
        for epoch, batch in enumerate(batches):
            assert (FEATURES if freeze == "all" else BOUNDARY) in batch.inputs[name]
            with evaluating(model):
                made.append(model.encode(name, batch.inputs[name]).values)
                if freeze == "all":  # else the layers behind the views have moved since
                    expected = model.encode(name, plain[epoch % 2].inputs[name]).values
                    torch.testing.assert_close(made[-1], expected, atol=1e-5, rtol=1e-4)
            assert torch.equal(batch.cells[name], plain[epoch % 2].cells[name])
        assert torch.equal(made[0], made[2]) and torch.equal(made[1], made[3])
        assert not torch.allclose(made[0], made[1], atol=1e-3)


def test_activations_of_views_train_as_whole_passes_do(fit, tmp_path):
    """Where no view is used twice, losses are those of cells augmented in every epoch."""
    curves = []
    for cache in ("none", tmp_path / "cache"):
        tuned, *_, views, _ = fit(f"of-{len(curves)}", cache=cache, freeze="bottom:2", views=2, epochs=2)
        assert bool(views) == (cache != "none")
        curves.append([(point.train_loss, point.val_loss) for point in tuned.results.curve.points])
    np.testing.assert_allclose(np.nan_to_num(curves[1]), np.nan_to_num(curves[0]), atol=1e-5, rtol=0)


def test_a_frozen_encoder_runs_once_a_view_and_not_again_for_the_next_fit(fit, tmp_path, monkeypatch):
    pictures = []
    real = backbone.Backbone._call
    monkeypatch.setattr(
        backbone.Backbone,
        "_call",
        lambda self, inputs: pictures.append(len(inputs.get("pixel_values", ()))) or real(self, inputs),
    )

    def count(out, cache, epochs):
        pictures.clear()
        fit(out, cache=cache, epochs=epochs)
        return sum(pictures)

    short, long = count("short", tmp_path / "short", 1), count("long", tmp_path / "long", 4)
    assert long == short  # however many epochs
    assert long > 150
    assert count("warm", tmp_path / "long", 4) < 20  # what the report and the loading of the encoder try out
