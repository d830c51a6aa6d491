"""The section `tasks`: the task of each target."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from fusetune.config.section import ByName, NamedConfig, check_known
from fusetune.registry import TASKS


def _known_task(task: NamedConfig) -> NamedConfig:
    if task.name is not None:
        check_known(task.name, TASKS)
    return task


TaskConfig = Annotated[NamedConfig, ByName, AfterValidator(_known_task)]
