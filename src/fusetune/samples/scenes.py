"""The `picture` column of the posts sample: a portrait, a landscape or a product shot."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

SIZE = (96, 96)
"""Width and height in pixels."""
SCENES = ("a head and shoulders", "hills below a sky", "a boxed thing on a table")
"""What a picture of each type shows, in the order of `fusetune.samples.posts.LABELS`."""

Colour = tuple[int, int, int]


def draw_scene(kind: int, rng: np.random.Generator) -> Image.Image:
    """Return a picture, RGB of `SIZE`.

    Args:
        kind: index into `SCENES`; colours, positions and sizes are independent of it, as far as the scene allows.
        rng: draws everything else.
    """
    image = Image.new("RGB", SIZE, _colour(rng))
    draw = ImageDraw.Draw(image)
    (_portrait, _landscape, _product)[kind](draw, rng)
    return image


def _colour(rng: np.random.Generator) -> Colour:
    red, green, blue = (int(value) for value in rng.integers(30, 226, 3))
    return red, green, blue


def _portrait(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Draw an oval head with eyes and hair above round shoulders."""
    x, y, size = (float(rng.uniform(low, high)) for low, high in ((40, 56), (36, 46), (15, 21)))
    skin = int(rng.integers(120, 250))
    tone = (skin, skin * 78 // 100, skin * 62 // 100)
    hair, cloth = _colour(rng), _colour(rng)
    draw.ellipse((x - 2.1 * size, y + 1.4 * size, x + 2.1 * size, y + 6 * size), fill=cloth)
    draw.rectangle((x - 0.4 * size, y + size, x + 0.4 * size, y + 1.8 * size), fill=tone)
    draw.ellipse((x - size, y - 1.5 * size, x + size, y + 0.6 * size), fill=hair)
    draw.ellipse((x - 0.85 * size, y - 1.1 * size, x + 0.85 * size, y + 1.3 * size), fill=tone)
    for side in (-1, 1):
        eye = x + side * 0.35 * size
        draw.ellipse((eye - 2, y - 2, eye + 2, y + 2), fill=(30, 30, 30))
    draw.arc((x - 0.4 * size, y + 0.2 * size, x + 0.4 * size, y + 0.8 * size), 20, 160, fill=(120, 40, 40), width=2)


def _landscape(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Draw a sky with a sun, three ranges of hills and a road."""
    width, height = SIZE
    sun = float(rng.uniform(10, 86))
    draw.ellipse((sun - 8, 6, sun + 8, 22), fill=(250, 230, 140))
    across = np.arange(width + 1)
    for layer in range(3):
        level, wave, shift = 42 + 16 * layer, float(rng.uniform(14, 30)), float(rng.uniform(0, 60))
        ridge = level + 7 * np.sin((across + shift) / wave * 2)
        outline = [(float(x), float(y)) for x, y in zip(across, ridge, strict=True)]
        draw.polygon([(0.0, float(height)), *outline, (float(width), float(height))], fill=_colour(rng))
    road = float(rng.uniform(30, 66))
    draw.polygon([(road, 70), (road + 4, 70), (road + 16, height), (road - 12, height)], fill=(200, 200, 200))


def _product(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Draw a box with a label and a side in shade, on a table."""
    width, height = SIZE
    table = float(rng.uniform(64, 76))
    draw.rectangle((0, table, width, height), fill=_colour(rng))
    wide, high = float(rng.uniform(26, 38)), float(rng.uniform(34, 48))
    left = float(rng.uniform(18, 36))
    top, base = table + 8 - high, table + 8
    front = _colour(rng)
    shade = (front[0] * 6 // 10, front[1] * 6 // 10, front[2] * 6 // 10)
    draw.rectangle((left, top, left + wide, base), fill=front)
    draw.polygon(
        [(left + wide, top), (left + wide + 12, top - 7), (left + wide + 12, base - 7), (left + wide, base)], shade
    )
    draw.polygon([(left, top), (left + 12, top - 7), (left + wide + 12, top - 7), (left + wide, top)], fill=front)
    draw.rectangle((left + 4, top + 8, left + wide - 4, top + 20), fill=(250, 250, 250))
    for line in range(2):
        draw.line((left + 7, top + 12 + 4 * line, left + wide - 7, top + 12 + 4 * line), fill=(60, 60, 60))


def png_bytes(image: Image.Image) -> bytes:
    """Return the image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
