"""The licence that a pretrained model states."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from fusetune.backbones.hub import embedded, embedded_lm
from fusetune.security.untrusted import TEXT_BYTES, read_bytes

_FIELD = re.compile(r"^license(?:_name)?:\s*[\"']?([^\s\"'#][^\"'#\n]*)", re.MULTILINE)
_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")
MAX_CHARS = 60


def stated_licence(source: str) -> str:
    """Return the licence that a backbone's source states, or "".

    It is read from the model card's front matter (`license: apache-2.0`), else from the first line of a LICENSE file;
    for a hub id, from the card in the hub's cache.

    Args:
        source: a folder, a hub id ("owner/name" or "owner/name@revision"), "minilm" or "smollm2".
    """
    for package in (embedded, embedded_lm):
        if source == package.NAME:
            if not package.is_installed():
                return _of_hub(package.HUB_ID)
            source = str(package.folder())
    folder = Path(source)
    if folder.is_dir():
        return _of_card(folder / "README.md") or next(filter(None, (_first_line(folder / name) for name in _FILES)), "")
    return _of_hub(source)


def _of_hub(source: str) -> str:
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = source.partition("@")
    with contextlib.suppress(ValueError, OSError):
        card = try_to_load_from_cache(name, "README.md", revision=revision or None)
        return _of_card(Path(card), links=True) if isinstance(card, str) else ""
    return ""


def _of_card(path: Path, *, links: bool = False) -> str:
    text = _text(path, links=links)
    if not text.startswith("---"):
        return ""
    match = _FIELD.search(text[3:].partition("\n---")[0])
    return match.group(1).strip()[:MAX_CHARS] if match else ""


def _first_line(path: Path) -> str:
    lines = (line.strip() for line in _text(path).splitlines())
    return next((line for line in lines if line), "")[:MAX_CHARS]


def _text(path: Path, *, links: bool = False) -> str:
    try:
        return read_bytes(path, TEXT_BYTES, links=links).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""
