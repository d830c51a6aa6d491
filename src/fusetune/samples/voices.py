"""The `voice` column of the tickets sample: synthesised vowels, whose level is calm or urgent speech.

An additive source is filtered by three formants, after Klatt, "Software for a cascade/parallel formant synthesizer",
J. Acoust. Soc. Am. 67 (1980). The vowels are the averages of Peterson and Barney, J. Acoust. Soc. Am. 24 (1952).
"""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass

import numpy as np

LEVELS = ("calm", "urgent")
"""The manner of speaking at each level."""

RATE = 8_000
"""Sampling rate in hertz, that of a telephone."""

SECONDS = (0.75, 0.85)
"""Shortest and longest note; durations are uniform between them."""

_VOWELS = (
    (730, 1090, 2440), (530, 1840, 2480), (270, 2290, 3010), (570, 840, 2410), (300, 870, 2240), (660, 1720, 2410),
)  # fmt: skip
"""The first three formants in hertz of the vowels a, e, i, o, u, ae."""

_FORMANT_WIDTHS = (90.0, 120.0, 170.0)  # hertz
_HIGHEST = 3800.0  # hertz; there are no harmonics above it


@dataclass(frozen=True)
class _Manner:
    """Ranges of a level's acoustic parameters, which are drawn uniformly.

    Attributes:
        syllables: syllables a second.
        pitch: factor on the speaker's own pitch.
        glide: octaves by which the pitch rises or falls within a syllable.
        tilt: spectral tilt of the source, in decibels an octave; smaller for a raised voice.
    """

    syllables: tuple[float, float]
    pitch: tuple[float, float]
    glide: tuple[float, float]
    tilt: tuple[float, float]


_MANNERS = (
    _Manner(syllables=(2.2, 3.3), pitch=(0.95, 1.05), glide=(0.02, 0.12), tilt=(10.0, 13.0)),
    _Manner(syllables=(5.6, 7.4), pitch=(1.35, 1.7), glide=(0.25, 0.5), tilt=(4.0, 7.0)),
)


def speak(level: int, rng: np.random.Generator) -> np.ndarray:
    """Synthesise a voice note.

    Speed, pitch relative to the speaker's own, its movement and the spectral tilt depend on the level. The speaker's
    pitch, the length of the vocal tract, loudness, vowels and line noise are independent of it.

    Args:
        level: index into `LEVELS`.
        rng: draws speaker, vowels and noise.

    Returns:
        `(samples,)` float32 in [-1, 1] at `RATE`, with a duration within `SECONDS`.
    """
    manner = _MANNERS[level]
    num_samples = round(RATE * rng.uniform(*SECONDS))
    own_pitch = np.exp(rng.uniform(np.log(95), np.log(210)))  # hertz
    tract = rng.uniform(0.92, 1.15)  # factor on the formants
    tilt = rng.uniform(*manner.tilt)
    period = RATE / rng.uniform(*manner.syllables)
    sound = np.zeros(num_samples, dtype=np.float32)
    start = period * rng.uniform(0.0, 0.3)
    while start < num_samples:
        length = round(period * rng.uniform(0.6, 0.75))
        pitch = own_pitch * rng.uniform(*manner.pitch)
        glide = rng.uniform(*manner.glide) * rng.choice((-1.0, 1.0))
        vowel = np.asarray(_VOWELS[rng.integers(len(_VOWELS))]) * tract
        end = min(int(start) + length, num_samples)
        syllable = _syllable(length, pitch, glide, vowel, tilt, rng)
        sound[int(start) : end] += syllable[: end - int(start)]
        start += period * rng.uniform(0.9, 1.1)
    sound /= np.sqrt(np.mean(sound**2)) + 1e-9
    snr = rng.uniform(18, 32)  # decibels
    hiss = rng.standard_normal(num_samples).astype(np.float32)
    sound += hiss * np.float32(10 ** (-snr / 20))
    loudness = min(rng.uniform(0.04, 0.13), 0.99 / float(np.abs(sound).max()))  # root mean square
    return np.asarray(sound * np.float32(loudness), dtype=np.float32)


def _syllable(
    length: int, pitch: float, glide: float, vowel: np.ndarray, tilt: float, rng: np.random.Generator
) -> np.ndarray:
    """Return a short burst of breath and a vowel, `(length,)`, with a mean square of 1 before the envelope."""
    time = np.linspace(0, 1, length, dtype=np.float32)
    phase = 2 * np.pi * np.cumsum(pitch * 2 ** (glide * (time - 0.5))) / RATE
    rotation = np.exp(1j * phase).astype(np.complex64)
    harmonics = np.arange(1, max(int(_HIGHEST / (pitch * 2 ** (abs(glide) / 2))), 1) + 1)
    gains = (_formants(harmonics * pitch, vowel) * 10 ** (-tilt * np.log2(harmonics) / 20)).astype(np.float32)
    voiced = np.zeros(length, dtype=np.float32)
    harmonic = np.ones(length, dtype=np.complex64)
    for gain in gains:
        harmonic *= rotation
        voiced += gain * harmonic.imag
    voiced /= np.sqrt(np.mean(voiced**2)) + 1e-9
    breath = rng.standard_normal(length).astype(np.float32) * np.exp(-time * 20) * np.float32(rng.uniform(0.0, 0.5))
    envelope = np.abs(np.sin(np.pi * time)) ** 0.7  # abs: rounding may make the last value negative
    return np.asarray((voiced + breath) * envelope, dtype=np.float32)


def _formants(hertz: np.ndarray, vowel: np.ndarray) -> np.ndarray:
    """Return the gain of three resonances in parallel at these frequencies."""
    gain = np.zeros(len(hertz))
    for centre, width, strength in zip(vowel, _FORMANT_WIDTHS, (1.0, 0.6, 0.35), strict=True):
        gain += strength / np.sqrt(1 + ((hertz - centre) / width) ** 2)
    return gain


def wav_bytes(sound: np.ndarray) -> bytes:
    """Return a mono 16-bit WAV file.

    Args:
        sound: `(samples,)` in [-1, 1] at `RATE`.
    """
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.round(sound * 32767).astype("<i2").tobytes())
    return buffer.getvalue()
