"""Pictures: every format and fault of the field, and how cells name them."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from fusetune.errors import BadCell, ConfigError
from fusetune.modalities.image import ImageModality
from fusetune.modalities.media import cells, image_files
from fusetune.testing.modalities import TinyBackbone, png_bytes

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def saved(image, fmt="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def halves(mode="RGB", left=RED, right=BLUE):
    """40 × 20: the left half of one colour, the right of another."""
    image = Image.new(mode, (40, 20), right)
    image.paste(left, (0, 0, 20, 20))
    return image


def noise(size=(64, 48)):
    levels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.fixture
def place(tmp_path):
    return cells.CellLocation(5, "photo", tmp_path)


@pytest.fixture
def modality():
    return ImageModality("photo", backbone=TinyBackbone("image"))


def pixels(data, place):
    picture = image_files.decode_image(data, place)
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def near(found, colour, tolerance=6):
    return np.abs(found - np.array(colour)).max() <= tolerance


@pytest.mark.parametrize("fmt", image_files.FORMATS)
def test_every_format_is_read(fmt, place):
    data = saved(halves(), fmt, **({"quality": 95} if fmt in ("JPEG", "WEBP") else {}))
    assert image_files.STARTS.match(data)
    found = pixels(data, place)
    assert found.shape == (20, 40, 3)
    assert near(found[10, 5], RED, 12) and near(found[10, 35], BLUE, 12)


def test_cmyk_becomes_rgb(place):
    found = pixels(saved(halves().convert("CMYK"), "JPEG", quality=95), place)
    assert near(found[10, 5], RED, 12) and near(found[10, 35], BLUE, 12)


@pytest.mark.parametrize(("fmt", "order"), [("PNG", "<"), ("TIFF", "<"), ("TIFF", ">")])
def test_16_bits_are_scaled_not_clipped(fmt, order, place):
    levels = np.linspace(0, 65535, 256).astype(f"{order}u2").reshape(16, 16)
    found = pixels(saved(Image.fromarray(levels), fmt), place)
    assert np.array_equal(found[..., 0], np.rint(levels / 257).astype(int))
    assert np.array_equal(found[..., 0], found[..., 2])


def test_32_bit_integers_beyond_16_bits_are_refused(place):
    with pytest.raises(BadCell, match="beyond 16 bits"):
        pixels(saved(Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32)), "TIFF"), place)


def test_float_pixels_are_read_from_0_to_1_only(place):
    levels = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    assert np.array_equal(pixels(saved(Image.fromarray(levels), "TIFF"), place)[..., 1], np.rint(levels * 255))
    for wrong in (levels * 300, levels * np.nan):
        with pytest.raises(BadCell, match="floats from"):
            pixels(saved(Image.fromarray(wrong), "TIFF"), place)


def test_palette_and_bilevel_and_grey_become_rgb(place):
    found = pixels(saved(halves().convert("P", palette=Image.Palette.ADAPTIVE)), place)
    assert near(found[10, 5], RED) and near(found[10, 35], BLUE)
    assert near(pixels(saved(halves("L", 10, 200)), place)[10, 35], (200, 200, 200))
    assert near(pixels(saved(halves("1", 0, 1)), place)[10, 35], WHITE)


def test_transparency_is_laid_on_white(place):
    rgba = halves("RGBA", (*RED, 255), (*BLUE, 0))
    found = pixels(saved(rgba), place)
    assert near(found[10, 5], RED, 0) and near(found[10, 35], WHITE, 0)
    assert near(pixels(saved(halves("RGBA", (*RED, 255), (0, 0, 0, 128))), place)[10, 35], (127, 127, 127), 1)
    assert near(pixels(saved(halves("LA", (9, 255), (0, 0))), place)[10, 35], WHITE, 0)
    palette = halves().convert("P", palette=Image.Palette.ADAPTIVE)
    clear = palette.getpixel((35, 10))
    assert near(pixels(saved(palette, transparency=clear), place)[10, 35], WHITE, 0)


@pytest.mark.parametrize("fmt", ["GIF", "WEBP", "TIFF"])
def test_animation_gives_its_first_frame(fmt, place):
    first, second = Image.new("RGB", (16, 16), RED), Image.new("RGB", (16, 16), BLUE)
    options = {"lossless": True} if fmt == "WEBP" else {}
    data = saved(first, fmt, save_all=True, append_images=[second], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert near(pixels(data, place), RED)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation_is_applied(fmt, place):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90° clockwise: what is left comes on top
    found = pixels(saved(halves(), fmt, exif=exif, **({"quality": 95} if fmt in ("JPEG", "WEBP") else {})), place)
    assert found.shape == (40, 20, 3)
    assert near(found[5, 10], RED, 12) and near(found[35, 10], BLUE, 12)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_lose_the_picture(place):
    data = saved(halves(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\x07" * 40)
    assert pixels(data, place).shape == (20, 40, 3)


@pytest.mark.parametrize("fmt", image_files.FORMATS)
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_cut_off_is_refused_never_half_grey(fmt, part, place):
    data = saved(noise(), fmt)
    with pytest.raises(BadCell, match=r"cut off|corrupt") as caught:
        image_files.decode_image(data[: int(len(data) * part)], place)
    assert (caught.value.row, caught.value.column) == (5, "photo")


def test_cut_off_is_refused_though_another_library_allowed_it(place, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = saved(noise(), "JPEG")
    with pytest.raises(BadCell, match="cut off"):
        image_files.decode_image(data[: len(data) // 2], place)


def test_a_flipped_bit_in_a_png_is_noticed(place):
    data = bytearray(saved(noise(), compress_level=0))
    data[len(data) // 2] ^= 4
    with pytest.raises(BadCell, match="corrupt"):
        image_files.decode_image(bytes(data), place)


def damaged(data, length=300):
    """With zeros from the middle on."""
    return data[: len(data) // 2] + bytes(length) + data[len(data) // 2 + length :]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("used_at", [None, 8])
def test_damage_inside_a_jpeg_is_noticed(options, mode, used_at, place):
    pytest.importorskip("simplejpeg")
    whole = saved(noise((120, 90)).convert(mode), "JPEG", **options)
    assert image_files.decode_image(whole, place, used_at=used_at).mode == "RGB"
    Image.open(io.BytesIO(damaged(whole))).load()  # Pillow keeps quiet
    with pytest.raises(BadCell, match=r"JPEG picture of .* is corrupt or cut off: Corrupt JPEG data"):
        image_files.decode_image(damaged(whole), place, used_at=used_at)


def test_a_filling_before_a_jpegs_end_is_no_damage(place):
    whole = saved(noise(), "JPEG")
    for filling in (bytes(60), b"\x20" * 9):
        assert np.array_equal(pixels(whole[:-2] + filling + whole[-2:], place), pixels(whole, place))
    with pytest.raises(BadCell, match="extraneous"):
        pixels(whole[:-2] + b"other bytes" + whole[-2:], place)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(64, 48), (123, 77), (500, 9)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}])
def test_both_jpeg_decoders_give_the_same_pixels(mode, size, options, place, monkeypatch):
    pytest.importorskip("simplejpeg")
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(noise(size).convert(mode), "JPEG", exif=exif, **options)
    for used_at in (None, 5, 9, 16):
        found = np.asarray(image_files.decode_image(data, place, used_at=used_at))
        with monkeypatch.context() as without:
            without.setitem(__import__("sys").modules, "simplejpeg", None)
            plain = np.asarray(image_files.decode_image(data, place, used_at=used_at))
        assert np.array_equal(found, plain)


def png_that_claims(width, height):
    """A few bytes whose header promises a picture of any size."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 1000)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (50_000, 50_000)])
