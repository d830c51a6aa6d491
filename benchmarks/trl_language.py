"""TRL's SFTTrainer on a language model, with its padding collator, as its documentation has it for LoRA.

TRL is no dependency of fusetune: `pip install --target DIR --no-deps trl==1.16.0`, then PYTHONPATH=DIR.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bare_language import ADAPTED, encoded, mean_loss
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


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
    """Return the seconds of the updates, tokens a second (prompts and answers, no padding) and the validation loss.

    The arguments are those of `bare_language.tune`; the model is a decoder.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = {part: list(encoded(parts[part], tokenizer, template, target, model.config, most_tokens)) for part in parts}
    lora = None
    if sum(p.numel() for p in model.parameters()) >= ADAPTED:
        lora, rate = LoraConfig(r=16, lora_alpha=32, target_modules=r".*(q|k|v|o|gate|up|down)_proj"), 5e-4
    pairs = [{"prompt": template.format(**row), "completion": f" {row[target]}"} for row in parts["train"]]
    total = math.ceil(len(pairs) / batch) * epochs
    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(prefix="trl-"),
        per_device_train_batch_size=batch,
        num_train_epochs=epochs,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(0.1 * total),
        weight_decay=0.01,
        max_grad_norm=1.0,
        max_length=None,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model, args=settings, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer, peft_config=lora
    )
    learned = sum(label >= 0 for row in trainer.train_dataset for label in row["labels"])
    assert learned == sum(len(answer) for _, answer in rows["train"]), "TRL learns the same tokens"
    used = time.process_time()
    seconds = float(trainer.train().metrics["train_runtime"])
    used = time.process_time() - used
    tokens = epochs * sum(len(prompt) + len(answer) for prompt, answer in rows["train"])
    return {
        "train": seconds,
        "train_processor": used,
        "tokens_per_second": tokens / seconds,
        "val_loss": mean_loss(trainer.model, rows["val"], tokenizer, model.config),
    }
