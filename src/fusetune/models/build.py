"""From a schema and settings to modalities and a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from fusetune.backbones.adapters import adapt
from fusetune.backbones.load import Backbone, load_backbone
from fusetune.config.sections import BackboneConfig, NamedConfig, check_options, check_value
from fusetune.errors import ConfigError
from fusetune.fusion.mean import MeanFusion
from fusetune.modalities.base import Modality
from fusetune.models.understand import Understand
from fusetune.registry import FUSIONS, MODALITIES, TASKS
from fusetune.tasks.base import Task

DIM = 128
"""Features of the tokens in the fusion."""

SHARED_OPTIONS = {"dim": Annotated[int, Field(ge=1)], "input_dropout": Annotated[float, Field(ge=0, lt=1)]}
"""What the section `fusion` takes for every fusion."""


def options_of(part: type, *taken: str) -> list[str]:
    """The keyword settings that a part's constructor takes, less those that the caller fills in."""
    parameters = inspect.signature(part).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in taken]


class Backbones:
    """Loads each pretrained model once, however many columns read with it."""

    def __init__(self, settings: Mapping[str, BackboneConfig]) -> None:
        """
        Args:
            settings: per kind of column: text, image, audio.
        """
        self.settings = settings
        self._loaded: dict[tuple[str, str | None], Backbone] = {}

    def get(self, kind: str, name: str | None) -> Backbone:
        """The backbone of this name (None: the one set for the kind) for columns of this kind."""
        setting = self.settings[kind]
        name = name or setting.name
        if (kind, name) not in self._loaded:
            loaded = load_backbone(name, kind, pool=setting.pool, max_tokens=setting.max_tokens)
            if setting.adapter is not None:
                adapt(loaded, setting.adapter)
            self._loaded[kind, name] = loaded
        return self._loaded[kind, name]


def build_modalities(columns: Mapping[str, tuple[str, Mapping[str, Any]]], backbones: Backbones) -> dict[str, Modality]:
    """A modality for every input column.

    Args:
        columns: per column its kind and its options, `backbone` among them where it has its own.
        backbones: where encoders come from.

    Raises:
        ConfigError: an option that the kind does not take, or no column at all.
    """
    if not columns:
        raise ConfigError(
            "there is no input column",
            expected="at least one column of text, images, audio, numbers or categories besides the target",
            do="look at the schema: fusetune schema TABLE --target TARGET; a column that was left out can be insisted "
            "on with columns.NAME.role=input",
        )
    modalities: dict[str, Modality] = {}
    for name, (kind, options) in columns.items():
        modality = MODALITIES.get(kind)
        chosen = {key: value for key, value in options.items() if key != "backbone"}
        check_options(modality, chosen, known=options_of(modality, "backbone"), where=f"columns.{name} ({kind})")
        if modality.needs_backbone:
            chosen["backbone"] = backbones.get(kind, options.get("backbone"))
        modalities[name] = modality(name, **chosen)
    return modalities


def build_task(target: str, name: str, options: Mapping[str, Any]) -> Task:
    """A task for a target column.

    Raises:
        ConfigError: no such task, or an option that it does not take.
    """
    task = TASKS.get(name)
    check_options(task, options, known=options_of(task), where=f"tasks.{target} ({name})")
    built: Task = task(target, **options)
    return built


def build_model(
    modalities: Mapping[str, Modality], tasks: Mapping[str, Task], fusion: NamedConfig, *, dropout: float = 0.1
) -> Understand:
    """Encoders, fusion and heads for fitted modalities and tasks.

    Without a task the columns are only brought into one space: of the fusion's settings `dim` counts alone.

    Raises:
        ConfigError: no such fusion, or an option or value that it does not take.
    """
    encoders: dict[str, nn.Module] = {}
    routes: dict[str, str] = {}
    for name, modality in modalities.items():
        routes[name] = modality.encoder_key
        if modality.encoder_key not in encoders:
            encoders[modality.encoder_key] = modality.build_encoder()
    fusion_class: Callable[..., Any] = FUSIONS.get(fusion.name or "attention") if tasks else MeanFusion
    options = dict(fusion.options) if tasks else {k: v for k, v in fusion.options.items() if k in SHARED_OPTIONS}
    for name in options.keys() & SHARED_OPTIONS.keys():
        check_value(f"fusion.{name}", options[name], SHARED_OPTIONS[name])
    dim = int(options.pop("dim", DIM))
    dropout = float(options.pop("input_dropout", dropout))
    check_options(
        fusion_class,  # type: ignore[arg-type]
        options,
        known=[*options_of(fusion_class, "columns", "dim"), *SHARED_OPTIONS],  # type: ignore[arg-type]
        where=f"fusion ({fusion.name})",
    )
    built = fusion_class(list(routes), dim, **options)
    heads = {name: task.build_head(dim) for name, task in tasks.items()}
    return Understand(encoders, routes, built, heads, dropout=dropout)
