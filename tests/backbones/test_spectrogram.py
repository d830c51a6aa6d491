"""The log-mel spectrogram against transformers' audio functions."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from fusetune.backbones.spectrogram import Spectrogram
from fusetune.errors import BackboneError

YAMNET = {
    "sampling_rate": 16000,
    "window_length": 400,
    "hop_length": 160,
    "fft_length": 512,
    "num_mel_filters": 64,
    "min_frequency": 125.0,
    "max_frequency": 7500.0,
    "log_offset": 0.001,
    "patch_frames": 96,
    "patch_hop_frames": 48,
}


def theirs(spec: Spectrogram, waveform: np.ndarray) -> np.ndarray:
    filters = mel_filter_bank(
        num_frequency_bins=spec.fft_length // 2 + 1,
        num_mel_filters=spec.num_mel_filters,
        min_frequency=spec.min_frequency,
        max_frequency=spec.max_frequency,
        sampling_rate=spec.sampling_rate,
        norm=spec.mel_norm,
        mel_scale=spec.mel_scale,
    )
    window = window_function(spec.window_length, "hann", periodic=True)
    made = spectrogram(
        waveform,
        window,
        frame_length=spec.window_length,
        hop_length=spec.hop_length,
        fft_length=spec.fft_length,
        power=spec.power,
        center=False,
        mel_filters=filters,
        mel_floor=0.0,
        dtype=np.float64,
    )
    return np.log(made.T + spec.log_offset)


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("norm", [None, "slaney"])
@pytest.mark.parametrize(("rate", "fft", "low", "high"), [(16000, 512, 125.0, 7500.0), (8000, 400, 0.0, 4000.0)])
def test_equals_transformers(power: float, norm: str | None, rate: int, fft: int, low: float, high: float) -> None:
    changes = {"power": power, "mel_norm": norm, "sampling_rate": rate, "fft_length": fft, "min_frequency": low}
    spec = Spectrogram(**YAMNET | changes | {"max_frequency": high, "num_mel_filters": 32})
    waveform = np.random.default_rng(0).normal(0, 0.3, 12_345)
    np.testing.assert_allclose(spec.log_mel(waveform), theirs(spec, waveform), atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60_000))
def test_patches_see_every_sample(samples: int) -> None:
    spec = Spectrogram(**YAMNET)
    waveform = np.zeros(samples)
    if samples > 200:
        waveform[-200:] = 0.9
    patches = spec.patches(waveform)
    assert patches.shape[1:] == (96, 64) and patches.dtype == np.float32
    covered = ((len(patches) - 1) * 48 + 95) * 160 + 400
    assert samples <= covered < max(samples, 15_600) + 48 * 160
    if samples > 200:
        assert patches[-1].max() > np.log(0.001) + 1


def test_patches_overlap() -> None:
    spec = Spectrogram(**YAMNET)
    waveform = np.random.default_rng(1).normal(0, 0.1, 40_000)
    patches = spec.patches(waveform)
    np.testing.assert_array_equal(patches[0, 48:], patches[1, :48])
    np.testing.assert_allclose(patches[0], theirs(spec, waveform)[:96], atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hop_lenght": 3}, "hop_length"),
        ({"max_frequency": 9000.0}, "sampling_rate / 2"),
        ({"log_offset": 0}, "log_offset"),
        ({"mel_scale": "slaney"}, "htk"),
        ({"fft_length": 100}, "window_length"),
        ({"patch_frames": 0}, "patch_frames"),
        ({"patch_frames": "many"}, "cannot be read"),
    ],
)
def test_wrong_settings(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    (tmp_path / "spectrogram.json").write_text(json.dumps(YAMNET | changes))
    with pytest.raises(BackboneError, match=said):
        Spectrogram.read(tmp_path)
