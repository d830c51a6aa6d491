"""The catalogue of the shop sample: a description that tells what an item is for, a picture that shows its colour."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

SIZE = (48, 48)
"""Width and height of a picture in pixels."""
COLOURS = ("red", "green", "blue", "yellow")
"""What a picture shows, by the level of its factor."""
THEMES = ("camping", "cooking", "music", "gardening")
"""What a description is about, by the level of its factor."""

_TONES = ((205, 45, 40), (50, 160, 70), (45, 85, 200), (235, 200, 50))
_THINGS = (
    ("tent", "sleeping bag", "camping stove", "hiking lantern", "trekking pole", "camp hammock"),
    ("frying pan", "kitchen knife", "baking tray", "pepper mill", "rolling pin", "salad bowl"),
    ("guitar strap", "drum stick", "violin bow", "piano stool", "microphone stand", "ukulele case"),
    ("watering can", "flower pot", "garden rake", "pruning shears", "seed tray", "lawn edger"),
)
_PLACES = (
    ("for nights under the stars", "for the mountain trail", "for the campfire", "for a week in the woods"),
    ("for the Sunday roast", "for fresh pasta", "for soups and stews", "for the home chef"),
    ("for the next concert", "for band rehearsals", "for long practice sessions", "for the stage"),
    ("for roses and tomatoes", "for the vegetable bed", "for balcony plants", "for a tidy lawn"),
)
_MADE = ("light", "sturdy", "handmade", "classic", "compact", "foldable", "durable", "premium")


def write_description(theme: int, rng: np.random.Generator) -> str:
    """Return a description, such as "sturdy flower pot for balcony plants"; nothing in it tells the colour.

    Args:
        theme: index into `THEMES`.
        rng: draws the words.
    """
    made, thing, place = (words[int(rng.integers(len(words)))] for words in (_MADE, _THINGS[theme], _PLACES[theme]))
    return f"{made} {thing} {place}"


def draw_ware(colour: int, rng: np.random.Generator) -> Image.Image:
    """Return a thing of a colour before a grey wall, RGB of `SIZE`; its shape, place and size tell nothing.

    Args:
        colour: index into `COLOURS`.
        rng: draws the shade and everything else.
    """
    wall = int(rng.integers(150, 240))
    image = Image.new("RGB", SIZE, (wall, wall, wall))
    draw = ImageDraw.Draw(image)
    red, green, blue = (int(np.clip(part + rng.integers(-25, 26), 0, 255)) for part in _TONES[colour])
    x, y = (int(value) for value in rng.integers(20, 29, 2))
    wide, high = (int(value) for value in rng.integers(11, 18, 2))
    box = (x - wide, y - high, x + wide, y + high)
    shape = int(rng.integers(3))
    if shape == 0:
        draw.rectangle(box, fill=(red, green, blue))
    elif shape == 1:
        draw.ellipse(box, fill=(red, green, blue))
    else:
        draw.polygon([(x, y - high), (x + wide, y + high), (x - wide, y + high)], fill=(red, green, blue))
    draw.line((x - wide // 2, y, x + wide // 2, y), fill=(60, 60, 60), width=int(rng.integers(1, 4)))
    return image
