"""Sounds from files: WAV, FLAC, Ogg, MP3 and AIFF to one channel of floats, or an exact reason why not."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np

from fusetune._optional import optional_import
from fusetune.errors import BadCell
from fusetune.modalities.media.cells import Place

ENDINGS = frozenset({".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff"})
STARTS = re.compile(rb"RIFF.{4}WAVE|RF64|fLaC|OggS|ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]|FORM.{4}AIF[FC]", re.DOTALL)

MAX_CHANNELS = 32
RATES = (1_000, 384_000)
"""Sampling rates that are read, in Hz, both ends included."""
LARGEST = 2.0**32
"""The largest sample that is read, plus or minus: enough for whole numbers of 32 bits that floats hold unscaled."""

_BLOCK = 2**16
_UNKNOWN = (0, 0xFFFFFFFF)  # lengths that a program writes when it does not know the length yet, as in a pipe
_DO = "write the file again, or empty the cell"
_OGG_LAST_PAGE = 4
_MP3_FRAME_SAMPLES = 1152
_MP3_FRAME = re.compile(rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]")
_MP3_RATES = {0: (11025, 12000, 8000), 2: (22050, 24000, 16000), 3: (44100, 48000, 32000)}
"""Hz by the version in a frame's header (MPEG 2.5, 2, 1) and the rate's index."""
_MP3_KBITS = {
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
"""Kbit a second by the index in a frame's header less 1; True: MPEG 1."""


def read_sound(data: bytes, place: Place, name: object = None, *, max_seconds: float) -> tuple[np.ndarray, int, bool]:
    """Decode one sound, at most its first `max_seconds`; channels are averaged.

    Args:
        data: the file's bytes.
        place: the cell, for errors.
        name: what errors show as the cell's value; the bytes' length by default.
        max_seconds: seconds to keep, above 0.

    Returns:
        The samples (samples,) float32, at least one, all finite, whole numbers scaled to -1 to 1; the sampling rate
        in Hz; whether something was left out.

    Raises:
        BadCell: it is no sound of a known format, corrupt, cut off, of no length, or has a value that is not finite.
        MissingExtra: soundfile is not installed.
    """
    soundfile = optional_import("soundfile", "to read audio")
    shown = data if name is None else name
    why = _cut_off(data)
    if why:
        raise place.bad(shown, f"the sound is cut off: {why}", _DO)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, num_channels, claimed = file.samplerate, file.channels, file.frames
            _check_form(rate, num_channels, place, shown)
            wanted = max(int(max_seconds * rate), 1)
            samples = _read_mono(file, wanted + 1)
    except BadCell:
        raise
    except soundfile.LibsndfileError as error:
        why = f"the sound is corrupt or of an unknown format ({error.error_string}); it starts with {data[:8]!r}"
        raise place.bad(shown, why, "use WAV, FLAC, Ogg, MP3 or AIFF; " + _DO) from error
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise place.bad(shown, f"the sound is corrupt: {error}", _DO) from error
    if len(samples) <= wanted and 0 < len(samples) < claimed - _spare(data):
        why = f"the sound is cut off: it has {len(samples):,} of the {claimed:,} samples that it claims"
        raise place.bad(shown, why, _DO)
    check_samples(samples, place, shown)
    return samples[:wanted], rate, len(samples) > wanted


def check_samples(samples: np.ndarray, place: Place, shown: object) -> None:
    """Refuse no samples, and values that are not finite or so large that an encoder's sums of squares would not be.

    Raises:
        BadCell: as above.
    """
    if not len(samples):
        raise place.bad(shown, "the sound has no samples", "record it again, or empty the cell")
    wrong = np.flatnonzero(~(np.abs(samples) <= LARGEST))
    if len(wrong):
        first = f"sample {wrong[0]} of the sound is {samples[wrong[0]]}"
        why = f"{first}, and {len(wrong):,} in all are not finite or beyond {LARGEST:g}"
        raise place.bad(shown, why, _DO)


def from_array(array: Any, rate: Any, place: Place) -> tuple[np.ndarray, int]:
    """Return a decoded sound, as `datasets` gives it: `{"array", "sampling_rate"}`.

    Args:
        array: (samples,) or (channels, samples) floats.
        rate: Hz.
        place: the cell, for errors.

    Returns:
        The samples (samples,) float32, channels averaged, and the rate.

    Raises:
        BadCell: another shape, whole numbers (their scale is unknown), no samples, or a value that is not finite.
    """
    shown = f"array of type {type(array).__name__}, sampling_rate {rate!r}"
    try:
        samples = np.asarray(array)
        if samples.dtype == object:  # Arrow gives lists of arrays for two dimensions
            samples = np.stack([np.asarray(channel) for channel in samples])
    except (ValueError, TypeError) as error:
        raise place.bad(shown, f"'array' is no array of floats: {error}", "give (samples,) floats") from error
    if samples.size and samples.dtype.kind != "f":
        raise place.bad(shown, f"'array' holds {samples.dtype}, not floats", "scale the samples to floats from -1 to 1")
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and len(samples) > MAX_CHANNELS):
        do = f"give (samples,), or (channels, samples) with at most {MAX_CHANNELS} channels"
        raise place.bad(shown, f"'array' has the shape {samples.shape}", do)
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.integer) or not float(rate).is_integer():
        raise place.bad(shown, "'sampling_rate' is not a whole number of Hz", "give the rate, such as 16000")
    _check_form(int(rate), 1, place, shown)
    mono = samples.mean(axis=0, dtype=np.float32) if samples.ndim == 2 else samples.astype(np.float32)
    check_samples(mono, place, shown)
    return mono, int(rate)


