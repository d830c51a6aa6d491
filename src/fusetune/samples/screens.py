"""The `screenshot` column of the tickets sample: an imaginary office app, whose level is the dialog that it shows."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LEVELS = ("working", "warning", "crashed")
"""The app's state at each level: no dialog, a warning with a triangle, an error with a stack trace."""

SIZE = (240, 180)
"""Width and height in pixels."""

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

_ACCENTS: tuple[Colour, ...] = (
    (37, 99, 235), (99, 102, 241), (14, 116, 190), (22, 140, 90), (13, 148, 136), (71, 85, 105),
)  # fmt: skip
"""Cold colours only: red and amber are reserved for dialogs, as in most design systems."""

_RED: Colour = (214, 30, 36)
_AMBER: Colour = (250, 176, 20)
_CONSOLE: Colour = (24, 26, 32)
_WHITE: Colour = (255, 255, 255)
_BLACK: Colour = (30, 30, 30)
_HEAD = 40  # height of a dialog's coloured title bar, in pixels
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
    tint = rng.integers(-24, 25, size=3)  # random, so that the mean colour does not reveal the dialog
    dark = bool(rng.random() < 0.5)
    page, panel, line, ink = (44, 60, 86, 225) if dark else (228, 214, 190, 50)
    return _Theme(accent, _tinted(page, tint), _tinted(panel, tint), _tinted(line, tint), _grey(ink), dark)


def _tinted(value: int, tint: np.ndarray) -> Colour:
    red, green, blue = (int(value + offset) for offset in tint)
    return red, green, blue


def _grey(value: int) -> Colour:
    return value, value, value


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@functools.lru_cache(4096)
def _text_mask(text: str, size: int) -> tuple[Image.Image, int, int]:
    """Return a text's coverage mask, 0 to 255 a pixel, and its offset (left, top) from the anchor "lm" of Pillow."""
    box = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), text, font=_font(size), anchor="lm")
    left, top, right, bottom = (round(side) for side in box)
    mask = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).text((-left, -top), text, font=_font(size), fill=255, anchor="lm")
    return mask, left, top


def _text(
    draw: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, size: int, colour: Colour, *, centre: bool = False
) -> None:
    """Draw a text, vertically centred on `xy`, that starts there or is horizontally centred there too."""
    mask, left, top = _text_mask(text, size)
    x = xy[0] - mask.width / 2 if centre else xy[0] + left
    draw.bitmap((round(x), round(xy[1]) + top), mask, fill=colour)


def draw_screen(level: int, rng: np.random.Generator) -> Image.Image:
    """Return a screenshot, RGB of `SIZE`.

    Only the dialog depends on the level; theme, colours, page, texts, badges and positions are independent of it.

    Args:
        level: index into `LEVELS`.
        rng: draws everything else.
    """
    theme = _theme(rng)
    image = Image.new("RGB", SIZE, theme.page)
    draw = ImageDraw.Draw(image)
    side = _frame(draw, theme, rng)
    page = _PAGES[rng.integers(len(_PAGES))]
    page(draw, theme, (side + 8, 46, SIZE[0] - 8, SIZE[1] - 8), rng)
    if rng.random() < 0.5:
        _toast(draw, theme, rng)
    if level == 1:
        _warning(draw, theme, rng)
    elif level == 2:
        _error(draw, theme, rng)
    return image


def _frame(draw: ImageDraw.ImageDraw, theme: _Theme, rng: np.random.Generator) -> float:
    """Draw the title bar, side bar and page title; return the x at which the page begins."""
    width, height = SIZE
    bar = int(rng.integers(14, 20))
    draw.rectangle((0, 0, width, bar), fill=theme.accent if rng.random() < 0.6 else theme.panel)
    left = rng.random() < 0.5
    for k in range(3):
        x = 8 + 10 * k if left else width - 8 - 10 * k
        draw.ellipse((x - 3, bar / 2 - 3, x + 3, bar / 2 + 3), fill=theme.line)
    _text(draw, (width / 2, bar / 2), _word(rng), 10, theme.ink, centre=True)
    side = int(rng.integers(44, 60))
    draw.rectangle((0, bar, side, height), fill=theme.panel)
    chosen, num_items = int(rng.integers(4)), int(rng.integers(4, 8))
    for k in range(num_items):
        y = bar + 13 + 18 * k
        if k == chosen:
            draw.rounded_rectangle((3, y - 8, side - 3, y + 8), 4, fill=theme.accent)
        _text(draw, (7, y), _word(rng), 9, theme.ink)
    _text(draw, (side + 8, bar + 13), f"{_word(rng)} overview", 11, theme.ink)
    x = width - int(rng.integers(14, 40))
    draw.ellipse((x - 6, bar + 6, x + 6, bar + 18), fill=_ACCENTS[rng.integers(len(_ACCENTS))])
    return side


