"""Sounds: every format and fault of the field, and how cells name them."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusetune.errors import BadCell, ConfigError, MissingExtra
from fusetune.modalities.audio import AudioModality
from fusetune.modalities.media import audio_files, cells
from fusetune.testing.modalities import TinyBackbone, tone, wav_bytes

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")


def encoded(samples, rate=8000, fmt="WAV", subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=fmt, subtype=subtype)
    return buffer.getvalue()


@pytest.fixture
def place(tmp_path):
    return cells.CellLocation(9, "call", tmp_path)


@pytest.fixture
def modality():
    return AudioModality("call", backbone=TinyBackbone("audio"))


def read(data, place, max_seconds=30.0):
    return audio_files.decode_audio(data, place, max_seconds=max_seconds)


FORMATS = {"WAV": None, "FLAC": None, "OGG": "VORBIS", "MP3": None, "AIFF": None}


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_format_is_read(fmt, place):
    data = encoded(tone(440, seconds=0.5, rate=16000), 16000, fmt, FORMATS[fmt])
    assert audio_files.STARTS.match(data)
    samples, rate, cut = read(data, place)
    assert rate == 16000 and not cut and samples.dtype == np.float32
    assert abs(len(samples) - 8000) < 1500  # MP3 pads to whole frames
    loudest = np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples)
    assert abs(loudest - 440) < 5
    assert 0.4 < np.abs(samples).max() < 0.6


def test_opus_is_read(place):
    samples, rate, _ = read(encoded(tone(440, seconds=0.5, rate=48000), 48000, "OGG", "OPUS"), place)
    assert rate == 48000 and len(samples) == 24000


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_every_depth_is_scaled_alike(subtype, place):
    samples, _, _ = read(encoded(tone(300), subtype=subtype), place)
    assert np.allclose(samples, tone(300), atol=0.01)


def test_stereo_is_averaged(place):
    left, right = tone(300), tone(900)
    samples, _, _ = read(encoded(np.stack([left, right], axis=1), subtype="FLOAT"), place)
    assert np.allclose(samples, (left + right) / 2, atol=1e-6)


def test_another_rate_is_resampled(tmp_path, modality):
    same = modality.decode(wav_bytes(tone(700, seconds=1.0)), row=0, base_dir=tmp_path)
    for rate in (4000, 11025, 44100, 48000):
        data = wav_bytes(tone(700, seconds=1.0, rate=rate), rate)
        found = modality.decode(data, row=0, base_dir=tmp_path)
        assert found.shape == same.shape
        assert np.abs(found - same)[1:-1].max() < 0.02 * np.abs(same).max()


def test_a_tone_above_half_the_new_rate_is_removed(place):
    samples = audio_files.resample(tone(6000, seconds=0.5, rate=16000), 16000, 8000, place, "x")
    assert np.abs(samples[200:-200]).max() < 1e-3


def test_silence_is_a_sound(tmp_path, modality):
    example = modality.decode(wav_bytes(np.zeros(800)), row=0, base_dir=tmp_path)
    assert np.isfinite(example).all() and modality.size(example) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value, place):
    samples = tone(300)
    samples[17] = value
    with pytest.raises(BadCell, match="sample 17 of the sound") as caught:
        read(encoded(samples, subtype="FLOAT"), place)
    assert (caught.value.row, caught.value.column) == (9, "call")


def test_values_beyond_float32_are_refused(place):
    with pytest.raises(BadCell, match="not finite"):
        read(encoded(np.full(100, 1e300), subtype="DOUBLE"), place)


@pytest.mark.parametrize("value", [1e10, -3e38])
def test_values_that_would_overflow_in_an_encoder_are_refused(value, place):
    samples = tone(300)
    samples[17] = value
    with pytest.raises(BadCell, match="sample 17 of the sound"):
        read(encoded(samples, subtype="FLOAT"), place)
    assert len(read(encoded(tone(300) * 2**31, subtype="FLOAT"), place)[0]) == 1600  # 32-bit numbers, not scaled


@pytest.mark.parametrize("fmt", ["WAV", "FLAC"])
def test_no_samples_are_refused(fmt, place):
    with pytest.raises(BadCell, match=r"no samples|corrupt"):
        read(encoded(np.zeros(0), fmt=fmt), place)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("part", [0.05, 0.4, 0.8, 0.9])
def test_cut_off_is_refused(fmt, part, place):
    noise = np.random.default_rng(0).normal(size=24000).clip(-3, 3) / 4
    data = encoded(noise, 8000, fmt, FORMATS[fmt])
    with pytest.raises(BadCell, match=r"cut off|corrupt|no samples"):
        read(data[: int(len(data) * part)], place)


def uncounted_mp3(seconds=1.0, rate=16000):
    """An MP3 as streams are: without the first frame, which counts the others."""
    data = encoded(np.random.default_rng(0).normal(0, 0.1, int(seconds * rate)), rate, "MP3")
    return data[data.index(data[:2], 4) :]


@pytest.mark.parametrize("rate", [8000, 16000, 44100])  # MPEG 2.5, 2 and 1
def test_mp3_frames_are_followed_to_the_end(rate, place):
    data = uncounted_mp3(rate=rate)
    whole = len(read(data, place)[0])
    for tail in (b"", b"TAG" + bytes(125), b"APETAGEX" + bytes(40), bytes(500)):
        assert abs(len(read(data + tail, place)[0]) - whole) < 1152  # to a frame, as decoders count
    tag = b"ID3\x04\0\0" + bytes([0, 0, 1, 0])
    assert abs(len(read(tag + bytes(128) + data, place)[0]) - whole) < 1152
    for cut in (1, 9, 2000):
        with pytest.raises(BadCell, match=r"cut off: the frame at byte \d"):
            read(data[:-cut], place)


@pytest.mark.parametrize(
    "header", [b"\xff\xfb\x00\x00", b"\xff\xfb\xf0\x00", b"\xff\xfb\x9c\x00", b"\xff\xeb\x90\x00", b"\xff"]
)
def test_headers_that_tell_no_length(header):
    assert audio_files._mp3_frame_bytes(header) == 0


def test_wav_of_unknown_length_is_read(place):
    data = bytearray(wav_bytes(tone(300)))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    samples, _, _ = read(bytes(data), place)
    assert np.allclose(samples, tone(300), atol=1e-3)


def test_a_header_that_promises_a_day_of_sound_costs_nothing(place):
    data = bytearray(wav_bytes(tone(300)))
    data[40:44] = struct.pack("<I", 2**31)
    with pytest.raises(BadCell, match="promises 2,147,483,648 bytes"):
        read(bytes(data), place)


@pytest.mark.parametrize(
    ("at", "value", "why"), [(24, 3, "sampling rate"), (24, 10**6, "sampling rate"), (22, 200, "channels|corrupt")]
)
def test_absurd_headers_are_refused(at, value, why, place):
    data = bytearray(wav_bytes(tone(300)))
    data[at : at + 2 if at == 22 else at + 4] = struct.pack("<H" if at == 22 else "<I", value)
    with pytest.raises(BadCell, match=why):
        read(bytes(data), place)


@pytest.mark.parametrize("data", [b"not a sound at all", b"RIFF\0\0\0\0WAVE", b"\0" * 500])
def test_other_formats_are_refused(data, place):
    with pytest.raises(BadCell, match=r"unknown format|cut off"):
        read(data, place)


def test_long_sounds_are_cut_and_counted(tmp_path):
    modality = AudioModality("call", backbone=TinyBackbone("audio"), max_seconds=0.5)
    data = wav_bytes(tone(300, seconds=2.0, rate=16000), 16000)
    assert len(modality.decode(data, row=0, base_dir=tmp_path)) == 10
    decoded = {"array": tone(300, seconds=2.0), "sampling_rate": 8000}
    assert len(modality.decode(decoded, row=0, base_dir=tmp_path)) == 10
    modality.decode(wav_bytes(tone(300, seconds=0.5)), row=0, base_dir=tmp_path)
    assert modality.num_truncated == 2


@pytest.mark.parametrize("seconds", [0, -1, 31, float("nan")])
def test_seconds_out_of_range_are_refused(seconds):
    with pytest.raises(ConfigError, match="the 30 s that the backbone reads"):
        AudioModality("call", backbone=TinyBackbone("audio"), max_seconds=seconds)


def test_cells_may_name_or_hold_sounds(tmp_path, modality):
    data = wav_bytes(tone(500))
    (tmp_path / "call.wav").write_bytes(data)
    expected = modality.decode(data, row=0, base_dir=tmp_path)
    cells = ("call.wav", str(tmp_path / "call.wav"), {"bytes": data, "path": None}, {"bytes": None, "path": "call.wav"})
    for cell in cells:
        assert np.array_equal(modality.decode(cell, row=0, base_dir=tmp_path), expected)
    for array in (tone(500), tone(500).tolist(), np.stack([tone(500)] * 2), [tone(500), tone(500)]):
        found = modality.decode({"array": array, "sampling_rate": 8000}, row=0, base_dir=tmp_path)
        assert np.allclose(found, expected, atol=0.02)


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ({"array": [1, 2, 3], "sampling_rate": 8000}, "not floats"),
        ({"array": np.zeros((100, 2)), "sampling_rate": 8000}, "shape"),
        ({"array": [0.5], "sampling_rate": None}, "whole number of Hz"),
        ({"array": [0.5], "sampling_rate": 8000.5}, "whole number of Hz"),
        ({"array": [0.5], "sampling_rate": float("nan")}, "whole number of Hz"),
        ({"array": [0.5], "sampling_rate": 10}, "sampling rate"),
        ({"array": [], "sampling_rate": 8000}, "no samples"),
        ({"array": [0.5, float("nan")], "sampling_rate": 8000}, "sample 1 of the sound is nan"),
        ({"array": ["a"], "sampling_rate": 8000}, "not floats"),
        ({"array": [[0.5], [0.5, 0.5]], "sampling_rate": 8000}, "no array of floats"),
        ({"bytes": None, "path": None}, "neither 'bytes' nor 'path'"),
        ("a.wav;b.wav", "2 sounds"),
        ("gone.wav", "no such file"),
        ("https://example.org/a.wav", "is a URL"),
        (b"", "zero bytes"),
        (3, "type int"),
    ],
)
def test_refuses_with_the_reason(cell, why, tmp_path, modality):
    with pytest.raises(BadCell, match=why) as caught:
        modality.decode(cell, row=6, base_dir=tmp_path)
    assert (caught.value.row, caught.value.column) == (6, "call")


@settings(max_examples=80, deadline=None)
@given(
    data=st.sampled_from([wav_bytes(tone(300, seconds=0.05)), encoded(tone(300, seconds=0.05), fmt="FLAC")]),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
    length=st.integers(1, 10**6),
)
def test_mutated_bytes_are_a_sound_or_a_bad_cell(data, changes, length, tmp_path_factory):
    mutated = bytearray(data)
    for at, new in changes:
        mutated[at % len(data) : at % len(data) + len(new)] = new
    kept = bytes(mutated[: length if length % 3 else len(mutated)])
    try:
        samples, rate, _ = read(kept, cells.CellLocation(0, "call", tmp_path_factory.getbasetemp()), max_seconds=1.0)
    except BadCell as error:
        assert error.why
    else:
        assert 0 < len(samples) <= rate and np.isfinite(samples).all()


def test_the_extra_is_named_where_soundfile_is_missing(place, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(MissingExtra, match=r"fusetune\[audio\]"):
        read(wav_bytes(tone(300)), place)
