"""Good files of every format, small: what `fuzz.py` breaks. The same each time they are made."""

from __future__ import annotations

import io
import json
from functools import cache
from typing import Any

import numpy as np

WORDS = ["red shoes", "00501", "NA", "1e5", "true", 'say "hi", twice', "é😀", "a\nb", "x.png", "", "2020-01-02"]


def csv_seeds() -> list[bytes]:
    """With commas, semicolons and tabs, quotes, blank lines, and in UTF-8 and UTF-16."""
    import csv

    found = []
    for delimiter, ending, encoding in ((",", "\n", "utf-8"), (";", "\r\n", "utf-8-sig"), ("\t", "\n", "utf-16")):
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=delimiter, lineterminator=ending)
        writer.writerow(["id", "note", "price", "label"])
        for row in range(30):
            writer.writerow([row, WORDS[row % len(WORDS)], row / 7, "yes" if row % 3 else "no"])
        found.append((text.getvalue() + ending).encode(encoding))
    return [*found, b"a\n1\n2\n", b"a,b\n" + b"0.5,x y z\n" * 400]


def jsonl_seeds() -> list[bytes]:
    """Flat and nested, with mixed types."""
    rows = [
        {"id": row, "note": WORDS[row % len(WORDS)], "price": row / 7, "tags": ["a", {"b": None}][: row % 3]}
        for row in range(30)
    ]
    mixed = [{"a": value} for value in (1, "1", 1.5, True, None, [1], {"x": 2}, 2**80, -0.0)]
    return ["".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in rows).encode() for ascii in (True, False)] + [
        "".join(json.dumps(row) + "\n" for row in mixed).encode()
    ]


@cache
def arrow_table() -> Any:
    """A table with a column of every sort that Parquet keeps."""
    import datetime
    import decimal

    import pyarrow as pa

    rows = 60
    return pa.table(
        {
            "id": list(range(rows)),
            "note": [WORDS[row % len(WORDS)] for row in range(rows)],
            "price": [None if row % 9 == 0 else row / 7 for row in range(rows)],
            "plan": pa.array([("pro", "team")[row % 2] for row in range(rows)]).dictionary_encode(),
            "photo": [{"bytes": b"\x89PNG" * (row % 4), "path": None} for row in range(rows)],
            "tags": [["a", "b"][: row % 3] for row in range(rows)],
            "day": [datetime.date(2020, 1, 1 + row % 28) for row in range(rows)],
            "when": [datetime.datetime(2020, 1, 1, row % 24) for row in range(rows)],
            "cost": [decimal.Decimal(row) / 8 for row in range(rows)],
            "flag": [row % 2 == 0 for row in range(rows)],
        }
    )


def parquet_seeds() -> list[bytes]:
    """Compressed in several ways and not at all, in one and several row groups."""
    import pyarrow.parquet as pq

    found = []
    for options in (
        {"compression": "none", "use_dictionary": False},
        {"compression": "snappy", "row_group_size": 16},
        {"compression": "zstd", "data_page_version": "2.0", "write_page_checksum": True},
        {"compression": "gzip", "store_schema": False},
    ):
        out = io.BytesIO()
        pq.write_table(arrow_table(), out, **options)
        found.append(out.getvalue())
    return found


def arrow_seeds() -> list[bytes]:
    """The file and the stream form."""
    import pyarrow as pa

    found = []
    for make in (pa.ipc.new_file, pa.ipc.new_stream):
        out = io.BytesIO()
        with make(out, arrow_table().schema) as writer:
            writer.write_table(arrow_table())
        found.append(out.getvalue())
    return found


def picture(size: tuple[int, int] = (96, 64)) -> Any:
    from PIL import Image

    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    levels = 127 + 80 * np.sin(rows / 5) * np.cos(columns / 9)
    return Image.fromarray(np.stack([levels, 255 - levels, np.full(levels.shape, 90.0)], -1).astype(np.uint8))


def encoded(image: Any, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def jpeg_seeds() -> list[bytes]:
    """Baseline, progressive, grey, CMYK, with restart markers and EXIF."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    image = picture()
    return [
        encoded(image, "JPEG"),
        encoded(image, "JPEG", progressive=True),
        encoded(image.convert("L"), "JPEG", quality=30),
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(image, "JPEG", exif=exif, subsampling=0, restart_marker_rows=1),
    ]


def png_seeds() -> list[bytes]:
    """Of every colour type, 16 bits, a palette with transparency, and uncompressed."""
    from PIL import Image

    image = picture()
    deep = Image.fromarray(np.linspace(0, 65535, 6144).reshape(64, 96).astype(np.uint16))
    return [
        encoded(image, "PNG"),
        encoded(image, "PNG", compress_level=0),
        encoded(image.convert("P"), "PNG", transparency=3),
        encoded(image.convert("RGBA"), "PNG"),
        encoded(deep, "PNG"),
        encoded(image.convert("1"), "PNG"),
    ]


def other_picture_seeds() -> list[bytes]:
    """GIF, BMP, WebP and TIFF."""
    image = picture((40, 30))
    return [
        encoded(image, "GIF", save_all=True, append_images=[image.rotate(90)]),
        encoded(image, "BMP"),
        encoded(image, "WEBP"),
        encoded(image, "TIFF"),
        encoded(image, "TIFF", compression="tiff_lzw"),
        encoded(image, "TIFF", compression="jpeg"),
    ]


def sounds(*kinds: tuple[str, str]) -> list[bytes]:
    import soundfile

    found = []
    for number, (form, subtype) in enumerate(kinds):
        rate = (8000, 16000, 48000)[number % 3]
        wave = np.sin(np.arange(rate // 4) / 9) * np.linspace(0.1, 0.6, rate // 4)
        samples = np.stack([wave, -wave / 2], -1) if number % 2 else wave
        out = io.BytesIO()
        soundfile.write(out, samples, rate, format=form, subtype=subtype)
        data = bytearray(out.getvalue())
        if (peak := data.find(b"PEAK")) > 0:
            data[peak + 12 : peak + 16] = bytes(4)  # the time of writing
        found.append(bytes(data))
    return found


def wav_seeds() -> list[bytes]:
    """Of whole numbers, floats and compressed ones."""
    return sounds(*(("WAV", kind) for kind in ("PCM_16", "PCM_U8", "FLOAT", "DOUBLE", "PCM_24", "MS_ADPCM", "ULAW")))


def flac_seeds() -> list[bytes]:
    """Of 16 and 24 bits."""
    return sounds(("FLAC", "PCM_16"), ("FLAC", "PCM_24"))


def other_sound_seeds() -> list[bytes]:
    """MP3 and AIFF; no Ogg, as each time it is written it has another random number in it."""
    return sounds(("MP3", "MPEG_LAYER_III"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"))
