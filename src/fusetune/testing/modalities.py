"""The contract suite of modalities, the kinds of columns, with one test for each rule.

    class TestWeekday(ModalityContract):
        @pytest.fixture
        def case(self, tmp_path):
            return ModalityCase(lambda: WeekdayModality("day"), ["2026-03-14", "2026-03-16"], ["tomorrow"], tmp_path)

`sample_cells` and `sort_cells` return cells of every type, and `TinyBackbone` replaces a pretrained encoder.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.errors import BadCell
from fusetune.modalities.base import Detection, Modality
from fusetune.registry import MODALITIES
from fusetune.testing.cells import (
    ROW,
    TinyBackbone,
    png_bytes,
    sample_cells,
    sort_cells,
    tone,
    typical_columns,
    wav_bytes,
)
from fusetune.testing.rules import Contract, check
from fusetune.types import Tokens

__all__ = [
    "ModalityCase",
    "ModalityContract",
    "TinyBackbone",
    "check_modality",
    "png_bytes",
    "sample_cells",
    "sort_cells",
    "tone",
    "wav_bytes",
]

TOLERANCE = 1e-5
SURE = 0.5


@dataclass
class ModalityCase:
    """A modality and cells to test it with.

    Attributes:
        make: builds a modality that is not fitted, with the same options each time.
        cells: two or more valid cells with different values.
        bad_cells: one or more cells that it refuses.
        base_dir: folder that relative paths in the cells start from.
        backbone: the backbone of the modalities from `make`, for kinds that need one.
    """

    make: Callable[[], Modality]
    cells: Sequence[Any]
    bad_cells: Sequence[Any]
    base_dir: Path
    backbone: Any = None

    def decoded(self, modality: Modality, row: int = ROW) -> list[Any]:
        """Return the cells as the modality's examples."""
        return [modality.decode(cell, row=row, base_dir=self.base_dir) for cell in self.cells]

    def fitted(self) -> tuple[Modality, list[Any]]:
        """Return a modality fitted on the cells, and their examples."""
        modality = self.make()
        modality.fit(self.decoded(modality))
        return modality, self.decoded(modality)


def check_modality(
    make: Callable[[], Modality],
    cells: Sequence[Any],
    bad_cells: Sequence[Any],
    *,
    base_dir: Path,
    backbone: Any = None,
) -> None:
    """Check a modality by all rules of `ModalityContract`. The arguments are those of `ModalityCase`.

    Raises:
        AssertionError: rules are broken; the message lists all of them.
    """
    check(ModalityContract, case=ModalityCase(make, cells, bad_cells, base_dir, backbone))


