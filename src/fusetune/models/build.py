"""Build modalities, tasks and models from a schema and settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from fusetune.backbones.adapters import adapt
from fusetune.backbones.changed_weights import ChangedWeights
from fusetune.backbones.load import Backbone, load_backbone
from fusetune.backbones.load_language import load_language
from fusetune.config.adapter import AdapterConfig
from fusetune.config.backbone import BackboneConfig
from fusetune.config.options import check_options, check_value
from fusetune.config.section import NamedConfig
from fusetune.errors import ConfigError
from fusetune.fusion.base import Fusion
from fusetune.modalities.base import Modality
from fusetune.modalities.history import HistoryEncoder, start_as_mean
from fusetune.modalities.prompt import PromptModality
from fusetune.models.family import Family
from fusetune.models.generate import Generate, Prompts
from fusetune.models.match import Match, Negative, Sides
from fusetune.models.understand import Understand
from fusetune.registry import FUSIONS, MODALITIES, TASKS
from fusetune.tasks.abilities import Writes
from fusetune.tasks.base import TargetTask, Task, family_of, target_tasks
from fusetune.tasks.infer import registered_target_tasks
from fusetune.tasks.match import MatchTask
from fusetune.tasks.pairs import PairTask

DIM = 128
"""Default width of the projected tokens."""

NO_FUSION = "none"
"""Name of the fusion of a model of pairs whose sides are not fused, but the sum of their columns' projections."""

NO_ADAPTER = "none"
ADAPTED = 100_000_000
"""Weights of a language model from which on it has an adapter by default."""
DEFAULT_ADAPTER = AdapterConfig(name="lora", rank=16, targets="linear")

SHARED_OPTIONS: dict[str, Any] = {
    "dim": Annotated[int, Field(ge=1)],
    "input_dropout": Annotated[float, Field(ge=0, lt=1)],
    "tied": bool,
}
"""Options of the section `fusion` that every fusion has; `tied` that of a model of pairs only."""


def options_of(part: type, *filled: str) -> list[str]:
    """Return the names of a constructor's keyword-only arguments, without those that the caller fills in."""
    parameters = inspect.signature(part).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in filled]


class Backbones:
    """Loads each pretrained model once; columns with the same one share it."""

    def __init__(
        self, settings: Mapping[str, BackboneConfig], changed: Mapping[str, ChangedWeights] | None = None
    ) -> None:
        """
        Args:
            settings: by kind of column: text, image, audio.
            changed: by a backbone's key, the weights that self-supervised tuning changed.
        """
        self.settings, self.changed = settings, changed or {}
        self._loaded: dict[tuple[str, str | None], Backbone] = {}

    def get(self, kind: str, name: str | None) -> Backbone:
        """Return the backbone of a name for columns of a kind, loaded on first use; None is the kind's default."""
        setting = self.settings["text" if kind == PromptModality.kind else kind]
        name, adapter = name or setting.name, setting.adapter
        if (kind, name) not in self._loaded:
            loaded: Backbone
            if kind == PromptModality.kind:
                loaded = load_language(name)
                if adapter is None and sum(weight.numel() for weight in loaded.parameters()) >= ADAPTED:
                    adapter = DEFAULT_ADAPTER
            else:
                loaded = load_backbone(name, kind, pool=setting.pool, max_tokens=setting.max_tokens)
            if adapter is not None and adapter.name != NO_ADAPTER:
                adapt(loaded, adapter)
            if loaded.key in self.changed:
                self.changed[loaded.key].install(loaded)
            self._loaded[kind, name] = loaded
        return self._loaded[kind, name]


