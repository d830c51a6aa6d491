"""Tiny text encoders whose tokenizers have a mask token, saved as model folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from fusetune.testing.tiny_models import SMALL, VOCAB, tokenizer

MASKED = {"bert_with_mask": AutoModel, "bert_mlm": AutoModelForMaskedLM}
"""The names of `make_masked`: an encoder alone, and one with its head for masked tokens."""


def add_mask_token(folder: Path) -> None:
    """Write a tokenizer with the token [MASK] after the last of `VOCAB`."""
    tokenizer(folder, names=["input_ids", "token_type_ids", "attention_mask"])
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mask_token": "[MASK]"}))


def make_masked(name: str, folder: Path) -> Path:
    """Create the model of a name in a folder, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", vocab_size=len(VOCAB) + 1, max_position_embeddings=32, **SMALL)
    model: Any = MASKED[name].from_config(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(str(folder))
    add_mask_token(folder)
    return folder
