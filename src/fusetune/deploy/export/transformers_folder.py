"""Write a tuned language model as a plain folder of transformers.

    config.json, model.safetensors     the model, its adapter merged into the weights
    tokenizer.json, ...                the tokenizer, with the chat template of the prompts
    generation_config.json             how answers are written, and which tokens end them
    README.md                          the prompt's template, how to use it, and what the folder lacks

`AutoModelForCausalLM` or `AutoModelForSeq2SeqLM` loads it; it needs no fusetune.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fusetune.backbones.adapters import merge
from fusetune.backbones.language import LanguageModel
from fusetune.config.prompt import GenerationConfig
from fusetune.deploy.bundle import Bundle, write_text
from fusetune.errors import ConfigError, StorageError, reason
from fusetune.modalities.prompt import PromptModality
from fusetune.models.generate import Generate
from fusetune.tasks.abilities import Writes


def save_transformers(bundle: Bundle, folder: Path) -> list[str]:
    """Write a model's language model as a folder of transformers; the model stays as it is.

    Args:
        bundle: the tuned model.
        folder: to write; files of the same names are replaced.

    Returns:
        Sentences on what the folder lacks: encoders of pictures, sounds and other columns that enter as vectors.

    Raises:
        ConfigError: the model does not write, or it is one of speech.
        StorageError: the folder cannot be written.
    """
    model = bundle.model
    if not isinstance(model, Generate):
        raise ConfigError(
            "only a model that writes is a folder of transformers", do="use the folder of fusetune fit as it is"
        )
    language = model.language
    if language.hears:
        raise ConfigError(
            "a model of speech is not written as a folder of transformers: its encoder and decoder are tuned apart",
            do="use the folder of fusetune fit as it is",
        )
    if language.adapter is not None:
        language = copy.deepcopy(language)
        merge(language)
    written: Any = language.model
    tokenizer, prompts = copy.deepcopy(language.tokenizer), _prompts(bundle)
    frame = next(iter(prompts.values())).frame
    if frame.template is not None:
        tokenizer.chat_template = frame.template.template
    before = written.generation_config
    try:
        written.generation_config = _generation(bundle, language)
        folder.mkdir(parents=True, exist_ok=True)
        written.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
    except (OSError, SafetensorError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise StorageError(f"{folder} cannot be written: {why}") from error
    finally:
        written.generation_config = before
    notes = _lacks(prompts)
    write_text(folder / "README.md", _readme(bundle, language, prompts, notes))
    return notes


def _prompts(bundle: Bundle) -> dict[str, PromptModality]:
    """Return the prompt of each target."""
    prompts = {}
    for task in bundle.targets.values():
        assert isinstance(task, Writes)
        modality = bundle.modalities[task.prompt]
        assert isinstance(modality, PromptModality)
        prompts[task.target] = modality
    return prompts


def _generation(bundle: Bundle, language: LanguageModel) -> Any:
    """Return transformers' settings of how answers are written."""
    import transformers

    settings: GenerationConfig = bundle.config.generation
    longest = max(task.max_tokens for task in bundle.targets.values() if isinstance(task, Writes))
    options: dict[str, Any] = {
        "max_new_tokens": settings.max_tokens or longest,
        "eos_token_id": list(language.end_ids),
        "pad_token_id": language.end_ids[0]
        if language.tokenizer.pad_token_id is None
        else language.tokenizer.pad_token_id,
        "num_beams": settings.beams,
        "do_sample": settings.temperature > 0,
    }
    if settings.temperature:
        options |= {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
    if language.seq2seq:
        options["decoder_start_token_id"] = language.start_id
    make: Any = transformers.GenerationConfig
    return make(**options)


def _lacks(prompts: dict[str, PromptModality]) -> list[str]:
    """Return a sentence for each prompt with columns that enter as vectors."""
    return [
        f"The folder holds the language model alone, without the encoders and projectors of {', '.join(prompt.soft)}: "
        f"it answers {target} from the words of the prompt, as if these cells were missing."
        for target, prompt in prompts.items()
        if prompt.soft
    ]


def _readme(bundle: Bundle, language: LanguageModel, prompts: dict[str, PromptModality], notes: list[str]) -> str:
    auto = "AutoModelForSeq2SeqLM" if language.seq2seq else "AutoModelForCausalLM"
    lines = [f"# Writes {', '.join(f'`{target}`' for target in prompts)}", ""]
    lines += [f"{language.source}, tuned with fusetune. It is loaded by transformers alone.", ""]
    for target, prompt in prompts.items():
        what = "The prompt is a chat up to its last answer." if prompt.messages else "The prompt of a row:"
        lines += [f"## `{target}`", "", what, ""]
        if not prompt.messages:
            lines += ["```text", prompt.template.text, "```", ""]
            lines += ["A line is left out where the row has none of its columns.", ""]
    lines += [*(f"- {note}" for note in notes), *([""] if notes else [])]
    frame = next(iter(prompts.values())).frame
    lines += ["## Use", "", "```python", f"from transformers import {auto}, AutoTokenizer", ""]
    lines += [f'model = {auto}.from_pretrained(".")', 'tokenizer = AutoTokenizer.from_pretrained(".")']
    lines += ['prompt = "..."  # the template above, filled']
    if frame.template is not None:
        system = f'{{"role": "system", "content": {frame.system!r}}}, ' if frame.system else ""
        lines += [f'chat = [{system}{{"role": "user", "content": prompt}}]']
        lines += ["inputs = tokenizer.apply_chat_template("]
        lines += ['    chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"', ")"]
    else:
        lines += ['inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)']
    lines += ["ids = model.generate(**inputs)[0]"]
    start = "" if language.seq2seq else '[inputs["input_ids"].shape[1] :]'
    lines += [f"print(tokenizer.decode(ids{start}, skip_special_tokens=True).strip())", "```", ""]
    return "\n".join(lines)
