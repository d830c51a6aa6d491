"""The sections under one name, for imports written before each had a module of its own."""

from __future__ import annotations

from fusetune.config.adapter import ADAPTERS, AdapterConfig
from fusetune.config.adversarial import ADVERSARIAL, AdversarialConfig
from fusetune.config.attack import ATTACKS, AttackConfig
from fusetune.config.augment import Augmentation, Augmentations
from fusetune.config.backbone import BackboneConfig
from fusetune.config.columns import ColumnConfig, Role
from fusetune.config.data import OnBadCell
from fusetune.config.objectives import Objectives
from fusetune.config.options import check_options, check_value
from fusetune.config.report import ReportConfig
from fusetune.config.section import ByName, NamedConfig, Section, StrList, check_known, known_name
from fusetune.config.tasks import TaskConfig

__all__ = [
    "ADAPTERS",
    "ADVERSARIAL",
    "ATTACKS",
    "AdapterConfig",
    "AdversarialConfig",
    "AttackConfig",
    "Augmentation",
    "Augmentations",
    "BackboneConfig",
    "ByName",
    "ColumnConfig",
    "NamedConfig",
    "Objectives",
    "OnBadCell",
    "ReportConfig",
    "Role",
    "Section",
    "StrList",
    "TaskConfig",
    "check_known",
    "check_options",
    "check_value",
    "known_name",
]