class ModalityContract(Contract):
    """The rules of modalities. They take `case`, a `ModalityCase`."""

    def test_detect_judges_any_cells(self, case: ModalityCase) -> None:
        """Valid cells, refused cells and no cells give a confidence from 0 to 1 and a reason."""
        for values in (case.cells, case.bad_cells, []):
            found = type(case.make()).detect(list(values), base_dir=case.base_dir)
            assert isinstance(found, Detection), "detect does not return a Detection"
            assert 0 <= found.confidence <= 1, f"the confidence {found.confidence} is not from 0 to 1"
            assert found.reason.strip(), "detect gives no reason"

    def test_detect_is_unsure_of_cells_that_are_refused(self, case: ModalityCase) -> None:
        """A column of bad cells alone has a confidence under 0.5."""
        found = type(case.make()).detect(list(case.bad_cells), base_dir=case.base_dir)
        assert found.confidence < SURE, f"detect is sure ({found.confidence}) of cells that decode refuses"

    def test_detect_leaves_columns_to_other_kinds(self, case: ModalityCase) -> None:
        """The modality has the highest confidence for at most one of the typical columns of built-in kinds."""
        kind = type(case.make())
        others = [cls for cls in map(MODALITIES.get, MODALITIES) if cls is not kind]
        claimed = []
        with tempfile.TemporaryDirectory() as folder:
            for name, cells in typical_columns(Path(folder)).items():
                sure = kind.detect(cells, base_dir=Path(folder)).confidence
                if sure > max(other.detect(cells, base_dir=Path(folder)).confidence for other in others):
                    claimed.append(name)
        assert len(claimed) <= 1, f"detect claims columns of {' and '.join(claimed)}"

    def test_bad_cells_are_refused(self, case: ModalityCase) -> None:
        """Every bad cell raises BadCell with its row, its column and why."""
        modality = case.make()
        for cell in case.bad_cells:
            try:
                modality.decode(cell, row=ROW, base_dir=case.base_dir)
            except BadCell as error:
                assert (error.row, error.column) == (ROW, modality.column), f"BadCell names another place: {error}"
                assert error.why.strip(), f"BadCell does not say why for {cell!r}"
                str(error).encode("utf-8", "surrogatepass")
            else:
                raise AssertionError(f"{cell!r} was read; it is to be refused")

    def test_decode_does_not_depend_on_fit(self, case: ModalityCase) -> None:
        """An example is the same before and after `fit`."""
        modality, after = case.fitted()
        before = case.decoded(case.make())
        _assert_same(modality.collate(before), modality.collate(after), "decode depends on fit")

    def test_decode_does_not_depend_on_the_row(self, case: ModalityCase) -> None:
        """The row number is for error messages: an example is the same in every row."""
        modality, first = case.fitted()
        for row in (0, ROW, 1_000_003):
            _assert_same(
                modality.collate(first), modality.collate(case.decoded(modality, row)), "decode depends on the row"
            )

    def test_the_encoder_is_described(self, case: ModalityCase) -> None:
        """`encoder_key`, `part_of` and `size` are usable, and the encoder has `pretrained` and `dim`."""
        modality, examples = case.fitted()
        key = modality.encoder_key
        assert re.fullmatch(r"\w+", key, re.ASCII), f"encoder_key {key!r} names no module"
        assert modality.part_of, "part_of is empty"
        assert all(modality.size(example) >= 1 for example in examples), "size is below 1"
        encoder: Any = modality.build_encoder()
        assert isinstance(encoder.pretrained, bool) and encoder.dim >= 1, "the encoder has no dim or pretrained"

    def test_tokens_have_their_shape(self, case: ModalityCase) -> None:
        """The encoder gives finite `Tokens`, (cells, tokens, dim), with a real token for every cell."""
        modality, examples = case.fitted()
        with torch.no_grad():
            _encode(modality, modality.build_encoder().eval(), examples)

    def test_tokens_do_not_depend_on_the_batch(self, case: ModalityCase) -> None:
        """A cell's tokens are the same alone and in a batch, at any position."""
        modality, examples = case.fitted()
        encoder = modality.build_encoder().eval()
        with torch.no_grad():
            together = _encode(modality, encoder, examples)
            backwards = _encode(modality, encoder, list(reversed(examples)))
            for number, example in enumerate(examples):
                alone = _encode(modality, encoder, [example])
                _assert_near(_row(alone, 0), _row(together, number), f"example {number} differs alone and in a batch")
                mirrored = _row(backwards, len(examples) - 1 - number)
                _assert_near(mirrored, _row(together, number), f"example {number} depends on its place in the batch")

    def test_cells_of_different_values_differ(self, case: ModalityCase) -> None:
        """Tokens depend on the cell: they are not the same for all cells."""
        assert len(case.cells) >= 2, "two cells are needed to compare"
        modality, examples = case.fitted()
        with torch.no_grad():
            tokens = _encode(modality, modality.build_encoder().eval(), examples)
        rows = [_row(tokens, number) for number in range(len(examples))]
        same = all(row.shape == rows[0].shape and torch.allclose(row, rows[0], atol=1e-6) for row in rows[1:])
        assert not same, "all cells give the same tokens"

    def test_every_weight_receives_a_gradient(self, case: ModalityCase) -> None:
        """Every trainable weight of the encoder receives a gradient."""
        modality, examples = case.fitted()
        encoder = modality.build_encoder().train()
        values = _encode(modality, encoder, examples).values
        if not any(weight.requires_grad for weight in encoder.parameters()):
            return
        encoder.zero_grad()
        torch.autograd.backward((values * torch.linspace(0.5, 1.5, values.numel()).view_as(values)).sum())
        idle = [name for name, weight in encoder.named_parameters() if weight.requires_grad and weight.grad is None]
        encoder.zero_grad()
        assert not idle, f"weights without a gradient: {idle}"

    def test_the_state_restores_it(self, case: ModalityCase) -> None:
        """`state` is JSON, and `from_state` restores the same modality, whose encoder loads the same weights."""
        modality, examples = case.fitted()
        state = json.loads(json.dumps(modality.state(), allow_nan=False))
        restored = type(modality).from_state(modality.column, state, backbone=case.backbone)
        _assert_same(
            modality.collate(examples), restored.collate(examples), "the restored modality collates differently"
        )
        assert restored.encoder_key == modality.encoder_key, "the restored modality has another encoder_key"
        assert restored.state() == modality.state(), "the restored modality has another state"
        encoder, again = modality.build_encoder().eval(), restored.build_encoder().eval()
        again.load_state_dict(encoder.state_dict())
        with torch.no_grad():
            first, second = _encode(modality, encoder, examples), _encode(restored, again, examples)
        _assert_near(first.values, second.values, "the restored encoder gives other tokens")


def _encode(modality: Modality, encoder: nn.Module, examples: Sequence[Any]) -> Tokens:
    tensors = modality.collate(examples)
    assert tensors and all(isinstance(tensor, Tensor) for tensor in tensors.values()), "collate gives no tensors"
    tokens = encoder(**tensors)
    assert isinstance(tokens, Tokens), "the encoder does not return Tokens"
    shape = (len(examples), tokens.values.shape[1], encoder.dim)
    assert tokens.values.shape == shape, f"tokens have the shape {tuple(tokens.values.shape)}, not {shape}"
    assert tokens.mask.shape == shape[:2] and tokens.mask.dtype == torch.bool, "the mask is not (cells, tokens) bool"
    assert tokens.mask.any(1).all(), "a cell has no real token"
    assert tokens.values[tokens.mask].isfinite().all(), "tokens are not finite"
    return tokens


def _row(tokens: Tokens, number: int) -> Tensor:
    return tokens.values[number][tokens.mask[number]]  # (real tokens, dim)


def _assert_near(first: Tensor, second: Tensor, what: str) -> None:
    assert first.shape == second.shape, what
    assert torch.allclose(first, second, rtol=TOLERANCE, atol=TOLERANCE), what


def _assert_same(first: dict[str, Tensor], second: dict[str, Tensor], what: str) -> None:
    assert first.keys() == second.keys(), what
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items()), what
