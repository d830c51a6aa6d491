"""Safetensors files are judged by their frame, whatever number their first bytes spell."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fusetune.security.untrusted import pickle_like, tensors_of

LENGTHS = [0x0280, 0x0380, 0x0480, 0x0580, 0x0178, 0x9C78, 0xDA78, 0x0478]
"""Of headers, whose first bytes are those of a pickle or of a compressed file."""


def framed(path: Path, length: int) -> Path:
    bare = path.with_name("bare.safetensors")
    save_file({"w": torch.zeros(2)}, bare, metadata={"k": ""})
    short = int.from_bytes(bare.read_bytes()[:8], "little")
    save_file({"w": torch.zeros(2)}, path, metadata={"k": "x" * (length - short)})
    return path


@pytest.mark.parametrize("length", LENGTHS)
def test_a_header_of_any_length_is_read(tmp_path, length) -> None:
    path = framed(tmp_path / "w.safetensors", length)
    assert int.from_bytes(path.read_bytes()[:8], "little") == length, "the test makes the header it means"
    assert pickle_like(path) is None and list(tensors_of(path)) == ["w"]
    if length == 0x0478:  # nothing begins so
        return
    renamed = path.rename(tmp_path / "w.other")
    assert pickle_like(renamed) is not None, "only the name of a format that is checked counts"


def test_a_pickle_by_the_name_of_safetensors_is_told(tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    for protocol in (2, 3, 4, 5):
        path.write_bytes(pickle.dumps({"a": list(range(100))}, protocol=protocol))
        with pytest.raises(ValueError, match="pickle"):
            tensors_of(path)