def resample(samples: np.ndarray, rate: int, wanted: int, place: Place, shown: object) -> np.ndarray:
    """Return the sound at another sampling rate, band-limited.

    Args:
        samples: (samples,) float32.
        rate: its rate, Hz.
        wanted: the rate to reach, Hz.
        place: the cell, for errors.
        shown: what errors show as the cell's value.

    Raises:
        BadCell: it is too short to leave one sample.
        MissingExtra: soxr is not installed.
    """
    if rate == wanted:
        return samples
    soxr = optional_import("soxr", "to read audio of another sampling rate")
    resampled: np.ndarray = soxr.resample(samples, rate, wanted, quality="HQ")
    if not len(resampled):
        why = f"{len(samples)} samples at {rate} Hz leave none at {wanted} Hz"
        raise place.bad(shown, why, "record it again, or empty the cell")
    return resampled.astype(np.float32, copy=False)


def _check_form(rate: int, num_channels: int, place: Place, shown: object) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        why = f"its sampling rate is {rate:,} Hz, not from {RATES[0]:,} to {RATES[1]:,}"
        raise place.bad(shown, why, "resample it")
    if not 1 <= num_channels <= MAX_CHANNELS:
        raise place.bad(shown, f"it has {num_channels} channels, more than {MAX_CHANNELS}", "mix it down")


def _read_mono(file: Any, wanted: int) -> np.ndarray:
    """Up to `wanted` samples, the channels averaged; in blocks, as the length in a header may be a lie."""
    blocks, num_read = [], 0
    while num_read < wanted:
        block = file.read(min(_BLOCK, wanted - num_read), dtype="float32", always_2d=True)  # (samples, channels)
        if not len(block):
            break
        with np.errstate(over="ignore", invalid="ignore"):
            blocks.append(block.mean(axis=1))
        num_read += len(block)
    return np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)


def _cut_off(data: bytes) -> str | None:
    """Return how a file shows that its end is missing, which decoders pass over; None where it does not."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return _cut_off_chunks(data, b"data", "little")
    if data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"):
        return _cut_off_chunks(data, b"SSND", "big")
    if data[:4] == b"OggS":
        return _cut_off_ogg(data)
    if data[:3] == b"ID3" or _MP3_FRAME.match(data):
        return _cut_off_mp3(data)
    return None


def _cut_off_chunks(data: bytes, wanted: bytes, order: Any) -> str | None:
    """WAV and AIFF: a header of 12 bytes, then chunks of a name, a length and as many bytes."""
    position = 12
    while position + 8 <= len(data):
        name, length = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], order)
        left = len(data) - position - 8
        if name == wanted:
            if length > left and length not in _UNKNOWN:
                return f"the header promises {length:,} bytes of samples, {left:,} are there"
            return None
        position += 8 + length + length % 2
    return "there are no samples after the header"


def _cut_off_ogg(data: bytes) -> str | None:
    """Ogg: pages, the last of each stream marked as such."""
    position, flags = 0, 0
    while position < len(data):
        if data[position : position + 4] != b"OggS":
            # What follows the last page is not ours to judge; a gap in the middle is the decoder's to find.
            return None if flags & _OGG_LAST_PAGE else f"no page starts at byte {position:,}"
        if position + 27 > len(data):
            return f"the page at byte {position:,} is not whole"
        flags, num_segments = data[position + 5], data[position + 26]
        body = position + 27 + num_segments
        end = body + sum(data[position + 27 : body])
        if body > len(data) or end > len(data):
            return f"the page at byte {position:,} is not whole"
        position = end
    return None if flags & _OGG_LAST_PAGE else "its last page is missing"


def _cut_off_mp3(data: bytes) -> str | None:
    """MP3: frames whose headers tell their lengths; one that the file ends within was cut.

    A cut between two frames leaves no trace where no frame counts them. Bytes that are no frame end the search: tags
    stand at the end, and what decoders skip in the middle is not ours to judge.
    """
    position = _mp3_start(data)
    while length := _mp3_frame_bytes(data[position : position + 4]):
        if position + length > len(data):
            return f"the frame at byte {position:,} has {len(data) - position:,} of its {length:,} bytes"
        position += length
    return None


def _mp3_frame_bytes(header: bytes) -> int:
    """Return the bytes of the frame with this header; 0 where it is none of layer III, or of a bit rate of its own."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, kbits, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or kbits in (0, 15) or rate == 3:
        return 0
    bits = _MP3_KBITS[version == 3][kbits - 1] * 1000
    return (144 if version == 3 else 72) * bits // _MP3_RATES[version][rate] + (header[2] >> 1 & 1)


def _mp3_start(data: bytes) -> int:
    """Return where the first frame is: after the tag, where there is one."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))


def _spare(data: bytes) -> float:
    """Return how many samples less than claimed a file may have.

    FLAC counts exactly. Of MP3, the length is a guess unless the first frame has a table with the number of frames,
    and encoders and cutters may miscount by one frame. Of other formats the end was looked at.
    """
    if data[:4] == b"fLaC":
        return 0
    if data[:3] != b"ID3" and not _MP3_FRAME.match(data):
        return float("inf")
    start = _mp3_start(data)
    head = data[start : start + 256]
    return _MP3_FRAME_SAMPLES if b"Xing" in head or b"Info" in head else float("inf")
