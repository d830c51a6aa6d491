"""From a name, hub id or folder to a `Backbone`, and back from a saved folder."""

from __future__ import annotations

import fnmatch
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.backbones import embedded, small, structure
from fusetune.backbones.adapters import adapt
from fusetune.backbones.backbone import FILE, KINDS, POOLS, Backbone
from fusetune.backbones.inputs import (
    MAX_SECONDS,
    AudioInputs,
    ImageInputs,
    Inputs,
    SpectrogramInputs,
    TextInputs,
    token_limit,
)
from fusetune.backbones.sentence import stated_pooling
from fusetune.backbones.source import (
    Found,
    check_files,
    check_safe,
    count_weights,
    find,
    fingerprint,
    quiet,
    read_json,
    weight_files,
)
from fusetune.backbones.spectrogram import FILE as SPECTROGRAM
from fusetune.backbones.spectrogram import Spectrogram
from fusetune.backbones.trial import try_out
from fusetune.backbones.tuned import is_tuned, load_tuned
from fusetune.config.sections import AdapterConfig
from fusetune.errors import BackboneError, FolderError, FusetuneError, nearest
from fusetune.security.untrusted import reading

__all__ = ["Backbone", "load_backbone", "restore_backbone"]

USUAL_TOKENS = 512
VOCABULARIES = ("tokenizer.json", "tekken.json", "*vocab*", "*.model", "*.tiktoken", "*.bpe", "*.spm")
"""Files that hold a tokenizer's vocabulary."""
MOST_EXTRA = 16
"""Class and register tokens before a picture's patches; more would say that the patches were counted wrongly."""
MOST_RANK = 8192
CHECK = "check that config.json belongs to the weights and that the files are whole"
_restoring: ContextVar[tuple[Path, ...]] = ContextVar("restoring", default=())
"""Folders that are being restored: an adapter's backbone may be a tuned model with an adapter."""


def load_backbone(
    source: str | None,
    kind: str,
    *,
    pool: str = "auto",
    max_tokens: int | None = None,
    max_seconds: float = MAX_SECONDS,
    norm_eval: bool = True,
) -> Backbone:
    """Load a pretrained encoder for one kind of cell; safetensors only, and no code from its folder is run.

    Args:
        source: "minilm" (embedded, text), a folder, the folder of a tuned model, or a hub id "owner/name" or
            "owner/name@revision". None for the default: "minilm" for text, a small encoder without pretraining for
            images and audio.
        kind: "text", "image" or "audio".
        pool: see `Backbone`; "auto" takes what the model was made for.
        max_tokens: tokens of a text that are read; None for what the model was made for, at most 512.
        max_seconds: seconds of a sound that are read; above 0.
        norm_eval: keep the running statistics of batch normalisation in training.

    Returns:
        The encoder in evaluation mode, float32, on the CPU.

    Raises:
        BackboneError: it cannot be found, is not safe to load, lacks weights, or cannot encode this kind.
        MissingExtra: the embedded encoder is asked for, is not installed and the hub has it not.
    """
    _choose("kind", kind, KINDS)
    _choose("pool", pool, ("auto", *POOLS))
    if source is not None and is_tuned(source):
        return load_tuned(source, kind, pool=pool, restore=restore_backbone)
    if source in (None, small.KEYS.get(kind)) and kind != "text":
        return small.build(kind, pool=pool, max_seconds=max_seconds)
    found = find(source or embedded.NAME)
    with reading("the backbone cannot be loaded", file=found.folder, do=CHECK, error=BackboneError):
        return _loaded(found, kind, pool=pool, max_tokens=max_tokens, max_seconds=max_seconds, norm_eval=norm_eval)


def _loaded(
    found: Found, kind: str, *, pool: str, max_tokens: int | None, max_seconds: float, norm_eval: bool
) -> Backbone:
    config = check_safe(found.folder)
    files = weight_files(found.folder)
    spectrogram = kind == "audio" and (found.folder / SPECTROGRAM).is_file()
    model, missing = _load(found.folder, config, count_weights(files))
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    part, method = structure.narrow(model, kind, spectrogram=spectrogram)
    inputs = _inputs(found.folder, kind, part, model.config, max_tokens=max_tokens, max_seconds=max_seconds)
    print_ = fingerprint(files)
    backbone = Backbone(
        part,
        inputs=inputs,
        kind=kind,
        pool="mean" if pool == "auto" else pool,
        source=found.source,
        key="_".join([kind, found.name, print_[:8], *([] if pool == "auto" else [pool])]),
        fingerprint=print_,
        pretrained=True,
        method=method,
        config=model.config,
        norm_eval=norm_eval,
    )
    _settle(backbone, pool, found.folder)
    lacking = [names[id(p)] for p in backbone.parameters() if names.get(id(p)) in missing]
    if lacking:
        raise _lacking(sorted(lacking), found.folder)
    _check_weights(backbone, found.folder)
    try_out(backbone)
    return backbone


