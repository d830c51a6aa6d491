"""Detection of a table's schema from its column names and cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fusetune.config.read import ReadConfig
from fusetune.data.detect.dates import guess_dates
from fusetune.data.detect.forms import FEW, NUMBERS, guess_numbers
from fusetune.data.detect.leakage import find_leak
from fusetune.data.detect.media import (
    MEDIA,
    how_to_fetch,
    refuse_beside,
    refuse_unread,
    refuse_urls,
    unread_files,
    urls_of_media,
)
from fusetune.data.detect.roles import find_role, is_integer, looks_like_owners, names_codes, names_things
from fusetune.data.reading.cell_forms import CellForm, missing_words
from fusetune.data.schema import ColumnSpec, Override, Schema, checked_overrides
from fusetune.data.table import Table, is_missing
from fusetune.errors import SchemaError, TableError, shown
from fusetune.modalities.messages import is_chat
from fusetune.registry import MODALITIES

SAMPLE = 1000
"""Cells of a column that the modalities rate."""
MAX_CELLS = 20_000
"""Cells of a scalar column that are read."""
UNSURE = 0.4
"""Confidence below which a kind is marked as unsure."""
TARGET_KINDS = ("number", "category", "text")
_DATED = ("date",)


@dataclass
class _Column:
    """A column's cells at evenly spaced rows; `present` are those that are not missing."""

    cells: list[Any]
    present: list[Any]

    @property
    def num_missing(self) -> int:
        return len(self.cells) - len(self.present)

    def read_as(self, form: CellForm) -> _Column:
        """Return the column with its cells parsed in a form."""
        if form == CellForm():
            return self
        cells = [form.read(cell) for cell in self.cells]
        present = [cell for cell in map(form.read, self.present) if not is_missing(cell)]
        return _Column(cells, present)

    def sample(self) -> list[Any]:
        """Return at most `SAMPLE` evenly spaced cells that are not missing."""
        return [self.present[index] for index in evenly_spaced(len(self.present), SAMPLE)]


def evenly_spaced(num: int, at_most: int) -> list[int]:
    """Evenly spaced positions among `num`: all of them where they are few."""
    if num <= at_most:
        return list(range(num))
    return np.unique(np.linspace(0, num - 1, at_most).astype(np.int64)).tolist()  # type: ignore[no-any-return]


def detect_schema(
    table: Table, targets: Sequence[str], overrides: Mapping[str, Override], read: ReadConfig | None = None
) -> Schema:
    """Detect a table's schema; see `Schema.detect`."""
    given = checked_overrides(table, targets, overrides)
    targets = [
        *targets,
        *(name for name, spec in given.items() if spec.get("role") == "target" and name not in targets),
    ]
    table.require(targets)
    seen = {name: _sample(table, name) for name in table.column_names}
    schema = Schema({}, [])
    detector = _Detector(table, schema, given, targets, read or ReadConfig(), seen)
    for name in table.column_names:
        schema.columns[name] = detector.column(name)
    _drop_leaks(schema, seen, given)
    _resolve_unique_roles(schema, given)
    return schema


def _sample(table: Table, name: str) -> _Column:
    heavy = not table.is_scalar(name)
    cells = table.cells(name, evenly_spaced(len(table), SAMPLE if heavy else MAX_CELLS))
    present = [cell for cell in cells if not is_missing(cell)]
    if not present and len(cells) < len(table):
        indices = np.flatnonzero(~table.missing(name))[:SAMPLE]
        present = table.cells(name, indices)
    return _Column(cells, present)


