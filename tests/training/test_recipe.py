"""The learning rates of a fit's stages."""

from __future__ import annotations

import pytest

from fusetune.config.trainer import TrainerConfig
from fusetune.objectives.contrastive import ContrastiveObjective
from fusetune.testing.objectives import make_parts
from fusetune.training.recipe import Recipe


@pytest.mark.parametrize("stage", ["head", "tune"])
def test_a_temperature_learns_faster_than_projections_that_start_as_the_identity(stage):
    model, tasks, _ = make_parts()
    objective = ContrastiveObjective(model, tasks)
    settings = TrainerConfig(lr=1e-2, head_lr=1e-3, backbone_lr=1e-4)
    for pretrained in (False, True):
        recipe = Recipe(model, [objective], settings, {}, 0, starts_linear=False, starts_pretrained=pretrained)
        made = recipe.head_stage(100) if stage == "head" else recipe.tune_stage()
        rates = {id(parameter): group["lr"] for group in made.groups for parameter in group["params"]}
        rate = settings.lr if stage == "head" else settings.head_lr
        assert rates[id(objective.scale.log_scale)] == rate
        assert rates[id(model.projection("x").linear.weight)] == (settings.backbone_lr if pretrained else rate)