def _check_weights(backbone: Backbone, folder: Path) -> None:
    """Refuse weights that are all zero, and note matrices that are: a file that was only reserved or half written."""
    matrices = {name: weight for name, weight in backbone.model.named_parameters() if weight.ndim > 1}
    zero = sorted(name for name, weight in matrices.items() if not bool(weight.any()))
    if matrices and len(zero) == len(matrices):
        raise BackboneError(
            "all weights of the encoder are zero",
            do="copy the file again from where the model comes from",
            file=str(folder),
        )
    if zero:
        num = f"{len(zero)} of {len(matrices)} weight matrices of {backbone.source}"
        backbone.notes.append(f"{num} are all zero: {', '.join(zero[:3])}.")


def _lacking(names: list[str], folder: Path) -> BackboneError:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return BackboneError(
        "the checkpoint lacks weights of the encoder, which would be random",
        came=f"no {', '.join(names[:3])}{more}",
        do="check that config.json belongs to these weights",
        file=str(folder),
    )


def restore_backbone(folder: Path, *, most: int | None = None) -> Backbone:
    """The encoder that `Backbone.save` described, its weights random: load the model's over them.

    Args:
        folder: of its description.
        most: figures in the file with the weights that will be loaded; a larger encoder is refused.

    Raises:
        FolderError: the folder lacks a file, or a file is broken or would run code.
    """
    place = folder.resolve()
    if place in _restoring.get():
        raise FolderError("the encoder has an adapter to itself", do="name another backbone", file=str(folder))
    token = _restoring.set((*_restoring.get(), place))
    try:
        with reading("the encoder cannot be restored", file=folder / FILE, do="save the model again"):
            check_files(folder)
            saved = read_json(folder / FILE)
            if saved["small"]:
                return small.restore(saved, folder)
            if saved.get("adapter") is not None:
                return _adapted(saved)
            check_safe(folder)
            return _restore(folder, saved, most)
    except FusetuneError as error:
        raise FolderError("the encoder cannot be restored", came=str(error), file=str(folder)) from error
    finally:
        _restoring.reset(token)


def _adapted(saved: dict[str, Any]) -> Backbone:
    """A backbone with an adapter: the pretrained weights come from where they came from, the adapter's are random."""
    backbone = load_backbone(
        saved["source"],
        saved["kind"],
        pool=saved["pool"],
        max_tokens=int(saved["max_tokens"]) or None,
        max_seconds=float(saved["max_seconds"]),
        norm_eval=bool(saved["norm_eval"]),
    )
    if backbone.fingerprint != saved["fingerprint"]:
        raise BackboneError(
            f"{saved['source']} is not the pretrained model that the adapter was trained on",
            expected=f"weights of SHA-256 {saved['fingerprint']}",
            came=backbone.fingerprint,
            do="put the model back that was there; a merged folder does without: fusetune merge FOLDER --out OTHER",
        )
    if int(saved["adapter"].get("rank") or 0) > MOST_RANK:
        raise BackboneError("the adapter is too large", expected=f"a rank of at most {MOST_RANK}")
    adapt(backbone, AdapterConfig.model_validate(saved["adapter"]))
    backbone.key = saved["key"]
    return backbone.eval()


def _restore(folder: Path, saved: dict[str, Any], most: int | None) -> Backbone:
    from transformers import AutoConfig, AutoModel

    with quiet():
        config = _steady(AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True))
        if most is not None:
            structure.check_size(config, most)
        model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)  # type: ignore[no-untyped-call]
    kind = saved["kind"]
    part, method = structure.narrow(model, kind, spectrogram=(folder / SPECTROGRAM).is_file())
    tokens = int(saved["max_tokens"]) or None
    inputs = _inputs(folder, kind, part, config, max_tokens=tokens, max_seconds=float(saved["max_seconds"]))
    if isinstance(inputs, TextInputs):
        inputs.whole_length = bool(saved["whole_length"])
    removed = [(str(path), str(how)) for path, how in saved["removed"]]
    for path, how in removed:
        structure.remove(part, path, how)
    named = {name: saved[name] for name in ("pool", "key", "source", "fingerprint", "pretrained", "norm_eval")}
    backbone = Backbone(part, inputs=inputs, kind=kind, method=method, config=config, **named)
    backbone.removed, backbone.dim = removed, int(saved["dim"])
    backbone.normalised, backbone.separate = bool(saved.get("normalised", False)), str(saved.get("separate", ""))
    if saved.get("grid") is not None:
        extra, height, width = (int(number) for number in saved["grid"])
        backbone.grid = (extra, height, width)
    return backbone.eval()


