"""Log-mel spectrograms in patches, for image encoders with one input channel."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fusetune.errors import BackboneError, nearest
from fusetune.security.untrusted import read_json

FILE = "spectrogram.json"
MOST = 1_000_000


def hz_to_mel(frequency: np.ndarray | float) -> np.ndarray:
    """Convert a frequency in Hz to HTK's mel scale: 2595 log10(1 + f / 700)."""
    return np.asarray(2595.0 * np.log10(1.0 + np.asarray(frequency, dtype=np.float64) / 700.0))


def mel_to_hz(mels: np.ndarray) -> np.ndarray:
    """Convert HTK's mel scale to Hz, the inverse of `hz_to_mel`."""
    return np.asarray(700.0 * (10.0 ** (mels / 2595.0) - 1.0))


@dataclass(frozen=True)
class Spectrogram:
    """Settings of log-mel spectrograms in patches of (patch_frames, num_mel_filters), saved as `spectrogram.json`.

    Frames start every `hop_length` samples and are not centred: the first one covers samples 0 to `window_length`.

    Attributes:
        sampling_rate: required sampling rate in Hz.
        window_length: length of a frame in samples, under a periodic Hann window.
        hop_length: samples between the starts of frames.
        fft_length: points of the FFT, at least `window_length`; frames are padded with zeros at the end.
        num_mel_filters: number of triangular filters on the HTK mel scale.
        min_frequency: lower edge of the lowest filter, in Hz.
        max_frequency: upper edge of the highest filter, in Hz; at most half the sampling rate.
        log_offset: added to the mel energies before the natural logarithm; above 0.
        patch_frames: frames of a patch.
        patch_hop_frames: frames between the starts of patches.
        power: 1.0 for magnitudes, 2.0 for powers.
        window: "hann".
        mel_scale: "htk".
        mel_norm: None (the filters' peaks are 1) or "slaney" (their areas are equal).

    Reference: Hershey et al., CNN architectures for large-scale audio classification, arXiv:1609.09430.
    """

    sampling_rate: int
    window_length: int
    hop_length: int
    fft_length: int
    num_mel_filters: int
    min_frequency: float
    max_frequency: float
    log_offset: float
    patch_frames: int
    patch_hop_frames: int
    power: float = 1.0
    window: str = "hann"
    mel_scale: str = "htk"
    mel_norm: str | None = None

    def __post_init__(self) -> None:
        counts = ("sampling_rate", "window_length", "hop_length", "num_mel_filters", "patch_frames", "patch_hop_frames")
        wrong = [f"{name} must be 1 or more" for name in counts if getattr(self, name) < 1]
        checks = (
            (self.fft_length >= self.window_length, "fft_length must be at least window_length"),
            (self.window == "hann", "window must be 'hann'"),
            (self.mel_scale == "htk", "mel_scale must be 'htk'"),
            (self.mel_norm in (None, "slaney"), "mel_norm must be null or 'slaney'"),
            (self.power in (1.0, 2.0), "power must be 1.0 or 2.0"),
            (self.log_offset > 0, "log_offset must be above 0"),
            (
                0 <= self.min_frequency < self.max_frequency <= self.sampling_rate / 2,
                "0 <= min_frequency < max_frequency <= sampling_rate / 2 must hold",
            ),
        )
        wrong += [f"{name} must be {MOST:,} or less" for name in (*counts, "fft_length") if getattr(self, name) > MOST]
        wrong += [text for holds, text in checks if not holds]
        if wrong:
            raise BackboneError("the spectrogram's settings are wrong", came="; ".join(wrong), do=f"correct {FILE}")

    @classmethod
    def read(cls, folder: Path) -> Spectrogram:
        """Read the settings from a folder's `spectrogram.json`.

        Raises:
            BackboneError: the file is not a JSON object of exactly these settings.
        """
        path = folder / FILE
        known = [field.name for field in fields(cls)]
        try:
            settings = read_json(path, links=True)
            unknown = sorted(set(settings) - set(known))
            if unknown:
                hint = nearest(unknown[0], known)
                raise BackboneError(
                    f"unknown setting {unknown[0]!r}", expected=", ".join(known), do=hint, file=str(path)
                )
            return cls(**settings)
        except (OSError, ValueError, TypeError) as error:
            if isinstance(error, BackboneError):
                raise
            raise BackboneError(
                "the spectrogram's settings cannot be read", came=str(error), expected=", ".join(known), file=str(path)
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON."""
        return asdict(self)

    def save(self, folder: Path) -> None:
        """Write `spectrogram.json` into the folder."""
        (folder / FILE).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @cached_property
    def mel_filters(self) -> np.ndarray:
        """(fft_length // 2 + 1, num_mel_filters) float64: the weight of each frequency in each filter."""
        edges = np.linspace(hz_to_mel(self.min_frequency), hz_to_mel(self.max_frequency), self.num_mel_filters + 2)
        corners = mel_to_hz(edges)  # (filters + 2,): filter i rises from corner i to i + 1 and falls to i + 2
        frequencies = np.linspace(0, self.sampling_rate // 2, self.fft_length // 2 + 1)
        slopes = corners[None, :] - frequencies[:, None]  # (frequencies, filters + 2)
        widths = np.diff(corners)
        rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
        filters = np.maximum(0.0, np.minimum(rising, falling))
        if self.mel_norm == "slaney":
            filters *= 2.0 / (corners[2:] - corners[:-2])
        return np.asarray(filters)

    @cached_property
    def _window(self) -> np.ndarray:
        return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window_length) / self.window_length))

    def log_mel(self, waveform: np.ndarray) -> np.ndarray:
        """Return the log-mel energies of all complete frames, (frames, num_mel_filters) float32.

        Args:
            waveform: (samples,) float at `sampling_rate`, at least `window_length` samples.
        """
        frames = np.lib.stride_tricks.sliding_window_view(waveform, self.window_length)[:: self.hop_length]
        magnitude = np.abs(np.fft.rfft(frames * self._window, n=self.fft_length))  # (frames, frequencies)
        energy = magnitude if self.power == 1.0 else magnitude**2
        return np.asarray(np.log(energy @ self.mel_filters + self.log_offset), dtype=np.float32)

    def patches(self, waveform: np.ndarray) -> np.ndarray:
        """Return the patches of a sound, (patches, patch_frames, num_mel_filters) float32, at least one.

        The end is padded with silence until the last patch is complete, so that all samples are used.

        Args:
            waveform: (samples,) float at `sampling_rate`; may be empty.
        """
        patch_samples = (self.patch_frames - 1) * self.hop_length + self.window_length
        hop_samples = self.patch_hop_frames * self.hop_length
        extra = max(0, -(-(len(waveform) - patch_samples) // hop_samples))  # patches after the first
        padded = np.zeros(patch_samples + extra * hop_samples, dtype=np.float64)
        padded[: len(waveform)] = waveform
        frames = self.log_mel(padded)
        starts = np.arange(extra + 1)[:, None] * self.patch_hop_frames
        return np.asarray(frames[starts + np.arange(self.patch_frames)])  # (patches, patch_frames, filters)
