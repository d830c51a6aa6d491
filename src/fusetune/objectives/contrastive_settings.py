"""Resolve the settings of the contrastive objective: defaults, and what does not go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from fusetune.backbones.load import Backbone
from fusetune.errors import ConfigError, nearest
from fusetune.objectives.contrastive_forms import FORMS, Form, triplet
from fusetune.objectives.contrastive_parts import LogitScale, Mining, check_choice, check_number

if TYPE_CHECKING:
    from fusetune.models.family import Family
    from fusetune.models.match import Negative

ALIGN_UNIFORM, TRIPLET = "align_uniform", "triplet"
TAKES_NEGATIVES = ("infonce", "decoupled", TRIPLET)
"""The forms that take named and mined negatives, and cells of the anchor's own column (`within`)."""
HARD, SEMI_HARD = "hard", "semihard"
TEMPERATURES = {"sigmoid": 0.1}
TEMPERATURE = 0.07
BIAS = -10.0
MARGIN, MINE_MARGIN = 0.2, 0.95


def resolve_within(where: str, form: str, within: bool | None) -> bool:
    """Return whether cells of the anchor's own column are negatives; ConfigError if the form takes none."""
    if within is not None and form not in TAKES_NEGATIVES:
        raise ConfigError(
            f"{where}.within does not go with form={form}",
            expected=f"form={' or form='.join(TAKES_NEGATIVES)}",
            came=f"within={within}",
            do="leave within out",
        )
    return form == "decoupled" if within is None else bool(within)


def resolve_form(where: str, form: str, margin: float | None, triplets: str | None) -> Form | None:
    """Return the function that computes the terms; None for align_uniform, which compares pairs of rows.

    Raises:
        ConfigError: the form does not have an option.
    """
    for name, value in (("margin", margin), ("triplets", triplets)):
        if value is not None and form != TRIPLET:
            raise ConfigError(
                f"{where}.{name} does not go with form={form}", expected=f"form={TRIPLET}", do=f"leave {name} out"
            )
    if form != TRIPLET:
        return FORMS.get(form)
    kind = check_choice(f"{where}.triplets", triplets or SEMI_HARD, (SEMI_HARD, HARD))
    return partial(triplet, margin=MARGIN if margin is None else float(margin), hardest=kind == HARD)


def resolve_columns(
    where: str, model: Family, columns: Sequence[str] | str | None, anchor: str | None, *, headed: bool
) -> list[str]:
    """Return the columns, or sides, to compare.

    Args:
        where: the objective's key in the settings.
        model: the model to be trained.
        columns, anchor: the settings.
        headed: whether a task's head reads the columns besides.

    Raises:
        ConfigError: a named one is no input column, or there are fewer than two.
    """
    named = [columns] if isinstance(columns, str) else list(columns or ())
    if not named:
        read = [name for name, key in model.routes.items() if isinstance(model.encoders[key], Backbone)]
        named = read if headed and len(read) > 1 else list(model.compared)
    if anchor is not None and anchor not in named:
        named.insert(0, anchor)
    for name in named:
        if name not in model.compared:
            raise ConfigError(
                f"{where} names {name!r}, which is no input column",
                expected=", ".join(model.compared),
                do=nearest(name, model.compared),
            )
    named = list(dict.fromkeys(named))
    if len(named) < 2:
        raise ConfigError(
            f"{where} compares the columns of a row with each other",
            expected="two or more input columns",
            came=", ".join(named),
            do="name more columns, or take objectives.supcon, which compares rows of equal labels",
        )
    return named


def resolve_negatives(where: str, form: str, model: Family, columns: Sequence[str]) -> dict[str, Negative]:
    """Return the model's negatives of the compared sides, by name.

    Raises:
        ConfigError: the form takes none.
    """
    known: dict[str, Negative] = getattr(model, "negatives", {})
    if known and form not in TAKES_NEGATIVES:
        raise ConfigError(
            f"{where}: negatives do not go with form={form}",
            expected=f"form={' or form='.join(TAKES_NEGATIVES)}",
            came=f"negative {', '.join(known)}",
            do="take one of these forms, or leave negative and mine out",
        )
    return {name: negative for name, negative in known.items() if negative.side in columns}


def resolve_mining(where: str, mining: Mining, negatives: Mapping[str, Negative]) -> Mining | None:
    """Return how negatives are mined, or None; ConfigError if the model compares no pairs of sides."""
    if not mining.num:
        return None
    if not any(negative.mined for negative in negatives.values()):
        raise ConfigError(
            f"{where}.mine finds documents for queries, and there are no pairs of these",
            expected="--query and --document, without a target",
            do="name the columns of both sides, or leave mine out",
        )
    return mining


def resolve_scale(
    where: str, form: str, temperature: float | None, bias: float | None, *, learned: bool
) -> tuple[LogitScale | None, nn.Parameter | None]:
    """Build the modules of 1/τ and b; None for what the form does not have.

    Raises:
        ConfigError: an option is out of range, or the form does not have it.
    """
    for name, value, takes in (
        ("temperature", temperature, form not in (ALIGN_UNIFORM, TRIPLET)),
        ("bias", bias, form == "sigmoid"),
    ):
        if value is not None and not takes:
            raise ConfigError(f"{where}.{name} does not go with form={form}", do=f"leave {name} out")
    if form in (ALIGN_UNIFORM, TRIPLET):
        return None, None
    start = TEMPERATURES.get(form, TEMPERATURE) if temperature is None else temperature
    scale = LogitScale(check_number(f"{where}.temperature", start, 0.01, 1), learned=learned)
    if form != "sigmoid":
        return scale, None
    return scale, nn.Parameter(torch.tensor([check_number(f"{where}.bias", BIAS if bias is None else bias, -100, 100)]))