def _choose(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        hint = nearest(value, known)
        raise BackboneError(f"unknown {name} {value!r}", expected=", ".join(known), do=hint)


_DRAWS = (("apply_spec_augment", False), ("layerdrop", 0.0), ("encoder_layerdrop", 0.0), ("mask_ratio", 0.0))


def _steady(config: Any) -> Any:
    """The config without what draws from the global random generator and what hides a part of the input."""
    for name, value in _DRAWS:
        if hasattr(config, name):
            setattr(config, name, value)
    return config


def _load(folder: Path, raw: dict[str, Any], most: int) -> tuple[Any, set[str]]:
    """The model of a folder and the names of the parameters that its checkpoint of so many figures lacks."""
    from transformers import AutoConfig, AutoModel

    what = f"transformers cannot load this model (model_type {raw.get('model_type')!r})"
    with reading(what, file=folder, do=CHECK, error=BackboneError), quiet():
        config = _steady(AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True))
        structure.check_size(config, most)
        model, info = AutoModel.from_pretrained(
            str(folder),
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    return model.eval(), set(info["missing_keys"])


def _inputs(
    folder: Path, kind: str, model: nn.Module, config: Any, *, max_tokens: int | None, max_seconds: float
) -> Inputs:
    """What the model reads, by the processor files in its folder."""
    if kind == "audio" and (folder / SPECTROGRAM).is_file():
        return SpectrogramInputs(Spectrogram.read(folder), max_seconds)
    if kind == "text":
        tokenizer = _tokenizer(folder)
        usual = USUAL_TOKENS
        if (folder / "sentence_bert_config.json").is_file():
            usual = int(read_json(folder / "sentence_bert_config.json").get("max_seq_length") or usual)
        structure.check_words(model, max(tokenizer.get_vocab().values(), default=0))
        return TextInputs(tokenizer, token_limit(tokenizer, structure.num_positions(model, config), max_tokens, usual))
    if kind == "image":
        if getattr(config, "num_channels", 3) != 3:
            raise BackboneError(
                "this image model does not read colour pictures",
                expected="3 channels",
                came=str(config.num_channels),
                do=f"for sounds, add {SPECTROGRAM} and use it for an audio column",
                file=str(folder),
            )
        return ImageInputs(_processor("AutoImageProcessor", folder, "preprocessor_config.json", backend="pil"))
    return AudioInputs(_processor("AutoFeatureExtractor", folder, "preprocessor_config.json"), max_seconds)


def _tokenizer(folder: Path) -> Any:
    """The folder's tokenizer.

    Raises:
        BackboneError: no file of the folder holds a vocabulary, or it is empty.
    """
    names = [path.name for path in folder.iterdir()]
    do = "copy the tokenizer's files from where the model comes from; model.save_pretrained alone writes none"
    if not any(fnmatch.fnmatch(name, pattern) for name in names for pattern in VOCABULARIES):
        raise BackboneError(
            "the folder has no tokenizer",
            expected="tokenizer.json, or a vocabulary such as vocab.txt or spiece.model",
            came=", ".join(sorted(names)[:8]),
            do=do,
            file=str(folder),
        )
    tokenizer = _processor("AutoTokenizer", folder, "tokenizer.json")
    vocabulary = set(tokenizer.get_vocab().values())
    if vocabulary <= set(tokenizer.all_special_ids):
        came = f"{len(vocabulary)} tokens, all special"
        raise BackboneError("the tokenizer has no words", expected="a vocabulary", came=came, do=do, file=str(folder))
    return tokenizer


def _processor(auto: str, folder: Path, file: str, **options: Any) -> Any:
    import transformers

    do = f"copy {file} and the processor's other files from where the model comes from"
    with reading("the model's processor cannot be loaded", file=folder, do=do, error=BackboneError), quiet():
        return getattr(transformers, auto).from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True, **options
        )


