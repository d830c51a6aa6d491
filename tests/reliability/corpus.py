"""Broken tables, pictures, sounds and texts as users meet them, and what must become of each.

`TABLES` are files for `Table.read`; `IMAGES`, `SOUNDS` and `TEXTS` are cells. Everything is made here: nothing is
downloaded, and each is the same on every machine.
"""

from __future__ import annotations

import datetime
import io
import json
import os
import pickle
import struct
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fusetune.errors import BadCell, EmptyTable, TableError, TooManyRejected


@dataclass(frozen=True)
class Bad:
    """One broken file or cell.

    Attributes:
        name: what is wrong with it.
        content: its bytes; or the cell; or what makes it in a folder and gives its path.
        file: the name that it is written under; the cell is then this name. None: the content is the cell.
        error: what refuses it; None: it is read.
        said: part of the message, or of the reason that its first rejected row has.
        rows: of a table that is read: rows that came, and those of them that are rejected.
        place: the row and the column that the error names.
    """

    name: str
    content: Any
    file: str | None
    error: type[Exception] | None = None
    said: str = ""
    rows: tuple[int, int] = (0, 0)
    place: tuple[int | None, str | None] = (None, None)

    def write(self, folder: Path) -> Any:
        """The path of the table, or the cell."""
        if self.file is None:
            return self.content
        if callable(self.content):
            return self.content(folder)
        if self.content is not None:
            content = self.content.encode() if isinstance(self.content, str) else self.content
            (folder / self.file).write_bytes(content)
        return self.file


def lines(count: int, start: int = 0) -> str:
    return "".join(f"{row},word {row},{'yes' if row % 2 else 'no'}\n" for row in range(start, start + count))


HEAD, GOOD = "id,note,label\n", '{"a": 1}\n' * 40
WHOLE = HEAD + lines(40)


def damaged(data: bytes, length: int, *, at: float = 0.5, new: bytes | None = None) -> bytes:
    """With so many bytes in the middle overwritten (by zeros), or by others."""
    place = int(len(data) * at)
    return data[:place] + (bytes(length) if new is None else new) + data[place + length :]


# --- Parquet and Arrow


def parquet(table: pa.Table | None = None, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(good() if table is None else table, out, **options)
    return out.getvalue()


def arrow(table: pa.Table | None = None) -> bytes:
    out = io.BytesIO()
    table = good() if table is None else table
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


@cache
def good(rows: int = 40) -> pa.Table:
    return pa.table(
        {
            "id": list(range(rows)),
            "note": [f"word {row}" for row in range(rows)],
            "label": [("no", "yes")[row % 2] for row in range(rows)],
        }
    )


def not_utf8(rows: int = 40, bad: int = 33) -> pa.Table:
    """Text of which one cell is Latin-1."""
    cells = [b"caf\xe9" if row == bad else b"word" for row in range(rows)]
    text = pa.array(cells, pa.binary())
    return good(rows).set_column(1, "note", pa.StringArray.from_buffers(rows, *text.buffers()[1:]))


def with_column(name: str, cells: Any, kind: Any = None) -> pa.Table:
    cells = cells if isinstance(cells, pa.Array) else pa.array(cells, kind)
    return good(len(cells)).append_column(name, cells)


def lying_rows() -> bytes:
    """A footer that claims more rows than there are: 20,000 for 12,345 (both are three bytes in it)."""
    data = parquet(good(12_345))
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    told, lie = (_varint(2 * number) for number in (12_345, 20_000))
    place = data.index(told, footer)
    return data[:place] + lie + data[place + len(lie) :]


def _varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found, number = found + bytes([number & 127 | 128]), number >> 7
    return found + bytes([number])


class Evil:
    """Were it unpickled, it would raise."""

    def __reduce__(self) -> Any:
        return exit, (99,)


def pickled_type() -> bytes:
    """A column whose type, so its metadata say, is a pickle: how Arrow once kept types made in Python."""
    marks = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(Evil())}
    table = good()
    field = pa.field("id", pa.int64(), metadata=marks)
    return parquet(pa.Table.from_arrays(table.columns, schema=pa.schema([field, table.schema[1], table.schema[2]])))


