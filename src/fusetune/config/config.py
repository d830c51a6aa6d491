"""Everything a run can be told, with defaults; read from YAML and `key=value`, checked all at once.

A section may be given as its name alone: `fusion: gated` is `fusion: {name: gated}`,
`image: ../models/mobilenet-v2` is `image: {name: ../models/mobilenet-v2}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from fusetune.config.augment import Augmentations
from fusetune.config.backbone import BackboneConfig
from fusetune.config.catalogue import Catalogue, CatalogueConfig
from fusetune.config.columns import Columns
from fusetune.config.data import DataConfig
from fusetune.config.fusion import FusionConfig
from fusetune.config.interactions import InteractionsConfig
from fusetune.config.objectives import Objectives
from fusetune.config.paths import rebased
from fusetune.config.pretrain import Pretrain
from fusetune.config.prompt import GenerationConfig, PromptConfig
from fusetune.config.report import ReportConfig
from fusetune.config.rerank import Rerank
from fusetune.config.section import ByName, NamedConfig, Section, StrList
from fusetune.config.tasks import TaskConfig
from fusetune.config.text import TextConfig
from fusetune.config.trainer import TrainerConfig
from fusetune.errors import ConfigError, nearest
from fusetune.security.untrusted import read_bytes
from fusetune.security.yaml_text import YAML_BYTES, parse_yaml


class Config(Section):
    """A whole run; docs/concepts.md says what each part does."""

    train: StrList = []
    """The table to learn from, or several; see `data.mix`."""
    val: str | None = None
    """Rows to choose the best step on. None: split off from `train`."""
    test: str | None = None
    """Rows the report is made on; they choose nothing. None: split off from `train`."""
    target: StrList = []
    """The column, or columns, to predict."""
    query: StrList = []
    """The columns of one side of pairs; see `document`. A target beside them says how alike the sides are."""
    document: StrList = []
    """The columns of the other side: each row's document is what its query should find."""
    negative: StrList = []
    """Columns with further documents, of the kind of `document`, which is then one column: a row's query should not
    find them."""
    catalogue: Catalogue = CatalogueConfig()
    """The table of documents, or of items, if they have one of their own; `items.csv` is `{path: items.csv}`."""
    user: str | None = None
    """The column of users, where rows are interactions of a user with an item. In place of a target or a query."""
    item: str | None = None
    """The column of items, which are recommended to users. Their own columns are in `catalogue`."""
    users: str | None = None
    """A table with one row per user: the column `user`, and columns that describe the user."""
    interactions: InteractionsConfig = InteractionsConfig()
    """What the rows of users and items say besides."""
    rerank: Rerank = None
    """A second model that reads a query and a document together, if each is one text. It is tuned after the model of
    pairs, and searches have it sort the nearest documents anew if validation rows prefer that. `true` takes the
    defaults of its section."""
    out: str | None = None
    """The folder for the tuned model and the report. None: a temporary one."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of splits, weights, batches, dropout and intervals."""
    columns: Columns = {}
    """Per column: kind, role, backbone and its kind's options. `{year: number}` is `{year: {kind: number}}`,
    `{speaker: group}` is `{speaker: {role: group}}`."""
    schema_file: str | None = None
    """A schema as `fusetune schema TABLE -o FILE` writes it, edited; `columns` goes on top of it."""
    tasks: dict[str, TaskConfig] = {}
    """Per target: the task's name and options. Inferred where absent."""
    text: Annotated[TextConfig, ByName] = TextConfig()
    """What reads text columns."""
    image: Annotated[BackboneConfig, ByName] = BackboneConfig()
    """What reads image columns."""
    audio: Annotated[BackboneConfig, ByName] = BackboneConfig()
    """What reads audio columns."""
    prompt: PromptConfig = PromptConfig()
    """What a language model reads of a row, where the target is text that is written."""
    generation: GenerationConfig = GenerationConfig()
    """How a language model writes."""
    fusion: FusionConfig = NamedConfig(name="attention")
    """How the columns become one vector: attention, concat, gated, cross_attention, bottleneck, convolution, low_rank,
    film, mixture or a plug-in's, with its options; `auto` lets validation rows choose one; `stack`
    sets boosted trees beside the network (the extra `trees`); `none` adds up the columns of a side of pairs."""
    objectives: Objectives = {}
    """What is minimised besides the task losses: per name its options, `weight` among them. A name alone, a list of
    names or `{contrastive: 0.1}` will do."""
    augment: Augmentations = {}
    """How train rows' cells are changed a little every epoch, by kind of column: `{text: {word_dropout: 0.1}, image:
    [flip, trivial]}`."""
    trainer: TrainerConfig = TrainerConfig()
    """How the model is tuned."""
    pretrain: Pretrain = None
    """Self-supervised tuning of the encoders on the train rows, those without a target included, before the task is
    tuned: `mlm`, `simcse` or `contrastive`, with its settings."""
    report: ReportConfig = ReportConfig()
    """What the report compares."""
    data: DataConfig = DataConfig()
    """How rows are read and split."""

    @property
    def targets(self) -> list[str]:
        """The columns that the settings name as targets, in `target` or by their role."""
        by_role = [name for name, column in self.columns.items() if column.role == "target"]
        return list(dict.fromkeys([*self.target, *by_role]))

    def schema_overrides(self) -> dict[str, Any]:
        """What the user says about columns, as `Schema.detect` takes it.

        Raises:
            ConfigError: the schema file cannot be read.
        """
        overrides: dict[str, Any] = {}
        if self.schema_file is not None:
            overrides = dict(read_yaml(self.schema_file).get("columns") or {})
        for name in (*self.query, *self.document, *self.negative):  # to name a column is to insist on it
            before = overrides.get(name)
            overrides[name] = {"role": "input", **(before if isinstance(before, Mapping) else {})}
        for name, column in self.columns.items():
            said = column.model_dump(exclude_none=True, exclude={"augment"})
            entry = {key: said.pop(key) for key in ("kind", "role", "read") if key in said}
            before = overrides.get(name)
            base = dict(before) if isinstance(before, Mapping) else {}
            options = {**base.get("options", {}), **said}
            overrides[name] = {**base, **entry, **({"options": options} if options else {})}
        return overrides

    @classmethod
    def build(cls, settings: Mapping[str, Any], *, origin: str = "the settings") -> Config:
        """A config from nested settings.

        Raises:
            ConfigError: all problems at once, each with the nearest right key.
        """
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            problems = [_problem(detail) for detail in error.errors()]
            raise ConfigError(
                f"{origin}: {len(problems)} problem{'s' if len(problems) > 1 else ''}\n    " + "\n    ".join(problems)
            ) from None

    @classmethod
    def from_yaml(cls, path: str | Path) -> Config:
        """Read a YAML file; relative paths in it start at the file's folder.

        Raises:
            ConfigError: the file cannot be read or has wrong settings.
        """
        return cls.build(read_yaml(path), origin=str(path))

    def to_yaml(self) -> str:
        """The config as YAML; what is at its default is left out."""
        settings = self.model_dump(exclude_defaults=True)
        return str(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

    def with_absolute_paths(self) -> Config:
        """Return the config with every relative path made absolute, so that it means the same from any folder."""
        return Config.build(rebased(self.model_dump(exclude_defaults=True, mode="json"), Path.cwd()))

    def with_overrides(self, overrides: Sequence[str] | Mapping[str, Any]) -> Config:
        """The config with `["trainer.epochs=5", "fusion=gated"]` or nested settings laid over it.

        Raises:
            ConfigError: an override is no `key=value`, or a key or value is wrong.
        """
        settings = self.model_dump(exclude_defaults=True)  # labels among the values keep their types
        if isinstance(overrides, Mapping):
            merge(settings, overrides)
        else:
            for override in overrides:
                merge(settings, parse_override(override))
        return Config.build(settings)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return a YAML file's settings; relative paths in it start at the file's folder, see `rebased`.

    Raises:
        ConfigError: the file is missing, not YAML, or not a mapping.
    """
    path = Path(path)
    return rebased(read_mapping(path), path.parent)


def read_mapping(path: Path) -> dict[str, Any]:
    """Return a YAML file's content.

    Raises:
        ConfigError: the file is missing, not YAML, or not a mapping.
    """
    try:
        settings = parse_yaml(read_bytes(path, YAML_BYTES, links=True).decode("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError("the config cannot be read", file=str(path), came=str(error)) from error
    if not isinstance(settings, dict):
        raise ConfigError(
            "the config is not a mapping",
            file=str(path),
            expected="lines of `key: value`",
            came=type(settings).__name__,
        )
    return settings


TEXTS = ("template", "system")
"""Settings that are texts with braces and colons, which YAML would read otherwise."""


def parse_override(override: str) -> dict[str, Any]:
    """`a.b=1` as `{"a": {"b": 1}}`; the value is YAML, but one sign alone, as `,` or `|`, is itself.

    The texts of prompts (`TEXTS`) are taken as they are, with `\\n` as a line break.

    Raises:
        ConfigError: there is no `=`, or the value is not YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is no setting", expected="key=value, as trainer.epochs=5")
    try:
        value = _value(key, text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"the value of {key} is not YAML", came=text) from error
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        value = float(value)  # YAML 1.1 reads 1e-4 as text
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _value(key: str, text: str) -> Any:
    """Return the value of a key, as text or by YAML."""
    if key.rpartition(".")[2] in TEXTS:
        return text.replace("\\n", "\n")
    return text if _is_sign(text) else parse_yaml(text)


def _is_sign(text: str) -> bool:
    """Whether a value is one punctuation mark, or begins with one that YAML reserves, as "%d/%m/%Y" does.

    `~` is YAML's null, and brackets open a list or mapping.
    """
    alone = len(text) == 1 and not (text.isalnum() or text.isspace() or text in "~[{")
    return alone or text.startswith(("%", "@", "`"))


def merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Lay nested settings over others, in place; a section's name given alone replaces the whole section."""
    for key, value in over.items():
        if isinstance(value, Mapping):
            inner = base.get(key)
            base[key] = {"name": inner} if isinstance(inner, str) else dict(inner or {})
            merge(base[key], value)
        else:
            base[key] = value


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """The keys known where an error was found: the fields of the section that `location` leads to."""
    model: type[BaseModel] = Config
    for part in location:
        field = model.model_fields.get(str(part))
        candidates = [field.annotation, *get_args(field.annotation)] if field else []
        sections = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not sections:
            break
        model = sections[0]
    return list(model.model_fields)


def elsewhere(key: str) -> str | None:
    """Return a sentence that says in which sections a setting of this name is, or None: `epochs`, `trainer.epochs`."""
    found = [
        f"{name}.{key}"
        for name, field in Config.model_fields.items()
        for section in [field.annotation, *get_args(field.annotation)]
        if isinstance(section, type) and issubclass(section, Section) and key in section.model_fields
    ]
    return f"did you mean {' or '.join(found)}?" if found else None


def _problem(detail: ErrorDetails) -> str:
    location = tuple(part for part in detail["loc"] if not str(part).startswith(":"))  # which are tags of a union
    name = ".".join(str(part) for part in location)
    if detail["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        hint = elsewhere(str(location[-1])) or nearest(str(location[-1]), known)
        return f"{name}: there is no such setting; {hint or 'known ones: ' + ', '.join(known)}"
    return f"{name}: {detail['msg'].removeprefix('Value error, ')} (came {detail['input']!r})"
