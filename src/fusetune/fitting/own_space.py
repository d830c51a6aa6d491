"""Pairs whose sides one encoder reads: its own vectors can be compared, so the model may start from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fusetune.backbones.backbone import Backbone
from fusetune.config.section import NamedConfig
from fusetune.fitting.prepared import Prepared
from fusetune.models.build import NO_FUSION
from fusetune.models.family import Family
from fusetune.tasks.base import Task
from fusetune.tasks.match import MatchTask
from fusetune.tasks.pairs import PairTask
from fusetune.training.alignment import Identity


def sides_of(tasks: Mapping[str, Task]) -> dict[str, tuple[str, ...]]:
    """Return the sides of tasks of the match family, by name their columns; empty if columns are compared."""
    sides: dict[str, tuple[str, ...]] = {}
    for task in tasks.values():
        if isinstance(task, MatchTask | PairTask):
            sides |= task.sides
    return sides


def keep_own_space(fit: Prepared) -> Prepared:
    """Return the fit with sides as wide as the encoder's vectors and not fused, where its vectors can be compared.

    They can if each side is one column, and one pretrained encoder reads them all. Settings that name a fusion, or its
    options, are left as they are, but `fusion=none` gets the encoder's width if it names none.
    """
    fusion, encoder = fit.config.fusion, _common_encoder(fit)
    as_usual = fusion == NamedConfig(name="attention")
    if encoder is None or not (as_usual or (fusion.name == NO_FUSION and "dim" not in fusion.options)):
        return fit
    options = {"name": NO_FUSION, "dim": encoder.dim, "input_dropout": 0.0, **fusion.options}
    return replace(fit, config=fit.config.model_copy(update={"fusion": NamedConfig.model_validate(options)}))


def identity_start(model: Family, sides: Mapping[str, Sequence[str]]) -> Identity | None:
    """Return the start from the encoder's own vectors; None if the model does not compare them in their own space.

    Args:
        model: of the match family.
        sides: by name, their columns.
    """
    columns = [name for names in sides.values() for name in names]
    keys = {model.routes[name] for name in columns}
    unfused = all(getattr(side, "fusion", None) is None for side in getattr(model, "sides", ()))
    alone = all(len(names) == 1 for names in model.compared.values())
    if len(keys) != 1 or not unfused or not alone or any(model.encoder_dim(name) != model.dim for name in columns):
        return None
    return Identity(columns)


def tied(fit: Prepared) -> Prepared:
    """Return the fit with one projection for both sides, unless the settings say whether they share it."""
    fusion = fit.config.fusion
    if "tied" in fusion.options:
        return fit
    options = {"name": fusion.name, **fusion.options, "tied": True}
    return replace(fit, config=fit.config.model_copy(update={"fusion": NamedConfig.model_validate(options)}))


def _common_encoder(fit: Prepared) -> Backbone | None:
    """Return the pretrained encoder that reads all sides, each of one column; None if there is none."""
    sides = sides_of(fit.tasks)
    columns = [name for names in sides.values() for name in names]
    if not sides or len(columns) != len(sides):
        return None
    modalities = [fit.modalities[name] for name in columns]
    encoder = getattr(modalities[0], "backbone", None)
    if not isinstance(encoder, Backbone) or not encoder.pretrained or encoder.pool == "none":
        return None
    same = all(getattr(modality, "backbone", None) is encoder and modality.joined == 1 for modality in modalities)
    return encoder if same else None
