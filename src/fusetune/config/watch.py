"""The settings of `fusetune watch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator

from fusetune.config.config import Config, read_mapping
from fusetune.config.section import Section, StrList
from fusetune.errors import ConfigError, nearest

Share = Annotated[float, Field(gt=0, lt=1)]


class DriftSettings(Section):
    """How new tables are compared with the rows that the model did not learn from; see `fusetune.drift`."""

    alpha: Share = 0.01
    """Probability of an alarm without drift."""
    rows: Annotated[int, Field(ge=20)] = 1000
    """Most rows of either side."""
    reference: str | None = None
    """Table of rows that the model did not learn from; null takes the held-out rows of the version in use."""


class RetuneSettings(Section):
    """When and how the model is tuned again; see `fusetune.retune`."""

    when: Literal["drift", "labelled", "never"] = "drift"
    """`drift`: on labelled tables that raise an alarm; `labelled`: on every labelled table; `never`."""
    replay: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the old train rows that is learned again."""
    margin: Annotated[float, Field(ge=0)] = 0.01
    """Loss of the main metric on old test rows that is accepted."""
    confidence: Share = 0.9
    """Share of bootstrap draws that must agree."""
    settings: StrList = []
    """Settings over those of the model in use, as `trainer.epochs=2`."""

    @field_validator("settings")
    @classmethod
    def _known(cls, settings: list[str]) -> list[str]:
        try:
            Config().with_overrides(settings)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return settings


class WatchConfig(Section):
    """What `fusetune watch` is told by its YAML file."""

    model: Path
    """Folder of a run, or of versions. A run becomes version 1 in a folder of versions beside it."""
    tables: StrList
    """Patterns of the files of new rows, as `incoming/*.csv`."""
    every: Annotated[float, Field(ge=1)] = 300.0
    """Seconds between two looks at the files."""
    settle: Annotated[float, Field(ge=0)] = 30.0
    """Seconds that a file must have been left unchanged: a younger one may still be written."""
    seed: int = 0
    """Of the draws and the splits."""
    drift: DriftSettings = DriftSettings()
    """How new tables are compared."""
    retune: RetuneSettings = RetuneSettings()
    """When and how the model is tuned again."""

    @classmethod
    def from_yaml(cls, path: str | Path) -> WatchConfig:
        """Read a YAML file; relative paths in it start at the file's folder.

        Raises:
            ConfigError: the file cannot be read or has wrong settings, all of which are named.
        """
        path = Path(path)
        try:
            config = cls.model_validate(read_mapping(path))
        except ValidationError as error:
            problems = [
                _problem(".".join(map(str, detail["loc"])), detail["type"], detail["msg"]) for detail in error.errors()
            ]
            raise ConfigError("the settings are wrong:\n    " + "\n    ".join(problems), file=str(path)) from None
        config.model = path.parent / config.model
        config.tables = [str(path.parent / pattern) for pattern in config.tables]
        if config.drift.reference is not None and "://" not in config.drift.reference:
            config.drift.reference = str(path.parent / config.drift.reference)
        return config


def _problem(name: str, kind: str, message: str) -> str:
    if kind != "extra_forbidden":
        return f"{name}: {message.removeprefix('Value error, ')}"
    sections: dict[str, type[Section]] = {"": WatchConfig, "drift": DriftSettings, "retune": RetuneSettings}
    section, _, key = name.rpartition(".")
    known = list(sections[section].model_fields)
    return f"{name}: there is no such setting; {nearest(key, known) or 'known ones: ' + ', '.join(known)}"
