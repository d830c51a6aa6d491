"""Resolution of hub ids and folders to local folders, and the checks that a folder is safe to load."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusetune.backbones.hub import embedded, embedded_lm
from fusetune.errors import BackboneError, MissingExtra
from fusetune.security.untrusted import PICKLED, parse_json, pickle_like, read_bytes, tensors_of, walk
from fusetune.security.untrusted import TEXT_BYTES as MOST

WEIGHTS = "model.safetensors"
SHARDS = "model.safetensors.index.json"
HUB_FILES = ["*.json", "1_Pooling/*", "model*.safetensors", "*.txt", "*.model", "*.jinja"]
_OTHER_WEIGHTS = (*PICKLED, ".h5", ".msgpack")
_NOT_LOOKED_INTO = {"tokenizer.json", "vocab.json", SHARDS}
"""JSON files with vocabularies or tensor names, which may happen to equal a checked key."""
GIT = ".git/"
"""Git's folder of compressed objects, which is never read."""
_MOST_LAYERS, _MOST_SIDE = 1000, 8192
_HUB_ID = re.compile(r"^[\w][\w.-]*(/[\w][\w.-]*)?(@[\w./-]+)?$")


@dataclass(frozen=True)
class ResolvedSource:
    """A backbone's local folder.

    Attributes:
        folder: with its files.
        source: the user's name for it.
        name: a short name for keys; letters, digits and `_`.
    """

    folder: Path
    source: str
    name: str


