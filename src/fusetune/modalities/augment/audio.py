"""Augmentation of sounds: of the waveform, before the backbone's processor, and of its spectrogram."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusetune._optional import optional_import
from fusetune.errors import ConfigError
from fusetune.modalities.augment.options import Option, Transform, settings, transforms
from fusetune.modalities.base import Augmenter

SPEC = {"time": 0.2, "frequency": 0.2, "num": 2}
QUIETEST_NOISE = 40.0
"""Highest signal-to-noise ratio that is drawn, in dB; the lowest one is the setting."""
Samples = Callable[[Any, Path], np.ndarray]


class AudioAugmenter(Augmenter):
    """Augmentation of sounds. Transforms of the waveform decode the file again.

    speed   changes speed and pitch by up to this share (Ko et al. 2015).
    shift   shifts the sound in time by up to this share of its length and pads with silence.
    noise   adds white noise with a signal-to-noise ratio between this and 40 dB.
    gain    changes the volume by up to this many dB.
    spec    SpecAugment (Park et al. 2019, arXiv 1904.08779), for backbones that read spectrograms: `num` time bands of
            up to the share `time` of the frames and `num` frequency bands of up to the share `frequency` of the filters
            are replaced by the mean.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        samples: Samples,
        prepare: Callable[[np.ndarray], np.ndarray],
        rate: int,
        spectrogram: bool,
    ) -> None:
        """
        Args:
            options: values of the transforms by name.
            samples: `samples(cell, base_dir)` returns the waveform at the backbone's rate, (samples,) float32.
            prepare: makes an example from a waveform.
            rate: the backbone's sampling rate in Hz.
            spectrogram: whether examples are spectrograms, (patches, frames, filters).

        Raises:
            ConfigError: an option is unknown or out of range, or `spec` is set and examples are no spectrograms.
        """
        if options.get("spec") and not spectrogram:
            raise ConfigError(
                "augment.audio.spec masks spectrograms, and this backbone reads samples",
                do="leave spec out; gain, noise, shift and speed change samples",
            )
        self.samples, self.prepare_samples = samples, prepare
        known = {
            "speed": Option(lambda size: _speed(size, rate), 0.1, 0, 0.5),
            "shift": Option(_shift, 0.1, 0, 1),
            "noise": Option(_noise, 20.0, 0, QUIETEST_NOISE),
            "gain": Option(_gain, 6.0, 0, 60),
        }
        before = {name: value for name, value in options.items() if name != "spec"}
        if unknown := [name for name in before if name not in known]:
            transforms("audio", {unknown[0]: True}, {**known, "spec": Option(_spec, {})})
        self.waves = transforms("audio", before, known)
        self.bands = transforms("audio", {"spec": options.get("spec")}, {"spec": Option(_spec, {})})

    def __call__(self, cell: Any, example: Any, rng: np.random.Generator, base_dir: Path) -> Any:
        """See `Augmenter`."""
        if self.waves:
            wave = self.samples(cell, base_dir)
            for transform in self.waves:
                wave = transform(wave, rng)
            example = self.prepare_samples(wave)
        for transform in self.bands:
            example = transform(example, rng)
        return example


def _gain(most: float) -> Transform:
    return lambda wave, rng: (wave * 10 ** (rng.uniform(-most, most) / 20)).astype(np.float32)


def _noise(least: float) -> Transform:
    def add(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        ratio, noise = rng.uniform(least, QUIETEST_NOISE), rng.standard_normal(len(wave)).astype(np.float32)
        power = float(np.mean(np.square(wave, dtype=np.float64))) if len(wave) else 0.0
        return np.asarray(wave + noise * np.sqrt(power / 10 ** (ratio / 10)), dtype=np.float32)

    return add


def _shift(most: float) -> Transform:
    def move(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        by = round(rng.uniform(-most, most) * len(wave))
        moved = np.zeros_like(wave)
        if by >= 0:
            moved[by:] = wave[: len(wave) - by]
        else:
            moved[:by] = wave[-by:]
        return moved

    return move


def _speed(most: float, rate: int) -> Transform:
    def change(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        soxr: Any = optional_import("soxr", "to change the speed of sounds")
        factor = rng.uniform(1 - most, 1 + most)
        changed = soxr.resample(wave, rate * factor, rate) if len(wave) else wave
        return np.asarray(changed, dtype=np.float32)

    return change


def _spec(value: Any) -> Transform:
    chosen = settings("augment.audio.spec", value, SPEC)
    time, frequency, num = float(chosen["time"]), float(chosen["frequency"]), int(chosen["num"])
    if not (0 <= time <= 1 and 0 <= frequency <= 1 and num >= 1):
        raise ConfigError(
            "augment.audio.spec is out of range",
            expected="time and frequency from 0 to 1, num of 1 or more",
            came=str(value),
        )

    def mask(example: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        patches, frames, filters = example.shape
        result = example.reshape(patches * frames, filters).copy()
        mean = result.mean()
        for _ in range(num):
            for axis, share in ((0, time), (1, frequency)):
                size = result.shape[axis]
                width = int(rng.integers(0, int(share * size) + 1))
                start = int(rng.integers(0, size - width + 1))
                if axis == 0:
                    result[start : start + width] = mean
                else:
                    result[:, start : start + width] = mean
        return result.reshape(example.shape)

    return mask
