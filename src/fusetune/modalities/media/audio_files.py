"""Decoding of WAV, FLAC, Ogg, MP3 and AIFF files to mono floats, with precise errors."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np

from fusetune._optional import optional_import
from fusetune.errors import BadCell
from fusetune.modalities.media.cells import CellLocation, read_part, split_cell

ENDINGS = frozenset({".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff"})
STARTS = re.compile(rb"RIFF.{4}WAVE|RF64|fLaC|OggS|ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]|FORM.{4}AIF[FC]", re.DOTALL)

MAX_CHANNELS = 32
RATES = (1_000, 384_000)
"""Lowest and highest sampling rate that is read, in Hz."""
LARGEST = 2.0**32
"""Largest magnitude of a sample that is read; enough for unscaled 32-bit integers in floats."""

_BLOCK = 2**16
_UNKNOWN = (0, 0xFFFFFFFF)  # lengths in the header of a file that was written to a pipe
_DO = "write the file again, or empty the cell"
_OGG_LAST_PAGE = 4
_MP3_FRAME_SAMPLES = 1152
_MP3_FRAME = re.compile(rb"\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]")
_MP3_RATES = {0: (11025, 12000, 8000), 2: (22050, 24000, 16000), 3: (44100, 48000, 32000)}
"""Sampling rates in Hz by the version in a frame's header (MPEG 2.5, 2, 1) and the rate's index."""
_MP3_KBITS = {
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
"""Bit rates in kbit/s by the index in a frame's header minus 1; True: MPEG 1, False: MPEG 2 and 2.5."""


def read_sound(cell: Any, location: CellLocation, rate: int, *, max_seconds: float) -> tuple[np.ndarray, bool]:
    """Return the samples of a cell's sound at a rate, (samples,) float32, and whether the sound was truncated.

    Args:
        cell: of the table: a file, see `fusetune.modalities.media.cells`, or `{"array", "sampling_rate"}`.
        location: of the cell.
        rate: in Hz.
        max_seconds: maximum duration in seconds, above 0.

    Raises:
        BadCell: the sound cannot be read, or the cell has several.
        MissingExtra: the extra `audio` is not installed.
    """
    if isinstance(cell, dict) and cell.get("array") is not None:
        samples, own_rate = array_to_mono(cell["array"], cell.get("sampling_rate"), location)
        wanted = max(int(max_seconds * own_rate), 1)
        truncated, samples, shown = len(samples) > wanted, samples[:wanted], f"{len(samples)} samples"
    else:
        parts = split_cell(cell, location.base_dir)
        if len(parts) != 1:
            why = f"it names {len(parts)} sounds, not one"
            raise location.bad(cell, why, "give one sound a cell; put others in columns of their own")
        shown = parts[0] if isinstance(parts[0], str) else "sound in the cell"
        data = read_part(parts[0], location)
        samples, own_rate, truncated = decode_audio(data, location, shown, max_seconds=max_seconds)
    return resample(samples, own_rate, rate, location, shown), truncated


def decode_audio(
    data: bytes, location: CellLocation, name: object = None, *, max_seconds: float
) -> tuple[np.ndarray, int, bool]:
    """Decode up to `max_seconds` of one sound to mono, averaging its channels.

    Args:
        data: the file's bytes.
        location: of the cell, for errors.
        name: the cell's value in errors; the number of bytes by default.
        max_seconds: maximum duration in seconds, above 0.

    Returns:
        (samples,) float32, at least one sample, all finite, integers scaled to -1 to 1; the sampling rate in Hz; and
        whether the sound was longer.

    Raises:
        BadCell: it is not a sound in a known format, corrupt, truncated, empty, or has values that are not finite.
        MissingExtra: soundfile is not installed.
    """
    soundfile = optional_import("soundfile", "to read audio")
    shown = data if name is None else name
    why = _truncation(data)
    if why:
        raise location.bad(shown, f"the sound is cut off: {why}", _DO)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, num_channels, claimed = file.samplerate, file.channels, file.frames
            _check_form(rate, num_channels, location, shown)
            wanted = max(int(max_seconds * rate), 1)
            samples = _read_mono(file, wanted + 1)
    except BadCell:
        raise
    except soundfile.LibsndfileError as error:
        why = f"the sound is corrupt or of an unknown format ({error.error_string}); it starts with {data[:8]!r}"
        raise location.bad(shown, why, "use WAV, FLAC, Ogg, MP3 or AIFF; " + _DO) from error
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise location.bad(shown, f"the sound is corrupt: {error}", _DO) from error
    if len(samples) <= wanted and 0 < len(samples) < claimed - _tolerated_samples(data):
        why = f"the sound is cut off: it has {len(samples):,} of the {claimed:,} samples that it claims"
        raise location.bad(shown, why, _DO)
    check_samples(samples, location, shown)
    return samples[:wanted], rate, len(samples) > wanted