def _table(draw: ImageDraw.ImageDraw, theme: _Theme, box: Box, rng: np.random.Generator) -> None:
    left, top, right, bottom = box
    draw.rectangle((left, top, right, top + 14), fill=theme.line)
    step = int(rng.integers(16, 22))
    for y in np.arange(top + 14, bottom - step, step):
        draw.line((left, y + step, right, y + step), fill=theme.line)
        _text(draw, (left + 4, y + step / 2), _word(rng), 9, theme.ink)
        _text(draw, (left + 58, y + step / 2), str(rng.integers(10, 9999)), 9, theme.ink)
        colour = _ACCENTS[rng.integers(len(_ACCENTS))]
        draw.rounded_rectangle((right - 38, y + 4, right - 38 + rng.integers(14, 36), y + step - 4), 4, fill=colour)


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
    """Draw a small notification near the bottom; it occurs at every level, in any colour."""
    x, y = int(rng.integers(62, 140)), int(rng.integers(150, 159))
    draw.rounded_rectangle((x, y, x + 90, y + 17), 5, fill=_ACCENTS[rng.integers(len(_ACCENTS))])
    _text(draw, (x + 45, y + 8), f"{_word(rng)} synced", 9, _WHITE, centre=True)


def _dialog(
    draw: ImageDraw.ImageDraw, theme: _Theme, wide: int, high: int, head: Colour, rng: np.random.Generator
) -> tuple[int, int]:
    """Draw an empty dialog with a coloured title bar near the middle; return its upper left corner."""
    x = (SIZE[0] - wide) // 2 + int(rng.integers(-9, 10))
    y = (SIZE[1] - high) // 2 + int(rng.integers(-8, 9))
    draw.rectangle((x + 3, y + 4, x + wide + 3, y + high + 4), fill=_grey(20 if theme.dark else 150))
    draw.rectangle((x, y, x + wide, y + high), fill=_grey(70 if theme.dark else 255), outline=theme.line)
    draw.rectangle((x, y, x + wide, y + _HEAD), fill=head)
    return x, y


def _warning(draw: ImageDraw.ImageDraw, theme: _Theme, rng: np.random.Generator) -> None:
    """Draw a dialog with an amber title bar, a warning triangle and two buttons."""
    wide, high = int(rng.integers(138, 153)), int(rng.integers(96, 107))
    x, y = _dialog(draw, theme, wide, high, _AMBER, rng)
    draw.polygon(((x + 27, y + 5), (x + 8, y + _HEAD - 5), (x + 46, y + _HEAD - 5)), fill=_BLACK)
    draw.rectangle((x + 25, y + 16, x + 29, y + 26), fill=_AMBER)
    draw.rectangle((x + 25, y + 29, x + 29, y + 33), fill=_AMBER)
    _text(draw, (x + 54, y + _HEAD / 2), "Warning", 16, _BLACK)
    _text(draw, (x + 10, y + _HEAD + 14), _WARNINGS[rng.integers(len(_WARNINGS))], 10, theme.ink)
    _text(draw, (x + 10, y + _HEAD + 28), f"{_word(rng)} / {_word(rng)}", 9, theme.ink)
    _button(draw, (x + wide - 108, y + high - 20, x + wide - 60, y + high - 5), theme.line, "Cancel")
    _button(draw, (x + wide - 54, y + high - 20, x + wide - 8, y + high - 5), theme.accent, "OK")


def _error(draw: ImageDraw.ImageDraw, theme: _Theme, rng: np.random.Generator) -> None:
    """Draw a dialog with a red title bar, a crossed circle and a stack trace on black."""
    wide, high = int(rng.integers(148, 163)), int(rng.integers(112, 123))
    x, y = _dialog(draw, theme, wide, high, _RED, rng)
    draw.ellipse((x + 9, y + 4, x + 41, y + 36), fill=_WHITE)
    for slope in (1, -1):
        draw.line((x + 17, y + 20 - 8 * slope, x + 33, y + 20 + 8 * slope), fill=_RED, width=5)
    _text(draw, (x + 48, y + 14), _ERRORS[rng.integers(len(_ERRORS))], 12, _WHITE)
    _text(draw, (x + 48, y + 29), f"code {rng.integers(100, 9999)}", 9, _WHITE)
    draw.rectangle((x + 8, y + _HEAD + 6, x + wide - 8, y + high - 24), fill=_CONSOLE)
    for line in range(y + _HEAD + 13, y + high - 28, 10):
        _text(draw, (x + 12, line), _TRACE[rng.integers(len(_TRACE))], 9, (170, 220, 180))
        _text(draw, (x + 84, line), _TRACE[rng.integers(len(_TRACE))], 9, (170, 220, 180))
    _button(draw, (x + wide - 56, y + high - 20, x + wide - 8, y + high - 5), theme.line, "Close")


def _button(draw: ImageDraw.ImageDraw, box: Box, colour: Colour, text: str) -> None:
    draw.rounded_rectangle(box, 4, fill=colour)
    ink = _grey(255 if sum(colour) < 420 else 30)
    _text(draw, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), text, 9, ink, centre=True)


def _word(rng: np.random.Generator) -> str:
    return _WORDS[rng.integers(len(_WORDS))]


def png_bytes(image: Image.Image) -> bytes:
    """Return the image as a PNG file with a palette of 256 colours: half the bytes, hardly visible on flat images."""
    buffer = io.BytesIO()
    colours = image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    colours.save(buffer, format="PNG", compress_level=4)  # the best trade-off on flat images
    return buffer.getvalue()
