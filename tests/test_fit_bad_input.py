"""Bad input through the whole product: refused by name, or set apart with its place and reason; nothing is lost."""

from __future__ import annotations

import csv
import io
import json
import struct
import wave
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from fusetune import api
from fusetune.cli.main import app
from fusetune.config.config import Config
from fusetune.data.table import Table
from fusetune.errors import ConfigError, TableError, TooManyRejected, UserError

COLUMNS = ["note", "photo", "voice", "price", "plan"]
GOOD = {"note": "w1 w2", "photo": "red0.png", "voice": "voice0.wav", "price": "3", "plan": "pro"}


def csv_text(rows: list[dict], columns: list[str]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


@pytest.fixture
def table(shop, tmp_path):
    """Writes text or bytes as a table in a folder that also has the shop's media."""

    def write(content, name="t.csv"):
        for media in (*shop[0].glob("*.png"), *shop[0].glob("*.wav")):
            if not (tmp_path / media.name).exists():
                (tmp_path / media.name).symlink_to(media)
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def fit(quick, tmp_path, tiny):
    def run(path, target="label", **settings):
        config = Config.build(quick).with_overrides(
            {"text": tiny("bert"), "image": tiny("resnet"), "audio": tiny("wav2vec2")} | settings
        )
        return api.fit(path, target=target, config=config, out=tmp_path / "out", progress=False)

    return run


@pytest.fixture
def good(shop):
    return csv_text(shop[1], ["price", "plan", "label"])


def quarantined(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]


def check_counts(tuned, rows_in: int, rejected: int) -> None:
    used = tuned.results.tables
    assert sum(one.rows_in for one in used) == rows_in
    assert sum(one.rows_rejected for one in used) == rejected
    assert all(one.rows_in == one.rows_used + one.rows_rejected for one in used)


class TestTables:
    """What is wrong with the table as a whole stops the run, with the file's name and what to do."""

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("", "empty"),
            ("price,plan,label\n", "no row"),
            ("price,price,label\n1,2,a\n3,4,b\n", "'price'"),
            ("price,plan,labl\n1,a,x\n2,b,y\n", "did you mean 'labl'"),
            ("price,label\n" + "".join(f"{n % 7}.5,yes\n" for n in range(40)), "one class"),
            ("price,label\n" + "".join(f"{n},\n" for n in range(40)), "value"),
            ("price,note,label\n" + "".join(f",,{'ab'[n % 2]}\n" for n in range(40)), "no input column"),
        ],
        ids=["empty", "header only", "duplicate names", "misspelt target", "one class", "no target", "all missing"],
    )
    def test_refused(self, fit, table, content, said):
        path = table(content)
        with pytest.raises(UserError) as caught:
            fit(path)
        message = str(caught.value)
        assert said in message
        assert path.name in message or "input column" in said

    def test_no_target_named(self, good, table, fit):
        with pytest.raises(TableError, match=r"(?s)no target.*--target"):
            fit(table(good), target=None)

    def test_wrong_encoding_names_the_byte(self, good, table, fit):
        data = good.encode()
        place = data.index(b"pro")
        path = table(data[:place] + b"pr\xe9" + data[place + 3 :])
        with pytest.raises(TableError) as caught:
            fit(path)
        assert str(place + 2) in str(caught.value) and path.name in str(caught.value)

    def test_an_all_missing_column_is_left_out(self, shop, table, fit):
        rows = [{**row, "empty": ""} for row in shop[1]]
        tuned = fit(table(csv_text(rows, ["price", "empty", "label"])))
        (column,) = [one for one in tuned.results.columns if one.column == "empty"]
        assert column.role == "ignore" and "missing" in column.reason
        check_counts(tuned, 120, 0)

    def test_a_row_with_a_field_too_many_is_set_apart(self, good, table, fit):
        lines = good.splitlines()
        lines[5] += ",extra"
        tuned = fit(table("\n".join(lines)))
        check_counts(tuned, 120, 1)
        (item,) = quarantined(tuned.folder)
        assert (item["row"] == 4 and item["column"] is None and "4" in item["why"]) or "field" in item["why"]

    def test_many_such_rows_stop_the_run_before_training(self, good, table, fit, tmp_path):
        lines = [line + ",extra" if 0 < n < 20 else line for n, line in enumerate(good.splitlines())]
        with pytest.raises(TooManyRejected, match=r"(?s)19 of 120 rows.*Do:"):
            fit(table("\n".join(lines)))
        assert not (tmp_path / "out" / "model.safetensors").exists()
        assert [item["row"] for item in quarantined(tmp_path / "out")] == list(range(19))

    def test_urls(self, shop, table, fit):
        rows = [{**row, "photo": f"https://example.org/{n}.png"} for n, row in enumerate(shop[1])]
        with pytest.raises(ConfigError, match=r"(?s)no input column.*photo.*addresses"):
            fit(table(csv_text(rows, ["photo", "label"])))

    def test_validation_table_without_a_column(self, good, table, quick, tmp_path):
        train, val = table(good), table(good.replace("price", "prise", 1), "val.csv")
        with pytest.raises(UserError, match=r"(?s)val.csv.*'price'.*prise"):
            api.fit(train, target="label", val=val, config=quick, out=tmp_path / "o", progress=False)

    def test_a_label_that_only_test_rows_have(self, good, table, quick, tmp_path):
        test = table("price,plan,label\n" + "1,pro,yes\n2,pro,no\n" * 20 + "1,pro,maybe\n", "test.csv")
        tuned = api.fit(table(good), target="label", test=test, config=quick, out=tmp_path / "o", progress=False)
        (item,) = quarantined(tuned.folder)
        assert (item["row"], item["column"], item["value"]) == (40, "label", "maybe")
        assert "no train row" in item["why"]
        assert [one.rows_rejected for one in tuned.results.tables if one.split == "test"] == [1]

    def test_quarantine_names_the_table(self, good, table, quick, tmp_path):
        lines = good.splitlines()
        bad = lines[0] + "\n" + lines[1] + ",extra\n" + "\n".join(lines[2:]) + "\n"
        train, test = table(bad), table(bad, "test.csv")
        tuned = api.fit(train, target="label", test=test, config=quick, out=tmp_path / "o", progress=False)
        items = quarantined(tuned.folder)
        assert {item["file"] for item in items} == {str(test), str(train)}
        assert tuned.results.num_rejected == 2


