"""Parameter-efficient fine-tuning through peft: the pretrained weights are frozen, and few new ones are trained.

    lora    W + (α/r) B A                          Hu et al. 2021, arXiv 2106.09685
    rslora  W + (α/√r) B A                         Kalajdzievski 2023, arXiv 2312.03732
    dora    m · (W + (α/r) B A) / ‖W + (α/r) B A‖   Liu et al. 2024, arXiv 2402.09353
    ia3     l ⊙ W x, l a vector                    Liu et al. 2022, arXiv 2205.05638
    vera    W + diag(b) B diag(d) A, A and B fixed, random and shared      Kopiczko et al. 2023, arXiv 2310.11454
    oft     R W, R orthogonal and block-diagonal   Qiu et al. 2023, arXiv 2306.07280

Each adapter is initialised to compute the pretrained model. `target_modules` chooses the adapted modules by inspection.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.convolutions import unfold_batch_norms
from fusetune.backbones.hub.source import quiet
from fusetune.config.adapter import AdapterConfig
from fusetune.errors import ConfigError

RANKS = {"lora": 8, "rslora": 8, "dora": 8, "vera": 64, "oft": 16}
"""Default ranks; of VeRA the rank of the shared projections, of OFT the size of a block of R."""
RATES = {"ia3": 50.0, "vera": 50.0}
RATE = 10.0
"""Learning rates relative to full fine-tuning; few weights that start at zero need larger steps."""
LORA = ("Linear", "Conv1D", "Conv2d", "Conv1d")
KINDS_OF_MODULE = {"ia3": ("Linear", "Conv1D", "Conv2d"), "vera": ("Linear", "Conv1D"), "oft": ("Linear",)}
"""Module classes that peft supports for each adapter, if not all of `LORA`. `Conv1D` is GPT-2's linear layer."""
ATTENTION = re.compile(r"att(entio)?n", re.IGNORECASE)


def rate(backbone: Backbone) -> float:
    """Return the factor on the learning rate of full fine-tuning for a backbone; 1 without an adapter."""
    return 1.0 if backbone.adapter is None else RATES.get(backbone.adapter.name, RATE)


def adapt(backbone: Backbone, settings: AdapterConfig) -> None:
    """Add an adapter to a pretrained backbone and freeze all other weights.

    Raises:
        ConfigError: the encoder is not pretrained, has an adapter, or has no module that fits.
    """
    where = f"{backbone.kind}.adapter"
    if not backbone.pretrained:
        raise ConfigError(
            f"{where}: the {backbone.kind} encoder is trained from scratch, so there is nothing to adapt",
            came=settings.name,
            do=f"name a pretrained model: {backbone.kind}=FOLDER, or leave the adapter out",
        )
    if backbone.adapter is not None:
        raise ConfigError(f"{where}: {backbone.source} has an adapter already", do="merge it first: fusetune merge")
    fits = KINDS_OF_MODULE.get(settings.name, LORA)
    chosen = target_modules(backbone.model, settings.targets, where=where, fits=fits)
    known = set(backbone.model.state_dict())
    unfold_batch_norms(backbone)  # what an adapter adds to a convolution's output is read by the norm after it
    _inject(backbone.model, settings, chosen)
    backbone.adapter = settings
    backbone.adapted = chosen
    backbone.adapter_tensors = {
        name for name in backbone.model.state_dict() if name.replace(".base_layer.", ".") not in known
    }
    freeze_base(backbone)


def target_modules(model: nn.Module, how: str, *, where: str = "adapter", fits: Sequence[str] = LORA) -> list[str]:
    """Return the paths of the modules to adapt.

    Args:
        model: the encoder.
        how: `attention`: linear layers inside attention modules. `linear`: all linear layers. `conv`: all convolutions
            except depthwise ones. `auto`: the first of these that exist. Anything else is a regular expression that is
            searched in module paths.
        where: name of the setting in errors.
        fits: names of the module classes that can be adapted.

    Raises:
        ConfigError: no module fits, or the regular expression is invalid.
    """
    head = _output_embeddings(model)
    modules = ((path, module) for path, module in model.named_modules() if module is not head)
    known = {path: type(module).__name__ for path, module in modules if _fits(module, fits)}
    linear = [path for path, name in known.items() if name in ("Linear", "Conv1D")]
    inside = [path for path in linear if ATTENTION.search(path)]
    convolutions = [path for path in known if path not in linear]
    named = {"attention": inside, "linear": linear, "conv": convolutions, "auto": inside or linear or convolutions}
    if how in named:
        result = named[how]
    else:
        try:
            result = [path for path in known if re.search(how, path)]
        except re.error as error:
            raise ConfigError(f"{where}.targets: {how!r} is not a regular expression ({error})") from error
    if not result:
        some = ", ".join(list(known)[:3])
        raise ConfigError(
            f"{where}: no module fits targets={how}",
            expected=f"{', '.join(named)} or a pattern that finds modules such as {some}"
            if some
            else f"modules of the kinds {', '.join(fits)}",
            came="a model without them" if not some else how,
            do="" if some else "take adapter=lora, or freeze=only:norm",
        )
    return result