def build_modalities(columns: Mapping[str, tuple[str, Mapping[str, Any]]], backbones: Backbones) -> dict[str, Modality]:
    """Build a modality for every input column.

    Args:
        columns: (kind, options) by column; the option `backbone` names a column's own backbone.
        backbones: loads the pretrained encoders.

    Raises:
        ConfigError: a kind does not have an option.
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


def give_tokenizers(tasks: Mapping[str, Task], modalities: Mapping[str, Modality]) -> None:
    """Have the tasks whose answers a language model writes encode them by its tokenizer.

    Args:
        tasks: by name.
        modalities: by column, that of the prompts among them.
    """
    for task in tasks.values():
        if isinstance(task, Writes):
            prompt = modalities[task.prompt]
            assert isinstance(prompt, PromptModality)
            task.write_with(prompt.answer, prompt.most_answer_tokens, fixed=prompt.answer_tokens is not None)
            task.learn_turns(prompt.earlier_turns if prompt.turns == "all" else None)


def build_task(target: str, name: str, options: Mapping[str, Any]) -> TargetTask:
    """Build a task for a target column.

    Raises:
        ConfigError: there is no such task, or it does not have an option.
    """
    check_task(target, name, options)
    built: TargetTask = TASKS.get(name)(target, **options)
    return built


def check_task(target: str, name: str, options: Mapping[str, Any]) -> None:
    """Check that a task exists and has these options.

    Raises:
        ConfigError: there is no such task, or it does not have an option.
    """
    task = TASKS.get(name)
    if not issubclass(task, TargetTask):
        raise ConfigError(
            f"the task {name!r} predicts no column",
            expected=", ".join(registered_target_tasks()),
            column=target,
        )
    check_options(task, options, known=options_of(task), where=f"tasks.{target} ({name})")


@dataclass(frozen=True)
class _ReaderParts:
    """The arguments of `Reader`: encoders by key, each column's key, width, dropout, vectors side by side; and the
    columns' modalities."""

    encoders: dict[str, nn.Module]
    routes: dict[str, str]
    dim: int
    dropout: float
    joined: dict[str, int]
    modalities: Mapping[str, Modality]


