"""Everything a run can be told, with defaults; read from YAML and `key=value`, checked all at once.

A section may be given as its name alone: `fusion: gated` is `fusion: {name: gated}`,
`image: ../models/mobilenet-v2` is `image: {name: ../models/mobilenet-v2}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from fusetune.errors import ConfigError, nearest
from fusetune.registry import MODALITIES

Role = Literal["input", "target", "group", "split", "weight", "id", "ignore"]
OnBadCell = Literal["reject", "mask"]


class Section(BaseModel):
    """A group of settings; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _by_kind(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


ByName = BeforeValidator(_by_name)
StrList = Annotated[list[str], BeforeValidator(_as_list)]


class BackboneConfig(Section):
    """The pretrained model that reads one kind of column."""

    name: str | None = None
    """A hub id or a folder. None: the embedded text model; for images and sounds a small one trained from scratch."""
    pool: Literal["auto", "mean", "cls", "last"] = "auto"
    """How a cell's token vectors become one. `auto`: what the model was trained with."""
    max_tokens: Annotated[int, Field(ge=8)] | None = None
    """Longer texts are cut here. None: the model's own limit, at most 512."""
    freeze: str = "none"
    """`none`, `all`, `bottom:K` (the first K blocks as `fusetune backbones NAME` lists them, the embeddings being the
    first) or `regex:PATTERN` over parameter names. An encoder that is trained from scratch cannot be frozen."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of this backbone's last block. None: `trainer.backbone_lr`."""


class ColumnConfig(BaseModel):
    """What the user says of one column; other keys are options of its kind."""

    model_config = ConfigDict(extra="allow")

    kind: str | None = None
    """text, image, audio, number, category or a plug-in's. None: detected."""
    role: Role | None = None
    """input, target, group, split, weight, id or ignore. None: detected."""
    backbone: str | None = None
    """A backbone for this column alone, as in `text.name`."""

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str | None) -> str | None:
        if kind is not None and kind not in MODALITIES:
            raise ValueError(f"there is no such kind; {nearest(kind, MODALITIES) or 'known: ' + ', '.join(MODALITIES)}")
        return kind


class NamedConfig(BaseModel):
    """A part by name; other keys are that part's own options, checked when it is made."""

    model_config = ConfigDict(extra="allow")

    name: str | None = None
    """Which one."""

    @property
    def options(self) -> dict[str, Any]:
        """The keys besides the name."""
        return dict(self.__pydantic_extra__ or {})


class TrainerConfig(Section):
    """How the model is tuned."""

    epochs: Annotated[float, Field(ge=0)] = 5
    """Passes over the train rows with everything unfrozen that is not frozen by a rule. 0: only the head stage."""
    head_epochs: Annotated[float, Field(ge=0)] | None = None
    """First, the fusion and heads alone learn on the frozen backbones' features, which are computed once
    (linear probing, then fine-tuning: Kumar et al. 2022, arXiv 2202.10054). None: 60, or 12 where an image or audio
    encoder is trained from scratch. 0: skip this stage."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Rows an update, over all devices and micro-batches."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Micro-batches an update: each has batch_size / accumulate rows."""
    optimizer: str = "adamw"
    """adamw, adam, nadam, radam, sgd, rmsprop, adagrad, adafactor or lion."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate of fusion, projections and heads while they learn on frozen features."""
    head_lr: Annotated[float, Field(gt=0)] = 3e-4
    """Their peak learning rate once the backbones move too."""
    backbone_lr: Annotated[float, Field(gt=0)] = 5e-5
    """Peak learning rate of a pretrained backbone's last block. Encoders from scratch learn as the fusion does."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Each block nearer to the input learns this much slower."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Not on biases and norms."""
    schedule: str = "cosine"
    """A name of transformers' `SchedulerType`: linear, cosine, constant_with_warmup, polynomial, ..."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises from 0."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of an update's gradient. None: not clipped."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Autocast. `auto`: bf16 on a GPU that has it, else none."""
    gradient_checkpointing: bool = False
    """Compute activations twice to save memory."""
    patience: Annotated[int, Field(ge=1)] | None = 3
    """Stop after so many evaluations without a better main metric on validation rows. None: never."""
    evals_per_epoch: Annotated[int, Field(ge=1)] = 2
    """Evaluations on validation rows an epoch; the best step is what is kept."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that decode cells."""
    trackers: StrList = ["tensorboard"]
    """tensorboard, wandb or any other that accelerate knows by name; [] for none."""


class ReportConfig(Section):
    """What the report compares."""

    alone: Literal["probe", "tuned", "none"] = "probe"
    """Each modality alone: `probe` is a linear model on its frozen features (an encoder trained from scratch is
    trained alone); `tuned` trains every modality alone with the same recipe; `none` leaves it out."""
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    """Resamples for the intervals; 0 leaves them out."""
    slices: StrList = []
    """Columns whose values the metrics are split by."""
    errors: Annotated[int, Field(ge=0)] = 24
    """Worst errors shown."""


