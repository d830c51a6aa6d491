"""The JSON schema of the settings, with which editors complete and check YAML files."""

from __future__ import annotations

from typing import Any

from fusetune.config.config import Config
from fusetune.registry import FUSIONS, MODALITIES, OBJECTIVES, TASKS, Registry

DRAFT = "https://json-schema.org/draft/2020-12/schema"

TEXT: dict[str, Any] = {"type": "string"}
OPTIONS: dict[str, Any] = {"type": "object"}

AUGMENTATION = {"anyOf": [OPTIONS, TEXT, {"type": "array", "items": TEXT}]}

SHORT = {"ColumnConfig": TEXT, "CatalogueConfig": TEXT, "RerankConfig": {"type": "boolean"}, "PretrainConfig": TEXT}
"""What sections without a name may be given as: a column's kind or role, a catalogue's path, true for defaults."""


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a YAML file of settings.

    It takes the short forms that `Config` takes: a section by its name, a list of one text as that text. Rules between
    settings, and the options of fusions, tasks and objectives, are left to `Config`.

    Example:
        >>> json_schema()["properties"]["seed"]["minimum"]
        0
    """
    schema = Config.model_json_schema()
    definitions: dict[str, Any] = schema.pop("$defs")
    schema = _with_short_forms(schema, definitions)
    definitions = {name: _with_short_forms(part, definitions) for name, part in definitions.items()}
    named = {
        "fusion": _any_of(_known(FUSIONS, "auto", "stack", "none"), OPTIONS),
        "tasks": {"type": "object", "additionalProperties": _any_of(_known(TASKS), OPTIONS)},
        "objectives": _any_of(
            _known(OBJECTIVES),
            {"type": "array", "items": _known(OBJECTIVES)},
            {
                "type": "object",
                "properties": {name: _any_of(OPTIONS, {"type": ["number", "null"]}) for name in OBJECTIVES},
            },
        ),
        "augment": {
            "type": "object",
            "properties": dict.fromkeys(MODALITIES, AUGMENTATION),
        },
    }
    of_column = definitions["ColumnConfig"]["properties"]["augment"]
    definitions["ColumnConfig"]["properties"]["augment"] = AUGMENTATION | {"description": of_column["description"]}
    for name, part in named.items():
        schema["properties"][name] = {**part, "description": schema["properties"][name]["description"]}
    return {"$schema": DRAFT, **schema, "title": "fusetune settings", "$defs": definitions}


def _known(registry: Registry, *also: str) -> dict[str, Any]:
    """Return the schema of a name, which editors complete with those that are registered."""
    return _any_of({"enum": [*registry, *also]}, TEXT)


def _any_of(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": list(parts)}


def _with_short_forms(part: Any, definitions: dict[str, Any]) -> Any:
    """Return a schema without titles and defaults that repeat sections, with the short forms of sections and lists."""
    if isinstance(part, list):
        return [_with_short_forms(inner, definitions) for inner in part]
    if not isinstance(part, dict):
        return part
    result = {
        name: {key: _with_short_forms(inner, definitions) for key, inner in value.items()}
        if name in ("properties", "$defs")
        else _with_short_forms(value, definitions)
        for name, value in part.items()
        if not (name == "title" and isinstance(value, str)) and not (name == "default" and isinstance(value, dict))
    }
    section = str(part.get("$ref", "")).rpartition("/")[2]
    if section in SHORT:
        return _beside(result, SHORT[section])
    if "name" in definitions.get(section, {}).get("properties", {}):
        return _beside(result, TEXT)
    if part.get("type") == "array" and part.get("items") == TEXT:
        return _beside(result, TEXT)
    return result


def _beside(part: dict[str, Any], short: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that takes a short form too; description and default stay outside."""
    outside = {name: part[name] for name in ("description", "default") if name in part}
    inside = {name: value for name, value in part.items() if name not in outside}
    return _any_of(inside, short) | outside