def _settle(backbone: Backbone, pool: str, folder: Path) -> None:
    """Find the pooling, take out what the pooled output does not depend on, and learn `dim`."""
    backbone.eval()
    inputs = _small_input(backbone)
    inputs.pop("owner", None)
    with torch.no_grad():
        values, _, own = backbone._encode(**inputs)
    if pool == "auto":
        backbone.pool = _auto_pool(backbone, own, folder)
    if backbone.pool == "none" and backbone.kind != "text":
        backbone.grid = _grid(backbone, values.shape[1])
    if backbone.pool == "own" and own is None:
        raise BackboneError(
            "this model makes no vector of its own", expected="pool: mean, cls, last or none", came="own"
        )
    if isinstance(backbone.inputs, TextInputs) and backbone.pool == "own":
        backbone.inputs.whole_length = _reads_padding(backbone)

    def probe() -> Tensor:
        return backbone(**inputs).values  # type: ignore[no-any-return]

    backbone.removed = structure.prune(backbone.model, probe)
    backbone.dim = int(own.shape[-1]) if backbone.pool == "own" and own is not None else int(values.shape[-1])
    backbone.eval()


def _small_input(backbone: Backbone) -> dict[str, Tensor]:
    inputs = backbone.inputs
    if isinstance(inputs, TextInputs):
        return inputs.collate([inputs.prepare("a small text")])
    if isinstance(inputs, ImageInputs):
        return inputs.collate([np.random.default_rng(0).integers(0, 256, (3, *inputs.image_size), dtype=np.uint8)])
    noise = np.random.default_rng(0).normal(0, 0.1, inputs.sampling_rate)
    return inputs.collate([inputs.prepare(noise.astype(np.float32))])


def _auto_pool(backbone: Backbone, own: Tensor | None, folder: Path) -> str:
    """The pooling that a model was made for."""
    if backbone.method != "forward":
        return "own"
    if backbone.kind == "text":
        stated = stated_pooling(folder)
        if stated is not None:
            backbone.normalised = stated.normalised
            return stated.pool
        return "last" if _is_causal(backbone) else "mean"
    if isinstance(backbone.inputs, AudioInputs) and not backbone.inputs.makes_features:
        return "mean"
    if (
        own is not None
        and any(isinstance(module, nn.Conv2d) for module in backbone.model.modules())
        and _map_size(backbone) is not None
    ):
        return "own"
    return "cls" if structure.has_class_token(backbone.model) else "mean"


def _map_size(backbone: Backbone) -> tuple[int, int] | None:
    """(height, width) where the model is convolutional: its last hidden state is (rows, dim, height, width)."""
    inputs = _small_input(backbone)
    inputs.pop("owner", None)
    inputs.pop("lengths", None)
    with torch.no_grad():
        out = getattr(backbone.model, backbone.method)(**inputs)
    shape = out.last_hidden_state.shape
    return (int(shape[2]), int(shape[3])) if len(shape) == 4 else None


def _grid(backbone: Backbone, num_tokens: int) -> tuple[int, int, int] | None:
    """How a picture's tokens lie in it (see `Tokens`): a convolutional model's map, or a transformer's patches."""
    size = _map_size(backbone)
    if size is None and backbone.kind == "image":
        size = structure.patch_grid(backbone.model, backbone.image_size)
    extra = -1 if size is None else num_tokens - size[0] * size[1]
    return (extra, *size) if size is not None and 0 <= extra <= MOST_EXTRA else None


@torch.no_grad()
def _is_causal(backbone: Backbone) -> bool:
    """Whether a token is blind to those after it: the first one's output stays when the last one changes."""
    tokens = torch.arange(8).unsqueeze(0) + 1
    other = tokens.clone()
    other[0, -1] += 1
    mask = torch.ones_like(tokens)
    one, two = (backbone._encode(input_ids=ids, attention_mask=mask)[0][0, 0] for ids in (tokens, other))
    return torch.equal(one, two)


@torch.no_grad()
def _reads_padding(backbone: Backbone) -> bool:
    """Whether padding changes the model's own vector of a text, mask or no mask: it was trained on full lengths."""
    inputs = backbone.inputs
    assert isinstance(inputs, TextInputs)
    ids = inputs.prepare("a small text")
    short = inputs.collate([ids])
    padded = {name: nn.functional.pad(values, (0, 2)) for name, values in short.items()}
    padded["input_ids"][:, len(ids) :] = inputs.filler
    if padded["input_ids"].shape[1] > inputs.max_tokens:
        return False
    one, two = backbone._encode(**short)[2], backbone._encode(**padded)[2]
    assert one is not None and two is not None
    return not torch.allclose(one, two, atol=1e-3)
