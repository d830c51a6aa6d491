"""`Schema`: the kind and the role of every column, with the reason; it is saved as YAML that users can edit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, Union

import yaml

from fusetune.config.read import ReadConfig
from fusetune.data.reading.cell_forms import CellForm
from fusetune.data.table import Table
from fusetune.errors import SchemaError, StorageError, nearest, reason, shown
from fusetune.registry import MODALITIES
from fusetune.security.untrusted import read_bytes
from fusetune.security.yaml_text import YAML_BYTES, parse_yaml

ROLES = ("input", "target", "group", "split", "weight", "id", "ignore")
"""input: read by the model. target: predicted. group: rows with equal cells stay in the same split.
split: names train, val or test. weight: the row's weight in the loss. id, ignore: not used."""

Override: TypeAlias = Union[str, "ColumnSpec", Mapping[str, Any]]
"""A user's setting for a column: a kind, a role, or a mapping with `kind`, `role`, `options` and `read`."""

_KEYS = ("kind", "role", "reason", "options", "read")
_BREAKS = set("\x85\u2028\u2029\ufeff")
_ONCE = ("group", "split", "weight")


@dataclass(frozen=True)
class ColumnSpec:
    """One column.

    Attributes:
        name: the column's name.
        kind: a name in `fusetune.registry.MODALITIES`.
        role: one of `ROLES`.
        reason: a readable explanation of kind and role.
        options: arguments of the kind's modality, such as `{"bins": 32}`.
        read: how the text of its cells is parsed, such as `{decimal: ","}` in YAML.
    """

    name: str
    kind: str
    role: str = "input"
    reason: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    read: CellForm = field(default_factory=CellForm)

    def to_dict(self) -> dict[str, Any]:
        """Return the non-empty attributes without the name."""
        made: dict[str, Any] = {"kind": self.kind, "role": self.role}
        if self.reason:
            made["reason"] = self.reason
        if self.options:
            made["options"] = self.options
        if read := self.read.to_dict():
            made["read"] = read
        return made