class _Detector:
    """Detects the kind, the role and the cell form of each column."""

    def __init__(
        self,
        table: Table,
        schema: Schema,
        given: Mapping[str, dict[str, Any]],
        targets: Sequence[str],
        read: ReadConfig,
        seen: dict[str, _Column],
    ) -> None:
        self.table, self.schema, self.given, self.targets, self.read = table, schema, given, targets, read
        self.seen = seen
        self._fetched = frozenset(table.fetcher.protocols if table.fetcher is not None else ())
        self.numbers = {name: guess_numbers(column.sample(), read) for name, column in seen.items() if column.present}
        marks = [guess.form.decimal for guess in self.numbers.values() if guess.certain and guess.share >= NUMBERS]
        self.decimal = "," if marks.count(",") > marks.count(".") else None

    def column(self, name: str) -> ColumnSpec:
        """Return one column's spec; remarks are appended to the schema's notes and warnings."""
        given, is_target = self.given.get(name, {}), name in self.targets
        form = given["read"] if "read" in given else self._form(name, given.get("kind"), is_target)
        raw = self.seen[name]
        self.seen[name] = column = raw.read_as(form)
        spec = self._spec(name, column, given, is_target)
        if spec.kind not in ("number", *_DATED) and "read" not in given and form != (words := self._words(raw)):
            form = words  # other notations concern only numbers and dates
            self.seen[name] = column = raw.read_as(form)
            spec = self._spec(name, column, given, is_target)
        self._report(name, spec, form, raw, column)
        return replace(spec, read=form, reason=_joined(spec.reason, str(form)))

    def _form(self, name: str, kind: str | None, is_target: bool) -> CellForm:
        """Return the form of the column's cells as numbers or dates, else as words."""
        column = self.seen[name]
        words = self._words(column)
        if kind not in (None, "number", "date") or not column.present:
            return words
        if kind != "number" and not is_target and (dates := guess_dates(name, column.sample(), self.read)):
            if dates.other is not None:
                self.schema.warnings.append(
                    f"column {name!r}: its dates are read as {dates.form.dates}, and {dates.other} fits them as well; "
                    "data.read.dates says which is meant"
                )
            return dates.form
        guess = self.numbers[name]
        if self.decimal is not None:
            guess = guess_numbers(column.sample(), self.read, decimal=self.decimal)
            self.numbers[name] = guess
        few = len({str(cell) for cell in column.sample()}) <= FEW
        if guess.share < NUMBERS or (is_target and guess.form.affixes and few):
            return words
        sample = column.sample()
        media = [MODALITIES.get(other).detect(sample, base_dir=self.table.base_dir).confidence for other in MEDIA]
        return words if guess.form.is_numeric and max(media) >= 0.5 else guess.form  # "12.png" is no amount

    def _words(self, column: _Column) -> CellForm:
        """Return the default form with the settings' words for missing cells."""
        if not self.read.missing:
            return CellForm()
        texts = {cell.strip() for cell in column.present if isinstance(cell, str)}
        return CellForm(missing=tuple(sorted(text for text in texts if missing_words(self.read.missing, text))))

    def _report(self, name: str, spec: ColumnSpec, form: CellForm, raw: _Column, column: _Column) -> None:
        if form != CellForm():
            lost = column.num_missing - raw.num_missing
            share = f" ({lost:,} of {len(raw.cells):,} cells looked at)" if form.missing and lost else ""
            self.schema.notes.append(f"column {name!r}: {form}{share}")
        guess = self.numbers.get(name)
        if guess is None or spec.kind in ("number", "image", "audio", *_DATED) or spec.role not in ("input", "target"):
            return
        if self.given.get(name, {}).get("kind") or not (guess.why_not or guess.share >= 0.5):
            return
        if guess.share >= NUMBERS and not guess.why_not:
            return  # codes, or amounts that serve as names
        odd = (
            guess.why_not
            or f"{guess.share:.0%} of its cells are numbers, others are not, as {shown(list(guess.others), 80)}"
        )
        self.schema.warnings.append(
            f"column {name!r} is read as {spec.kind}: {odd}. If it is one of numbers, say columns.{name}=number, and "
            "data.read.missing=[...] for words that stand for a missing cell"
        )

    def _spec(self, name: str, column: _Column, given: dict[str, Any], is_target: bool) -> ColumnSpec:
        role, kind, options = given.get("role"), given.get("kind"), given.get("options", {})
        source = self.table.source
        settings = [f"{key} given" for key in ("kind", "role") if given.get(key)]
        if not column.present:
            if is_target:
                raise TableError("the target has no cell with a value", file=source, column=name)
            if role == "input":
                raise SchemaError("the column has no cell with a value", do="leave it out", file=source, column=name)
            return ColumnSpec(name, kind or "category", role or "ignore", "all cells are missing", options)
        reason = ""
        if kind is None:
            kinds = TARGET_KINDS if is_target else tuple(MODALITIES)
            kind, reason, confidence = _kind(self.table, name, column, kinds)
            if confidence <= 0 and not is_target and role is None:
                why = f"no kind reads such cells: {shown(column.present[0], 60)}"
                return ColumnSpec(name, "category", "ignore", why, options)
            if confidence < UNSURE and not is_target:
                reason += " (unsure: name its kind if this is wrong)"
        if is_target:
            return ColumnSpec(name, kind, "target", _joined("the target", *settings, reason), options)
        if kind == "text" and "chat" not in options and is_chat(column.sample()).confidence:
            options = {**options, "chat": True}
        if role is None:
            role, reason = self._role(name, kind, column, reason)
        if role == "input":
            refuse_unread(name, kind, column.sample(), source)
            refuse_urls(name, kind, column.sample(), source, self._fetched)
            if self.table.lone:
                refuse_beside(name, kind, column.sample(), source)
        return ColumnSpec(name, kind, role, _joined(*settings, reason), options)

    def _role(self, name: str, kind: str, column: _Column, reason: str) -> tuple[str, str]:
        """Return the column's role and the reason."""
        chosen = "kind" in self.given.get(name, {})
        if not chosen and (unread := unread_files(column.sample())):
            self.schema.warnings.append(
                f"column {name!r} is left out: its cells name {unread[0]} files, as {shown(unread[1], 80)}, which are "
                f"not read. Convert them ({unread[2]}) and name the new files"
            )
            return "ignore", f"{unread[0]} files, which are not read"
        if not chosen and (urls := urls_of_media(kind, column.sample(), self._fetched)):
            self.schema.warnings.append(
                f"column {name!r} is left out: its cells are addresses, as {shown(urls[0], 80)}, which are not fetched "
                f"unless it is asked for. {how_to_fetch(urls[0])}; or download them and put the paths into the column"
            )
            return "ignore", f"addresses of media, which are not fetched: {how_to_fetch(urls[0])}"
        detected = find_role(name, kind, column.present, column.num_missing)
        if detected is None and (num := looks_like_owners(name, column.present)):
            self.schema.warnings.append(
                f"column {name!r} names {num} of what rows belong to, each in many rows. A random split puts rows of "
                f"each on both sides, so the score says nothing of new ones: columns.{name}=group keeps them apart; "
                f"columns.{name}=input says that they are known in advance"
            )
        return (detected.role, detected.reason) if detected else ("input", reason)


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _kind(table: Table, name: str, column: _Column, kinds: Sequence[str]) -> tuple[str, str, float]:
    """Return the kind with the highest confidence, its reason and the confidence; ties go to the registry's order."""
    sample = column.sample()
    best, reason, confidence = "category", "", -1.0
    for kind in kinds:
        detection = MODALITIES.get(kind).detect(sample, base_dir=table.base_dir)
        if detection.confidence > confidence:
            best, reason, confidence = kind, detection.reason, detection.confidence
    if best == "number" and "category" in kinds and all(is_integer(cell) for cell in sample):
        if names_things(name):
            best, reason = "category", "integers that the column's name calls identifiers"
        elif names_codes(name, sample):
            best, reason = "category", "integers that the column's name calls codes, and that repeat"
    return best, reason, confidence


def _drop_leaks(schema: Schema, seen: dict[str, _Column], given: Mapping[str, dict[str, Any]]) -> None:
    for name in schema.inputs:
        spec = schema.columns[name]
        for target in schema.targets:
            if len(seen[name].cells) != len(seen[target].cells):
                continue
            how = find_leak(seen[name].cells, seen[target].cells, spec.kind)
            if how is None:
                continue
            if given.get(name, {}).get("role") == "input":
                schema.warnings.append(f"column {name!r} is used as you asked, but it gives {target!r} away: {how}")
                continue
            schema.warnings.append(
                f"column {name!r} is left out, as it gives {target!r} away: {how}. If it is known when predicting, "
                "give it the role input"
            )
            schema.columns[name] = replace(spec, role="ignore", reason=f"gives {target!r} away: {how}")
            break


def _resolve_unique_roles(schema: Schema, given: Mapping[str, dict[str, Any]]) -> None:
    """Resolve roles that only one column may have: the user's column keeps the role, else the first one."""
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
            schema.columns[name] = replace(spec, role="ignore", reason=reason)