def broken_offsets() -> bytes:
    """Arrow text whose offsets point far outside of the file."""
    data = arrow()
    place = data.index(struct.pack("<3i", 0, 6, 12))
    return data[:place] + struct.pack("<3i", 0, 2**30, 12) + data[place + 12 :]


# --- files that are none


def loop(folder: Path, name: str) -> str:
    os.symlink(folder / name, folder / name)
    return name


def directory(folder: Path, name: str) -> str:
    (folder / name).mkdir()
    return name


def pipe(folder: Path, name: str) -> str:
    os.mkfifo(folder / name)
    return name


HTML = "<!DOCTYPE html>\n<html><head><title>403 Forbidden</title></head>\n<body>Forbidden, sorry</body></html>\n"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0a" * 32 + "\nsize 12345\n"


def table(name: str, content: Any, error: Any = None, said: str = "", file: str = "t.csv", **rest: Any) -> Bad:
    return Bad(name, content, file, error, said, **rest)


TABLES = [
    # encodings
    table("Latin-1", WHOLE.encode() + "40,café,yes\n".encode("latin-1"), TableError, r"\(line 42\) is not UTF-8"),
    table("UTF-32", WHOLE.encode("utf-32"), TableError, "UTF-32"),
    table("UTF-16 without a mark", WHOLE.encode("utf-16-be"), TableError, "UTF-16 without a byte order mark"),
    table("UTF-16 cut within a character", WHOLE.encode("utf-16")[:-1], TableError, r"line 41\) is not UTF-16"),
    table("UTF-8 cut within a character", (HEAD + "1,é").encode()[:-1], TableError, "is not UTF-8"),
    table("two byte order marks", b"\xef\xbb\xbf" * 2 + WHOLE.encode(), rows=(40, 0)),
    table("a byte order mark and nothing", b"\xef\xbb\xbf", TableError, "empty"),
    # no text at all
    table("an Excel workbook called .csv", b"PK\x03\x04\x14\0" + bytes(90), TableError, "ZIP archive or an Excel"),
    table("gzip called .csv", b"\x1f\x8b\x08\0" + bytes(range(200)), TableError, "gzip"),
    table("Parquet called .csv", parquet(), TableError, "is Parquet"),
    table("Arrow called .jsonl", arrow(), TableError, "is Arrow", "t.jsonl"),
    table("a picture called .csv", b"\x89PNG\r\n\x1a\n" + bytes(90), TableError, "byte 0 .*not UTF-8"),
    table("NUL bytes only", bytes(4096), TableError, "UTF-16 without|NUL|zero"),
    table("NUL bytes after the header", HEAD.encode() + bytes(4096), TooManyRejected, "1 of 1 rows"),
    table("NUL bytes in cells", HEAD + "1,a\0b,yes\n2,\0,no\n", rows=(2, 0)),
    # quotes and fields
    table("a row with a field too many", WHOLE + "40,a,b,yes\n", None, "line 42: 4 fields where", rows=(41, 1)),
    table("a row with a field too few", HEAD + "7\n" + lines(39), None, "line 2: 1 field where", rows=(40, 1)),
    table("a delimiter at every row's end", HEAD + lines(9).replace("\n", ",\n"), TooManyRejected, "… fields where"),
    table("a row of 5,000 fields", WHOLE + "x," * 5000 + "\n", None, "5001 fields where", rows=(41, 1)),
    table("a quote that never closes, first row", HEAD + '0,"word,no\n' + lines(39), TooManyRejected, "never closed"),
    table("a quote that never closes, last row", WHOLE + '40,"word,no\n', None, "line 42: a quote", rows=(41, 1)),
    table("letters after a closed quote", HEAD + '0,"a"b,no\n' + lines(39), None, "quotes do not match", rows=(40, 1)),
    table("quotes in the header", 'id,"note,label\n' + lines(9), TableError, "header cannot be read"),
    table("a field of 2 MB", HEAD + f"0,{'x' * 2_000_000},no\n" + lines(39, 1), rows=(40, 0)),
    table("old Mac line ends", WHOLE.replace("\n", "\r"), rows=(40, 0)),
    table("mixed line ends", HEAD + lines(20) + lines(20).replace("\n", "\r\n"), rows=(40, 0)),
    # headers
    table("empty", b"", TableError, "0 bytes"),
    table("blank lines only", "\n\r\n\n", TableError, "empty"),
    table("a header only", HEAD, EmptyTable, "a header and no row"),
    table("a header and blank lines", HEAD + "\r\n" * 50, EmptyTable, "a header and no row"),
    table("names twice", "id,note,id\n" + lines(9), TableError, "more than once: 'id'"),
    table("a name missing", "id,,label\n" + lines(9), TableError, "column 2 of 3 without a name"),
    table("names of spaces", "id, ,label\n" + lines(9), TableError, "column 2 of 3 without a name"),
    table("30,000 columns of one name", ",".join(["a"] * 30_000) + "\n", TableError, "more than once: 'a'"),
    # other files under a table's name
    table("semicolons and decimal commas", "id;price;label\n" + "1;2,5;yes\n" * 40, rows=(40, 0)),
    table("one JSON array called .jsonl", json.dumps([{"a": 1}]), TableError, "one JSON array", "t.jsonl"),
    table("indented JSON", json.dumps({"a": 1, "b": 2}, indent=2), TooManyRejected, "not JSON", "t.jsonl"),
    table("Python instead of JSON", "{'a': None}\n" * 9, TooManyRejected, "not JSON", "t.jsonl"),
    table("CSV called .jsonl", WHOLE, TooManyRejected, "not JSON", "t.jsonl"),
    table("a Git LFS pointer", POINTER, TableError, "cannot be read as Parquet", "t.parquet"),
    table("a web page", HTML, TableError, "cannot be read as Arrow", "t.feather"),
    table("a pickle", pickle.dumps({"a": 1}), TableError, "can run code", "t.pkl"),
    # JSON lines
    table("a last line cut off", GOOD + '{"a": ', None, "line 41: not JSON", "t.jsonl", rows=(41, 1)),
    table("two objects on a line", GOOD + '{"a": 1}{"a": 2}', None, "line 41", "t.jsonl", rows=(41, 1)),
    table("a key twice", GOOD + '{"a": 1, "a": 2}', None, "'a' appears twice", "t.jsonl", rows=(41, 1)),
    table("no object", GOOD + "[1]\nnull\n", None, "not a JSON object", "t.jsonl", rows=(42, 2)),
    table("a number of 5,000 digits", GOOD + f'{{"a": {"9" * 5000}}}', None, "digits", "t.jsonl", rows=(41, 1)),
    table("nested 100,000 deep", GOOD + '{"a": ' + "[" * 10**5, None, "nested too", "t.jsonl", rows=(41, 1)),
    table("half of a surrogate pair", GOOD + '{"a": "\\ud83d"}', None, "half", "t.jsonl", rows=(41, 1)),
    table("objects of nothing", "{}\n" * 40, TableError, "no column", "t.jsonl"),
    table("mixed types", '{"a": 1}\n{"a": "1"}\n{"a": [{"b": 0}]}\n{"a": NaN}\n', None, "", "t.jsonl", rows=(4, 0)),
    # Parquet and Arrow
    table("Parquet cut off", parquet()[:-100], TableError, "cannot be read as Parquet", "t.parquet"),
    table("Parquet without its start", parquet()[200:], TableError, "cannot be read as Parquet", "t.parquet"),
    table("a Parquet footer of zeros", damaged(parquet(), 300, at=0.7), TableError, "Parquet", "t.parquet"),
    table("a Parquet footer that lies about rows", lying_rows(), TableError, "20,?000", "t.parquet"),
    table("Parquet without rows", parquet(good().slice(0, 0)), TableError, "no rows", "t.parquet"),
    table("Parquet without columns", parquet(pa.table({})), TableError, "no column|no rows", "t.parquet"),
    table(
        "Parquet text that is not UTF-8", parquet(not_utf8()), TableError, "not UTF-8", "t.parquet", place=(33, "note")
    ),
    table("Arrow text that is not UTF-8", arrow(not_utf8()), TableError, "not UTF-8", "t.arrow", place=(None, "note")),
    table("pickled cells", parquet(with_column("x", [pickle.dumps(Evil())] * 40)), None, "", "t.parquet", rows=(40, 0)),
    table("a pickled type", pickled_type(), None, "", "t.parquet", rows=(40, 0)),
    table(
        "times in a zone that is not known",
        parquet(with_column("day", [[2**50]], pa.list_(pa.timestamp("us", "Nowhere/City")))),
        TableError, "cannot be read", "t.parquet", place=(None, "day"),
    ),
    table(
        "dates in lists",
        parquet(with_column("days", [[datetime.date(2020, 1, 2)]] * 40)), None, "", "t.parquet", rows=(40, 0),
    ),
    table(
        "a union",
        arrow(with_column("x", pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])]))),
        TableError, "not read", "t.arrow", place=(None, "x"),
    ),
    table("Arrow cut off", arrow()[:-40], TableError, "cannot be read as Arrow", "t.arrow"),
    table("Arrow offsets that point outside", broken_offsets(), TableError, "broken", "t.arrow", place=(None, "note")),
    # no files
    table("a folder called .csv", lambda at: directory(at, "t.csv"), TableError, "no table at all"),
    table("a link to itself", lambda at: loop(at, "t.csv"), TableError, "not there|link"),
    table("a pipe", lambda at: pipe(at, "t.csv"), TableError, "pipe"),
    table("missing", None, TableError, "not there"),
    table("a NUL in the path", None, TableError, "NUL|not there", "t\0.csv"),
    table("a name too long", None, TableError, "too long", "t" * 300 + ".csv"),
    table("the home of nobody", None, TableError, "home|not there", "~nobody-there/t.csv"),
    table("an address of no kind", None, TableError, "no such kind of address", "nowhere://example.org/t.csv"),
]  # fmt: skip