@dataclass
class Schema:
    """The columns of a table, in its order.

    Attributes:
        columns: by name.
        warnings: for the user: columns that leak the target, or whose kind is doubtful.
        notes: for the user: how cells with decimal commas, currencies or other notations are parsed.
    """

    columns: dict[str, ColumnSpec]
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def detect(
        cls,
        table: Table,
        targets: Sequence[str] = (),
        overrides: Mapping[str, Override] | None = None,
        read: ReadConfig | None = None,
    ) -> Schema:
        """Detect every column's kind and role.

        Each modality rates a sample of about 1000 cells, and the highest confidence wins. Identifiers, constants and
        columns that leak a target are not inputs, unless an override sets `role: input`.

        Args:
            table: the table; only its train rows, where they are known.
            targets: the columns to predict.
            overrides: settings by column, such as `{"year": "category", "metascore": {"role": "ignore"}}`.
            read: how cells are parsed; unset options are detected.

        Raises:
            TableError: a target is not in the table or has no values.
            SchemaError: an override names an unknown column, kind or role, overrides contradict each other, or an
                image or audio column holds URLs.
        """
        from fusetune.data.detect.columns import detect_schema

        targets = [targets] if isinstance(targets, str) else list(targets)
        return detect_schema(table, targets, overrides or {}, read)

    def forms(self) -> dict[str, CellForm]:
        """Return the cell forms that differ from the default, by column, for `Table.read_as`."""
        return {name: spec.read for name, spec in self.columns.items() if spec.read != CellForm()}

    def joins(self) -> dict[str, list[str | list[str]]]:
        """The columns that are made of others, for `Table.with_joined`: the others' names, choices as a list."""
        return {name: spec.options["join"] for name, spec in self.columns.items() if spec.options.get("join")}

    def names(self, role: str) -> list[str]:
        """Return the names of the columns with this role, in the table's order."""
        return [name for name, spec in self.columns.items() if spec.role == role]

    @property
    def inputs(self) -> list[str]:
        """The model's input columns."""
        return self.names("input")

    @property
    def targets(self) -> list[str]:
        """The columns to predict."""
        return self.names("target")

    @property
    def group(self) -> str | None:
        """The column whose equal cells stay in the same split, or None."""
        return next(iter(self.names("group")), None)

    @property
    def split(self) -> str | None:
        """The column that names train, val or test, or None."""
        return next(iter(self.names("split")), None)

    @property
    def weight(self) -> str | None:
        """The column of row weights, or None."""
        return next(iter(self.names("weight")), None)

    def rows(self) -> list[dict[str, str]]:
        """Return a mapping for each column, for display: column, kind, role, reason."""
        return [
            {"column": name, "kind": spec.kind, "role": spec.role, "reason": spec.reason}
            for name, spec in self.columns.items()
        ]

    def validate(self, table: Table, *, targets: bool = True) -> None:
        """Check that a table has the columns that this schema uses.

        Args:
            table: new rows.
            targets: whether targets, group, split and weight are required too, as in training.

        Raises:
            SchemaError: columns are missing; the message lists them with the nearest names.
        """
        used = ("input", "target", *_ONCE) if targets else ("input",)
        lost = [name for name, spec in self.columns.items() if spec.role in used and name not in table]
        if not lost:
            return
        free = [name for name in table.column_names if name not in self.columns]
        missing = [
            f"{name!r} ({self.columns[name].role})" + (f", {hint}" if (hint := nearest(name, free)) else "")
            for name in lost
        ]
        raise SchemaError(
            f"{len(lost)} column{'s' * (len(lost) > 1)} of the schema missing from the table: {'; '.join(missing)}",
            expected=", ".join(name for name, spec in self.columns.items() if spec.role in used),
            came=", ".join(table.column_names),
            do="rename the table's columns, or give a missing one as an empty column",
            file=table.source,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the columns as plain values for JSON or YAML, without warnings and notes."""
        return {"columns": {name: spec.to_dict() for name, spec in self.columns.items()}}

    @classmethod
    def from_dict(cls, data: Any, *, source: str = "the schema") -> Schema:
        """Return the schema of a mapping as `to_dict` makes it.

        Raises:
            SchemaError: the mapping is not a schema; the message lists all problems.
        """
        problems: list[str] = []
        if not isinstance(data, Mapping) or not isinstance(data.get("columns"), Mapping):
            raise SchemaError(
                "there are no columns",
                expected="columns: {name: {kind: ..., role: ...}}",
                came=shown(data),
                file=source,
            )
        problems += [_unknown("key", key, ("columns",)) for key in data if key != "columns"]
        columns: dict[str, ColumnSpec] = {}
        for name, entry in data["columns"].items():
            if not isinstance(name, str):
                problems.append(f"the column name {name!r} is a {type(name).__name__}: put it in quotes")
                continue
            made = _entry(name, entry, problems)
            if not {"kind", "role"} <= made.keys() and not problems:
                problems.append(f"column {name!r}: needs kind and role")
            kind, role, reason = (str(made.get(key, "")) for key in ("kind", "role", "reason"))
            form = made.get("read", CellForm())
            columns[name] = ColumnSpec(name, kind, role, reason, options=made.get("options", {}), read=form)
        schema = cls(columns)
        for role in _ONCE:
            if len(schema.names(role)) > 1:
                problems.append(f"only one column can have the role {role}: {', '.join(schema.names(role))}")
        _raise(problems, source)
        return schema

    def to_yaml(self) -> str:
        """Return the schema as editable YAML; `from_yaml` parses it."""
        head = (
            "# The kind and the role of each column. Edit this file and pass it to fit.\n"
            f"# kind: {', '.join(MODALITIES)}\n"
            f"# role: {', '.join(ROLES)}\n"
        )
        data = self.to_dict()
        # PyYAML writes these line breaks unquoted and reads them back as spaces.
        readable = not any(_BREAKS & set(text) for text in _strings(data))
        return head + str(yaml.safe_dump(data, sort_keys=False, allow_unicode=readable, width=120))

    @classmethod
    def from_yaml(cls, text: str, *, source: str = "the schema") -> Schema:
        """Return the schema of a YAML text.

        Raises:
            SchemaError: it is not YAML, or not a schema; the message lists all problems.
        """
        try:
            data = parse_yaml(text)
        except (yaml.YAMLError, ValueError) as error:
            raise SchemaError(
                f"the schema is not YAML: {error}", do="check the indentation and the quotes there", file=source
            ) from error
        return cls.from_dict(data, source=source)

    def save(self, path: str | Path) -> None:
        """Write `to_yaml` to a file.

        Raises:
            StorageError: it cannot be written.
        """
        try:
            Path(path).write_text(self.to_yaml(), encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{path}: the schema cannot be written ({reason(error)})") from error

    @classmethod
    def load(cls, path: str | Path) -> Schema:
        """Read a schema from a file.

        Raises:
            SchemaError: it cannot be read, is not YAML, or not a schema.
        """
        try:
            text = read_bytes(Path(path), YAML_BYTES, links=True).decode("utf-8-sig")
        except (OSError, ValueError) as error:
            raise SchemaError(f"the schema cannot be read: {error}", expected="a YAML file", file=str(path)) from error
        return cls.from_yaml(text, source=str(path))


def _strings(data: Any) -> Iterator[str]:
    """Yield all strings in nested mappings and lists, keys included."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _strings(key)
            yield from _strings(value)
    elif isinstance(data, list | tuple):
        for value in data:
            yield from _strings(value)


def checked_overrides(
    table: Table, targets: Sequence[str], overrides: Mapping[str, Override]
) -> dict[str, dict[str, Any]]:
    """Return the overrides as mappings, after checking them.

    Raises:
        SchemaError: overrides are wrong; the message lists all problems.
    """
    problems: list[str] = []
    made: dict[str, dict[str, Any]] = {}
    for name, value in overrides.items():
        if name not in table:
            dotted = [column for column in table.column_names if column.startswith(f"{name}.")]
            hint = f"; on the command line: columns='{{{dotted[0]}: KIND}}'" if dotted else ""
            problems.append(_unknown("column", name, table.column_names) + hint)
            continue
        made[name] = _entry(name, value, problems)
        if name in targets and made[name].get("role") not in (None, "target"):
            problems.append(f"column {name!r} is the target and cannot have the role {made[name]['role']}")
    _raise(problems, table.source)
    return made


def _entry(name: str, value: Any, problems: list[str]) -> dict[str, Any]:
    """Return one column's settings; append what is wrong with them to `problems`."""
    where = f"column {name!r}: "
    if isinstance(value, ColumnSpec):
        value = value.to_dict()
    if isinstance(value, str):
        known = (*MODALITIES, *ROLES)
        if value not in known:
            problems.append(where + _unknown("kind or role", value, known))
        return {"kind" if value in MODALITIES else "role": value}
    if not isinstance(value, Mapping):
        problems.append(f"{where}expected a kind, a role or {{kind, role, options}}, came {shown(value)}")
        return {}
    problems += [where + _unknown("key", key, _KEYS) for key in value if key not in _KEYS]
    made = {key: value[key] for key in _KEYS if value.get(key) is not None}
    for key, known in (("kind", tuple(MODALITIES)), ("role", ROLES)):
        if key in made and made[key] not in known:
            problems.append(where + _unknown(key, made[key], known))
    if not isinstance(made.get("options", {}), Mapping):
        problems.append(f"{where}options are a mapping, came {shown(made['options'])}")
    made["reason"] = str(made.get("reason", ""))
    if "read" in made:
        try:
            made["read"] = CellForm.from_dict(made["read"])
        except (AttributeError, TypeError, ValueError) as error:
            problems.append(f"{where}read: {error}")
            del made["read"]
    return made


def _unknown(sort: str, name: Any, known: Sequence[str]) -> str:
    hint = nearest(str(name), known) or f"known: {', '.join(list(known)[:20])}"
    return f"there is no {sort} {name!r}, {hint}"


def _raise(problems: list[str], source: str) -> None:
    if problems:
        raise SchemaError("; ".join(problems), do="put it right in the schema or the column settings", file=source)
