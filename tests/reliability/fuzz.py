"""Broken files through our readers and decoders: each must be read, or refused with an error of our own.

    python tests/reliability/fuzz.py --cases 10000 [--seed 0] [--forms csv jpeg] [--keep FOLDER]

Four fifths of the cases are good files with bytes changed, the rest what Hypothesis makes up. A child process takes
the cases one by one, so that a crash or a hang costs one case; each has 2 seconds of processor time and may let the
process grow by 500 MiB. The bytes of a case that failed are kept in FOLDER.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import good_files
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

SECONDS, MIB = 2.0, 500
FINE = ("read", "read in part", "refused")
WALL = 10.0
"""Seconds on the clock after which a case counts as hanging: other processes may have the processor."""
SPACE = 4 << 30
"""Bytes that the address space may grow by: keeps a runaway allocation from taking the machine down."""


@dataclass(frozen=True)
class Form:
    """One file format.

    Attributes:
        seeds: makes good files.
        read: takes bytes and an empty folder; raises a `UserError` where it refuses all, gives False where it refuses
            rows or cells, else True.
        made_up: what Hypothesis draws.
    """

    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes, Path], bool]
    made_up: Callable[[], st.SearchStrategy[bytes]]


@dataclass
class Tally:
    """What became of one format's cases."""

    cases: int = 0
    read: int = 0
    in_part: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    mib: float = 0.0


# --- what is done with a file


def read_table(data: bytes, folder: Path, ending: str) -> bool:
    """Read a table as `fit` does: every cell, the schema, and each cell as its column's kind."""
    from fusetune.data.distinct import cell_key
    from fusetune.data.schema import Schema
    from fusetune.data.table import Table, is_missing
    from fusetune.errors import BadCell
    from fusetune.registry import MODALITIES

    path = folder / f"t{ending}"
    path.write_bytes(data)
    table = Table.read(path)
    ids = [*table.rows.tolist(), *(item.row for item in table.rejected)]
    assert sorted(ids) == list(range(len(ids))), "a row is lost, or counted twice"
    assert all(item.why for item in table.rejected), "a row is rejected without a reason"
    schema, whole = Schema.detect(table), not table.rejected  # whole: nothing was refused
    for name in table.column_names:
        cells = table.cells(name)
        assert len(cells) == len(table), f"column {name!r} has {len(cells)} cells for {len(table)} rows"
        kind = MODALITIES.get(schema.columns[name].kind)
        modality = None if kind.needs_backbone or schema.columns[name].role != "input" else kind(name)
        for row, cell in enumerate(cells):
            cell_key(cell)
            if modality is None or is_missing(cell):
                continue
            try:
                modality.decode(cell, row=row, base_dir=folder)
            except BadCell as error:
                str(error).encode()
                whole = False
    return whole


def read_image(data: bytes, folder: Path) -> bool:
    """Decode a picture as an image column does."""
    from fusetune.modalities.image import ImageModality
    from fusetune.testing.modalities import TinyBackbone

    (picture,) = ImageModality("photo", backbone=TinyBackbone("image")).decode(data, row=0, base_dir=folder)  # type: ignore[arg-type]
    assert picture.shape == (3, 8, 8)
    return True


def read_audio(data: bytes, folder: Path) -> bool:
    """Decode a sound as an audio column does."""
    from fusetune.modalities.audio import AudioModality
    from fusetune.testing.modalities import TinyBackbone

    sound = AudioModality("call", backbone=TinyBackbone("audio")).decode(data, row=0, base_dir=folder)  # type: ignore[arg-type]
    assert len(sound) and np.isfinite(sound).all(), "the sound is empty or not finite"
    return True


# --- what Hypothesis makes up

CELL = st.text(max_size=6) | st.sampled_from(
    ['"', '""', '"a', "a\nb", "\r", "\x00", "1", "-1e400", "nan", "\ufffd", "'", "\\"]
)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | CELL,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CELL, inner, max_size=3),
    max_leaves=6,
)
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "utf-32"]


def made_up_csv() -> st.SearchStrategy[bytes]:
    """Lines of any cells, quoted or not, in any encoding."""

    def build(rows: list[list[str]], delimiter: str, ending: str, encoding: str) -> bytes:
        return ending.join(delimiter.join(row) for row in rows).encode(encoding, "ignore")

    rows = st.lists(st.lists(CELL, max_size=4), max_size=8)
    return st.builds(
        build,
        rows,
        st.sampled_from([",", ";", "\t"]),
        st.sampled_from(["\n", "\r\n", "\r"]),
        st.sampled_from(ENCODINGS),
    )


