"""A batch in one stretch of memory is the same batch, wherever it is moved."""

from dataclasses import replace

import pytest
import torch

from fusetune.types import Batch, Target


@pytest.fixture
def batch():
    pixels = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    return Batch(
        inputs={
            "note": {"ids": torch.arange(6).view(2, 3), "mask": torch.tensor([[True, False, True], [True] * 3])},
            "photo": {"pixels": pixels, "wide": torch.ones(2, 1).expand(2, 7), "turned": torch.randn(3, 2).T},
            "voice": {},
        },
        cells={"note": torch.tensor([0, 1, -1]), "photo": torch.tensor([1, 1, 0]), "voice": torch.tensor([-1] * 3)},
        weights=torch.rand(3),
        rows=torch.tensor([7, 8, 9]),
        targets={"y": Target(torch.randn(3).double(), torch.tensor([True, False, True]))},
        codes={"note": torch.tensor([4, 5, -1])},
    )


def tensors(batch):
    found = []
    batch._map(lambda tensor: found.append(tensor) or tensor)
    return found


@pytest.mark.parametrize("grouped", [False, True])
def test_packing_changes_nothing(batch, grouped):
    batch.groups = torch.tensor([0, 0, 1]) if grouped else None
    packed = batch.packed(pin=False)
    for moved in (packed, packed.to("cpu")):
        assert moved.inputs.keys() == batch.inputs.keys() and (moved.groups is None) == (batch.groups is None)
        for one, two in zip(tensors(batch), tensors(moved), strict=True):
            assert one.dtype == two.dtype and torch.equal(one, two)
        assert moved.inputs["photo"]["pixels"].is_contiguous(memory_format=torch.channels_last)
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors(packed)}) == 1


def test_what_is_put_into_a_packed_batch_moves_too(batch):
    packed = batch.packed(pin=False)
    new = {**packed.inputs, "note": {"ids": torch.full((2, 3), 5)}}
    moved = replace(packed, inputs=new).to("meta")
    assert moved.inputs["note"]["ids"].shape == (2, 3) and all(tensor.is_meta for tensor in tensors(moved))
    again = replace(packed, inputs=new).to("cpu")
    assert again.inputs["note"]["ids"].tolist() == [[5] * 3] * 2 and torch.equal(again.rows, batch.rows)
