"""The sections of a run's settings: pydantic models with a docstring under each field.

A section may be given as its name alone: `fusion: gated` is `fusion: {name: gated}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.errors import PydanticSchemaGenerationError

from fusetune.errors import ConfigError, all_at_once, nearest
from fusetune.registry import MODALITIES, OBJECTIVES, TASKS, Registry

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


def _as_options(value: Any) -> Any:
    """Names alone, in a list or as a mapping without options, as a mapping to options; a number is a weight."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        value = dict.fromkeys(value)
    if not isinstance(value, Mapping):
        return value
    numbers = {name: {"weight": said} for name, said in value.items() if isinstance(said, int | float)}
    return {name: {} if said is None else numbers.get(name, said) for name, said in value.items()}


def _known_objectives(value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    for name in value:
        check_known(name, OBJECTIVES)
    return value


Objectives = Annotated[dict[str, dict[str, Any]], BeforeValidator(_as_options), AfterValidator(_known_objectives)]


ADAPTERS = ("lora", "rslora", "dora", "ia3", "vera", "oft")


class AdapterConfig(Section):
    """Few new weights are trained beside a backbone's own, which stay as they are."""

    name: str
    """`lora` (arXiv 2106.09685), `rslora` (2312.03732), `dora` (2402.09353), `ia3` (2205.05638), `vera` (2310.11454) or
    `oft` (2306.07280)."""
    rank: Annotated[int, Field(ge=1)] | None = None
    """Of the products that are added; for `oft` the size of a block. None: 8, `vera` 64, `oft` 16. Not for `ia3`."""
    alpha: Annotated[int, Field(ge=1)] | None = None
    """α of `lora`, `rslora` and `dora`. None: twice the rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """On what goes into the adapter; not for `ia3`."""
    targets: str = "auto"
    """Which modules get one: `attention` (linear maps in attention), `linear` (all), `conv` (convolutions that mix
    features), or a regular expression on their paths. `auto`: the first of these that the model has."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return known_name(name, ADAPTERS)

    @model_validator(mode="after")
    def _fits(self) -> AdapterConfig:
        if self.name == "ia3" and (self.rank is not None or self.dropout):
            raise ValueError("ia3 has one factor a feature: no rank, no dropout")
        if self.alpha is not None and self.name not in ("lora", "rslora", "dora"):
            raise ValueError(f"{self.name} has no alpha")
        return self


class BackboneConfig(Section):
    """The pretrained model that reads one kind of column."""

    name: str | None = None
    """A hub id, a folder, or the folder of a model tuned before. None: the embedded text model; for images and sounds a
    small one trained from scratch."""
    pool: Literal["auto", "mean", "cls", "last", "none"] = "auto"
    """How a cell's token vectors become one. `auto`: what the model was trained with. `none`: they stay apart, and the
    fusion sees every word, patch or moment; the frozen features of a column then take tokens times the memory."""
    max_tokens: Annotated[int, Field(ge=8)] | None = None
    """Longer texts are cut here. None: the model's own limit, at most 512."""
    freeze: str = "none"
    """`none`, `all`, `bottom:K` (the first K blocks as `fusetune backbones NAME` lists them, the embeddings being the
    first), `only:bias` or `only:norm` (all but these), or `regex:PATTERN` over parameter names. An encoder that is
    trained from scratch cannot be frozen."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of this backbone's last block. None: `trainer.backbone_lr`, for an adapter 10 times that, for
    `ia3` and `vera` 50 times."""
    adapter: Annotated[AdapterConfig | None, ByName] = None
    """Train few weights beside the backbone's: `lora`, `rslora`, `dora`, `ia3`, `vera` or `oft`, with its settings."""


def _as_augmentation(value: Any) -> Any:
    """Names alone, or in a list, with their defaults; `none` for none."""
    if value in ("none", False):
        return {}
    names = [value] if isinstance(value, str) else value
    return dict.fromkeys(names, True) if isinstance(names, list) else value


def _known_kinds(value: dict[str, Any]) -> dict[str, Any]:
    for kind in value:
        if kind not in MODALITIES:
            raise ValueError(f"there is no kind {kind!r}; {nearest(kind, MODALITIES) or ', '.join(MODALITIES)}")
    return value


Augmentation = Annotated[dict[str, Any], BeforeValidator(_as_augmentation)]
Augmentations = Annotated[dict[str, Augmentation], AfterValidator(_known_kinds)]


class ColumnConfig(BaseModel):
    """What the user says of one column; other keys are options of its kind."""

    model_config = ConfigDict(extra="allow")

    kind: str | None = None
    """text, image, audio, number, category or a plug-in's. None: detected."""
    role: Role | None = None
    """input, target, group, split, weight, id or ignore. None: detected."""
    backbone: str | None = None
    """A backbone for this column alone, as in `text.name`."""
    read: dict[str, Any] | None = None
    """How the text of its cells is read: `missing`, `decimal`, `thousands`, `affixes` (signs and units that are left
    out) and `dates`, in place of what is detected. `{}`: as plain numbers are."""
    augment: Augmentation | None = None
    """How this column's train cells are changed, in place of what `augment` says of its kind; `none` for not at all."""

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


def check_known(name: str, table: Registry, also: Iterable[str] = ()) -> None:
    """Refuse a name that no part of a registry has.

    Args:
        name: as the user wrote it.
        table: the parts.
        also: names that a setting takes besides.

    Raises:
        ValueError: with the nearest known name, or all of them.
    """
    known = [*table, *also]
    if name not in known:
        raise ValueError(
            f"there is no {table.kind} called {name!r}; {nearest(name, known) or 'known: ' + ', '.join(known)}"
        )


def _known_task(task: NamedConfig) -> NamedConfig:
    if task.name is not None:
        check_known(task.name, TASKS)
    return task


TaskConfig = Annotated[NamedConfig, ByName, AfterValidator(_known_task)]


ATTACKS = ("fgm", "pgd", "none")
ADVERSARIAL = ("fgm", "pgd", "freelb")


def known_name(name: str, known: tuple[str, ...]) -> str:
    """Return a name that is known.

    Raises:
        ValueError: it is not; with the nearest known name, or all of them.
    """
    if name not in known:
        raise ValueError(f"there is no such method; {nearest(name, known) or 'known: ' + ', '.join(known)}")
    return name


class AttackConfig(Section):
    """A small change of what enters the encoders that makes the loss larger."""

    name: str
    """`fgm`: one step of size epsilon up the gradient. `pgd`: several steps, each back onto the ball of that size."""
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.02
    """The change's root mean square over that of what it is added to: word embeddings, pixels, samples; standardised
    features count as 1. So 0.02 changes every column by a fiftieth of its size."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Gradients that are followed. None: 3. `fgm` follows 1."""
    step_size: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Size of a step. None: 2.5 epsilon / steps."""
    columns: StrList = []
    """Which columns are changed. []: those of text, images and sounds; all where there are none of these."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return known_name(name, ATTACKS)

    @model_validator(mode="after")
    def _one_step(self) -> AttackConfig:
        if self.name == "fgm" and (self.steps not in (None, 1) or self.step_size not in (None, self.epsilon)):
            raise ValueError("fgm makes one step of size epsilon; leave steps and step_size out, or take pgd")
        return self


class AdversarialConfig(AttackConfig):
    """What is minimised is the loss at inputs that are changed so that it grows. `epsilon`, `steps`, `step_size` and
    `columns` are those of an attack."""

    name: str
    """`fgm` (arXiv 1605.07725): the loss as it is, and after one step up the gradient. `pgd` (1706.06083): and after
    several. `freelb` (1909.11764): the mean of the losses at all the steps."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of the changed inputs' loss, the rest is the loss as it is; not for `freelb`."""
    random_start: bool | None = None
    """Start from random changes instead of none. None: `freelb` does."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return known_name(name, ADVERSARIAL)

    @model_validator(mode="after")
    def _fits(self) -> AdversarialConfig:
        if self.name == "freelb" and self.weight != 0.5:
            raise ValueError("freelb has no weight: its steps, the first of which is near no change, count alike")
        return self


class ReportConfig(Section):
    """What the report compares."""

    alone: Literal["probe", "tuned", "none"] = "probe"
    """Each modality alone: `probe` is a linear model on its frozen features (an encoder trained from scratch is
    trained alone); `tuned` trains every modality alone with the same recipe; `none` leaves it out."""
    single: bool = False
    """Where there are several targets: each of them trained by itself too, with the same recipe, and compared with."""
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    """Resamples for the intervals; 0 leaves them out."""
    attack: Annotated[AttackConfig | None, ByName] = None
    """`fgm` or `pgd`: how the model before and after tuning does on test rows that are changed against it, with full
    sight of its weights. None: as `trainer.adversarial`, if that is set. `none`: no attack."""
    slices: StrList = []
    """Columns whose values the metrics are split by."""
    errors: Annotated[int, Field(ge=0)] = 24
    """Worst errors shown."""


def check_options(part: type, options: Mapping[str, Any] | Iterable[str], *, known: Iterable[str], where: str) -> None:
    """Refuse options that a part does not take, and values of another type than its constructor says.

    Raises:
        ConfigError: with the nearest option it does take, or the type.
    """
    known = list(known)
    hints = _hints(part) if isinstance(options, Mapping) else {}
    all_at_once([partial(_check_option, part, option, known, where) for option in options])
    if isinstance(options, Mapping):
        named = options.keys() & hints.keys()
        all_at_once([partial(check_value, f"{where}: {name}", options[name], hints[name]) for name in sorted(named)])


def _check_option(part: type, option: str, known: list[str], where: str) -> None:
    if option not in known:
        raise ConfigError(
            f"{where} has no setting {option!r}",
            expected=", ".join(known) or f"no settings for {part.__name__}",
            do=nearest(option, known),
        )


def check_value(name: str, value: Any, hint: Any) -> None:
    """Refuse a setting's value that is not of a type, which may be `Annotated` with its range.

    Raises:
        ConfigError: with what was expected.
    """
    if isinstance(value, Mapping) and "Mapping" in str(hint):
        return  # in Python, keys may be labels of any type; the part knows what it takes
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except PydanticSchemaGenerationError:  # a plug-in's own type
        return
    except ValidationError as error:
        expected = "; or: ".join(detail["msg"].removeprefix("Input should be ") for detail in error.errors())
        raise ConfigError(f"{name} cannot be {value!r}", expected=expected, came=type(value).__name__) from None


def _hints(part: type) -> dict[str, Any]:
    """The types of a constructor's arguments; what is imported for type checks alone is `Any`."""
    unknown: dict[str, Any] = {}
    while True:
        try:
            return get_type_hints(part.__init__, localns=unknown, include_extras=True)  # type: ignore[misc]
        except NameError as error:
            unknown[str(error.name)] = Any
