"""Contrastive learning of single texts: two dropout passes of a text are positives, other texts negatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from fusetune.errors import ConfigError
from fusetune.objectives.contrastive import ContrastiveObjective

if TYPE_CHECKING:
    from fusetune.models.encoders import Encoders


def has_dropout(encoder: nn.Module) -> bool:
    """Return whether an encoder's passes differ in training mode."""
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in encoder.modules())


class SimCSE(ContrastiveObjective):
    """Pull two passes of a text through the encoder's dropout together, and push other texts of the batch away.

    With h_i and h_i' the unit vectors of text i with two dropout masks, the loss of a row is
    −log exp(h_i·h_i'/τ) / Σ_j exp(h_i·h_j'/τ), over the batch's texts j that are not equal to text i. The loss is the
    mean over rows, weighted by their weights, over both directions, and over the columns.

    Args:
        model: computes two passes of each column.
        temperature: τ, in [0.01, 1].

    Raises:
        ConfigError: the temperature is out of range, or an encoder has no dropout, so that both passes would be equal.

    Inputs: both passes' vectors of each column, the encoder's pooled ones, or the mean of its tokens.

    Requires: text columns whose encoders have dropout.

    Relations: `contrastive` compares the columns of a row; this loss is twice its `infonce` with λ = ½. `mlm` tunes
    texts' tokens rather than their vectors.

    Figures: those of `contrastive`.

    Reference: Gao et al. 2021, "SimCSE" (arXiv 2104.08821), equation 4, symmetrised.
    """

    name = "simcse"
    standalone = False
    needs_dropout = True

    def __init__(self, model: Encoders, *, temperature: float = 0.05) -> None:
        options = {"within": False, "temperature": temperature, "learn_temperature": False, "projection": "none"}
        super().__init__(model, {}, weight=2.0, form="infonce", columns=list(model.compared), **options)  # type: ignore[arg-type]
        self.pairs = list(model.twins.items())
        for column, key in model.routes.items():
            if not has_dropout(model.encoders[key]):
                raise ConfigError(
                    f"pretrain.name=simcse: the encoder of {column!r} has no dropout, so both passes would be equal",
                    expected="an encoder whose config has a dropout above 0",
                    came=str(getattr(model.encoders[key], "source", "")),
                    do="take pretrain.name=mlm, or another text backbone",
                )
