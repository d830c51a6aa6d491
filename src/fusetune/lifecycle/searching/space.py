"""The search space where none is given, and where the settings as they are lie in a space."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from fusetune.backbones.backbone import Backbone
from fusetune.config.config import Config
from fusetune.config.fusion import neural
from fusetune.config.space import Choice, Parameter, Range, Space, label_of, nested
from fusetune.data.schema import Schema
from fusetune.fitting.prepared import backbones_of, input_columns
from fusetune.models.generate import Generate
from fusetune.models.understand import Understand
from fusetune.registry import FUSIONS, OBJECTIVES

TRAINER: dict[str, Parameter] = {
    "trainer.epochs": Range(low=2, high=12, log=True),
    "trainer.backbone_lr": Range(low=1e-5, high=5e-4, log=True),
    "trainer.head_lr": Range(low=3e-5, high=3e-3, log=True),
    "trainer.lr": Range(low=1e-4, high=1e-2, log=True),
    "trainer.layer_decay": Range(low=0.7, high=1.0),
    "trainer.batch_size": Choice((8, 16, 32, 64)),
}
FUSED = ("attention", "concat", "gated")
UNKNOWN = object()


def default_space(config: Config, schema: Schema, family: str) -> Space:
    """Return the space where none is given: what the settings leave at its default.

    Args:
        config: settings that are set here are not searched, but for the weights of objectives.
        schema: of the table.
        family: of the tasks.
    """
    given = config.model_dump(exclude_defaults=True)
    kinds = sorted({kind for kind, _ in input_columns(config, schema).values()})
    space: Space = dict(TRAINER)
    for kind in kinds:
        if (
            family != Generate.name
            and kind in ("text", "image", "audio")
            and not {"freeze", "adapter"} & given.get(kind, {}).keys()
        ):
            space |= dict(_tuning(config, kind))
    if family == Understand.name:
        space |= dict(_fusion(config, len(kinds) > 1 or len(input_columns(config, schema)) > 1))
    left = {key: parameter for key, parameter in space.items() if not _is_set(given, key)}
    return left | dict(_objectives(config))


def _is_set(given: Mapping[str, Any], key: str) -> bool:
    value: Any = given
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return not isinstance(value, Mapping)


def _tuning(config: Config, kind: str) -> Iterator[tuple[str, Parameter]]:
    """Yield how much of a kind's pretrained encoder is tuned: all, an adapter, the upper half, nothing."""
    setting = {"text": config.text, "image": config.image, "audio": config.audio}[kind]
    if kind != "text" and setting.name is None:
        return  # an encoder from scratch
    encoder = backbones_of(config).get(kind, None)
    if isinstance(encoder, Backbone) and encoder.pretrained:
        half = len(encoder.blocks()) // 2
        yield kind, Choice(({}, {"freeze": f"bottom:{half}"}, {"freeze": "all"}, {"adapter": "lora"}))


def _fusion(config: Config, several: bool) -> Iterator[tuple[str, Parameter]]:
    name = str(neural(config.fusion).name)
    if several and name == "attention" and not neural(config.fusion).options:
        yield "fusion", Choice(FUSED)
    if name in FUSIONS and default_option(FUSIONS.get(name), "dropout") is not UNKNOWN and name == config.fusion.name:
        yield "fusion.dropout", Range(low=0.0, high=0.4)


def _objectives(config: Config) -> Iterator[tuple[str, Parameter]]:
    """Yield the weight of each objective that is on, and λ of the contrastive one."""
    for name, options in config.objectives.items():
        weight = options.get("weight", default_option(OBJECTIVES.get(name), "weight"))
        if isinstance(weight, int | float) and weight > 0:
            yield f"objectives.{name}.weight", Range(low=weight / 30, high=weight * 3, log=True)
        if name == "contrastive":
            yield f"objectives.{name}.lambda", Range(low=0.35, high=0.7)  # below, decoupled negatives may collapse


def default_option(part: type, name: str) -> Any:
    """Return the default of a part's option, or `UNKNOWN` if it has none or no such option."""
    parameter = inspect.signature(part).parameters.get({"lambda": "lam"}.get(name, name))
    return UNKNOWN if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def with_current(space: Space, config: Config) -> tuple[Space, dict[str, Any], list[str]]:
    """Return the space widened so that the settings as they are lie in it.

    Returns:
        The space; the parameters of the settings as they are; the keys for which there is no such parameter, as the
        setting is null and the range has numbers.
    """
    wide: Space = {}
    params: dict[str, Any] = {}
    unknown = []
    for key, parameter in space.items():
        value = current_value(config, key)
        if isinstance(parameter, Choice):
            wide[key], found = _with_choice(parameter, config, key, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            wide[key] = parameter.holding(value)
            found = value if parameter.holding(value).contains(value) else UNKNOWN
        else:
            wide[key], found = parameter, UNKNOWN
        if found is UNKNOWN:
            unknown.append(key)
        else:
            params[key] = found
    return wide, params, unknown


def _with_choice(parameter: Choice, config: Config, key: str, value: Any) -> tuple[Choice, Any]:
    same = config.model_dump()
    for label, option in zip(parameter.labels, parameter.values, strict=True):
        if option == value or config.with_overrides(nested(key, option)).model_dump() == same:
            return parameter, label
    first = {} if isinstance(value, Mapping) or any(isinstance(v, Mapping) for v in parameter.values) else value
    if first is UNKNOWN:
        return parameter, UNKNOWN
    return Choice((first, *parameter.values)), label_of(first)


def current_value(config: Config, key: str) -> Any:
    """Return what a setting is now: as set, else the default of the fusion or objective that has it, else `UNKNOWN`."""
    value: Any = config.model_dump()
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif depth == len(parts) - 1 and parts[0] == "fusion" and config.fusion.name in FUSIONS:
            return default_option(FUSIONS.get(str(config.fusion.name)), part)
        elif depth == len(parts) - 1 and parts[0] == "objectives" and parts[1] in OBJECTIVES:
            return default_option(OBJECTIVES.get(parts[1]), part)
        else:
            return UNKNOWN
    return value
