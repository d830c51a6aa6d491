"""What loading all pretrained models has in common: their tokenizers and processors, configs, and missing weights."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any

from fusetune.backbones.hub.source import quiet
from fusetune.errors import BackboneError
from fusetune.security.untrusted import reading

VOCABULARIES = ("tokenizer.json", "tekken.json", "*vocab*", "*.model", "*.tiktoken", "*.bpe", "*.spm")
"""Patterns of files with a tokenizer's vocabulary."""


_DRAWS = (("apply_spec_augment", False), ("layerdrop", 0.0), ("encoder_layerdrop", 0.0), ("mask_ratio", 0.0))


def steady(config: Any) -> Any:
    """Turn off a config's random masking and layer dropout, which draw from the global random generator."""
    for name, value in _DRAWS:
        if hasattr(config, name):
            setattr(config, name, value)
    return config


def lacking(names: list[str], folder: Path) -> BackboneError:
    """Return the error that a checkpoint lacks weights of these names."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return BackboneError(
        "the checkpoint lacks weights of the encoder, which would be random",
        came=f"no {', '.join(names[:3])}{more}",
        do="check that config.json belongs to these weights",
        file=str(folder),
    )


def tokenizer_of(folder: Path) -> Any:
    """Return the folder's tokenizer.

    Raises:
        BackboneError: the folder has no vocabulary, or it is empty.
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
    tokenizer = processor_of("AutoTokenizer", folder, "tokenizer.json")
    vocabulary = set(tokenizer.get_vocab().values())
    if vocabulary <= set(tokenizer.all_special_ids):
        came = f"{len(vocabulary)} tokens, all special"
        raise BackboneError("the tokenizer has no words", expected="a vocabulary", came=came, do=do, file=str(folder))
    return tokenizer


def processor_of(auto: str, folder: Path, file: str, **options: Any) -> Any:
    """Return a folder's processor, loaded by a class of transformers.

    Args:
        auto: the class's name, such as "AutoTokenizer".
        folder: of the model.
        file: the processor's main file, for errors.
        options: further arguments.

    Raises:
        BackboneError: it cannot be loaded.
    """
    import transformers

    do = f"copy {file} and the processor's other files from where the model comes from"
    with reading("the model's processor cannot be loaded", file=folder, do=do, error=BackboneError), quiet():
        return getattr(transformers, auto).from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True, **options
        )
