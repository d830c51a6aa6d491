"""Freezing of parameters and layer-wise learning rates.

A rule is one of:

    none              freeze nothing
    all               freeze every encoder, pretrained or not
    only:heads        freeze every pretrained encoder
    only:bias         freeze pretrained encoders except their biases (BitFit: Ben Zaken et al., arXiv 2106.10199)
    only:norm         freeze pretrained encoders except their normalisation layers (Frankle et al., arXiv 2003.00152)
    bottom:K          freeze the first K blocks of every pretrained encoder; block 0 is the embeddings
    regex:PATTERN     freeze parameters in whose names the regular expression is found

Settings may also say `auto`, which a trial turns into `none` or `bottom:K` (`fusetune.training.frozen_blocks`).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from torch import nn

from fusetune.backbones.adapters import freeze_base
from fusetune.backbones.backbone import Backbone
from fusetune.errors import ConfigError, nearest

RULES = ("none", "all", "only:heads", "only:bias", "only:norm", "bottom:K", "regex:PATTERN")


@dataclass(frozen=True)
class Trainable:
    """Numbers of trainable and of all weights of a model."""

    trainable: int
    total: int

    def __str__(self) -> str:
        share = 100 * self.trainable / max(self.total, 1)
        return f"{self.trainable:,} of {self.total:,} weights are trained ({share:.1f} %)"


def check_rule(rule: str) -> tuple[str, str]:
    """Return the rule's name and argument.

    Raises:
        ConfigError: it is not a rule, K is not a whole number from 0, or the pattern is not a regular expression.
    """
    name, colon, argument = rule.partition(":")
    if rule in ("none", "all", "only:heads", "only:bias", "only:norm"):
        return rule, ""
    if name == "bottom" and colon:
        if argument.isascii() and argument.isdigit():
            return name, argument
        raise ConfigError(
            "freeze: the K of bottom:K is a whole number from 0", came=rule, do="write for example bottom:3"
        )
    if name == "regex" and argument:
        try:
            re.compile(argument)
        except re.error as error:
            raise ConfigError(f"freeze: {argument!r} is not a regular expression ({error})", came=rule) from error
        return name, argument
    raise ConfigError(
        f"freeze: unknown rule {rule!r}",
        expected=", ".join(("auto", *RULES)),
        do=nearest(rule, ("auto", "none", "all", "only:heads", "bottom:3", "regex:layer.0"))
        or "choose one of the rules above",
    )


def freeze(model: nn.Module, rule: str) -> Trainable:
    """Freeze parameters of a model by a rule; all others become trainable, whatever an earlier call froze.

    Call `model.train()` afterwards: `Backbone.train` keeps fully frozen blocks in evaluation mode, without dropout.

    Args:
        model: a `Backbone`, or a module that holds some.
        rule: see this module.

    Returns:
        The numbers of trainable and of all weights.

    Raises:
        ConfigError: the rule is invalid, K is larger than an encoder's number of blocks, or a pattern matches nothing.
    """
    name, argument = check_rule(rule)
    if name.startswith("only:"):
        name, argument = "only", rule.partition(":")[2]
    encoders = [module for module in model.modules() if isinstance(module, Backbone)]
    model.requires_grad_(True)
    if name == "all":
        for encoder in encoders:
            encoder.requires_grad_(False)
    elif name == "only":
        for encoder in encoders:
            if encoder.pretrained:
                _freeze_all_but(encoder, argument)
    elif name == "bottom":
        _freeze_bottom(encoders, int(argument), rule)
    elif name == "regex":
        _freeze_matches(model, argument)
    for encoder in encoders:
        if encoder.adapter is not None:
            freeze_base(encoder)
    parameters = list(model.parameters())
    return Trainable(sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters))


def _freeze_bottom(encoders: list[Backbone], count: int, rule: str) -> None:
    pretrained = [encoder for encoder in encoders if encoder.pretrained]
    for encoder in pretrained:
        names = [name for name, _ in encoder.blocks()]
        if count > len(names):
            raise ConfigError(
                f"freeze: the encoder {encoder.key!r} has fewer blocks than {rule!r} would freeze",
                expected=f"0 to {len(names)}: {', '.join(names)}",
                came=str(count),
                do=f"bottom:{len(names)} freezes all of it",
            )
    for encoder in pretrained:
        for _, block in encoder.blocks()[:count]:
            block.requires_grad_(False)


def _freeze_all_but(encoder: Backbone, trained: str) -> None:
    """Freeze an encoder except its biases ("bias"), its normalisation layers ("norm") or nothing ("heads")."""
    encoder.requires_grad_(False)
    matched = False
    for module in encoder.modules():
        norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            if (trained == "bias" and name == "bias") or (trained == "norm" and norm):
                parameter.requires_grad_(True)
                matched = True
    if not matched and trained != "heads":
        raise ConfigError(
            f"freeze: the encoder {encoder.key!r} has no {'biases' if trained == 'bias' else 'normalisation layers'}",
            came=f"only:{trained}",
            do="take another rule, or an adapter",
        )


def _freeze_matches(model: nn.Module, pattern: str) -> None:
    regex = re.compile(pattern)
    names = [name for name, _ in model.named_parameters()]
    if not any(regex.search(name) for name in names):
        word = max(re.findall(r"\w+", pattern), key=len, default="")
        near = [name for name in names if word and word in name] or difflib.get_close_matches(pattern, names, 3, 0.3)
        raise ConfigError(
            f"freeze: no parameter's name matches {pattern!r}",
            expected=f"names such as {', '.join((near or names)[:3])}",
            do="correct the pattern; it may match anywhere in the name",
        )
    for name, parameter in model.named_parameters():
        if regex.search(name):
            parameter.requires_grad_(False)


def lr_scales(backbone: Backbone, decay: float) -> list[tuple[float, list[tuple[str, nn.Parameter]]]]:
    """Return layer-wise learning rate factors: 1 for the last block, `decay` times the next block's for the others.

    Args:
        backbone: the encoder.
        decay: above 0, at most 1; 1 gives all blocks the same rate.

    Returns:
        The factor and the named trainable parameters (as in `backbone.named_parameters()`) of each block, from input
        to output, without frozen blocks.

    Raises:
        ConfigError: `decay` is out of range.

    Reference: Howard and Ruder, arXiv:1801.06146 (discriminative fine-tuning).
    """
    if not 0 < decay <= 1:
        raise ConfigError("layer_decay is out of range", expected="above 0, at most 1", came=str(decay))
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    parts = backbone.blocks()
    scales: list[tuple[float, list[tuple[str, nn.Parameter]]]] = []
    for depth, (_, block) in enumerate(parts):
        trainable = [(names[id(p)], p) for p in block.parameters() if p.requires_grad]
        if trainable:
            scales.append((decay ** (len(parts) - 1 - depth), trainable))
    return scales