class TestTextCells:
    def test_words_for_nothing_codes_and_large_integers_stay(self, shop, table, fit):
        words = ["NA", "null", "None", "00501", "nan"]
        rows = [{**row, "plan": words[n % 5], "code": str(2**53 + 1 + n % 3)} for n, row in enumerate(shop[1])]
        tuned = fit(
            table(csv_text(rows, ["plan", "code", "price", "label"])), columns={"code": "category", "plan": "category"}
        )
        assert set(tuned.bundle.modalities["plan"].vocabulary) == set(words)
        assert set(tuned.bundle.modalities["code"].vocabulary) == {str(2**53 + 1 + n) for n in range(3)}
        check_counts(tuned, 120, 0)

    def test_huge_emoji_and_right_to_left_text(self, shop, table, fit):
        rows = [dict(row) for row in shop[1]]
        rows[0]["note"] = "w1 " * 350_000
        rows[1]["note"] = "👩‍👩‍👧‍👦 🏳️‍🌈 w1"
        rows[2]["note"] = "مرحبا بالعالم שלום"
        path = table(csv_text(rows, ["note", "label"]))
        tuned = fit(path)
        check_counts(tuned, 120, 0)
        assert tuned.predict(path).num_errors == 0
        assert len((tuned.folder / "report.html").read_bytes()) < 3_000_000

    def test_hostile_text_cannot_break_out_of_the_report_or_the_card(self, shop, table, fit):
        hostile = "</script><img src=x onerror=alert(1)>| `w1`"
        rows = [{**row, "note": f"{hostile} w{n}", "label": f"{row['label']}<b>"} for n, row in enumerate(shop[1])]
        tuned = fit(table(csv_text(rows, ["note", "label"])))
        assert "<img src=x" not in (tuned.folder / "report.html").read_text(encoding="utf-8")

    def test_half_a_character(self, shop, quick, tmp_path, tiny):
        table = Table.from_records([{"note": row["note"], "label": row["label"]} for row in shop[1]])
        config = Config.build(quick).with_overrides({"text": tiny("bert")})
        tuned = api.fit(table, target="label", config=config, out=tmp_path, progress=False)
        path = tmp_path / "half.jsonl"
        path.write_text('{"note": "w1 \\ud83d"}\n{"note": "w1"}\n')
        found = tuned.predict(path)
        assert len(found) == 2 and found["label"][1] is not None
        assert "half a character" in found["error"][0] or "surrogate" in found["error"][0]


