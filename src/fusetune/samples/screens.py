"""Screenshots of a made-up office app; the level is what the app is doing when the picture is taken."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LEVELS = ("working", "warning", "crashed")
"""What the app does at each level: no dialog, a warning with a triangle, an error with its trace."""

SIZE = (240, 180)
"""Width and height in pixels."""

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

_ACCENTS: tuple[Colour, ...] = (
    (37, 99, 235), (99, 102, 241), (14, 116, 190), (22, 140, 90), (13, 148, 136), (71, 85, 105),
)  # fmt: skip
"""The app's own colours are cold: red and amber are kept for what goes wrong, as in most design systems."""

_RED: Colour = (214, 30, 36)
_AMBER: Colour = (250, 176, 20)
_CONSOLE: Colour = (24, 26, 32)
_WORDS = (
    "Orders", "Clients", "Stock", "Teams", "Files", "Plans", "Billing", "Tasks", "Inbox", "Trips", "Notes", "Leads",
    "Offers", "Budget", "Survey", "Archive",
)  # fmt: skip
_WARNINGS = ("Not saved yet", "Please check", "Connection is slow", "Are you sure?", "Some fields are empty")
_ERRORS = ("The app stopped", "Fatal error", "Unexpected failure", "Process ended", "Internal error")
_TRACE = ("at core.run", "in sync()", "0x7f3a91", "line 214", "null handle", "io.cpp:88", "retry 3/3", "exit 139")


@dataclass(frozen=True)
class _Theme:
    accent: Colour
    page: Colour
    panel: Colour
    line: Colour
    ink: Colour
    dark: bool


def _theme(rng: np.random.Generator) -> _Theme:
    accent = _ACCENTS[rng.integers(len(_ACCENTS))]
    shade = int(rng.integers(-8, 9))
    if rng.random() < 0.5:
        page, panel, line, ink = 36 + shade, 52 + shade, 78 + shade, 225
    else:
        page, panel, line, ink = 244 + shade, 230 + shade, 205 + shade, 50
    return _Theme(accent, _grey(page), _grey(panel), _grey(line), _grey(ink), dark=page < 128)


def _grey(value: int) -> Colour:
    return (min(value, 255),) * 3


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@functools.lru_cache(4096)
def _ink_of(text: str, size: int) -> tuple[Image.Image, int, int, int, int]:
    """A text's cover, 0 to 255 a pixel, its place against the text's origin at half height, its width and height."""
    left, top, right, bottom = (round(side) for side in ImageDraw.Draw(Image.new("L", (1, 1))).textbbox(
        (0, 0), text, font=_font(size), anchor="lm"))  # fmt: skip
    cover = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(cover).text((-left, -top), text, font=_font(size), fill=255, anchor="lm")
    return cover, left, top, right - left, bottom - top


def _text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, colour: Colour, *, centre: bool = False
) -> None:
    """Write a text that begins at `place`, at half its height, or has its centre there."""
    cover, left, top, wide, _ = _ink_of(text, size)
    x = place[0] - wide / 2 if centre else place[0] + left
    draw.bitmap((round(x), round(place[1]) + top), cover, fill=colour)


def draw_screen(level: int, rng: np.random.Generator) -> Image.Image:
    """A screenshot, RGB of `SIZE`.

    Theme, colours, page, texts, badges and the place of everything say nothing about the level; the dialog does.

    Args:
        level: index into `LEVELS`.
        rng: where all the rest comes from.
    """
    theme = _theme(rng)
    image = Image.new("RGB", SIZE, theme.page)
    draw = ImageDraw.Draw(image)
    side = _frame(draw, theme, rng)
    page = _PAGES[rng.integers(len(_PAGES))]
    page(draw, theme, (side + 10, 58, SIZE[0] - 10, SIZE[1] - 10), rng)
    if rng.random() < 0.5:
        _toast(draw, theme, rng)
    if level == 1:
        _warning(draw, theme, rng)
    elif level == 2:
        _error(draw, theme, rng)
    return image