def made_up_jsonl() -> st.SearchStrategy[bytes]:
    """Lines of any JSON, and of no JSON."""
    line = st.dictionaries(st.sampled_from(["a", "b", "c", "", " "]), VALUE, max_size=3) | VALUE
    text = st.lists(line.map(json.dumps) | CELL, max_size=8).map("\n".join)
    return st.builds(lambda text, encoding: text.encode(encoding, "ignore"), text, st.sampled_from(ENCODINGS))


def changed(seeds: Callable[[], list[bytes]]) -> st.SearchStrategy[bytes]:
    """Good files with a few bytes overwritten, and arbitrary bytes after a good file's first ones."""

    def build(data: bytes, changes: list[tuple[int, bytes]], cut: int) -> bytes:
        found = bytearray(data)
        for at, new in changes:
            found[at % len(data) : at % len(data) + len(new)] = new
        return bytes(found[: cut if cut % 3 == 0 else len(found)])

    good = st.sampled_from(seeds())
    changes = st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=8)), min_size=1, max_size=5)
    begun = st.builds(lambda data, keep, tail: data[:keep] + tail, good, st.integers(0, 64), st.binary(max_size=200))
    return st.builds(build, good, changes, st.integers(0, 10**5)) | begun


def of_bytes(seeds: Callable[[], list[bytes]], read: Callable[[bytes, Path], bool]) -> Form:
    return Form(seeds, read, lambda: changed(seeds))


FORMS = {
    "csv": Form(good_files.csv_seeds, lambda data, folder: read_table(data, folder, ".csv"), made_up_csv),
    "jsonl": Form(good_files.jsonl_seeds, lambda data, folder: read_table(data, folder, ".jsonl"), made_up_jsonl),
    "parquet": of_bytes(good_files.parquet_seeds, lambda data, folder: read_table(data, folder, ".parquet")),
    "arrow": of_bytes(good_files.arrow_seeds, lambda data, folder: read_table(data, folder, ".arrow")),
    "jpeg": of_bytes(good_files.jpeg_seeds, read_image),
    "png": of_bytes(good_files.png_seeds, read_image),
    "gif, bmp, webp, tiff": of_bytes(good_files.other_picture_seeds, read_image),
    "wav": of_bytes(good_files.wav_seeds, read_audio),
    "flac": of_bytes(good_files.flac_seeds, read_audio),
    "mp3, aiff": of_bytes(good_files.other_sound_seeds, read_audio),
}


# --- changing bytes

EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def mutate(data: bytes, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    """The bytes with one to six changes, near the start and the end more often than elsewhere."""
    found = bytearray(data)
    for _ in range(min(int(rng.geometric(0.5)), 6)):
        if not found:
            break
        at = int(rng.integers(min(len(found), 256) if rng.random() < 0.3 else len(found)))
        if rng.random() < 0.2:
            at = max(len(found) - 1 - int(rng.integers(400)), 0)  # where Parquet keeps its footer
        length = int(rng.integers(1, 40))
        match int(rng.integers(9)):
            case 0:
                found[at] ^= 1 << int(rng.integers(8))
            case 1:
                found[at] = int(rng.integers(256))
            case 2:
                del found[at : at + length]
            case 3:
                found[at:at] = rng.bytes(length)
            case 4:
                found[at:at] = found[at : at + length] * int(rng.integers(1, 30))
            case 5:
                del found[at:]
            case 6:
                size, order = int(rng.choice([1, 2, 4])), ("little", "big")[int(rng.integers(2))]
                value = EXTREMES[int(rng.integers(len(EXTREMES)))] & (256**size - 1)
                found[at : at + size] = value.to_bytes(size, order)  # type: ignore[arg-type]
            case 7:
                found[at : at + length] = bytes(length)
            case _:
                other = others[int(rng.integers(len(others)))]
                start = int(rng.integers(len(other)))
                found[at : at + length] = other[start : start + length]
    return bytes(found)


def cases_of(name: str, cases: int, seed: int) -> Iterator[bytes]:
    """So many inputs of a format, the same for the same seed."""
    seeds = FORMS[name].seeds()
    made_up = hypothesis_cases(FORMS[name].made_up(), cases // 5, seed)
    yield from made_up
    for number in range(cases - len(made_up)):
        rng = np.random.default_rng((seed, number, len(name), *name.encode()))
        yield mutate(seeds[number % len(seeds)], rng, seeds)


def hypothesis_cases(strategy: st.SearchStrategy[bytes], cases: int, seed: int) -> list[bytes]:
    """What Hypothesis draws, at most so many."""
    drawn: list[bytes] = []
    quiet = settings(
        max_examples=max(cases, 1),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @seeded(seed)
    @quiet
    @given(strategy)
    def draw(data: bytes) -> None:
        drawn.append(data)

    draw()
    return drawn[:cases]


# --- running


def outcome_of(read: Callable[[bytes, Path], bool], data: bytes, folder: Path) -> tuple[str, float, float]:
    """How one case went (one of `FINE`, or what is wrong), its seconds and the MiB that it grew by."""
    from fusetune.errors import UserError

    for left in folder.iterdir():
        left.unlink()
    before, start = _resident(), time.process_time()
    try:
        said = "read" if read(data, folder) else "read in part"
    except UserError as error:
        said = "refused" if str(error).encode() else "an error without a message"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {str(error)[:160]} ({Path(where.filename).name}:{where.lineno})"
    seconds, mib = time.process_time() - start, _peak() - before
    if said in FINE and seconds > SECONDS:
        said = f"took {seconds:.1f} s"
    if said in FINE and mib > MIB:
        said = f"grew by {mib:.0f} MiB"
    return said, seconds, mib


def _resident() -> float:
    """MiB in memory; the peak is counted from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> float:
    return _status("VmHWM")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":"))


def _work(read: Callable[[bytes, Path], bool], inputs: Sequence[bytes], first: int, pipe: Any) -> None:
    """The child: cases from `first` on, each announced before and reported after."""
    warnings.simplefilter("ignore")
    faulthandler.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries in C print what they think of broken files
    grown = int(_status("VmSize") * 2**20) + SPACE
    resource.setrlimit(resource.RLIMIT_AS, (grown, grown))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for number in range(first, len(inputs)):
            pipe.send((number, None))
            pipe.send((number, outcome_of(read, inputs[number], Path(folder))))


def run(
    read: Callable[[bytes, Path], bool], inputs: Sequence[bytes], *, wall: float = WALL
) -> Iterator[tuple[str, float, float]]:
    """The outcome of each input, in order; a child that dies or hangs is replaced, and its case says so."""
    context = multiprocessing.get_context("fork")
    done = 0
    while done < len(inputs):
        mine, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_work, args=(read, inputs, done, theirs), daemon=True)
        child.start()
        theirs.close()
        try:
            while done < len(inputs):
                if not mine.poll(wall):
                    yield f"hung for {wall:g} s", wall, 0.0
                    done += 1
                    break
                _, outcome = mine.recv()
                if outcome is not None:
                    done += 1
                    yield outcome
        except EOFError:
            child.join()
            yield f"killed the process (exit code {child.exitcode})", 0.0, 0.0
            done += 1
        finally:
            child.kill()
            child.join()
            mine.close()


def main(
    cases: int = 10_000, seed: int = 0, *, forms: Sequence[str] = tuple(FORMS), keep: Path | None = None
) -> dict[str, Tally]:
    """So many cases, spread evenly over the formats.

    Args:
        cases: of all formats together.
        seed: the same seed, the same cases.
        forms: names in `FORMS`.
        keep: the folder for the bytes of failed cases, named by format and number.
    """
    tallies = {}
    for place, name in enumerate(forms):
        share = cases // len(forms) + (place < cases % len(forms))
        inputs, tally = list(cases_of(name, share, seed)), Tally()
        with tempfile.TemporaryDirectory() as folder:  # children start with everything imported
            for data in FORMS[name].seeds():
                FORMS[name].read(data, Path(folder))
        for number, (said, seconds, mib) in enumerate(run(FORMS[name].read, inputs)):
            tally.cases += 1
            tally.read += said == "read"
            tally.in_part += said == "read in part"
            tally.refused += said == "refused"
            tally.seconds, tally.mib = max(tally.seconds, seconds), max(tally.mib, mib)
            if said not in FINE:
                tally.failures.append(f"{name} case {number} of {share}, seed {seed}: {said}")
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{name.split(',')[0]}-{seed}-{number}").write_bytes(inputs[number])
        tallies[name] = tally
    return tallies


def shown(tallies: dict[str, Tally]) -> str:
    """A table for people."""
    lines = [
        "| format | cases | read | in part | refused with our error | failed | slowest | most memory |",
        "| --- " * 8 + "|",
    ]
    for name, one in tallies.items():
        numbers = f"{one.cases:,} | {one.read:,} | {one.in_part:,} | {one.refused:,} | {len(one.failures)}"
        lines.append(f"| {name} | {numbers} | {one.seconds:.2f} s | {max(one.mib, 0):.0f} MiB |")
    return "\n".join([*lines, *(failure for one in tallies.values() for failure in one.failures)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Broken files through fusetune's readers and decoders.")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fusetune-fuzz")
    asked = parser.parse_args()
    found = main(asked.cases, asked.seed, forms=asked.forms, keep=asked.keep)
    print(shown(found))
    failed = sum(len(one.failures) for one in found.values())
    print(
        f"{failed} of {sum(one.cases for one in found.values()):,} cases failed" + (f"; {asked.keep}" if failed else "")
    )
    sys.exit(bool(failed))
