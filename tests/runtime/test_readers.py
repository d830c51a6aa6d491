"""Tensors of the runtime's readers equal those of the modalities, cell by cell."""

from __future__ import annotations

import numpy as np
import pytest

import fusetune.runtime

CELLS = {
    "note": ["w1 w2", "  W3 é \u4e2d w4\n", 12, True, ["w1", "w9"], "w7 " * 300, "w1" * 90 + " w2", "\x00 w1"],
    "photo": ["red0.png", "red1.png;blue0.png", ["blue1.png"]],
    "voice": ["voice0.wav", "voice3.wav"],
    "price": ["1.5", -3, 1e300, " 7 "],
    "plan": ["basic", "unseen", "PRO", 3.0],
    "day": ["2021-05-06", "1999-12-31 23:59", "08:30"],
}


@pytest.mark.parametrize("column", CELLS)
def test_tensors_are_those_of_the_modality(exported, shop, column):
    from fusetune.models.flat import FlatModel

    folder, tuned, *_ = exported
    home, cells = shop[0], CELLS[column]
    reader, modality = fusetune.runtime.load(folder).readers[column], tuned.bundle.modalities[column]
    theirs = [modality.decode(cell, row=0, base_dir=home) for cell in cells]
    ours = [reader.decode(cell, row=0, base_dir=home) for cell in cells]
    assert [reader.size(example) for example in ours] == [modality.size(example) for example in theirs]
    flat = FlatModel(tuned.bundle.model, tuned.bundle.modalities, tuned.bundle.targets)
    import torch

    index = torch.tensor([*range(len(cells)), -1])
    wanted = flat.columns[column].from_batch(modality.collate(theirs), index)
    found = reader.tensors([*ours, None])
    for name, tensor in wanted.items():
        there = np.ones(tensor.shape, bool) if name != "input_ids" else wanted["attention_mask"].numpy() > 0
        np.testing.assert_array_equal(found[name][there], tensor.numpy()[there], err_msg=name)
        assert found[name].dtype == tensor.numpy().dtype
    for part, vocabulary in modality.ngrams.items():
        for row, example in enumerate(theirs):
            ids, values = vocabulary.vector(example)
            np.testing.assert_array_equal(found[f"{part}_ids"][row, : len(ids)], ids)
            np.testing.assert_array_equal(found[f"{part}_values"][row, : len(ids)], values)


def test_bad_cells_have_the_reasons_of_the_modalities(exported, shop):
    from fusetune.errors import BadCell

    folder, tuned, *_ = exported
    readers = fusetune.runtime.load(folder).readers
    for column, cell in {"note": {"a": 1}, "photo": "no.png", "price": "1,5", "plan": b"x", "day": "soon"}.items():
        reasons = []
        for one in (readers[column], tuned.bundle.modalities[column]):
            with pytest.raises(BadCell) as error:
                one.decode(cell, row=4, base_dir=shop[0])
            reasons.append((str(error.value), error.value.why))
        assert reasons[0] == reasons[1]