# --- pictures


def picture(size: tuple[int, int] = (160, 120)) -> Image.Image:
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    noise = np.random.default_rng(0).normal(0, 20, (*rows.shape, 3))
    levels = 127 + 60 * np.sin(rows / 7)[..., None] + 40 * np.cos(columns / 11)[..., None] + noise
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, body) for name, body in chunks)


def header(width: int, height: int, depth: int = 8, colour: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


PIXELS, END = (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")
JPEG, PROGRESSIVE = encoded(picture(), "JPEG"), encoded(picture(), "JPEG", progressive=True)
PALETTE, GIF = picture().convert("P"), encoded(picture(), "GIF")
DEEP = Image.fromarray(np.arange(0, 60000, 15, dtype=np.uint16).reshape(40, 100))
BOMB = b"a\0\0" + zlib.compress(bytes(10**8))
SVG = "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><rect width='9' height='9'/></svg>"


def image(name: str, content: Any, said: str | None = None, file: str | None = "p.jpg") -> Bad:
    return Bad(name, content, file, None if said is None else BadCell, said or "")


IMAGES = [
    image("zero bytes", b"", "zero bytes"),
    image("JPEG cut off", JPEG[: len(JPEG) // 2], "cut off"),
    image("JPEG without its last bytes", JPEG[:-20], "cut off"),
    image("JPEG cut within its header", JPEG[:100], "header|corrupt"),
    image("JPEG damaged inside", damaged(JPEG, 300), "corrupt"),
    image("JPEG with a gap inside", damaged(JPEG, 64, new=b""), "corrupt"),
    image("grey JPEG damaged inside", damaged(encoded(picture().convert("L"), "JPEG"), 300), "corrupt"),
    image("CMYK JPEG damaged inside", damaged(encoded(picture().convert("CMYK"), "JPEG"), 300), "corrupt"),
    image("progressive JPEG damaged inside", damaged(PROGRESSIVE, 300, new=b"\x5a" * 300), "corrupt"),
    image("JPEG with a filling before its end", JPEG[:-2] + bytes(40) + JPEG[-2:]),
    image("JPEG with bytes after its end", JPEG + b"trailer" * 9),
    image("PNG called .jpg", encoded(picture(), "PNG")),
    image("HTML called .jpg", HTML, "not a picture of a known format"),
    image("a Git LFS pointer called .jpg", POINTER, "not a picture of a known format"),
    image("SVG", SVG, "not a picture of a known format", "p.svg"),
    image("HEIC", b"\0\0\0\x18ftypheic" + bytes(99), "not a picture of a known format", "p.heic"),
    image("PNG with a bit flipped", damaged(encoded(picture(), "PNG"), 1, new=b"\xa5"), "corrupt", "p.png"),
    image("PNG without pixels", png(header(9, 9), END), "corrupt", "p.png"),
    image("PNG of no width", png(header(0, 9), PIXELS, END), "corrupt|header|0 ×", "p.png"),
    image("a decompression bomb", png(header(60_000, 60_000), PIXELS, END), "decompression bomb", "p.png"),
    image("a GIF of 65,535 × 65,535", damaged(GIF, 4, at=6 / len(GIF), new=b"\xff" * 4), "decompression bomb", "p.gif"),
    image("a bomb in a text chunk", png(header(9, 9), (b"zTXt", BOMB), PIXELS, END), "corrupt", "p.png"),
    image("a line of pixels", encoded(picture((1, 500)), "PNG"), "one side is more than", "p.png"),
    image("animation", encoded(picture(), "GIF", save_all=True, append_images=[picture().rotate(90)]), None, "p.gif"),
    image("CMYK", encoded(picture().convert("CMYK"), "JPEG")),
    image("16 bits", encoded(DEEP, "PNG"), None, "p.png"),
    image("a palette with transparency", encoded(PALETTE, "PNG", transparency=PALETTE.getpixel((5, 5))), None, "p.png"),
    image("TIFF cut off", encoded(picture(), "TIFF")[:5000], "cut off", "p.tif"),
    image("a folder", lambda at: directory(at, "p.jpg"), "is a folder"),
    image("a link to itself", lambda at: loop(at, "p.jpg"), "no such file|link|cannot be read"),
    image("a pipe", lambda at: pipe(at, "p.jpg"), "a device or a pipe"),
    image("missing", None, "no such file"),
    image("a NUL in the path", None, "no such file|cannot be read", "p\0.jpg"),
    image("a name too long", None, "too long", "p" * 300 + ".jpg"),
    image("a URL", None, "is a URL", "https://example.org/p.jpg"),
    image("a data: URL of no picture", None, "not a picture", "data:image/png;base64,AAAA"),
    image("a number", 7, "type int", None),
    image("a mapping of something else", {"url": "x"}, "neither 'bytes' nor 'path'", None),
]  # fmt: skip


# --- sounds


def wav(
    samples: np.ndarray | None = None, *, form: int = 1, channels: int = 1, rate: int = 8000, lie: int = 0
) -> bytes:
    samples = tone().astype("<i2") if samples is None else samples
    data, width = samples.tobytes(), samples.dtype.itemsize
    about = struct.pack("<HHIIHH", form, channels, rate, rate * channels * width, channels * width, 8 * width)
    chunks = b"WAVEfmt " + struct.pack("<I", len(about)) + about + b"data" + struct.pack("<I", len(data) + lie) + data
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def tone(seconds: float = 0.5, rate: int = 8000) -> np.ndarray:
    return 9000 * np.sin(np.arange(round(seconds * rate)) / 3)


def recorded(form: str, subtype: str | None = None, seconds: float = 2.0, rate: int = 16_000) -> bytes:
    import soundfile

    out = io.BytesIO()
    noise = np.random.default_rng(0).normal(0, 0.1, round(seconds * rate))
    soundfile.write(out, noise, rate, format=form, subtype=subtype)
    return out.getvalue()


def mp3(*, counted: bool) -> bytes:
    """With the first frame, which has the number of frames, or as streams have it, without."""
    data = recorded("MP3")
    return data if counted else data[data.index(data[:2], 4) :]


def sound(name: str, content: Any, said: str | None = None, file: str | None = "s.wav") -> Bad:
    return Bad(name, content, file, None if said is None else BadCell, said or "")


FLOATS = (tone() / 10_000).astype("<f4")
ONE_NAN = np.where(np.arange(len(FLOATS)) == 99, np.float32(np.nan), FLOATS)

SOUNDS = [
    sound("zero bytes", b"", "zero bytes"),
    sound("a header and no samples", wav(tone()[:0].astype("<i2")), "no samples"),
    sound("only the header's start", wav()[:20], "cut off"),
    sound("a header that lies about the length", wav(lie=10**6), "promises 1,008,000 bytes"),
    sound("no channels", wav(channels=0), "corrupt|channels"),
    sound("33 channels", wav(tone(3.3).astype("<i2"), channels=33), "33 channels"),
    sound("a rate of 0 Hz", wav(rate=0), "corrupt|sampling rate"),
    sound("a rate of 2 GHz", wav(rate=2 * 10**9), "sampling rate|corrupt"),
    sound("one sample that is NaN", wav(ONE_NAN, form=3), "sample 99 of the sound"),
    sound("samples that are infinite", wav(np.full_like(FLOATS, np.inf), form=3), "not finite"),
    sound("a format nobody knows", wav(form=0x7777), "corrupt|unknown format"),
    sound("text", "this is no sound", "unknown format"),
    sound("HTML called .mp3", HTML, "unknown format", "s.mp3"),
    sound("a film", b"\0\0\0\x18ftypmp42" + bytes(99), "unknown format", "s.m4a"),
    sound("FLAC cut off", recorded("FLAC")[:-9000], "cut off|corrupt", "s.flac"),
    sound("FLAC damaged inside", damaged(recorded("FLAC"), 300), "cut off|corrupt", "s.flac"),
    sound("Ogg cut off", recorded("OGG", "VORBIS")[:-2000], "cut off", "s.ogg"),
    sound("MP3 cut off", mp3(counted=True)[:-3000], "cut off", "s.mp3"),
    sound("MP3 that does not count its frames, cut off", mp3(counted=False)[:-3000], "cut off: the frame at", "s.mp3"),
    sound("MP3 that does not count its frames", mp3(counted=False), None, "s.mp3"),
    sound("MP3 with a tag at its end", mp3(counted=False) + b"TAG" + bytes(125), None, "s.mp3"),
    sound("silence", wav(np.zeros(800, "<i2"))),
    sound("WAV called .mp3", wav(), None, "s.mp3"),
    sound("a folder", lambda at: directory(at, "s.wav"), "is a folder"),
    sound("missing", None, "no such file"),
    sound("two sounds", None, "2 sounds", "a.wav;b.wav"),
    sound("whole numbers for samples", {"array": [1, 2], "sampling_rate": 8000}, "not floats", None),
]  # fmt: skip


# --- texts


def text(name: str, content: Any, said: str | None = None) -> Bad:
    return Bad(name, content, None, None if said is None else BadCell, said or "")


TEXTS = [
    text("half of a surrogate pair", "cut \ud83d", "character 4 is half"),
    text("bytes", b"caf\xe9", "type bytes"),
    text("a list", ["a b", "c"], "type list"),
    text("a mapping", {"text": "a"}, "type dict"),
    text("control characters", "".join(map(chr, range(1, 32))) + "\x7f\x80\x9f word"),
    text("NUL", "a\0b"),
    text("10 MB without a space", "x" * 10_000_000),
    text("a megabyte of combining marks", "e" + "\u0301" * 500_000),
    text("right to left, with marks of direction", "\u202eabc\u202c \u200f\u05e9"),
    text("characters of no meaning", "\ufffe\uffff\U0010ffff\ue000"),
    text("a family of emoji", "👩\u200d👩\u200d👧\u200d👦" * 1000),
    text("a byte order mark", "\ufeffword"),
    text("a zero-width space", "\u200b"),
]

EVERYTHING = {"tables": TABLES, "images": IMAGES, "sounds": SOUNDS, "texts": TEXTS}
