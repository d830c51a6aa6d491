"""From what the user names to a folder that is safe to load: hub ids, folders and the checks on them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusetune.backbones import embedded
from fusetune.errors import BackboneError, MissingExtra

WEIGHTS = "model.safetensors"
SHARDS = "model.safetensors.index.json"
HUB_FILES = ["*.json", "1_Pooling/*", "model*.safetensors", "*.txt", "*.model", "*.jinja"]
_UNSAFE = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack")
_HUB_ID = re.compile(r"^[\w][\w.-]*(/[\w][\w.-]*)?(@[\w./-]+)?$")


@dataclass(frozen=True)
class Found:
    """A backbone's folder.

    Attributes:
        folder: where its files are.
        source: what the user named.
        name: short, for keys: letters, digits and `_`.
    """

    folder: Path
    source: str
    name: str


def offline() -> bool:
    """Whether the hub must not be asked (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set)."""
    truths = {"1", "on", "yes", "true"}
    return any(os.environ.get(name, "").lower() in truths for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def short_name(text: str) -> str:
    """The text as part of a key: its letters, digits and `_`, in lower case."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:40] or "model"


def find(source: str) -> Found:
    """The folder of a source: "minilm", a folder, or a hub id ("owner/name" or "owner/name@revision").

    Raises:
        BackboneError: there is no such folder, the id is unknown, or it is not cached and the hub cannot be reached.
    """
    if source == embedded.NAME:
        try:
            return Found(embedded.folder(), source, embedded.NAME)
        except MissingExtra as error:
            try:
                return Found(_from_hub(embedded.HUB_ID), source, embedded.NAME)
            except BackboneError:
                raise error from None
    path = Path(source).expanduser()
    if path.is_dir():
        return Found(path, source, short_name(path.resolve().name))
    if path.is_file():
        raise BackboneError(
            "a backbone is a folder, not a file",
            expected=f"a folder with config.json and {WEIGHTS}",
            came=source,
            do=f"give the folder: {path.parent}",
        )
    if not _HUB_ID.match(source) or path.is_absolute():
        raise BackboneError(
            f"there is no backbone folder {source!r}",
            expected="an existing folder, a hub id such as 'google/vit-base-patch16-224' or 'minilm'",
            do="check the path; relative ones start at the current folder",
        )
    return Found(_from_hub(source), source, short_name(source.split("@")[0].rpartition("/")[2]))


def _from_hub(source: str) -> Path:
    """The folder of a hub id in the local cache, downloaded where allowed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    repository, _, revision = source.partition("@")
    try:
        with quiet():
            folder = snapshot_download(
                repository, revision=revision or None, allow_patterns=HUB_FILES, local_files_only=offline()
            )
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise BackboneError(
            f"the hub has no model {source!r}, or it is private or gated",
            came=str(error).splitlines()[0],
            do="check the id; for a gated model accept its terms on the hub and run: hf auth login",
        ) from error
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        mode = "HF_HUB_OFFLINE is set" if offline() else "the hub cannot be reached"
        raise BackboneError(
            f"{source!r} is neither a folder here nor in the hub's cache, and {mode}",
            came=str(error).splitlines()[0] if str(error) else type(error).__name__,
            do=f"on a machine with the hub run 'hf download {repository}' and copy the folder here, or use 'minilm' "
            "(text), or leave the backbone out (image, audio: a small encoder trained from scratch)",
        ) from error
    return Path(folder)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        BackboneError: the file is missing or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError("a file of the backbone cannot be read", came=str(error), file=str(path)) from error
    if not isinstance(found, dict):
        raise BackboneError("expected a JSON object", came=type(found).__name__, file=str(path))
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files with a folder's weights, in order of name.

    Raises:
        BackboneError: there are none, or a shard is missing; the message says what is there instead.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / SHARDS).is_file():
        names = sorted(set(read_json(folder / SHARDS).get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).is_file() or Path(name).name != name]
        if missing or not names:
            raise BackboneError(
                "weights are missing", expected=", ".join(names), came=f"no {missing}", file=str(folder)
            )
        return [folder / name for name in names]
    unsafe = sorted(path.name for path in folder.iterdir() if path.suffix in _UNSAFE)
    came = f"{', '.join(unsafe)}, which may run code when loaded" if unsafe else "no weights"
    raise BackboneError(
        "the folder has no safetensors weights",
        expected=f"{WEIGHTS} or {SHARDS}",
        came=came,
        do="convert it where you trust it, model.save_pretrained(folder), or take a revision that has safetensors",
        file=str(folder),
    )


def check_safe(folder: Path) -> dict[str, Any]:
    """The folder's config.json, after making sure that loading the folder runs none of its code.

    Raises:
        BackboneError: config.json is missing, or the model needs code of its own or an adapter's base.
    """
    from transformers import CONFIG_MAPPING

    if not (folder / "config.json").is_file():
        raise BackboneError("the folder has no config.json", expected="a transformers model folder", file=str(folder))
    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    if "auto_map" in config and model_type not in CONFIG_MAPPING:
        raise BackboneError(
            "the model needs code from its own folder, which is never run",
            expected="a model type that transformers has",
            came=f"model_type {model_type!r} with auto_map",
            do="choose another model, or install a release of transformers that has this type",
            file=str(folder),
        )
    if model_type not in CONFIG_MAPPING:
        raise BackboneError(
            f"transformers has no model type {model_type!r}",
            do="check 'model_type' in config.json, or install a newer transformers",
            file=str(folder / "config.json"),
        )
    if (folder / "adapter_config.json").is_file():
        raise BackboneError(
            "the folder holds an adapter beside its weights",
            do="merge it (peft: model.merge_and_unload()) and save the whole model",
            file=str(folder),
        )
    return config


def fingerprint(files: list[Path]) -> str:
    """SHA-256 over the weights: of the file where there is one, else of the files' own hashes in order."""
    hashes = [embedded.file_sha256(path) for path in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' and the hub's progress bars and load reports; what was set before comes back."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as their_logging

    logging: Any = their_logging
    level, bars, hub_bars = logging.get_verbosity(), logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()