class DataConfig(Section):
    """How rows are read and split."""

    on_bad_cell: OnBadCell = "reject"
    """A train row with a cell that cannot be read is rejected, or used without that cell (`mask`)."""
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Larger shares of rejected rows stop the run before training."""
    split: Annotated[list[float], Field(min_length=3, max_length=3)] = [0.8, 0.1, 0.1]
    """Train, validation and test shares where no such rows are given."""
    memory: Annotated[float, Field(ge=0)] = 4.0
    """GiB of decoded cells kept in memory; the rest is decoded again when needed."""

    @model_validator(mode="after")
    def _shares(self) -> DataConfig:
        if min(self.split) < 0 or abs(sum(self.split) - 1) > 1e-6 or self.split[0] == 0:
            raise ValueError(f"three shares of 0 or more that sum to 1, the first above 0; came {self.split}")
        return self


class Config(Section):
    """A whole run; docs/concepts.md says what each part does."""

    train: str | None = None
    """The table to learn from."""
    val: str | None = None
    """Rows to choose the best step on. None: split off from `train`."""
    test: str | None = None
    """Rows the report is made on; they choose nothing. None: split off from `train`."""
    target: StrList = []
    """The column, or columns, to predict."""
    out: str | None = None
    """The folder for the tuned model and the report. None: a temporary one."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of splits, weights, batches, dropout and intervals."""
    columns: dict[
        str, Annotated[ColumnConfig, BeforeValidator(lambda v: {"kind": v} if isinstance(v, str) else v)]
    ] = {}
    """Per column: kind, role, backbone and its kind's options. `{year: number}` is `{year: {kind: number}}`."""
    schema_file: str | None = None
    """A schema as `fusetune schema TABLE -o FILE` writes it, edited; `columns` goes on top of it."""
    tasks: dict[str, Annotated[NamedConfig, ByName]] = {}
    """Per target: the task's name and options. Inferred where absent."""
    text: Annotated[BackboneConfig, ByName] = BackboneConfig()
    """What reads text columns."""
    image: Annotated[BackboneConfig, ByName] = BackboneConfig()
    """What reads image columns."""
    audio: Annotated[BackboneConfig, ByName] = BackboneConfig()
    """What reads audio columns."""
    fusion: Annotated[NamedConfig, ByName] = NamedConfig(name="attention")
    """How the columns become one vector: attention, concat, gated or a plug-in's, with its options."""
    trainer: TrainerConfig = TrainerConfig()
    """How the model is tuned."""
    report: ReportConfig = ReportConfig()
    """What the report compares."""
    data: DataConfig = DataConfig()
    """How rows are read and split."""

    def schema_overrides(self) -> dict[str, Any]:
        """What the user says about columns, as `Schema.detect` takes it.

        Raises:
            ConfigError: the schema file cannot be read.
        """
        overrides: dict[str, Any] = {}
        if self.schema_file is not None:
            overrides = dict(read_yaml(self.schema_file).get("columns") or {})
        for name, column in self.columns.items():
            said = column.model_dump(exclude_none=True)
            entry = {key: said.pop(key) for key in ("kind", "role") if key in said}
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
        settings = self.model_dump(exclude_defaults=True, mode="json")
        return str(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

    def with_overrides(self, overrides: Sequence[str] | Mapping[str, Any]) -> Config:
        """The config with `["trainer.epochs=5", "fusion=gated"]` or nested settings laid over it.

        Raises:
            ConfigError: an override is no `key=value`, or a key or value is wrong.
        """
        settings = self.model_dump(exclude_defaults=True, mode="json")
        if isinstance(overrides, Mapping):
            merge(settings, overrides)
        else:
            for override in overrides:
                merge(settings, parse_override(override))
        return Config.build(settings)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file's settings; paths in it start at the file's folder, backbones' too where they begin with a dot.

    Raises:
        ConfigError: the file is missing, not YAML, or not a mapping.
    """
    path = Path(path)
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError("the config cannot be read", file=str(path), came=str(error)) from error
    if not isinstance(settings, dict):
        raise ConfigError(
            "the config is not a mapping",
            file=str(path),
            expected="lines of `key: value`",
            came=type(settings).__name__,
        )
    for key in ("train", "val", "test", "out", "schema_file"):
        if isinstance(settings.get(key), str):
            settings[key] = str(path.parent / settings[key])
    for key in ("text", "image", "audio"):
        section = settings.get(key)
        name = section.get("name") if isinstance(section, dict) else section
        if isinstance(name, str) and name.startswith("."):
            settings[key] = (section if isinstance(section, dict) else {}) | {"name": str(path.parent / name)}
    columns = settings.get("columns")
    for column in columns.values() if isinstance(columns, dict) else ():
        if isinstance(column, dict) and str(column.get("backbone", "")).startswith("."):
            column["backbone"] = str(path.parent / column["backbone"])
    return settings


def parse_override(override: str) -> dict[str, Any]:
    """`a.b=1` as `{"a": {"b": 1}}`; the value is YAML.

    Raises:
        ConfigError: there is no `=`, or the value is not YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is no setting", expected="key=value, as trainer.epochs=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of {key} is not YAML", came=text) from error
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        value = float(value)  # YAML 1.1 reads 1e-4 as text
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Lay nested settings over others, in place; a section's name given alone replaces the whole section."""
    for key, value in over.items():
        if isinstance(value, Mapping):
            inner = base.get(key)
            base[key] = {"name": inner} if isinstance(inner, str) else dict(inner or {})
            merge(base[key], value)
        else:
            base[key] = value


def check_options(part: type, options: Iterable[str], *, known: Iterable[str], where: str) -> None:
    """Refuse options that a part does not take.

    Raises:
        ConfigError: with the nearest one it does take.
    """
    known = list(known)
    for option in options:
        if option not in known:
            raise ConfigError(
                f"{where} has no setting {option!r}",
                expected=", ".join(known) or f"no settings for {part.__name__}",
                do=nearest(option, known),
            )


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


def _problem(detail: ErrorDetails) -> str:
    location = detail["loc"]
    name = ".".join(str(part) for part in location)
    if detail["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        hint = nearest(str(location[-1]), known)
        return f"{name}: there is no such setting; {hint or 'known ones: ' + ', '.join(known)}"
    return f"{name}: {detail['msg'].removeprefix('Value error, ')} (came {detail['input']!r})"
