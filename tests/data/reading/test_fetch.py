"""Media at addresses: fetched where that was asked for, within bounds; else refused or left out."""

from __future__ import annotations

import io
import pickle
import threading
import time

import fsspec
import numpy as np
import pytest
from PIL import Image

import fusetune as ft
from fusetune.config.read import ReadConfig
from fusetune.data.reading.fetch import MAX_SILENCE, MediaFetcher, addresses
from fusetune.data.table import Table
from fusetune.errors import BadCell, ConfigError, MissingExtra, SchemaError

QUICK = {
    "trainer": {"epochs": 0, "head_epochs": 2, "trackers": []},
    "report": {"bootstrap": 0, "alone": "none", "errors": 3},
}


def picture(red: bool, number: int) -> bytes:
    colour = np.asarray((220, 30, 20) if red else (20, 40, 230), dtype=np.uint8)
    pixels = np.tile(colour, (24, 24, 1))
    pixels[0, 0] = number
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def shelf():
    files = fsspec.filesystem("memory")
    files.store.clear()
    for number in range(60):
        with files.open(f"/shop/{number}.png", "wb") as file:
            file.write(picture(number % 2 == 0, number))
    yield files
    files.store.clear()


@pytest.fixture
def rows(shelf):
    return [
        {"photo": f"memory://shop/{number}.png", "size": number % 7, "label": "red" if number % 2 == 0 else "blue"}
        for number in range(60)
    ]


def fetcher(*protocols, max_bytes=10**6, seconds=10.0):
    return MediaFetcher(protocols or ["memory"], max_bytes=max_bytes, seconds=seconds)


def local(files, cell):
    return files.local(cell, row=3, column="photo")


def test_addresses():
    assert addresses("https://a.org/1.png?x=1;y=2; s3://b/2.png") == ["https://a.org/1.png?x=1;y=2", "s3://b/2.png"]
    assert addresses(["memory://a", b"bytes", "beside.png"]) == ["memory://a"]
    assert addresses({"bytes": None, "path": "s3://b/1.png"}) == ["s3://b/1.png"]
    assert addresses({"bytes": b"x", "path": "s3://b/1.png"}) == addresses("a;b.png") == addresses(None) == []


def test_off_by_default(rows):
    table = Table.from_records(rows)
    schema = ft.schema_of(table, target="label")
    assert schema.columns["photo"].role == "ignore"
    assert any("data.read.media=[memory]" in warning for warning in schema.warnings)
    with pytest.raises(SchemaError, match=r"data\.read\.media=\[memory\]"):
        ft.schema_of(table, target="label", columns={"photo": "image"})


def test_a_fit_fetches_when_told_and_its_folder_does_not(rows, shelf, tiny, tmp_path):
    """The model that is saved fetches nothing by itself: whoever predicts says so again."""
    rows[7]["photo"] = "memory://shop/none.png"
    config = {**QUICK, "image": tiny("vit"), "data": {"read": {"media": ["memory"]}, "cache": "none"}}
    tuned = ft.fit(Table.from_records(rows), "label", config=config, out=tmp_path / "m", progress=False)
    assert tuned.bundle.schema.columns["photo"].kind == "image"
    told = [warning for warning in tuned.results.warnings if "fetched" in warning]
    assert len(told) == 3 and all("SHA-256" in warning for warning in told)
    assert tuned.results.num_rejected <= 1
    shown = [cell for mistake in tuned.results.tasks[0].errors for cell in mistake.cells if cell.column == "photo"]
    assert not any("cannot" in str(cell.text) for cell in shown)

    loaded = ft.load(tmp_path / "m")
    new = Table.from_records(rows[:8])
    closed = loaded.predict(new)
    assert all("URL" in error for error in closed["error"])
    opened = loaded.predict(loaded.read(new, media=["memory"]))
    assert opened["error"][:7] == [None] * 7
    assert "nothing at this address" in opened["error"][7] and "predicted without it" in opened["error"][7]
    assert loaded.evaluate(loaded.read(new, media=["memory"])).cells_masked == 1
    with pytest.raises(ConfigError, match="did you mean 'memory'"):
        loaded.read(new, media=["memry"])


def test_other_content_is_another_table(rows, shelf, tiny, tmp_path):
    """The fingerprint that a resumed run is compared by has the content of what was fetched."""
    config = {**QUICK, "image": tiny("vit"), "data": {"read": {"media": ["memory"]}, "cache": "none"}}
    prints = []
    for _ in range(3):
        prints.append(ft.fit(Table.from_records(rows), "label", config=config, progress=False).bundle.fingerprint)
        if len(prints) == 2:
            for number in range(60):
                shelf.pipe(f"/shop/{number}.png", picture(number % 2 == 0, 100 + number))
    assert prints[0] == prints[1] != prints[2]


def test_each_address_is_fetched_once(shelf, monkeypatch):
    files, opened = fetcher(), []
    plain = type(shelf).open
    monkeypatch.setattr(type(shelf), "open", lambda self, *args, **kw: opened.append(args) or plain(self, *args, **kw))
    threads = [threading.Thread(target=local, args=(files, "memory://shop/1.png")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    path = local(files, "memory://shop/1.png")
    assert len(opened) == 1
    with open(path, "rb") as copy:
        assert copy.read() == picture(False, 1)
    assert local(pickle.loads(pickle.dumps(files)), "memory://shop/1.png") == path
    assert local(files, ["memory://shop/1.png", b"x"]) == [path, b"x"]
    assert local(files, {"bytes": None, "path": "memory://shop/1.png"})["path"] == path


@pytest.mark.parametrize("cell", ["https://example.org/a.png", "s3://bucket/a.png", "beside.png", b"bytes", None])
def test_other_protocols_are_left_alone(cell):
    assert local(fetcher(), cell) is cell


def test_bounds(shelf, monkeypatch):
    with pytest.raises(BadCell, match="larger than"):
        local(fetcher(max_bytes=20), "memory://shop/1.png")
    with pytest.raises(BadCell, match="chained"):
        local(fetcher("zip"), "zip://a.png::memory://shop/1.zip")
    with pytest.raises(BadCell, match="nothing at this address"):
        local(fetcher(), "memory://shop/none.png")
    release, opened = threading.Event(), []

    def hangs(self, path, *args, **kw):
        opened.append(path)
        release.wait(20)
        raise OSError("too late")

    monkeypatch.setattr(type(shelf), "open", hangs)
    files, start = fetcher(seconds=0.05), time.monotonic()
    for number in range(3 * MAX_SILENCE):
        with pytest.raises(BadCell, match="not fetched"):
            local(files, f"memory://shop/{number}.png")
    release.set()
    assert len(opened) == MAX_SILENCE and time.monotonic() - start < 15


def test_a_missing_package_stops_the_run(monkeypatch):
    def lacking(address):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", lacking)
    with pytest.raises(MissingExtra, match="s3fs"):
        local(fetcher("s3"), "s3://bucket/1.png")


@pytest.mark.parametrize(("names", "told"), [(["file"], "cannot be fetched"), (["htps"], "did you mean 'https'")])
def test_protocols_are_checked(names, told):
    with pytest.raises(ValueError, match=told):
        ReadConfig(media=names)


def test_settings_take_them_as_written():
    assert ReadConfig(media="HTTPS://").media == ["https"]
