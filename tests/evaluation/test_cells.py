"""Which errors are shown, and that every sort of cell can be shown."""

from __future__ import annotations

import base64
import io
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusetune.evaluation.report.cells import THUMBNAIL, show_cell
from fusetune.tasks.panels.kinds import ranked


def test_the_worst_are_spread_over_kinds() -> None:
    loss = np.array([9.0, 8.0, 7.0, 1.0, 0.5])
    kinds = np.array([0, 0, 0, 1, 2])
    assert ranked(loss, kinds, 4) == [0, 3, 4, 1]
    assert ranked(loss, kinds, 9, among=loss < 8.5) == [1, 3, 4, 2]
    assert ranked(np.array([np.nan, 1.0]), np.array([0, 0]), 5) == [1]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "L", "I;16", "1", "LA", "F"])
def test_pictures_of_every_mode_become_small_jpegs(mode: str, tmp_path: Path) -> None:
    kind = "TIFF" if mode in ("CMYK", "F", "I;16", "LA") else "PNG"
    path = tmp_path / f"a.{kind.lower()}"
    Image.new(mode, (500, 300)).save(path, kind)
    shown = show_cell("photo", "image", path.name, base_dir=tmp_path)
    assert shown.kind == "image" and "500 by 300" in shown.text
    picture = Image.open(io.BytesIO(base64.b64decode(shown.images[0].partition(",")[2])))
    assert picture.format == "JPEG" and max(picture.size) == THUMBNAIL


def test_several_pictures_and_the_forms_of_a_media_cell(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert len(show_cell("p", "image", "a.png;a.png; a.png;a.png;", base_dir=tmp_path).images) == 3
    for cell in (content, {"bytes": content, "path": None}, {"bytes": None, "path": "a.png"}, str(tmp_path / "a.png")):
        assert len(show_cell("p", "image", cell, base_dir=tmp_path).images) == 1


@pytest.mark.parametrize("cell", ["gone.png", b"", b"\x89PNG\r\n\x1a\n", "a\0b", {"bytes": None, "path": None}, 5])
@pytest.mark.parametrize("kind", ["image", "audio"])
def test_a_cell_that_cannot_be_shown_says_so(kind: str, cell: object, tmp_path: Path) -> None:
    shown = show_cell("photo", kind, cell, base_dir=tmp_path)
    assert "cannot be shown" in shown.text and not shown.images and not shown.sound


@pytest.mark.parametrize("rate", [8000, 44100])
def test_a_sound_is_cut_and_heard(rate: int, tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    time = np.arange(6 * rate) / rate
    soundfile.write(tmp_path / "a.wav", np.stack([np.sin(700 * time)] * 2, 1), rate)
    shown = show_cell("voice", "audio", "a.wav", base_dir=tmp_path)
    assert shown.kind == "audio" and "6.0 s" in shown.text and max(shown.peaks) == 1
    with wave.open(io.BytesIO(base64.b64decode(shown.sound.partition(",")[2]))) as heard:
        assert heard.getnframes() / heard.getframerate() == pytest.approx(4, abs=0.01)


def test_missing_and_long_cells(tmp_path: Path) -> None:
    assert [show_cell("c", "text", cell, base_dir=tmp_path).kind for cell in (None, "", float("nan"))] == [
        "missing"
    ] * 3
    assert len(show_cell("c", "text", "x" * 1_000_000, base_dir=tmp_path).text) == 400