def _frame(draw: ImageDraw.ImageDraw, theme: _Theme, rng: np.random.Generator) -> float:
    """Title bar, side bar and page title; returns where the page begins."""
    width, height = SIZE
    bar = int(rng.integers(18, 25))
    draw.rectangle((0, 0, width, bar), fill=theme.accent if rng.random() < 0.6 else theme.panel)
    left = rng.random() < 0.5
    for k, colour in enumerate((_RED, _AMBER, (40, 170, 80))):
        x = 10 + 12 * k if left else width - 10 - 12 * k
        draw.ellipse((x - 4, bar / 2 - 4, x + 4, bar / 2 + 4), fill=colour)
    _text(draw, (width / 2, bar / 2), _word(rng), 11, theme.ink, centre=True)
    side = int(rng.integers(56, 80))
    draw.rectangle((0, bar, side, height), fill=theme.panel)
    chosen, num_items = int(rng.integers(5)), int(rng.integers(5, 9))
    for k in range(num_items):
        y = bar + 14 + 21 * k
        if k == chosen:
            draw.rounded_rectangle((4, y - 9, side - 4, y + 9), 4, fill=theme.accent)
        _text(draw, (10, y), _word(rng), 10, theme.ink)
    _text(draw, (side + 10, bar + 16), f"{_word(rng)} overview", 13, theme.ink)
    x = width - int(rng.integers(18, 60))
    draw.ellipse((x - 8, bar + 8, x + 8, bar + 24), fill=_ACCENTS[rng.integers(len(_ACCENTS))])
    return side


def _table(draw: ImageDraw.ImageDraw, theme: _Theme, box: Box, rng: np.random.Generator) -> None:
    left, top, right, bottom = box
    draw.rectangle((left, top, right, top + 14), fill=theme.line)
    step = int(rng.integers(16, 22))
    for y in np.arange(top + 14, bottom - step, step):
        draw.line((left, y + step, right, y + step), fill=theme.line)
        _text(draw, (left + 4, y + step / 2), _word(rng), 9, theme.ink)
        _text(draw, (left + 70, y + step / 2), str(rng.integers(10, 9999)), 9, theme.ink)
        colour = _ACCENTS[rng.integers(len(_ACCENTS))]
        draw.rounded_rectangle((right - 46, y + 4, right - 46 + rng.integers(18, 42), y + step - 4), 4, fill=colour)


def _chart(draw: ImageDraw.ImageDraw, theme: _Theme, box: Box, rng: np.random.Generator) -> None:
    left, top, right, bottom = box
    draw.rounded_rectangle(box, 5, fill=theme.panel)
    num_bars = int(rng.integers(6, 12))
    step = (right - left - 20) / num_bars
    colour = _ACCENTS[rng.integers(len(_ACCENTS))]
    for k in range(num_bars):
        x, high = left + 10 + k * step, (bottom - top - 30) * rng.uniform(0.1, 1.0)
        draw.rectangle((x + 2, bottom - 10 - high, x + step - 2, bottom - 10), fill=colour)
    draw.line((left + 8, bottom - 10, right - 8, bottom - 10), fill=theme.ink)


