"""Paraphrases and back-translations by seq2seq models, generated once and cached on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fusetune.backbones.hub.source import check_safe, fingerprint, quiet, resolve, weight_files
from fusetune.config.paths import cache_folder
from fusetune.errors import BackboneError, StorageError

BATCH = 16
BEAMS = 4


class Paraphrases:
    """Paraphrases by a chain of seq2seq models, with deterministic beam search."""

    def __init__(self, models: Sequence[str], *, max_tokens: int) -> None:
        """
        Args:
            models: folders or hub ids; each model reads the output of the one before it.
            max_tokens: limit on the input and on the output, in tokens.
        """
        self.models, self.max_tokens = list(models), max_tokens
        self._paraphrases: dict[str, str] = {}

    def of(self, text: str) -> str:
        """Return a text's paraphrase, or the text itself if there is none."""
        return self._paraphrases.get(text) or text

    def fill(self, texts: Sequence[str], progress: Any = None) -> None:
        """Generate the paraphrases that are not cached.

        Args:
            texts: distinct texts.
            progress: `progress(iterator, description, total)` wraps an iterator.

        Raises:
            BackboneError: a model does not exist, is not safe to load, or is not a seq2seq model.
            StorageError: the cache cannot be written.
        """
        folders = [resolve(source).folder for source in self.models]
        prints = [fingerprint(weight_files(folder)) for folder in folders]
        name = hashlib.sha256(json.dumps([prints, self.max_tokens, BEAMS]).encode()).hexdigest()[:16]
        path = cache_folder() / "paraphrases" / f"{name}.jsonl"
        self._paraphrases = _read(path)
        missing = [text for text in texts if text not in self._paraphrases]
        if not missing:
            return
        made = missing
        for folder in folders:
            made = self._through(folder, made, progress)
        self._paraphrases |= dict(zip(missing, made, strict=True))
        _write(path, self._paraphrases)

    @torch.no_grad()
    def _through(self, folder: Path, texts: Sequence[str], progress: Any) -> list[str]:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        check_safe(folder)
        try:
            with quiet():
                tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
                model: Any = AutoModelForSeq2SeqLM.from_pretrained(
                    str(folder), use_safetensors=True, trust_remote_code=False, local_files_only=True
                )
        except (OSError, ValueError, KeyError) as error:
            raise BackboneError(
                "the model that paraphrases cannot be loaded",
                expected="a sequence-to-sequence model with its tokenizer, as T5, BART or Marian",
                came=str(error).splitlines()[0],
                file=str(folder),
            ) from error
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model.to(device).eval()
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        starts: Iterator[int] = iter(range(0, len(order), BATCH))
        if progress is not None:
            starts = progress(starts, "paraphrasing", -(-len(order) // BATCH))
        made = [""] * len(texts)
        for start in starts:
            indices = order[start : start + BATCH]
            given = [texts[index] for index in indices]
            inputs = tokenizer(given, return_tensors="pt", padding=True, truncation=True, max_length=self.max_tokens)
            inputs.pop("token_type_ids", None)
            ids = model.generate(**inputs.to(device), num_beams=BEAMS, do_sample=False, max_new_tokens=self.max_tokens)
            for index, text in zip(indices, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
                made[index] = text.strip() or texts[index]
        return made


def _read(path: Path) -> dict[str, str]:
    """Read the cache; broken lines are ignored."""
    result: dict[str, str] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                text, paraphrase = json.loads(line)
                result[str(text)] = str(paraphrase)
            except (ValueError, TypeError):
                continue
    return result


def _write(path: Path, paraphrases: dict[str, str]) -> None:
    """Write the cache atomically."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text("".join(json.dumps(pair) + "\n" for pair in paraphrases.items()), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise StorageError(
            f"paraphrases cannot be kept in {path.parent}: {error}; set FUSETUNE_CACHE to a folder to write in"
        ) from error