def check_samples(samples: np.ndarray, location: CellLocation, shown: object) -> None:
    """Check that there are samples, and that all are finite and at most `LARGEST` in magnitude.

    Larger values would overflow in an encoder's sums of squares.

    Raises:
        BadCell: there are no samples, or some are out of range.
    """
    if not len(samples):
        raise location.bad(shown, "the sound has no samples", "record it again, or empty the cell")
    wrong = np.flatnonzero(~(np.abs(samples) <= LARGEST))
    if len(wrong):
        first = f"sample {wrong[0]} of the sound is {samples[wrong[0]]}"
        why = f"{first}, and {len(wrong):,} in all are not finite or beyond {LARGEST:g}"
        raise location.bad(shown, why, _DO)


def array_to_mono(array: Any, rate: Any, location: CellLocation) -> tuple[np.ndarray, int]:
    """Convert a decoded sound, `{"array", "sampling_rate"}` of Hugging Face `datasets`, to mono.

    Args:
        array: (samples,) or (channels, samples) floats.
        rate: sampling rate in Hz.
        location: of the cell, for errors.

    Returns:
        (samples,) float32, the mean over channels, and the sampling rate.

    Raises:
        BadCell: another shape, integers (their scale is unknown), no samples, or values that are not finite.
    """
    shown = f"array of type {type(array).__name__}, sampling_rate {rate!r}"
    try:
        samples = np.asarray(array)
        if samples.dtype == object:  # Arrow returns two dimensions as a list of arrays
            samples = np.stack([np.asarray(channel) for channel in samples])
    except (ValueError, TypeError) as error:
        raise location.bad(shown, f"'array' is no array of floats: {error}", "give (samples,) floats") from error
    if samples.size and samples.dtype.kind != "f":
        raise location.bad(
            shown, f"'array' holds {samples.dtype}, not floats", "scale the samples to floats from -1 to 1"
        )
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and len(samples) > MAX_CHANNELS):
        do = f"give (samples,), or (channels, samples) with at most {MAX_CHANNELS} channels"
        raise location.bad(shown, f"'array' has the shape {samples.shape}", do)
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.integer) or not float(rate).is_integer():
        raise location.bad(shown, "'sampling_rate' is not a whole number of Hz", "give the rate, such as 16000")
    _check_form(int(rate), 1, location, shown)
    mono = samples.mean(axis=0, dtype=np.float32) if samples.ndim == 2 else samples.astype(np.float32)
    check_samples(mono, location, shown)
    return mono, int(rate)


def resample(samples: np.ndarray, rate: int, target_rate: int, location: CellLocation, shown: object) -> np.ndarray:
    """Resample a sound, band-limited.

    Args:
        samples: (samples,) float32.
        rate: its sampling rate in Hz.
        target_rate: the new sampling rate in Hz.
        location: of the cell, for errors.
        shown: the cell's value in errors.

    Raises:
        BadCell: it is too short for one sample at the new rate.
        MissingExtra: soxr is not installed.
    """
    if rate == target_rate:
        return samples
    soxr = optional_import("soxr", "to read audio of another sampling rate")
    resampled: np.ndarray = soxr.resample(samples, rate, target_rate, quality="HQ")
    if not len(resampled):
        why = f"{len(samples)} samples at {rate} Hz leave none at {target_rate} Hz"
        raise location.bad(shown, why, "record it again, or empty the cell")
    return resampled.astype(np.float32, copy=False)