def _cards(draw: ImageDraw.ImageDraw, theme: _Theme, box: Box, rng: np.random.Generator) -> None:
    left, top, right, bottom = box
    columns, rows = int(rng.integers(2, 4)), int(rng.integers(2, 4))
    wide, high = (right - left) / columns, (bottom - top) / rows
    for k in range(columns * rows):
        x, y = left + (k % columns) * wide, top + (k // columns) * high
        draw.rounded_rectangle((x, y, x + wide - 6, y + high - 6), 5, fill=theme.panel, outline=theme.line)
        colour = _ACCENTS[rng.integers(len(_ACCENTS))]
        draw.rounded_rectangle((x + 5, y + 5, x + 19, y + 19), 3, fill=colour)
        _text(draw, (x + 24, y + 12), _word(rng), 9, theme.ink)
        _text(draw, (x + 6, y + high / 2 + 8), str(rng.integers(10, 999)), 13, theme.ink)


def _form(draw: ImageDraw.ImageDraw, theme: _Theme, box: Box, rng: np.random.Generator) -> None:
    left, top, right, bottom = box
    step = int(rng.integers(26, 36))
    for y in np.arange(top, bottom - step - 16, step):
        _text(draw, (left, y + 10), _word(rng), 9, theme.ink)
        draw.rounded_rectangle((left + 55, y + 2, right - 20, y + 19), 3, fill=theme.panel, outline=theme.line)
        _text(draw, (left + 60, y + 10), _word(rng).lower(), 9, theme.ink)
    _button(draw, (left, bottom - 16, left + 50, bottom), theme.accent, "Save")


_PAGES = (_table, _chart, _cards, _form)


def _toast(draw: ImageDraw.ImageDraw, theme: _Theme, rng: np.random.Generator) -> None:
    """A small note in a lower corner, in any colour: every level may have one."""
    x, y = int(rng.integers(90, 215)), int(rng.integers(205, 216))
    draw.rounded_rectangle((x, y, x + 95, y + 19), 5, fill=_ACCENTS[rng.integers(len(_ACCENTS))])
    _text(draw, (x + 47, y + 9), f"{_word(rng)} synced", 9, (255, 255, 255), centre=True)


def _dialog(
    draw: ImageDraw.ImageDraw, theme: _Theme, wide: int, high: int, rng: np.random.Generator
) -> tuple[float, float]:
    """An empty dialog near the middle; returns its left upper corner."""
    x = (SIZE[0] - wide) / 2 + rng.integers(-22, 23)
    y = (SIZE[1] - high) / 2 + rng.integers(-16, 17)
    draw.rounded_rectangle((x + 3, y + 4, x + wide + 3, y + high + 4), 6, fill=_grey(20 if theme.dark else 150))
    face = _grey(70 if theme.dark else 255)
    draw.rounded_rectangle((x, y, x + wide, y + high), 6, fill=face, outline=theme.line)
    return x, y


def _warning(draw: ImageDraw.ImageDraw, theme: _Theme, rng: np.random.Generator) -> None:
    wide, high = int(rng.integers(150, 176)), int(rng.integers(88, 102))
    x, y = _dialog(draw, theme, wide, high, rng)
    draw.polygon(((x + 30, y + 12), (x + 10, y + 48), (x + 50, y + 48)), fill=_AMBER)
    draw.rectangle((x + 28, y + 24, x + 32, y + 36), fill=(30, 30, 30))
    draw.rectangle((x + 28, y + 40, x + 32, y + 44), fill=(30, 30, 30))
    _text(draw, (x + 58, y + 20), _WARNINGS[rng.integers(len(_WARNINGS))], 10, theme.ink)
    _text(draw, (x + 58, y + 38), f"{_word(rng)} / {_word(rng)}", 9, theme.ink)
    _button(draw, (x + wide - 122, y + high - 27, x + wide - 68, y + high - 9), theme.line, "Cancel")
    _button(draw, (x + wide - 62, y + high - 27, x + wide - 10, y + high - 9), theme.accent, "OK")


def _error(draw: ImageDraw.ImageDraw, theme: _Theme, rng: np.random.Generator) -> None:
    wide, high = int(rng.integers(186, 216)), int(rng.integers(128, 148))
    x, y = _dialog(draw, theme, wide, high, rng)
    draw.ellipse((x + 10, y + 10, x + 46, y + 46), fill=_RED)
    for slope in (1, -1):
        draw.line((x + 19, y + 28 - 9 * slope, x + 37, y + 28 + 9 * slope), fill=(255, 255, 255), width=5)
    _text(draw, (x + 56, y + 20), _ERRORS[rng.integers(len(_ERRORS))], 12, theme.ink)
    _text(draw, (x + 56, y + 37), f"code {rng.integers(100, 9999)}", 9, theme.ink)
    draw.rectangle((x + 10, y + 54, x + wide - 10, y + high - 32), fill=_CONSOLE)
    for line in np.arange(y + 61, y + high - 36, 11):
        trace = " ".join(_TRACE[k] for k in rng.integers(len(_TRACE), size=int(rng.integers(1, 4))))
        _text(draw, (x + 14, line), trace[:34], 9, (170, 220, 180))
    _button(draw, (x + wide - 62, y + high - 26, x + wide - 10, y + high - 8), theme.line, "Close")


def _button(draw: ImageDraw.ImageDraw, box: Box, colour: Colour, text: str) -> None:
    draw.rounded_rectangle(box, 4, fill=colour)
    ink = _grey(255 if sum(colour) < 420 else 30)
    _text(draw, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), text, 9, ink, centre=True)


def _word(rng: np.random.Generator) -> str:
    return _WORDS[rng.integers(len(_WORDS))]


def png_bytes(image: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=4)  # the best size for the time on flat pictures
    return buffer.getvalue()