def png_bomb() -> bytes:
    """A PNG whose header says 60,000 × 60,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def encoded(image: Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def sound(samples: np.ndarray, rate: int = 2000, channels: int = 1) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels), file.setsampwidth(2), file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return out.getvalue()


def float_sound(samples: np.ndarray) -> bytes:
    data = samples.astype("<f4").tobytes()
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 3, 1, 2000, 8000, 4, 32)
    return head + struct.pack("<4sI", b"data", len(data)) + data


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
TONE = np.sin(np.arange(800) / 3) * 9000


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(PICTURE, "JPEG", exif=exif)


BAD_MEDIA = {
    "missing.png": None,
    "zero.png": b"",
    "corrupt.png": b"\x89PNG\r\n\x1a\n" + bytes(range(200)),
    "truncated.jpg": encoded(PICTURE, "JPEG")[:400],
    "text.png": b"this is no picture",
    "bomb.png": png_bomb(),
    "missing.wav": None,
    "zero.wav": b"",
    "truncated.wav": sound(TONE)[:30],
    "no-samples.wav": sound(TONE[:0]),
    "nan.wav": float_sound(np.full(800, np.nan)),
}
GOOD_MEDIA = {
    "cmyk.jpg": encoded(PICTURE.convert("CMYK"), "JPEG"),
    "deep.png": encoded(Image.fromarray(np.linspace(0, 65535, 1600).reshape(40, 40).astype(np.uint16)), "PNG"),
    "palette.png": encoded(PICTURE.convert("P"), "PNG"),
    "animated.gif": encoded(PICTURE, "GIF", save_all=True, append_images=[PICTURE.rotate(90)]),
    "rotated.jpg": rotated(),
    "stereo.wav": sound(np.repeat(TONE, 2), channels=2),
    "fast.wav": sound(np.sin(np.arange(8000) / 30) * 9000, rate=16_000),
}


@pytest.fixture
def media(table, tmp_path):
    """Writes every file of `BAD_MEDIA` and `GOOD_MEDIA` beside the table."""
    table("", "none.csv")
    for name, content in (BAD_MEDIA | GOOD_MEDIA).items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    return tmp_path


def column_of(name: str) -> str:
    return "voice" if name.endswith(".wav") else "photo"


class TestMediaWhenTraining:
    def test_bad_cells_are_set_apart_by_name_and_the_others_used(self, shop, fit, table, media):
        rows = [dict(row) for _ in range(4) for row in shop[1]]
        for place, name in enumerate([*BAD_MEDIA, *GOOD_MEDIA]):
            rows[place * 2][column_of(name)] = name
        for place, row in enumerate(rows):
            row["split"] = ("val", "test")[place % 2] if place >= 400 else "train"
        tuned = fit(table(csv_text(rows, ["photo", "voice", "label", "split"])))
        check_counts(tuned, 480, len(BAD_MEDIA))
        items = {item["value"]: item for item in quarantined(tuned.folder)}
        assert items.keys() == BAD_MEDIA.keys()
        for place, name in enumerate(BAD_MEDIA):
            assert (items[name]["row"], items[name]["column"]) == (place * 2, column_of(name))
            assert len(items[name]["why"]) > 10

    def test_masked_on_request(self, shop, fit, table, media):
        rows = [dict(row) for row in shop[1]]
        rows[0]["photo"] = "corrupt.png"
        for place, row in enumerate(rows):
            row["split"] = ("val", "test")[place % 2] if place >= 100 else "train"
        tuned = fit(table(csv_text(rows, ["photo", "price", "label", "split"])), data={"on_bad_cell": "mask"})
        check_counts(tuned, 120, 0)
        assert any("'photo' could not be read" in warning for warning in tuned.results.warnings)

    def test_measured_rows_keep_their_other_cells(self, shop, fit, table, media):
        rows = [dict(row) for row in shop[1]]
        rows[119]["photo"] = "truncated.jpg"
        for place, row in enumerate(rows):
            row["split"] = ("val", "test")[place % 2] if place >= 100 else "train"
        tuned = fit(table(csv_text(rows, ["photo", "price", "label", "split"])))
        assert tuned.results.tasks[0].rows == 10
        check_counts(tuned, 120, 0)


class TestPrediction:
    """N rows in, N rows out, in order; what is wrong with a row is in its error column."""

    def predict(self, fitted, rows, folder, columns=COLUMNS, **options):
        (folder / "new.csv").write_text(csv_text(rows, columns), encoding="utf-8")
        return fitted.predict(folder / "new.csv", **options)

    @pytest.mark.parametrize("name", [*BAD_MEDIA, *GOOD_MEDIA])
    def test_each_medium(self, fitted, media, name):
        column = column_of(name)
        found = self.predict(fitted, [GOOD, {**GOOD, column: name}, GOOD], media)
        assert len(found) == 3 and found["row"] == [0, 1, 2]
        assert None not in found["label"]
        assert found["error"][0] is found["error"][2] is None
        if name in BAD_MEDIA:
            assert repr(column) in found["error"][1] and "predicted without it" in found["error"][1]
        else:
            assert found["error"][1] is None
        assert found["label:yes"][0] == pytest.approx(found["label:yes"][2])

    def test_bad_rows_can_be_refused(self, fitted, media):
        found = self.predict(fitted, [GOOD, {**GOOD, "photo": "zero.png"}], media, on_bad_cell="reject")
        assert (
            found["label"][1] is None and found["label:yes"][1] is None and "predicted without" not in found["error"][1]
        )
        assert found["label"][0] is not None

    def test_masked_cells_predict_as_missing_ones(self, fitted, media):
        found = self.predict(fitted, [{**GOOD, "photo": "zero.png"}, {**GOOD, "photo": ""}], media)
        assert found["label:yes"][0] == pytest.approx(found["label:yes"][1], abs=1e-6)
        assert found["error"][1] is None

    def test_values_never_seen(self, fitted, media):
        rows = [{**GOOD, "plan": "platinum"}, {**GOOD, "price": "2007–2019"}, {**GOOD, "price": "1e300"}, GOOD]
        found = self.predict(fitted, rows, media)
        assert None not in found["label"]
        assert all(np.isfinite(found["label:yes"]))
        assert found["error"][0] is None
        assert "range" in found["error"][1] and "'price'" in found["error"][1]

    def test_a_row_with_nothing_in_it(self, fitted, media):
        found = self.predict(fitted, [GOOD, dict.fromkeys(COLUMNS, ""), GOOD], media)
        assert found["label"][1] is None and "no input column" in found["error"][1]
        assert found["label"][0] == found["label"][2] is not None

    def test_nothing_but_bad_rows(self, fitted, media):
        found = self.predict(fitted, [dict.fromkeys(COLUMNS, "")] * 3, media)
        assert found["label"] == [None] * 3 and found.num_errors == 3
        for suffix in ("csv", "parquet", "jsonl"):
            getattr(found, f"to_{suffix}")(media / f"out.{suffix}")
        with (media / "out.csv").open() as file:
            assert len(list(csv.DictReader(file))) == 3

    def test_a_row_with_a_field_too_many_keeps_its_place(self, fitted, media):
        lines = csv_text([GOOD] * 5, COLUMNS).splitlines()
        lines[2] += ",extra"
        (media / "new.csv").write_text("\n".join(lines))
        found = fitted.predict(media / "new.csv")
        assert found["row"] == [0, 1, 2, 3, 4]
        assert [label is None for label in found["label"]] == [False, True, False, False, False]
        assert found["error"][1] and found.num_errors == 1

    def test_missing_columns_are_named(self, fitted, media):
        with pytest.raises(TableError, match=r"(?s)'photo'.*new.csv|new.csv.*'photo'"):
            self.predict(fitted, [GOOD], media, [column for column in COLUMNS if column != "photo"])

    def test_misspelt_column(self, fitted, media):
        rows = [{**GOOD, "prise": "3"}]
        with pytest.raises(TableError, match="did you mean 'prise'"):
            self.predict(fitted, rows, media, ["note", "photo", "voice", "prise", "plan"])

    def test_bytes_in_parquet(self, fitted, media):
        cells = [{"bytes": (media / "red0.png").read_bytes(), "path": None}, {"bytes": b"broken", "path": "a.png"}]
        rows = [{**GOOD, "photo": cell, "voice": None} for cell in cells]
        pq.write_table(pa.Table.from_pylist(rows), media / "new.parquet")
        found = fitted.predict(media / "new.parquet")
        assert len(found) == 2 and found["error"][0] is None and "'photo'" in found["error"][1]

    def test_labels_that_cannot_be_measured(self, fitted, media):
        rows = [{**GOOD, "label": "yes"}, {**GOOD, "label": "no"}, {**GOOD, "label": "maybe"}, {**GOOD, "label": ""}]
        (media / "new.csv").write_text(csv_text(rows, [*COLUMNS, "label"]))
        found = fitted.evaluate(media / "new.csv")
        assert (found.rows_in, found.rows_rejected, found.tasks[0].rows) == (4, 1, 2)
        assert "row 2" in found.problems[0] and "'label'" in found.problems[0]

    def test_no_label_at_all(self, fitted, media):
        (media / "new.csv").write_text(csv_text([{**GOOD, "label": ""}], [*COLUMNS, "label"]))
        with pytest.raises(TableError, match="no row has a target"):
            fitted.evaluate(media / "new.csv")


class TestCommandLine:
    """The same through the verbs: exit code 2, the message on standard error, no traceback."""

    def run(self, *arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    def test_fit_refuses(self, table, tmp_path):
        path = table("price,plan,labl\n1,a,x\n2,b,y\n")
        done = self.run("fit", path, "--target", "label", "--out", tmp_path / "o")
        assert done.exit_code == 2
        assert "t.csv" in done.stderr and "did you mean 'labl'" in done.stderr
        assert "Traceback" not in done.output

    def test_fit_then_predict_then_evaluate(self, good, table, tmp_path):
        path, out = table(good), tmp_path / "o"
        settings = ["trainer.epochs=0", "trainer.head_epochs=1", "trainer.trackers=[]", "report.bootstrap=0"]
        done = self.run("fit", path, "--target", "label", "--out", out, "report.errors=1", *settings)
        assert done.exit_code == 0, done.output
        done = self.run("predict", out, path, "--out", tmp_path / "p.csv")
        assert done.exit_code == 0 and "120 rows" in done.stdout
        assert self.run("evaluate", out, path).exit_code == 0

    def test_predict_with_a_bad_row(self, fitted, media):
        (media / "new.csv").write_text(csv_text([GOOD, {**GOOD, "photo": "bomb.png"}], COLUMNS))
        done = self.run("predict", fitted.folder, media / "new.csv", "--out", media / "p.jsonl")
        assert done.exit_code == 0
        lines = [json.loads(line) for line in (media / "p.jsonl").read_text().splitlines()]
        assert len(lines) == 2 and lines[0]["error"] is None and "'photo'" in lines[1]["error"]

    def test_predict_without_a_column(self, fitted, media):
        (media / "new.csv").write_text(csv_text([GOOD], COLUMNS[1:]))
        done = self.run("predict", fitted.folder, media / "new.csv", "--json")
        assert done.exit_code == 2
        assert json.loads(done.stdout)["error"]["type"] == "TableError"

    def test_no_model_folder(self, table, good, tmp_path):
        done = self.run("predict", tmp_path, table(good))
        assert done.exit_code == 2 and "no model folder" in done.stderr
