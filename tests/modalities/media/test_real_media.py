"""Every picture and sound of the real data sets is read: no check refuses what is whole."""

import os
from pathlib import Path

import pytest

from fusetune.modalities.media import audio_files, cells, image_files

DATA = Path(os.environ.get("FUSETUNE_DATA", Path(__file__).parents[4] / "shared")) / "data"


def some_files(name, pattern, num=60):
    files = sorted((DATA / name).rglob(pattern))
    if not files:
        pytest.skip(f"there is no {name} in {DATA}: set FUSETUNE_DATA")
    return files[:: max(len(files) // num, 1)]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "pattern"),
    [("movies_poster_plot", "*.jpg"), ("noto_emoji", "*.png"), ("covid_xray_figure1", "*.[jp][pn]g")],
)
def test_pictures_are_read(name, pattern):
    for file in some_files(name, pattern):
        picture = image_files.decode_image(file.read_bytes(), cells.CellLocation(0, name, DATA), str(file), used_at=32)
        assert picture.mode == "RGB" and min(picture.size) > 32


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "pattern"), [("esc10", "*.ogg"), ("fsdd", "*.wav"), ("virufy_cough", "*.mp3")])
def test_sounds_are_read(name, pattern):
    pytest.importorskip("soundfile")
    for file in some_files(name, pattern):
        samples, rate, cut = audio_files.decode_audio(
            file.read_bytes(), cells.CellLocation(0, name, DATA), str(file), max_seconds=30.0
        )
        assert len(samples) > 0.1 * rate and not cut
