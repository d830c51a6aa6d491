"""Every broken file of the corpus: the error that is due, with its place; nothing lost, nothing counted twice."""

from __future__ import annotations

import corpus
import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from fusetune.cli.main import app
from fusetune.data.examples import Examples
from fusetune.data.table import Table, is_missing
from fusetune.errors import BadCell, UserError
from fusetune.modalities.audio import AudioModality
from fusetune.modalities.image import ImageModality
from fusetune.modalities.text import TextModality
from fusetune.testing.modalities import TinyBackbone

pytest.importorskip("simplejpeg"), pytest.importorskip("soundfile")


def named(cases):
    return pytest.mark.parametrize("bad", cases, ids=lambda bad: bad.name)


def test_there_are_enough_and_each_has_a_name():
    for cases in corpus.EVERYTHING.values():
        assert len({bad.name for bad in cases}) == len(cases)
    assert sum(map(len, corpus.EVERYTHING.values())) >= 60


def source(bad, folder):
    path = bad.write(folder)
    return path if "://" in path or path.startswith("~") else str(folder / path)


@named([bad for bad in corpus.TABLES if bad.error])
def test_a_table_is_refused_by_name(bad, tmp_path):
    path = source(bad, tmp_path)
    with pytest.raises(UserError, match=bad.said) as caught:
        Table.read(path)
    assert type(caught.value) is bad.error
    assert caught.value.file == path or "://" in path
    assert (caught.value.row, caught.value.column) == bad.place
    done = CliRunner().invoke(app, ["fit", path, "--target", "label", "-o", str(tmp_path / "out")])
    assert done.exit_code == 2, done.output
    assert "error:" in done.output and "Traceback" not in done.output and "Do:" in done.output
    assert not (tmp_path / "out" / "bundle.json").exists()


@named([bad for bad in corpus.TABLES if not bad.error])
def test_a_table_is_read_and_every_row_accounted_for(bad, tmp_path):
    table = Table.read(source(bad, tmp_path))
    rows_in, rejected = bad.rows
    assert (len(table), len(table.rejected)) == (rows_in - rejected, rejected)
    assert sorted([*table.rows.tolist(), *(item.row for item in table.rejected)]) == list(range(rows_in))
    assert all(len(table.cells(name)) == len(table) for name in table.column_names)
    assert all(name == name.strip("\ufeff") for name in table.column_names)
    if rejected:
        assert bad.said in table.rejected[0].why


MODALITIES = {
    "images": lambda: ImageModality("cell", backbone=TinyBackbone("image")),
    "sounds": lambda: AudioModality("cell", backbone=TinyBackbone("audio")),
    "texts": lambda: TextModality("cell", backbone=TinyBackbone("text")),
}
CELLS = [(sort, bad) for sort in MODALITIES for bad in corpus.EVERYTHING[sort]]


@pytest.mark.parametrize(("sort", "bad"), CELLS, ids=lambda one: one if isinstance(one, str) else one.name)
def test_a_cell_is_read_or_refused_by_name(sort, bad, tmp_path):
    modality, cell = MODALITIES[sort](), bad.write(tmp_path)
    if bad.error is None:
        assert modality.size(modality.decode(cell, row=3, base_dir=tmp_path)) >= 1
        return
    with pytest.raises(BadCell, match=bad.said) as caught:
        modality.decode(cell, row=3, base_dir=tmp_path)
    assert (caught.value.row, caught.value.column) == (3, "cell")
    str(caught.value).encode()


class Sheet(Table):
    """Cells that no file could hold side by side, each a distinct one."""

    def __init__(self, cells, base_dir):
        super().__init__(pa.table({"place": range(len(cells))}), source="the cells", base_dir=base_dir)
        self.held = cells

    def require(self, columns):
        pass

    def at_once(self, column):
        return 16

    def cells(self, column, indices=None):
        return [self.held[int(place)] for place in (range(len(self.held)) if indices is None else indices)]

    def distinct(self, column):
        first = np.asarray([place for place, cell in enumerate(self.held) if not is_missing(cell)])
        codes = np.full(len(self.held), -1)
        codes[first] = np.arange(len(first))
        return codes, first


@pytest.mark.parametrize("sort", MODALITIES)
@pytest.mark.parametrize("on_bad_cell", ["reject", "mask"])
def test_rows_with_such_cells_are_set_apart_and_no_others(sort, on_bad_cell, tmp_path):
    cases, cells = corpus.EVERYTHING[sort], []
    for number, bad in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        cell = bad.write(folder)
        local = isinstance(cell, str) and bad.file is not None and "://" not in cell and ":image" not in cell
        cells.append(";".join(f"{number}/{part}" for part in cell.split(";")) if local else cell)
    table = Sheet([*cells, None, "  "], tmp_path)
    examples = Examples(table, {"cell": MODALITIES[sort]()})
    examples.prepare(on_bad_cell=on_bad_cell)
    bad_rows = {row for row, bad in enumerate(cases) if bad.error}
    empty = {len(cells), len(cells) + 1}
    assert {item.row for item in examples.rejected} == bad_rows | empty
    assert {item.row for item in examples.masked} == (bad_rows if on_bad_cell == "mask" else set())
    assert set(examples.used.tolist()) == set(range(len(cells))) - bad_rows
    assert len(examples.used) + len({item.row for item in examples.rejected}) == len(table)
    for item in [*examples.masked, *examples.rejected]:
        assert item.row in empty or item.column in ("cell", None)
        item.record()
