"""Load a `LanguageModel` by name, hub id or folder, and restore one from a saved folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fusetune.backbones.hub.source import (
    ResolvedSource,
    check_safe,
    count_weights,
    fingerprint,
    quiet,
    resolve,
    weight_files,
)
from fusetune.backbones.inspection import structure
from fusetune.backbones.language import LanguageModel, tied
from fusetune.backbones.pretrained import lacking, steady, tokenizer_of
from fusetune.errors import BackboneError
from fusetune.security.untrusted import reading

DEFAULT = "smollm2"
"""The embedded language model."""
CHECK = "check that config.json belongs to the weights and that the files are whole"


def load_language(source: str | None) -> LanguageModel:
    """Load a pretrained model that writes, from safetensors only and without running code of its folder.

    Args:
        source: a folder, a hub id "owner/name" or "owner/name@revision", or "smollm2" (embedded), which None is too.

    Returns:
        The model in evaluation mode, float32, on the CPU.

    Raises:
        BackboneError: it does not exist, is not safe to load, lacks weights, or cannot write.
        MissingExtra: the embedded model is neither installed nor in the hub's cache.
    """
    resolved = resolve(source or DEFAULT)
    with reading("the language model cannot be loaded", file=resolved.folder, do=CHECK, error=BackboneError):
        return _loaded(resolved)


def restore_language(folder: Path, saved: dict[str, Any], most: int | None) -> LanguageModel:
    """Restore a language model from a folder of `Backbone.save`, with random weights that the model's are loaded over.

    Args:
        folder: with the files.
        saved: the content of its `backbone.json`.
        most: number of values in the weights' file; a much larger model is refused.

    Raises:
        BackboneError: the folder lacks a file, or a file is broken.
    """
    from transformers import AutoConfig

    with quiet():
        config = steady(AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True))
        if most is not None:
            structure.check_size(config, most)
        model = _auto(config, folder).from_config(config, dtype=torch.float32, trust_remote_code=False)
    if not saved.get("tied", True):
        _untie(model)
    named = {name: saved[name] for name in ("key", "source", "fingerprint")}
    return _made(model, folder, config, named, trusted=True)


def hears(source: str | None) -> bool:
    """Return whether a source is a model of speech, such as Whisper, that writes what it hears.

    Raises:
        BackboneError, MissingExtra: see `load_language`.
    """
    from transformers import CONFIG_MAPPING

    raw = check_safe(resolve(source or DEFAULT).folder)
    return _hears(CONFIG_MAPPING[raw["model_type"]]())


def _hears(config: Any) -> bool:
    import transformers

    known: Any = transformers.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING
    return type(config) in known


def _drop_encoder(model: Any) -> None:
    """Remove a speech model's encoder, which is the backbone of the column of sounds.

    Raises:
        BackboneError: the model is built in another way than Whisper's.
    """
    inner = model.base_model
    if not hasattr(inner, "encoder") or not hasattr(inner, "decoder"):
        raise BackboneError("this model of speech cannot be taken apart", expected="one such as Whisper")
    inner.encoder = torch.nn.Identity()


def _loaded(resolved: ResolvedSource) -> LanguageModel:
    from transformers import AutoConfig

    folder = resolved.folder
    check_safe(folder)
    files = weight_files(folder)
    with quiet():
        config = steady(AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True))
        structure.check_size(config, count_weights(files))
        model, info = _auto(config, folder).from_pretrained(
            str(folder),
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    if missing := sorted(info["missing_keys"]):
        raise lacking(missing, folder)
    sha256 = fingerprint(files)
    named = {"source": resolved.source, "key": f"text_{resolved.name}_{sha256[:8]}", "fingerprint": sha256}
    return _made(model, folder, config, named)


def _made(model: Any, folder: Path, config: Any, named: dict[str, str], *, trusted: bool = False) -> LanguageModel:
    """Return the language model of a folder.

    Args:
        model: with its head.
        folder: with the tokenizer.
        config: the model's.
        named: see `LanguageModel`.
        trusted: whether the model was found to write before; random weights cannot tell.

    Raises:
        BackboneError: the model reads both ways, or its tokenizer has ids that it does not.
    """
    if not tied(model):  # T5's config says that it is, whatever the file says, and scales the outputs by that
        config.tie_word_embeddings = model.config.tie_word_embeddings = False
    tokenizer = tokenizer_of(folder)
    if _hears(config):
        _drop_encoder(model)
    structure.check_words(model, max(tokenizer.get_vocab().values(), default=0))
    relative = bool(getattr(config, "is_encoder_decoder", False)) and hasattr(config, "relative_attention_num_buckets")
    limit = None if relative else structure.num_positions(model, config)
    more: dict[str, Any] = {"max_tokens": limit or 2**20, "limit": limit, "hears": _hears(config), **named}
    language = LanguageModel(model.eval(), tokenizer=tokenizer, config=config, **more)
    if not (language.seq2seq or language.causal or trusted):
        raise BackboneError(
            "this model reads a text both ways, so it cannot write one",
            expected="a decoder such as SmolLM2, or an encoder with a decoder such as flan-t5",
            came=str(config.model_type),
            do="name such a model for a target that is written: text=FOLDER, or text=smollm2",
            file=str(folder),
        )
    return language


def _untie(model: Any) -> None:
    """Give the head weights of its own, which transformers ties to the embeddings by some types' configs."""
    if (head := model.get_output_embeddings()) is not None:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())


def _auto(config: Any, folder: Path) -> Any:
    """Return the class of transformers that builds the model of a config with its head.

    Raises:
        BackboneError: transformers has no model of this type that writes.
    """
    import transformers

    if _hears(config):
        return transformers.AutoModelForSpeechSeq2Seq
    seq2seq = bool(getattr(config, "is_encoder_decoder", False))
    auto: Any = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    decoders: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    both: Any = transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    if type(config) not in (both if seq2seq else decoders):
        raise BackboneError(
            f"transformers has no model of type {config.model_type!r} that writes",
            expected="a decoder such as SmolLM2, or an encoder with a decoder such as flan-t5",
            do="name such a model for a target that is written: text=FOLDER, or text=smollm2",
            file=str(folder),
        )
    return auto