def _output_embeddings(model: nn.Module) -> nn.Module | None:
    """Return the head of a language model, which is left out: it is often tied to the input embeddings."""
    found = getattr(model, "get_output_embeddings", None)
    with contextlib.suppress(NotImplementedError, AttributeError):
        head = found() if callable(found) else None
        return head if isinstance(head, nn.Module) else None
    return None


def _fits(module: nn.Module, kinds: Sequence[str]) -> bool:
    """Return whether a module is of one of these classes and not a grouped convolution."""
    return type(module).__name__ in kinds and getattr(module, "groups", 1) == 1


def _config(settings: AdapterConfig, chosen: list[str]) -> Any:
    import peft

    rank = settings.rank or RANKS.get(settings.name, 0)
    if settings.name in ("lora", "rslora", "dora"):
        return peft.LoraConfig(
            r=rank,
            lora_alpha=settings.alpha or 2 * rank,
            lora_dropout=settings.dropout,
            use_rslora=settings.name == "rslora",
            use_dora=settings.name == "dora",
            target_modules=chosen,
        )
    if settings.name == "ia3":
        return peft.IA3Config(target_modules=chosen, feedforward_modules=[])
    if settings.name == "vera":
        return peft.VeraConfig(r=rank, vera_dropout=settings.dropout, target_modules=chosen, save_projection=True)
    return peft.OFTConfig(r=0, oft_block_size=rank, module_dropout=settings.dropout, target_modules=chosen)


def _inject(model: nn.Module, settings: AdapterConfig, chosen: list[str]) -> None:
    import peft

    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of block sizes that are fitted to the layer, of older names
        if settings.name == "vera":  # whose projections belong to the model that peft wraps around
            peft.get_peft_model(model, _config(settings, chosen))
        else:
            peft.inject_adapter_in_model(_config(settings, chosen), model)
    for path in chosen:
        layer = model.get_submodule(path)
        base = layer.get_base_layer()  # type: ignore[operator]
        for name in getattr(base, "__constants__", ()):  # as `stride`, which some models read to pad
            if not hasattr(layer, name):
                setattr(layer, name, getattr(base, name))


def freeze_base(backbone: Backbone) -> None:
    """Freeze all weights but the adapter's; adapter weights that are already frozen stay frozen."""
    for name, parameter in backbone.model.named_parameters():
        if name not in backbone.adapter_tensors or name.rpartition(".")[0].endswith(("vera_A", "vera_B")):
            parameter.requires_grad_(False)


def adapter_state_dict(backbone: Backbone) -> dict[str, Tensor]:
    """Return the adapter's tensors by their names in `backbone.model`; shared tensors appear once."""
    result: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, value in backbone.model.state_dict().items():
        if name in backbone.adapter_tensors and (value.data_ptr(), value.shape) not in seen:
            seen.add((value.data_ptr(), value.shape))
            result[name] = value
    return result


@torch.no_grad()
def merge(backbone: Backbone) -> None:
    """Merge the adapter into the weights, which restores the original architecture and makes all weights trainable.

    Does nothing without an adapter.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if backbone.adapter is None:
        return
    for path in backbone.adapted:
        layer = backbone.model.get_submodule(path)
        assert isinstance(layer, BaseTunerLayer)
        layer.merge()
        owner, _, name = path.rpartition(".")
        setattr(backbone.model.get_submodule(owner), name, layer.get_base_layer())
    backbone.adapter, backbone.adapted, backbone.adapter_tensors = None, [], set()
    backbone.requires_grad_(True)