def _check_form(rate: int, num_channels: int, location: CellLocation, shown: object) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        why = f"its sampling rate is {rate:,} Hz, not from {RATES[0]:,} to {RATES[1]:,}"
        raise location.bad(shown, why, "resample it")
    if not 1 <= num_channels <= MAX_CHANNELS:
        raise location.bad(shown, f"it has {num_channels} channels, more than {MAX_CHANNELS}", "mix it down")


def _read_mono(file: Any, wanted: int) -> np.ndarray:
    """Read up to `wanted` samples, averaged over channels, in blocks, as the header's length cannot be trusted."""
    blocks, num_read = [], 0
    while num_read < wanted:
        block = file.read(min(_BLOCK, wanted - num_read), dtype="float32", always_2d=True)  # (samples, channels)
        if not len(block):
            break
        with np.errstate(over="ignore", invalid="ignore"):
            blocks.append(block.mean(axis=1))
        num_read += len(block)
    return np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)


def _truncation(data: bytes) -> str | None:
    """Return the evidence that a file is truncated, which decoders ignore, or None."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return _truncated_chunks(data, b"data", "little")
    if data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"):
        return _truncated_chunks(data, b"SSND", "big")
    if data[:4] == b"OggS":
        return _truncated_ogg(data)
    if data[:3] == b"ID3" or _MP3_FRAME.match(data):
        return _truncated_mp3(data)
    return None


def _truncated_chunks(data: bytes, wanted: bytes, order: Any) -> str | None:
    """Check WAV and AIFF: a header of 12 bytes, then chunks of a name, a length and as many bytes."""
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


def _truncated_ogg(data: bytes) -> str | None:
    """Check Ogg: pages, of which the last one of each stream has a flag."""
    position, flags = 0, 0
    while position < len(data):
        if data[position : position + 4] != b"OggS":
            # Data after the last page is allowed; the decoder finds a gap in the middle.
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


def _truncated_mp3(data: bytes) -> str | None:
    """Check MP3: frames whose headers give their lengths; the last frame must be complete.

    A file that was cut between two frames cannot be detected unless a frame holds their number. Bytes that are not a
    frame end the check: tags are at the end, and decoders skip other bytes.
    """
    position = _mp3_start(data)
    while length := _mp3_frame_bytes(data[position : position + 4]):
        if position + length > len(data):
            return f"the frame at byte {position:,} has {len(data) - position:,} of its {length:,} bytes"
        position += length
    return None


def _mp3_frame_bytes(header: bytes) -> int:
    """Return the length in bytes of the frame with this header; 0 if it is not a layer III frame of a standard rate."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, kbits, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or kbits in (0, 15) or rate == 3:
        return 0
    bits = _MP3_KBITS[version == 3][kbits - 1] * 1000
    return (144 if version == 3 else 72) * bits // _MP3_RATES[version][rate] + (header[2] >> 1 & 1)


def _mp3_start(data: bytes) -> int:
    """Return the offset of the first frame, after the ID3 tag if there is one."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))


def _tolerated_samples(data: bytes) -> float:
    """Return how many samples less than in its header a file may have.

    FLAC has an exact count. The length of an MP3 is an estimate unless the first frame holds the number of frames,
    which may be off by one frame. The ends of other formats were checked by `_truncation`.
    """
    if data[:4] == b"fLaC":
        return 0
    if data[:3] != b"ID3" and not _MP3_FRAME.match(data):
        return float("inf")
    start = _mp3_start(data)
    head = data[start : start + 256]
    return _MP3_FRAME_SAMPLES if b"Xing" in head or b"Info" in head else float("inf")
