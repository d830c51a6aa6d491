"""Media columns that cannot be read: URLs, paths relative to a remote table, or unsupported formats."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from fusetune.errors import SchemaError, shown

MEDIA = ("image", "audio")
_UNREAD = {
    **dict.fromkeys((".heic", ".heif", ".avif", ".svg", ".psd"), "as JPEG or PNG"),
    **dict.fromkeys((".m4a", ".aac", ".wma", ".amr", ".caf"), "as FLAC, WAV or MP3"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm"), "their pictures as JPEG, their sound as FLAC"),
    ".pdf": "their pages as PNG",
}
"""File extensions that are not supported, and what to convert such files to."""

_MEDIA_ENDINGS = (
    ".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".wav", ".flac", ".ogg", ".mp3", ".m4a", ".opus",
)  # fmt: skip


def urls_of_media(kind: str | None, sample: Sequence[Any], fetched: Collection[str] = ()) -> list[str]:
    """Return the URLs in a column most of whose cells are URLs of media that are not fetched, else an empty list.

    Args:
        kind: the column's kind. None: unknown, so that only URLs with a media file's extension count.
        sample: cells, none missing.
        fetched: protocols of addresses that are fetched.
    """
    urls = [
        cell
        for cell in sample
        if isinstance(cell, str)
        and "://" in cell[:12]
        and cell.split("://")[0].strip().lower() not in fetched
        and (kind in MEDIA or cell.split("?")[0].split("#")[0].lower().endswith(_MEDIA_ENDINGS))
    ]
    return urls if len(urls) * 2 > len(sample) else []


def how_to_fetch(url: str) -> str:
    """Return what to do about addresses that are not fetched."""
    return f"data.read.media=[{url.split('://')[0].strip().lower()}] fetches them"


def refuse_urls(name: str, kind: str, sample: Sequence[Any], source: str, fetched: Collection[str] = ()) -> None:
    """Refuse a media column whose cells are URLs that are not fetched.

    Args:
        name: of the column.
        kind: of the column.
        sample: cells, none missing.
        source: the table's name for the message.
        fetched: protocols of addresses that are fetched.

    Raises:
        SchemaError: most cells are URLs.
    """
    if kind in MEDIA and (urls := urls_of_media(kind, sample, fetched)):
        raise SchemaError(
            "the cells are URLs, which are not fetched unless it is asked for: what a URL gives can change or vanish",
            expected="paths (absolute, or relative to the table's file), or bytes in a Parquet file",
            came=shown(urls[0]),
            do=f"{how_to_fetch(urls[0])}; or download them and put the paths into the column, or leave it out: role of "
            f"{name!r}: ignore",
            file=source,
            column=name,
        )


def refuse_beside(name: str, kind: str, sample: Sequence[Any], source: str) -> None:
    """Refuse a column of media paths relative to a remote table. The arguments are those of `refuse_urls`.

    Raises:
        SchemaError: most cells are such paths.
    """
    texts = [cell.split(";")[0].strip() for cell in sample if isinstance(cell, str)]
    paths = [text for text in texts if kind in MEDIA or text.lower().endswith(_MEDIA_ENDINGS)]
    beside = [path for path in paths if "://" not in path and not Path(path).is_absolute()]
    if len(beside) * 2 > len(sample):
        raise SchemaError(
            "the cells name files beside the table, and of what lies at an address only the table itself is copied",
            expected="media as bytes in a Parquet file, or absolute paths on this machine",
            came=shown(beside[0]),
            do=f"copy table and files here and give the copy's path; or leave the column out: role of {name!r}: ignore",
            file=source,
            column=name,
        )


def unread_files(sample: Sequence[Any]) -> tuple[str, str, str] | None:
    """Return the format, an example and what to convert to, if most cells name files in unsupported formats, else None.

    Args:
        sample: cells, none missing.
    """
    names = [part.split(";")[0].strip() for cell in sample if (part := _path_of(cell))]
    unread = [name for name in names if len(name) < 4096 and Path(name).suffix.lower() in _UNREAD and "\n" not in name]
    if not sample or len(unread) * 2 <= len(sample) or sum(" " in name for name in unread) * 2 > len(unread):
        return None
    ending = Path(unread[0]).suffix.lower()
    return ending[1:].upper(), unread[0], _UNREAD[ending]


def _path_of(cell: Any) -> str | None:
    if isinstance(cell, dict):
        cell = cell.get("path") if cell.get("bytes") is None else None
    return cell if isinstance(cell, str) else None


def refuse_unread(name: str, kind: str, sample: Sequence[Any], source: str) -> None:
    """Refuse a media column in an unsupported format. The arguments are those of `refuse_urls`.

    Raises:
        SchemaError: most cells name such files.
    """
    if kind in MEDIA and (unread := unread_files(sample)):
        raise SchemaError(
            f"the cells name {unread[0]} files, which are not read",
            expected="JPEG, PNG, GIF, BMP, WebP, TIFF; WAV, FLAC, Ogg, MP3, AIFF",
            came=shown(unread[1]),
            do=f"convert them ({unread[2]}), or leave the column out: role of {name!r}: ignore",
            file=source,
            column=name,
        )
