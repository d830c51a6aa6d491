"""Display cells in the report: thumbnails, sounds and shortened text."""

from __future__ import annotations

import base64
import io
import math
import wave
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from fusetune._optional import optional_import
from fusetune.errors import UserError
from fusetune.evaluation.results import Shown
from fusetune.modalities.media import audio_files, image_files
from fusetune.modalities.media.cells import decode_base64, holds_base64, split_cell
from fusetune.modalities.messages import chat_text

MAX_TEXT = 400
THUMBNAIL = 192
MAX_IMAGES = 3
SOUND_RATE = 8000
SOUND_SECONDS = 4
NUM_PEAKS = 120


def show_cell(column: str, kind: str, cell: Any, *, base_dir: Path) -> Shown:
    """Return a cell for display, or the reason if it cannot be displayed.

    Args:
        column: the column's name.
        kind: the column's kind: text, image, audio, number or category; others are shown as text.
        cell: the table's cell.
        base_dir: the folder of relative media paths.
    """
    if cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell)):
        return Shown(column, "missing", "missing")
    try:
        if kind == "image":
            return _image(column, cell, base_dir)
        if kind == "audio":
            return _sound(column, cell, base_dir)
    except (UserError, OSError, ValueError, RuntimeError, SyntaxError, Image.DecompressionBombError) as error:
        return Shown(column, "text", f"(cannot be shown: {cut(str(error), 120)})")
    if kind in ("number", "category"):
        return Shown(column, "number" if kind == "number" else "category", cut(str(cell)))
    if kind == "text" and (chat := chat_text(cell)) is not None:
        return Shown(column, "text", cut(chat))
    words = isinstance(cell, list) and all(isinstance(word, str) for word in cell)
    return Shown(column, "text", cut(" ".join(cell) if words else str(cell)))


def cut(text: str, limit: int = MAX_TEXT) -> str:
    """Return at most `limit` characters of the text, with an ellipsis if it was cut."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def _open(cell: Any, base_dir: Path) -> io.BytesIO:
    """Return the content of a media cell: a path, bytes, or Parquet's {"bytes", "path"}."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str) and any(holds_base64(cell, starts) for starts in (image_files.STARTS, audio_files.STARTS)):
        cell = decode_base64(cell)
    if isinstance(cell, bytes | bytearray | memoryview):
        return io.BytesIO(bytes(cell))
    return io.BytesIO((base_dir / str(cell).strip()).read_bytes())


def _image(column: str, cell: Any, base_dir: Path) -> Shown:
    parts = split_cell(cell, base_dir)
    shown, sizes = [], []
    for part in parts[:MAX_IMAGES]:
        with Image.open(_open(part, base_dir)) as opened:
            sizes.append(f"{opened.width} by {opened.height}")
            opened.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
            picture = ImageOps.exif_transpose(opened)
        if picture.mode in ("RGBA", "LA", "PA", "P"):
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        if picture.mode.startswith("I") or picture.mode == "F":
            picture = ImageOps.autocontrast(_eight_bit(picture))
        picture = picture.convert("RGB")
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=80)
        shown.append(_uri("image/jpeg", buffer.getvalue()))
    more = f" and {len(parts) - MAX_IMAGES} more" if len(parts) > MAX_IMAGES else ""
    return Shown(column, "image", f"{', '.join(sizes)} pixels{more}", images=shown)


def _eight_bit(picture: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
    low, high = float(values.min()), float(values.max())
    return Image.fromarray(((values - low) / max(high - low, 1e-9) * 255).astype(np.uint8))


def _sound(column: str, cell: Any, base_dir: Path) -> Shown:
    soundfile = optional_import("soundfile", "to read audio")
    samples, rate = soundfile.read(_open(cell, base_dir), dtype="float32", always_2d=True)
    mono = np.nan_to_num(samples.mean(axis=1))
    if len(mono) == 0:
        return Shown(column, "text", "a sound with no samples")
    seconds = len(mono) / rate
    heard = _resample(mono[: SOUND_SECONDS * rate], rate)
    loudest = max(float(np.abs(mono).max()), 1e-9)
    peaks = [round(float(np.abs(part).max()) / loudest, 3) for part in np.array_split(mono, min(NUM_PEAKS, len(mono)))]
    text = f"{seconds:.1f} s at {rate} Hz" + (f", first {SOUND_SECONDS} s to hear" if seconds > SOUND_SECONDS else "")
    return Shown(column, "audio", text, sound=_wav(heard), peaks=list(peaks))


def _resample(mono: np.ndarray, rate: int) -> np.ndarray:
    from scipy.signal import resample_poly  # 0.3 s to import, for audio only

    common = math.gcd(rate, SOUND_RATE)
    return np.asarray(resample_poly(mono, SOUND_RATE // common, rate // common))


def _wav(mono: np.ndarray) -> str:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SOUND_RATE)
        file.writeframes((np.clip(mono, -1, 1) * 32767).astype("<i2").tobytes())
    return _uri("audio/wav", buffer.getvalue())


def _uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