def test_decompression_bomb_is_refused_by_its_header(width, height, place):
    with pytest.raises(BadCell, match="decompression bomb"):
        image_files.decode_image(png_that_claims(width, height), place)


def test_extreme_aspect_is_refused(place):
    with pytest.raises(BadCell, match="one side is more than"):
        image_files.decode_image(png_bytes(RED, (1, 500)), place)


@pytest.mark.parametrize("data", [b"not a picture", b"%PDF-1.7 ...", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_other_formats_are_refused(data, place):
    with pytest.raises(BadCell, match="not a picture of a known format"):
        image_files.decode_image(data, place)


PNG, JPEG = saved(noise((12, 9))), saved(noise((12, 9)), "JPEG")


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=80, deadline=None)
@given(
    data=st.sampled_from([PNG, JPEG, saved(halves(), "GIF"), saved(halves(), "WEBP"), saved(halves(), "TIFF")]),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
    length=st.integers(1, 10**6),
)
def test_mutated_bytes_are_a_picture_or_a_bad_cell(data, changes, length, tmp_path_factory):
    mutated = bytearray(data)
    for at, new in changes:
        mutated[at % len(data) : at % len(data) + len(new)] = new
    kept = bytes(mutated[: length if length % 3 else len(mutated)])
    try:
        found = image_files.decode_image(kept, cells.CellLocation(0, "photo", tmp_path_factory.getbasetemp()))
    except BadCell as error:
        assert error.why
    else:
        assert found.mode == "RGB" and min(found.size) >= 1


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("exif", [1, 6])
def test_jpeg_decoded_near_its_used_size_is_the_same_picture(mode, exif, place):
    rows, columns = np.mgrid[0:900, 0:1300] / 40
    levels = 127 + 60 * np.sin(rows) + 40 * np.cos(columns * rows / 9)
    levels = levels[..., None] + np.random.default_rng(0).normal(0, 12, (900, 1300, 3))
    tags = Image.Exif()
    tags[0x0112] = exif
    image = Image.fromarray(levels.clip(0, 255).astype(np.uint8)).convert(mode)
    data = saved(image, "JPEG", quality=90, exif=tags)
    whole, near_size = image_files.decode_image(data, place), image_files.decode_image(data, place, used_at=64)
    assert near_size.size == tuple(side // 4 for side in whole.size)
    small, smaller = (
        np.asarray(one.resize((64, 64), Image.Resampling.BICUBIC)).astype(int) for one in (whole, near_size)
    )
    difference = np.abs(small - smaller)
    assert difference.mean() < 0.6 and difference.max() < 8


def test_jpeg_is_never_decoded_below_three_times_its_used_size(place):
    data = saved(noise((400, 300)), "JPEG")
    assert image_files.decode_image(data, place, used_at=101).size == (400, 300)
    assert image_files.decode_image(data, place, used_at=50).size == (200, 150)
    assert image_files.decode_image(saved(noise((400, 300))), place, used_at=10).size == (400, 300)


def test_a_cut_off_jpeg_is_noticed_at_a_smaller_size_too(place):
    data = saved(noise((400, 300)), "JPEG")
    with pytest.raises(BadCell, match="cut off"):
        image_files.decode_image(data[: len(data) * 9 // 10], place, used_at=10)


def test_cells_may_name_or_hold_pictures(tmp_path, modality):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "red.png").write_bytes(png_bytes(RED))
    (tmp_path / "odd;name.png").write_bytes(png_bytes(BLUE))
    absolute = str(tmp_path / "sub" / "red.png")
    colours = {
        " sub/red.png ": [RED],
        absolute: [RED],
        "odd;name.png": [BLUE],
        f"sub/red.png; {absolute} ;": [RED, RED],
    }
    for cell, expected in colours.items():
        found = modality.decode(cell, row=0, base_dir=tmp_path)
        assert [tuple(picture[:, 4, 4]) for picture in found] == expected
    blue = png_bytes(BLUE)
    for cell in (blue, {"bytes": blue, "path": "gone.png"}, [blue], np.array([blue, None], dtype=object)):
        assert [tuple(picture[:, 4, 4]) for picture in modality.decode(cell, row=0, base_dir=tmp_path)] == [BLUE]


def test_refuses_files_that_cannot_be_read(tmp_path, modality):
    (tmp_path / "folder").mkdir()
    (tmp_path / "Photo1.JPG").write_bytes(png_bytes(RED))
    (tmp_path / "zero.png").write_bytes(b"")
    reasons = {
        "photo1.jpg": "did you mean 'Photo1.JPG'",
        "Photo2.JPG": "did you mean 'Photo1.JPG'",
        "gone/photo.jpg": "folder .* does not exist",
        "folder": "is a folder",
        "zero.png": "zero bytes",
        "folder\\..\\Photo1.JPG": "no such file",
        "a\0b.png": "null|no such file",
        "x" * 5000: "File name too long|no such file",
        "https://example.org/a.png": "is a URL",
        "data:image/png;base64,AAAA": "not a picture of a known format",
        "file:///etc/photo.png": "not a path",
        ";": "names no picture",
    }
    for cell, why in reasons.items():
        with pytest.raises(BadCell, match=why):
            modality.decode(cell, row=0, base_dir=tmp_path)


def test_a_file_too_large_is_refused_before_it_is_read(tmp_path, modality):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(cells.MAX_FILE_BYTES + 1)  # a hole, which takes no space
    with pytest.raises(BadCell, match="more than"):
        modality.decode("huge.png", row=0, base_dir=tmp_path)


def test_one_bad_picture_of_several_refuses_the_cell(tmp_path, modality):
    with pytest.raises(BadCell, match="zero bytes"):
        modality.decode([png_bytes(RED), b""], row=0, base_dir=tmp_path)


def test_too_many_pictures_are_refused_not_cut(tmp_path):
    modality = ImageModality("photo", backbone=TinyBackbone("image"), max_pictures=2)
    with pytest.raises(BadCell, match="3 pictures, more than max_pictures=2"):
        modality.decode([png_bytes(RED)] * 3, row=0, base_dir=tmp_path)
    with pytest.raises(ConfigError, match="1 or more"):
        ImageModality("photo", backbone=TinyBackbone("image"), max_pictures=0)


def test_owner_says_whose_the_pictures_are(tmp_path, modality):
    cells = [[png_bytes(RED)], [png_bytes(RED), png_bytes(BLUE)], [png_bytes(BLUE)]]
    examples = [modality.decode(cell, row=0, base_dir=tmp_path) for cell in cells]
    tensors = modality.collate(examples)
    assert tensors["owner"].tolist() == [0, 1, 1, 2]
    assert tensors["pixel_values"].shape == (4, 3, 8, 8)
    red, both, blue = modality.build_encoder()(**tensors).values[:, 0].detach()
    assert np.allclose(both, (red + blue) / 2, atol=1e-6)
