"""Pictures and sounds in base64, in data: URLs, and in memory; formats that no library reads."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from fusetune.data.schema import Schema
from fusetune.data.table import Table
from fusetune.errors import BadCell, SchemaError
from fusetune.evaluation.report.cells import show_cell
from fusetune.modalities.media.cells import CellLocation, decode_base64, read_part
from fusetune.modalities.media.image_files import image_to_png
from fusetune.registry import MODALITIES
from fusetune.testing.modalities import png_bytes, tone, wav_bytes

PICTURE = png_bytes((200, 30, 10), (40, 30))


def forms(data, mime):
    plain = base64.b64encode(data).decode()
    return {
        "base64": plain,
        "base64 in lines": "\n".join(plain[place : place + 76] for place in range(0, len(plain), 76)),
        "base64 of URLs": base64.urlsafe_b64encode(data).decode().rstrip("="),
        "data URL": f"data:{mime};base64,{plain}",
        "data URL with a name": f"data:{mime};name=a.png;base64,{plain}",
    }


@pytest.mark.parametrize("form", forms(b"", ""))
@pytest.mark.parametrize(("kind", "data"), [("image", PICTURE), ("audio", wav_bytes(tone(300)))])
def test_files_in_text_are_found_and_read(form, kind, data, tmp_path):
    cell = forms(data, "image/png" if kind == "image" else "audio/wav")[form]
    assert decode_base64(cell) == data
    assert read_part(cell, CellLocation(0, "c", tmp_path)) == data
    found = {name: MODALITIES.get(name).detect([cell] * 30, base_dir=tmp_path).confidence for name in MODALITIES}
    assert max(found, key=found.get) == kind


def test_they_are_shown_in_the_report(tmp_path):
    for cell in forms(PICTURE, "image/png").values():
        assert len(show_cell("c", "image", cell, base_dir=tmp_path).images) == 1


@pytest.mark.parametrize("cell", ["data:text/plain,hello", "data:image/png;base64,###", "data:"])
def test_data_urls_that_hold_no_base64_are_refused(cell, tmp_path):
    with pytest.raises(BadCell, match="not in base64"):
        read_part(cell, CellLocation(0, "c", tmp_path))


def test_long_names_of_files_are_no_base64(tmp_path):
    name = "a" * 80
    (tmp_path / name).write_bytes(PICTURE)
    assert read_part(name, CellLocation(0, "c", tmp_path)) == PICTURE
    with pytest.raises(BadCell, match="no such file"):
        read_part("pictures/" + "b" * 70 + ".png", CellLocation(0, "c", tmp_path))


def test_text_of_one_long_word_is_no_picture(tmp_path):
    cells = ["".join(np.random.default_rng(place).choice(list("abcdef0123456789"), 64)) for place in range(30)]
    assert MODALITIES.get("image").detect(cells, base_dir=tmp_path).confidence == 0


ARRAY = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "cell", [ARRAY, ARRAY[:, :, 0], Image.fromarray(ARRAY), Image.fromarray(ARRAY).convert("CMYK")]
)
def test_pictures_in_memory_are_cells(cell):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"photo": pandas.Series([cell, None], dtype=object), "y": [1, 2]})
    for table in (Table.read(frame), Table.from_records([{"photo": cell, "y": 1}, {"photo": None, "y": 2}])):
        held, nothing = table.cells("photo")
        assert nothing is None
        with Image.open(io.BytesIO(held)) as again:
            assert again.size == (30, 20)
            if isinstance(cell, np.ndarray):
                assert np.array_equal(np.asarray(again), cell)


@pytest.mark.parametrize(
    "cell", [np.zeros((3, 4)), np.zeros(5, np.uint8), np.zeros((2, 3, 7), np.uint8), [1, 2], "x", None]
)
def test_other_arrays_are_no_pictures(cell):
    assert image_to_png(cell) is None


@pytest.mark.parametrize("ending", ["heic", "HEIF", "m4a", "aac", "mp4", "pdf", "svg"])
def test_formats_that_no_library_reads_are_left_out_when_they_are_found(ending):
    table = Table.from_records([{"file": f"files/{place}.{ending}", "y": place % 2} for place in range(40)])
    schema = Schema.detect(table, ["y"])
    assert schema.columns["file"].role == "ignore"
    assert ending.upper() in schema.warnings[0] and "Convert" in schema.warnings[0]
    with pytest.raises(SchemaError, match="are not read"):
        Schema.detect(table, ["y"], {"file": "image"})


def test_text_that_mentions_such_a_file_stays_text():
    cells = [f"please see the attached file number {place}.pdf" for place in range(40)]
    table = Table.from_records([{"note": cell, "y": place % 2} for place, cell in enumerate(cells)])
    assert Schema.detect(table, ["y"]).columns["note"].kind == "text"
