"""A short fuzz run, and that the run notices what it is there to notice. `fuzz.py` is the long one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import fuzz
import pytest

from fusetune.errors import TableError

pytest.importorskip("simplejpeg"), pytest.importorskip("soundfile"), pytest.importorskip("soxr")
CASES = 40


@pytest.mark.parametrize("form", fuzz.FORMS)
@pytest.mark.filterwarnings("ignore")
def test_broken_files_are_read_or_refused(form, tmp_path):
    for number, data in enumerate(fuzz.cases_of(form, CASES, seed=7)):
        said, _, _ = fuzz.outcome_of(fuzz.FORMS[form].read, data, tmp_path)
        assert said in fuzz.FINE, f"case {number} of {CASES}, seed 7"


@pytest.mark.parametrize("form", fuzz.FORMS)
def test_good_files_are_read_and_the_same_seed_gives_the_same_cases(form, tmp_path):
    assert all(
        fuzz.outcome_of(fuzz.FORMS[form].read, data, tmp_path)[0] != "refused" for data in fuzz.FORMS[form].seeds()
    )
    assert list(fuzz.cases_of(form, 20, seed=1)) == list(fuzz.cases_of(form, 20, seed=1))


def misbehave(data: bytes, folder: Path) -> bool:
    what = data.decode()
    if what == "dies":
        os.abort()
    if what == "hangs":
        time.sleep(60)
    if what == "takes memory":
        assert len(b"x" * (60 << 20)) > 0
    if what == "raises":
        raise KeyError("x")
    if what == "refuses":
        raise TableError("no")
    return what != "half"


def test_the_child_reports_crashes_hangs_memory_and_foreign_errors(monkeypatch):
    monkeypatch.setattr(fuzz, "MIB", 50)
    inputs = [b"good", b"half", b"refuses", b"raises", b"dies", b"good", b"hangs", b"good", b"takes memory"]
    said = [outcome for outcome, _, _ in fuzz.run(misbehave, inputs, wall=3.0)]
    assert said[:3] == ["read", "read in part", "refused"]
    assert "KeyError" in said[3] and "exit code -6" in said[4] and said[5] == said[7] == "read"
    assert said[6] == "hung for 3 s" and "MiB" in said[8], said


@pytest.mark.slow
@pytest.mark.torture
@pytest.mark.parametrize("form", fuzz.FORMS)
def test_ten_thousand_broken_files(form, tried, tmp_path):
    (tally,) = fuzz.main(10_000 // len(fuzz.FORMS), seed=0, forms=[form], keep=tmp_path).values()
    failed = len(tally.failures)
    tried(f"a broken file: {form}", survived=True, times=tally.cases - failed)
    if failed:
        tried(f"a broken file: {form}", survived=False, times=failed)
    assert not failed, "\n".join([*tally.failures, f"their bytes are in {tmp_path}"])
