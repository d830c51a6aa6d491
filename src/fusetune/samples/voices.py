"""Voice notes: vowels sung by an additive source through formants; the level is calm or urgent speech.

Source and filter follow Klatt, "Software for a cascade/parallel formant synthesizer", J. Acoust. Soc. Am. 67 (1980),
reduced to three formants; the vowels are the averages of Peterson and Barney, J. Acoust. Soc. Am. 24 (1952).
"""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass

import numpy as np

LEVELS = ("calm", "urgent")
"""How the speaker of each level speaks."""

RATE = 8_000
"""Samples a second, as a telephone's."""

SECONDS = (0.75, 0.85)
"""How long a note is: any length between."""

_VOWELS = (
    (730, 1090, 2440), (530, 1840, 2480), (270, 2290, 3010), (570, 840, 2410), (300, 870, 2240), (660, 1720, 2410),
)  # fmt: skip
"""First three formants in hertz: a, e, i, o, u, ae."""

_FORMANT_WIDTHS = (90.0, 120.0, 170.0)  # hertz
_HIGHEST = 3800.0  # hertz: no harmonics above


@dataclass(frozen=True)
class _Manner:
    """How a level sounds; each range is drawn from uniformly."""

    syllables: tuple[float, float]
    """A second."""
    pitch: tuple[float, float]
    """Times the speaker's own pitch."""
    glide: tuple[float, float]
    """Octaves that the pitch moves by within a syllable, either way."""
    tilt: tuple[float, float]
    """Decibels an octave that the source falls by: a raised voice falls less."""


_MANNERS = (
    _Manner(syllables=(2.2, 3.3), pitch=(0.95, 1.05), glide=(0.02, 0.12), tilt=(10.0, 13.0)),
    _Manner(syllables=(5.6, 7.4), pitch=(1.35, 1.7), glide=(0.25, 0.5), tilt=(4.0, 7.0)),
)


def speak(level: int, rng: np.random.Generator) -> np.ndarray:
    """A voice note.

    The speaker's pitch, the vocal tract's length, loudness, the words and the noise of the line say nothing about
    the level; speed, pitch against the speaker's own, its movement and brightness do.

    Args:
        level: index into `LEVELS`.
        rng: where speaker, words and noise come from.

    Returns:
        `(samples,)` float32 in [-1, 1] at `RATE`, of a length within `SECONDS`.
    """
    manner = _MANNERS[level]
    num_samples = round(RATE * rng.uniform(*SECONDS))
    own_pitch = np.exp(rng.uniform(np.log(95), np.log(210)))  # hertz
    tract = rng.uniform(0.92, 1.15)  # times the formants
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
    """A short burst of breath and a vowel, `(length,)`, of mean square one before the envelope."""
    time = np.linspace(0, 1, length, dtype=np.float32)
    phase = 2 * np.pi * np.cumsum(pitch * 2 ** (glide * (time - 0.5))) / RATE
    turn = np.exp(1j * phase).astype(np.complex64)
    harmonics = np.arange(1, max(int(_HIGHEST / (pitch * 2 ** (abs(glide) / 2))), 1) + 1)
    gains = (_formants(harmonics * pitch, vowel) * 10 ** (-tilt * np.log2(harmonics) / 20)).astype(np.float32)
    voiced = np.zeros(length, dtype=np.float32)
    spinning = np.ones(length, dtype=np.complex64)
    for gain in gains:
        spinning *= turn
        voiced += gain * spinning.imag
    voiced /= np.sqrt(np.mean(voiced**2)) + 1e-9
    breath = rng.standard_normal(length).astype(np.float32) * np.exp(-time * 20) * np.float32(rng.uniform(0.0, 0.5))
    envelope = np.abs(np.sin(np.pi * time)) ** 0.7  # its last value is a rounding error of either sign
    return np.asarray((voiced + breath) * envelope, dtype=np.float32)


def _formants(hertz: np.ndarray, vowel: np.ndarray) -> np.ndarray:
    """The gain of three resonances in parallel at these frequencies."""
    gain = np.zeros(len(hertz))
    for centre, width, strength in zip(vowel, _FORMANT_WIDTHS, (1.0, 0.6, 0.35), strict=True):
        gain += strength / np.sqrt(1 + ((hertz - centre) / width) ** 2)
    return gain


def wav_bytes(sound: np.ndarray) -> bytes:
    """A mono 16-bit WAV file.

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
