"""A bare loop that tunes a language model, as a user of transformers and peft writes it: no validation, no report."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    get_cosine_schedule_with_warmup,
)

ADAPTED = 100_000_000
IGNORED = -100


def tune(
    folder: Path,
    parts: dict[str, list[dict[str, Any]]],
    template: str,
    target: str,
    rate: float,
    batch: int,
    epochs: float,
    most_tokens: int,
    seed: int,
) -> dict[str, float]:
    """Return the seconds of the updates, tokens a second (prompts and answers, no padding) and the validation loss."""
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(folder)
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = auto.from_pretrained(folder, dtype=torch.float32)
    if sum(p.numel() for p in model.parameters()) >= ADAPTED:
        targets = r".*(q|k|v|o|gate|up|down)_proj"
        model, rate = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=targets)), 5e-4
    train, val = (
        list(encoded(parts[part], tokenizer, template, target, config, most_tokens)) for part in ("train", "val")
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)
    per_epoch = math.ceil(len(train) / batch)
    total = round(per_epoch * epochs)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(0.1 * total), total)
    model.train()
    rng, tokens, start, used = random.Random(seed), 0, time.perf_counter(), time.process_time()
    for step in range(total):
        if step % per_epoch == 0:
            rng.shuffle(train)
        rows = train[step % per_epoch * batch : (step % per_epoch + 1) * batch]
        tokens += sum(len(prompt) + len(answer) for prompt, answer in rows)
        loss = model(**collated(rows, tokenizer, config)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - start
    return {
        "train": seconds,
        "train_processor": time.process_time() - used,
        "tokens_per_second": tokens / seconds,
        "val_loss": mean_loss(model, val, tokenizer, config),
    }


def encoded(
    rows: list[dict[str, Any]], tokenizer: Any, template: str, target: str, config: Any, most: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield each row's ids of the prompt and of the answer with its end."""
    for row in rows:
        text = row[target] if isinstance(row[target], str) else row[target][0]
        prompt = template.format(**row)
        if config.is_encoder_decoder:
            yield tokenizer(prompt, truncation=True, max_length=most).input_ids, tokenizer(text).input_ids
        else:
            ids = tokenizer(prompt, add_special_tokens=False, truncation=True, max_length=most).input_ids
            yield ids, [*tokenizer(" " + text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def collated(rows: list[tuple[list[int], list[int]]], tokenizer: Any, config: Any) -> dict[str, torch.Tensor]:
    """Return a batch padded at the right, with labels of the answers' tokens alone."""
    pad = tokenizer.pad_token_id or 0
    if config.is_encoder_decoder:
        ids, labels = [list(prompt) for prompt, _ in rows], [list(answer) for _, answer in rows]
    else:
        ids = [[*prompt, *answer] for prompt, answer in rows]
        labels = [[*[IGNORED] * len(prompt), *answer] for prompt, answer in rows]
    longest, most = max(map(len, ids)), max(map(len, labels))
    return {
        "input_ids": torch.tensor([[*row, *[pad] * (longest - len(row))] for row in ids]),
        "attention_mask": torch.tensor([[*[1] * len(row), *[0] * (longest - len(row))] for row in ids]),
        "labels": torch.tensor([[*row, *[IGNORED] * (most - len(row))] for row in labels]),
    }


@torch.no_grad()
def mean_loss(model: Any, rows: list[tuple[list[int], list[int]]], tokenizer: Any, config: Any) -> float:
    """Return the mean −log-likelihood of the answers' tokens."""
    model.eval()
    total = tokens = 0.0
    for start in range(0, len(rows), 32):
        some = rows[start : start + 32]
        count = sum(len(answer) for _, answer in some)
        total += float(model(**collated(some, tokenizer, config)).loss) * count
        tokens += count
    return total / tokens