def build_model(
    modalities: Mapping[str, Modality], tasks: Mapping[str, Task], fusion: NamedConfig, *, dropout: float = 0.1
) -> Family:
    """Build the family of models that the tasks choose, with encoders for fitted modalities.

    Args:
        modalities: by column.
        tasks: fitted, by name; at least one, all of one family.
        fusion: its name and options; a family without a fusion uses only `dim` and `input_dropout`.
        dropout: on the encoders' outputs, in [0, 1); the fusion's option `input_dropout` takes precedence.

    Raises:
        ConfigError: there is no such fusion, or it does not accept an option or value, or a task needs a column that
            is not there.
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
    joined = {name: modality.joined for name, modality in modalities.items()}
    parts = _ReaderParts(encoders, routes, dim, dropout, joined, modalities)
    return FAMILIES[family_of(tasks)](parts, tasks, fusion)


def _build_understand(parts: _ReaderParts, tasks: Mapping[str, Task], fusion: NamedConfig) -> Family:
    built = build_fusion(list(parts.routes), parts.dim, fusion)
    heads = {name: task.build_head(parts.dim) for name, task in target_tasks(tasks).items()}
    reads = {name: task.reads for name, task in target_tasks(tasks).items() if task.reads is not None}
    return Understand(
        parts.encoders, parts.routes, built, heads, dropout=parts.dropout, joined=parts.joined, reads=reads
    )


def _build_match(parts: _ReaderParts, tasks: Mapping[str, Task], fusion: NamedConfig) -> Family:
    histories = [name for name, key in parts.routes.items() if isinstance(parts.encoders[key], HistoryEncoder)]
    for encoder in parts.encoders.values():
        if isinstance(encoder, HistoryEncoder):
            encoder.set_dim(parts.dim)
    columns: dict[str, tuple[str, ...]] = {}
    for task in tasks.values():
        assert isinstance(task, MatchTask | PairTask)
        columns |= task.sides
        read = task.columns if isinstance(task, MatchTask) else [name for side in task.sides.values() for name in side]
        if unknown := [name for name in read if name not in parts.routes]:
            raise ConfigError(f"{task.target} reads {unknown[0]!r}, which is no input column")
    fused, tied = fusion.name != NO_FUSION, bool(fusion.options.get("tied", False))
    negatives = _negatives(tasks, columns, parts.routes)
    first: dict[tuple[str, int], str] = {}
    shares = {other: own for part in negatives.values() if not part.mined for own, other in part.columns.items()}
    for name, key in parts.routes.items() if tied else ():
        if name not in shares and (other := first.setdefault((key, parts.joined[name]), name)) != name:
            shares[name] = other
    shares = {column: shares.get(other, other) for column, other in shares.items()}
    sides = Sides(
        columns,
        {side: build_fusion(names, parts.dim, fusion) if fused else None for side, names in columns.items()},
        {name: task.build_head(parts.dim) for name, task in target_tasks(tasks).items()},
        negatives,
        {column: other for column, other in shares.items() if column in parts.routes},
    )
    joined = {name: parts.joined[name] for name in histories}
    model = Match(parts.encoders, parts.routes, parts.dim, sides=sides, dropout=parts.dropout, joined=joined)
    for name in histories:
        start_as_mean(model.projection(name).linear)
    return model


def _build_generate(parts: _ReaderParts, tasks: Mapping[str, Task], fusion: NamedConfig) -> Family:
    prompts = {name: part for name, part in parts.modalities.items() if isinstance(part, PromptModality)}
    give_tokenizers(tasks, prompts)
    first = next(iter(prompts.values()))
    routes = {name: key for name, key in parts.routes.items() if name not in prompts}
    encoders = {key: encoder for key, encoder in parts.encoders.items() if key in routes.values()}
    named = Prompts(
        {name: task.prompt for name, task in tasks.items() if isinstance(task, Writes)},
        {name: tuple(part.soft) for name, part in prompts.items()},
        first.soft_tokens,
        first.projector,
        first.noise,
    )
    return Generate(encoders, routes, first.backbone, named, dropout=parts.dropout)


def _negatives(
    tasks: Mapping[str, Task], columns: Mapping[str, Sequence[str]], routes: Mapping[str, str]
) -> dict[str, Negative]:
    """Return what queries are told apart from: columns that the model reads, then the documents mined for each row.

    Args:
        tasks: by name.
        columns: by side, its columns.
        routes: the columns that the model reads.
    """
    negatives: dict[str, Negative] = {}
    for task in tasks.values():
        if not isinstance(task, MatchTask):
            continue
        for column, side in task.negatives.items():
            if column in routes:
                negatives[column] = Negative(side, {columns[side][0]: column})
        side = list(task.sides)[-1] if task.mined else ""
        for number in range(task.mined):
            name = f"mined {number + 1}"
            while name in negatives or any(f"{name}: {column}" in routes for column in columns[side]):
                name += "_"
            read = {column: f"{name}: {column}" for column in columns[side]}
            negatives[name] = Negative(side, read, mined=True)
    return negatives


FAMILIES: dict[str, Callable[[_ReaderParts, Mapping[str, Task], NamedConfig], Family]] = {
    Understand.name: _build_understand,
    Match.name: _build_match,
    Generate.name: _build_generate,
}
"""The function that builds a model, by the family's name."""


def build_fusion(columns: Sequence[str], dim: int, settings: NamedConfig) -> Fusion:
    """Build a fusion over columns.

    Raises:
        ConfigError: there is no such fusion, or it does not have an option.
    """
    options = check_fusion(settings)
    fusion: Callable[..., Fusion] = FUSIONS.get(settings.name or "attention")
    return fusion(columns, dim, **options)


def check_fusion(settings: NamedConfig) -> dict[str, Any]:
    """Check a fusion's options; return those that are not in `SHARED_OPTIONS`.

    Raises:
        ConfigError: there is no such fusion, or it does not have an option.
    """
    options = {name: value for name, value in settings.options.items() if name not in SHARED_OPTIONS}
    if settings.name == NO_FUSION:
        if options:
            raise ConfigError(
                f"fusion (none) has no setting {next(iter(options))!r}", expected=", ".join(SHARED_OPTIONS)
            )
        return {}
    fusion: Any = FUSIONS.get(settings.name or "attention")
    known = [*options_of(fusion, "columns", "dim"), *SHARED_OPTIONS]
    check_options(fusion, options, known=known, where=f"fusion ({settings.name or 'attention'})")
    return options