def offline() -> bool:
    """Return whether HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids access to the hub."""
    truths = {"1", "on", "yes", "true"}
    return any(os.environ.get(name, "").lower() in truths for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def short_name(text: str) -> str:
    """Return a text as part of a key: lower-case letters, digits and `_`, up to 40 characters."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:40] or "model"


def resolve(source: str) -> ResolvedSource:
    """Resolve a source: "minilm", "smollm2", a folder, or a hub id ("owner/name" or "owner/name@revision").

    Raises:
        BackboneError: the folder does not exist, the id is unknown, or it is not cached and the hub cannot be reached.
        MissingExtra: "minilm" or "smollm2" is neither installed nor in the hub's cache.
        StorageError: "smollm2" cannot be converted, as its folder in the cache cannot be written.
    """
    for package in (embedded, embedded_lm):
        if source == package.NAME:
            try:
                with quiet():
                    return ResolvedSource(package.folder(), source, source)
            except MissingExtra as error:
                try:
                    return ResolvedSource(_from_hub(package.HUB_ID), source, source)
                except BackboneError:
                    raise error from None
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return ResolvedSource(path, source, short_name(path.resolve().name))
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
            expected="an existing folder, a hub id such as 'google/vit-base-patch16-224', 'minilm' or 'smollm2'",
            do="check the path; relative ones start at the current folder",
        )
    return ResolvedSource(_from_hub(source), source, short_name(source.split("@")[0].rpartition("/")[2]))


def _from_hub(source: str) -> Path:
    """Return the folder of a hub id in the local cache, downloading it if that is allowed."""
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
            "(reads texts) or 'smollm2' (writes them), or leave the backbone out (image, audio: a small encoder "
            "trained from scratch)",
        ) from error
    return Path(folder)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        BackboneError: the file is missing, not a regular file, too large, or not a JSON object.
    """
    try:
        content = parse_json(read_bytes(path, MOST, links=True))
    except (OSError, ValueError) as error:
        raise BackboneError("a file of the backbone cannot be read", came=str(error), file=str(path)) from error
    if not isinstance(content, dict):
        raise BackboneError("expected a JSON object", came=type(content).__name__, file=str(path))
    return content


def weight_files(folder: Path) -> list[Path]:
    """Return a folder's safetensors files, sorted by name.

    Raises:
        BackboneError: there are none, or a shard is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / SHARDS).is_file():
        shards = read_json(folder / SHARDS).get("weight_map")
        names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
        outside = [name for name in names if Path(name).name != name or not name.isprintable()]
        missing = [name for name in names if name not in outside and not (folder / name).is_file()]
        if missing or outside or not names:
            came = f"{outside} outside the folder" if outside else f"no {missing}"
            raise BackboneError("weights are missing", expected=", ".join(names), came=came, file=str(folder))
        return [folder / name for name in names]
    unsafe = sorted(path.name for path in folder.iterdir() if path.suffix in _OTHER_WEIGHTS)
    came = f"{', '.join(unsafe)}, which may run code when loaded" if unsafe else "no weights"
    raise BackboneError(
        "the folder has no safetensors weights",
        expected=f"{WEIGHTS} or {SHARDS}",
        came=came,
        do="convert it where you trust it, model.save_pretrained(folder), or take a revision that has safetensors",
        file=str(folder),
    )


def count_weights(files: list[Path]) -> int:
    """Return the number of values in safetensors files, from their validated headers.

    Raises:
        BackboneError: a file is invalid.
    """
    try:
        return sum(math.prod(shape) for file in files for _, shape in tensors_of(file, links=True).values())
    except (OSError, ValueError) as error:
        raise BackboneError(
            "the weights cannot be loaded safely",
            expected="whole safetensors files",
            came=str(error),
            do="copy the file again from where the model comes from",
            file=str(files[0].parent),
        ) from error


def check_safe(folder: Path) -> dict[str, Any]:
    """Return the folder's config.json, after making sure that loading the folder runs nothing and reads nothing
    elsewhere.

    Raises:
        BackboneError: config.json is missing, a file may run code or points outside the folder, or the model type is
            not supported.
    """
    from transformers import CONFIG_MAPPING

    if "config.json" not in check_files(folder):
        raise BackboneError("the folder has no config.json", expected="a transformers model folder", file=str(folder))
    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    if model_type == "timm_wrapper" or (model_type is None and {"architecture", "num_features"} <= config.keys()):
        raise BackboneError(
            "this is a model of timm, whose processor in transformers needs torchvision, which is not used here",
            came=str(config.get("architecture")),
            do="name the same model in transformers' own format, such as google/vit-base-patch16-224",
            file=str(folder),
        )
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
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


def check_files(folder: Path) -> list[str]:
    """Check all files of a folder that may be read, and return their relative paths.

    Raises:
        BackboneError: a file may run code, points outside the folder, or has a setting that does.
    """
    names = _files(folder)
    _refuse_pickles(folder, names)
    for name in names:
        if name.endswith(".json") and name.rpartition("/")[2] not in _NOT_LOOKED_INTO:
            _check_settings(folder / name)
    return names


def _files(folder: Path) -> list[str]:
    """Return the files that may be read: of the hub's cache, whose files are links to where it keeps them, those asked
    for."""
    cached = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    if not cached:
        return [name for name in walk(folder, error=BackboneError) if not name.startswith(GIT)]
    result = walk(folder, links=folder.parent.parent / "blobs", error=BackboneError)
    return [name for name in result if any(fnmatch.fnmatch(name, pattern) for pattern in HUB_FILES)]


def _refuse_pickles(folder: Path, names: list[str]) -> None:
    pickles = {name: "" for name in names if "/" not in name and Path(name).suffix.lower() in PICKLED}
    pickles |= {name: evidence for name in names if (evidence := pickle_like(folder / name, links=True))}
    if pickles:
        name, evidence = sorted(pickles.items())[0]
        others = f" and {len(pickles) - 1} more" if len(pickles) > 1 else ""
        raise BackboneError(
            f"{name}{others} may run code when it is loaded",
            expected="safetensors, JSON and text only",
            came=f"{name}, {evidence or 'of a sort that holds pickles'}",
            do=f"move such files out of the folder, they are not needed beside {WEIGHTS}; where there is none, convert "
            "the model where you trust it: model.save_pretrained(folder)",
            file=str(folder),
        )


def _check_settings(path: Path) -> None:
    """Refuse settings that name code or other files, or that have extreme sizes."""
    try:
        waiting: list[Any] = [parse_json(read_bytes(path, MOST, links=True))]
    except (OSError, ValueError) as error:
        raise BackboneError("a file of the backbone cannot be read", came=str(error), file=str(path)) from error
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            for key, inner in value.items():
                if why := _refused(key, inner):
                    raise BackboneError(
                        f"{path.name} {why}",
                        came=f"{key}: {str(inner)[:100]}",
                        do="choose another model; or, where transformers has this model type itself, take the line out "
                        "of a copy of the folder",
                        file=str(path),
                    )
            waiting += value.values()


def _refused(key: str, value: Any) -> str | None:
    """Return why a setting is refused, or None."""
    if key == "auto_map" or (key == "trust_remote_code" and value):
        return "names code of its own folder, which is never run"
    if key in ("configuration_files", "fast_tokenizer_files"):
        return "names other files to be read in its place"
    if (key in ("use_pretrained_backbone", "use_timm_backbone") and value) or (
        key == "backbone" and isinstance(value, str)
    ):
        return "names a second model to be loaded"
    if key.endswith(("attn_implementation", "experts_implementation")) and "/" in str(value):
        return "names code of a hub, which is never run"
    large = isinstance(value, int) and not isinstance(value, bool)
    if large and "layer" in key and value > _MOST_LAYERS:
        return f"has more than {_MOST_LAYERS} layers"
    if large and key in ("height", "width", "shortest_edge") and value > _MOST_SIDE:
        return f"makes pictures of more than {_MOST_SIDE} pixels a side"
    return "has a sampling rate that no sound has" if key == "sampling_rate" and not _is_rate(value) else None


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and 100 <= value <= 1_000_000


def fingerprint(files: list[Path]) -> str:
    """Return the SHA-256 of the weights: of a single file, or of the concatenated hashes of several files."""
    hashes = [embedded.file_sha256(path) for path in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and load reports of transformers and the hub inside the context."""
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
