"""From a schema and settings to modalities and a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from fusetune.backbones.adapters import adapt
from fusetune.backbones.load import Backbone, load_backbone
from fusetune.config.sections import BackboneConfig, NamedConfig, check_options, check_value
from fusetune.fusion.base import Fusion
from fusetune.modalities.base import Modality
from fusetune.models.family import Family
from fusetune.models.match import Match
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
        ConfigError: an option that the kind does not take.
    """
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
    check_task(target, name, options)
    built: Task = TASKS.get(name)(target, **options)
    return built


def check_task(target: str, name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a task does not take.

    Raises:
        ConfigError: no such task, or an option that it does not take.
    """
    task = TASKS.get(name)
    check_options(task, options, known=options_of(task), where=f"tasks.{target} ({name})")


def build_model(
    modalities: Mapping[str, Modality], tasks: Mapping[str, Task], fusion: NamedConfig, *, dropout: float = 0.1
) -> Family:
    """Build the family of models that the tasks choose, with encoders for fitted modalities.

    Args:
        modalities: by column.
        tasks: fitted, by name; without any the columns are brought into one space.
        fusion: its name and options; of these `dim` and `input_dropout` alone count for a family without a fusion.
        dropout: on the encoders' outputs, in [0, 1), where the fusion's options have no `input_dropout`.

    Raises:
        ConfigError: no such fusion, or an option or value that it does not take.
    """
    encoders: dict[str, nn.Module] = {}
    routes: dict[str, str] = {}
    for name, modality in modalities.items():
        routes[name] = modality.encoder_key
        if modality.encoder_key not in encoders:
            encoders[modality.encoder_key] = modality.build_encoder()
    shared = {name: value for name, value in fusion.options.items() if name in SHARED_OPTIONS}
    for name, value in shared.items():
        check_value(f"fusion.{name}", value, SHARED_OPTIONS[name])
    dim, dropout = int(shared.get("dim", DIM)), float(shared.get("input_dropout", dropout))
    if not tasks:
        return Match(encoders, routes, dim, dropout=dropout)
    built = build_fusion(list(routes), dim, fusion)
    heads = {name: task.build_head(dim) for name, task in tasks.items()}
    return Understand(encoders, routes, built, heads, dropout=dropout)


def build_fusion(columns: Sequence[str], dim: int, settings: NamedConfig) -> Fusion:
    """Build a fusion over columns.

    Raises:
        ConfigError: no such fusion, or an option that it does not take.
    """
    options = check_fusion(settings)
    fusion: Callable[..., Fusion] = FUSIONS.get(settings.name or "attention")
    return fusion(columns, dim, **options)


def check_fusion(settings: NamedConfig) -> dict[str, Any]:
    """Return the options that are a fusion's own, after checking all of them.

    Raises:
        ConfigError: no such fusion, or an option that it does not take.
    """
    fusion: Any = FUSIONS.get(settings.name or "attention")
    options = {name: value for name, value in settings.options.items() if name not in SHARED_OPTIONS}
    known = [*options_of(fusion, "columns", "dim"), *SHARED_OPTIONS]
    check_options(fusion, options, known=known, where=f"fusion ({settings.name or 'attention'})")
    return options
