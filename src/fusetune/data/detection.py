"""The schema that a table's names and cells speak for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusetune.data.giveaway import gives_away
from fusetune.data.roles import find_role, is_integer, names_things
from fusetune.data.schema import ColumnSpec, Override, Schema, checked_overrides
from fusetune.data.table import Table, is_missing
from fusetune.errors import SchemaError, TableError, shown
from fusetune.registry import MODALITIES

SAMPLE = 1000
LOOKED_AT = 20_000
UNSURE = 0.4
MEDIA = ("image", "audio")
TARGET_KINDS = ("number", "category", "text")


@dataclass
class _Column:
    """What was seen of one column: cells at evenly spaced rows, missing ones among them."""

    cells: list[Any]
    present: list[Any]

    @property
    def num_missing(self) -> int:
        return len(self.cells) - len(self.present)

    def sample(self) -> list[Any]:
        """At most `SAMPLE` evenly spaced cells that are not missing."""
        return [self.present[place] for place in evenly(len(self.present), SAMPLE)]


def evenly(num: int, at_most: int) -> list[int]:
    """Evenly spaced positions among `num`: all of them where they are few."""
    if num <= at_most:
        return list(range(num))
    return np.unique(np.linspace(0, num - 1, at_most).astype(np.int64)).tolist()  # type: ignore[no-any-return]


def detect_schema(table: Table, targets: Sequence[str], overrides: Mapping[str, Override]) -> Schema:
    """What `Schema.detect` does; see there."""
    given = checked_overrides(table, targets, overrides)
    targets = [
        *targets,
        *(name for name, spec in given.items() if spec.get("role") == "target" and name not in targets),
    ]
    table.require(targets)
    seen = {name: _look(table, name) for name in table.column_names}
    schema = Schema({}, [])
    for name in table.column_names:
        spec = _judge(table, name, seen[name], given.get(name, {}), name in targets)
        schema.columns[name] = spec
    _find_giveaways(schema, seen, given)
    _one_of_each(schema, given)
    return schema


def _look(table: Table, name: str) -> _Column:
    heavy = not table.is_scalar(name)
    cells = table.cells(name, evenly(len(table), SAMPLE if heavy else LOOKED_AT))
    present = [cell for cell in cells if not is_missing(cell)]
    if not present and len(cells) < len(table):
        places = np.flatnonzero(~table.missing(name))[:SAMPLE]
        present = table.cells(name, places)
    return _Column(cells, present)


def _judge(table: Table, name: str, column: _Column, given: dict[str, Any], is_target: bool) -> ColumnSpec:
    role, kind, options = given.get("role"), given.get("kind"), given.get("options", {})
    said = [f"{key} given" for key in ("kind", "role") if given.get(key)]
    if not column.present:
        if is_target:
            raise TableError("the target has no cell with a value", file=table.source, column=name)
        if role == "input":
            raise SchemaError("the column has no cell with a value", do="leave it out", file=table.source, column=name)
        return ColumnSpec(name, kind or "category", role or "ignore", "all cells are missing", options)
    reason = ""
    if kind is None:
        kind, reason, confidence = _kind(table, name, column, TARGET_KINDS if is_target else tuple(MODALITIES))
        if confidence <= 0 and not is_target and role is None:
            return ColumnSpec(
                name, "category", "ignore", f"no kind reads such cells: {shown(column.present[0], 60)}", options
            )
        if confidence < UNSURE and not is_target:
            reason += " (unsure: name its kind if this is wrong)"
    if is_target:
        return ColumnSpec(name, kind, "target", _joined("the target", *said, reason), options)
    if role is None:
        found = find_role(name, kind, column.present, column.num_missing)
        role = found.role if found else "input"
        reason = found.reason if found else reason
    if role == "input":
        refuse_urls(name, kind, column.sample(), table.source)
        if table.lone:
            _refuse_beside(name, kind, column.sample(), table.source)
    return ColumnSpec(name, kind, role, _joined(*said, reason), options)


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _kind(table: Table, name: str, column: _Column, kinds: Sequence[str]) -> tuple[str, str, float]:
    """The surest kind, its reason and how sure it is; earlier ones in the registry win ties."""
    sample = column.sample()
    best, reason, confidence = "category", "", -1.0
    refuse_urls(name, None, sample, table.source)
    for kind in kinds:
        found = MODALITIES.get(kind).detect(sample, base_dir=table.base_dir)
        if found.confidence > confidence:
            best, reason, confidence = kind, found.reason, found.confidence
    if best == "number" and "category" in kinds and names_things(name) and all(is_integer(cell) for cell in sample):
        best, reason = "category", "integers that the column's name calls identifiers"
    return best, reason, confidence


_MEDIA_ENDINGS = (
    ".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".wav", ".flac", ".ogg", ".mp3", ".m4a", ".opus",
)  # fmt: skip


def refuse_urls(name: str, kind: str | None, sample: Sequence[Any], source: str) -> None:
    """Refuse a media column whose cells are URLs.

    Args:
        name: the column.
        kind: its kind, or None where it is not known: then only URLs that end like media files count.
        sample: cells, none missing.
        source: the table's name for the message.

    Raises:
        SchemaError: they are.
    """
    if kind is not None and kind not in MEDIA:
        return
    urls = [
        cell
        for cell in sample
        if isinstance(cell, str)
        and "://" in cell[:12]
        and (kind is not None or cell.split("?")[0].split("#")[0].lower().endswith(_MEDIA_ENDINGS))
    ]
    if len(urls) * 2 > len(sample):
        raise SchemaError(
            "the cells are URLs, and media are not fetched while training: what a URL gives can change or vanish",
            expected="paths (absolute, or relative to the table's file), or bytes in a Parquet file",
            came=shown(urls[0]),
            do=f"download them and put the paths into the column, or leave it out: role of {name!r}: ignore",
            file=source,
            column=name,
        )


def _refuse_beside(name: str, kind: str, sample: Sequence[Any], source: str) -> None:
    """Refuse names of media files that lie beside a table at an address.

    Raises:
        SchemaError: the column holds such names.
    """
    texts = [cell.split(";")[0].strip() for cell in sample if isinstance(cell, str)]
    paths = [text for text in texts if kind in MEDIA or text.lower().endswith(_MEDIA_ENDINGS)]
    beside = [path for path in paths if "://" not in path and not Path(path).is_absolute()]
    if len(beside) * 2 > len(sample):
        raise SchemaError(
            "the cells name files beside the table, and of what lies at an address only the table itself is copied",
            expected="media as bytes in a Parquet file, or absolute paths on this machine",
            came=shown(beside[0]),
            do=f"copy table and files here and give the copy's path; or leave the column out: role of {name!r}: ignore",
            file=source,
            column=name,
        )


def _find_giveaways(schema: Schema, seen: dict[str, _Column], given: Mapping[str, dict[str, Any]]) -> None:
    for name in schema.inputs:
        spec = schema.columns[name]
        for target in schema.targets:
            if len(seen[name].cells) != len(seen[target].cells):
                continue
            how = gives_away(seen[name].cells, seen[target].cells, spec.kind)
            if how is None:
                continue
            if given.get(name, {}).get("role") == "input":
                schema.warnings.append(f"column {name!r} is used as you asked, but it gives {target!r} away: {how}")
                continue
            schema.warnings.append(
                f"column {name!r} is left out, as it gives {target!r} away: {how}. If it is known when predicting, "
                "give it the role input"
            )
            schema.columns[name] = ColumnSpec(name, spec.kind, "ignore", f"gives {target!r} away: {how}", spec.options)
            break


def _one_of_each(schema: Schema, given: Mapping[str, dict[str, Any]]) -> None:
    """Of several columns found for a role that only one can have, keep the user's, else the first."""
    for role in ("group", "split", "weight"):
        names = schema.names(role)
        chosen = [name for name in names if given.get(name, {}).get("role") == role]
        if len(chosen) > 1:
            raise SchemaError(f"{' and '.join(map(repr, chosen))} both have the role {role}", expected="one column")
        for name in names:
            if name == (chosen or names)[0]:
                continue
            spec = schema.columns[name]
            reason = f"could be the {role}, which {(chosen or names)[0]!r} is already: {spec.reason}"
            schema.columns[name] = ColumnSpec(name, spec.kind, "ignore", reason, spec.options)
