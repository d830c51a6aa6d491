"""The tickets sample: its files, its determinism, and its ceilings against what its own rows show."""

from __future__ import annotations

import csv
import hashlib
import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from fusetune.errors import ConfigError, StorageError
from fusetune.samples import messages, rule, screens, voices
from fusetune.samples.listing import SAMPLES
from fusetune.samples.rule import COLUMNS, LABELS, SUBSETS
from fusetune.samples.tickets import HOURS, PLANS, Tickets, make_tickets

ALL = frozenset(COLUMNS)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Tickets:
    folder = tmp_path_factory.mktemp("tickets")
    return make_tickets(40, 7, folder, missing=0.2, splits={"train": 0.5, "val": 0.25, "test": 0.25})


def _table(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))


def _hashes(folder: Path) -> dict[str, str]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_same_seed_same_bytes(written: Tickets, tmp_path: Path) -> None:
    again = make_tickets(40, 7, missing=0.2, splits={"train": 0.5, "val": 0.25, "test": 0.25})
    again.write(tmp_path)
    assert written.path is not None
    assert _hashes(tmp_path) == _hashes(written.path)


def test_another_seed_gives_other_rows() -> None:
    one, other = make_tickets(20, 0), make_tickets(20, 1)
    assert not np.array_equal(one.factors, other.factors)
    assert [one.cells(row)["message"] for row in range(20)] != [other.cells(row)["message"] for row in range(20)]


@given(n=st.integers(1, 30), more=st.integers(1, 30), seed=st.integers(0, 2**63), missing=st.floats(0, 0.9))
@settings(max_examples=25, deadline=None)
def test_a_row_is_the_same_in_a_longer_table(n: int, more: int, seed: int, missing: float) -> None:
    short, long = make_tickets(n, seed, missing=missing), make_tickets(n + more, seed, missing=missing)
    assert [short.cells(row) for row in range(n)] == [long.cells(row) for row in range(n)]
    assert short.present.any(axis=1).all()


def test_media_do_not_depend_on_the_other_settings() -> None:
    plain, noisy = make_tickets(3, 5), make_tickets(3, 5, label_noise=0.5)
    assert [list(plain.media(row)) for row in range(3)] == [list(noisy.media(row)) for row in range(3)]


def test_tables_hold_the_columns_and_nothing_hidden(written: Tickets) -> None:
    assert written.path is not None
    sizes = {name: len(_table(file)) for name, file in written.tables.items()}
    assert sizes == {"train": 20, "val": 10, "test": 10}
    for file in written.tables.values():
        assert list(_table(file)[0]) == [*COLUMNS, "priority"]
    assert {entry.name for entry in written.path.iterdir()} == {
        "train.csv", "val.csv", "test.csv", "README.md", "screenshots", "voices"
    }  # fmt: skip
    rows = [row for file in written.tables.values() for row in _table(file)]
    assert [row["priority"] for row in rows] == [LABELS[k] for k in written.labels]
    filled = np.array([[row[column] != "" for column in COLUMNS] for row in rows])
    assert np.array_equal(filled, written.present)
    assert not filled.all()


def test_files_decode(written: Tickets) -> None:
    soundfile = pytest.importorskip("soundfile")
    assert written.path is not None
    rows = [row for file in written.tables.values() for row in _table(file)]
    named = {row[column] for row in rows for column in ("screenshot", "voice")} - {""}
    there = {f"{kind}/{file.name}" for kind in ("screenshots", "voices") for file in (written.path / kind).iterdir()}
    assert named == there
    for name in named:
        if name.startswith("screenshots"):
            with Image.open(written.path / name) as image:
                assert (image.format, image.mode, image.size) == ("PNG", "P", screens.SIZE)
                assert image.convert("L").getextrema()[0] != image.convert("L").getextrema()[1]
        else:
            sound, rate = soundfile.read(written.path / name)
            assert rate == voices.RATE and sound.ndim == 1
            assert voices.SECONDS[0] <= len(sound) / rate <= voices.SECONDS[1]
            assert 0.02 < np.sqrt(np.mean(sound**2)) < 0.2 and np.abs(sound).max() < 1


def test_numbers_and_categories_show_their_level() -> None:
    tickets = make_tickets(300, 2)
    for row in range(300):
        cells, levels = tickets.cells(row), tickets.factors[row]
        low, high = HOURS[levels[3]]
        assert low <= float(cells["waiting_hours"]) <= high
        assert cells["plan"] in PLANS[levels[4]]
    assert {tickets.cells(row)["plan"] for row in range(300)} == {name for names in PLANS for name in names}


def test_messages_are_varied_and_filled_in() -> None:
    rng = np.random.default_rng(0)
    texts = [messages.write_message(row % 3, rng) for row in range(900)]
    assert len(set(texts)) > 850
    assert not any("{" in text or "}" in text or text != text.strip() for text in texts)


@pytest.mark.parametrize(("missing", "label_noise"), [(0.0, 0.05), (0.15, 0.05), (0.6, 0.2)])
def test_ceilings_are_what_a_perfect_reader_reaches(missing: float, label_noise: float) -> None:
    num_rows = 10_000
    tickets = make_tickets(num_rows, 11, missing=missing, label_noise=label_noise)
    assert set(tickets.ceilings) == set(SUBSETS) - {frozenset()}
    for columns, ceiling in tickets.ceilings.items():
        reached = tickets.best_accuracy(columns)
        assert abs(reached - ceiling) < 3.5 * np.sqrt(ceiling * (1 - ceiling) / num_rows), sorted(columns)


def test_no_table_lookup_beats_the_ceilings() -> None:
    """The commonest label of each combination of levels, counted: an estimate that knows nothing of the rule."""
    num_rows = 10_000
    tickets = make_tickets(num_rows, 12)
    for columns, ceiling in tickets.ceilings.items():
        chosen = [k for k, column in enumerate(COLUMNS) if column in columns]
        _, cell = np.unique(tickets.factors[:, chosen], axis=0, return_inverse=True)
        counts = np.zeros((cell.max() + 1, len(LABELS)))
        np.add.at(counts, (cell, tickets.labels), 1)
        assert abs(counts.max(axis=1).sum() / num_rows - ceiling) < 3.5 * 0.5 / np.sqrt(num_rows), sorted(columns)


def test_all_columns_reach_one_less_the_noise() -> None:
    assert rule.ceilings()[ALL] == pytest.approx(0.95)
    assert rule.ceilings(label_noise=0.0)[ALL] == pytest.approx(1.0)
    assert rule.ceilings(label_noise=0.5)[ALL] == pytest.approx(0.5)
    tickets = make_tickets(2000, 4, label_noise=0.0)
    assert tickets.best_accuracy() == 1.0
    assert tickets.best_labels() == [LABELS[k] for k in tickets.labels]


@given(missing=st.floats(0, 0.99), label_noise=st.floats(0, 0.5))
@settings(max_examples=40, deadline=None)
def test_more_columns_are_never_worse(missing: float, label_noise: float) -> None:
    ceilings = rule.ceilings(missing=missing, label_noise=label_noise)
    for small, large in combinations(ceilings, 2):
        if small < large:
            assert ceilings[small] <= ceilings[large] + 1e-12


def test_every_column_counts_alone_and_on_top_of_the_others() -> None:
    ceilings, commonest = rule.ceilings(), float(rule.posterior(()).max())
    assert commonest < 0.52
    for column in COLUMNS:
        assert 0.7 <= ceilings[frozenset({column})] <= 0.78
        assert ceilings[ALL - {column}] < ceilings[ALL] - 0.1


def test_a_single_column_has_no_near_tie() -> None:
    """A level whose two labels were nearly as likely could not be learned, whatever the ceiling says."""
    for column in COLUMNS:
        likely = np.sort(rule.posterior([column]).reshape(-1, len(LABELS)), axis=1)
        assert (likely[:, -1] - likely[:, -2]).min() > 0.35


def test_levels_and_labels_come_as_documented() -> None:
    num_rows = 20_000
    tickets = make_tickets(num_rows, 8)
    counts = np.zeros(rule.level_probabilities().shape)
    np.add.at(counts, tuple(tickets.factors.T), 1)
    expected = rule.level_probabilities() * num_rows
    assert expected.min() > 5
    assert stats.chisquare(counts.ravel(), expected.ravel()).pvalue > 1e-3
    assert np.mean(rule.clean_labels(tickets.factors) != tickets.labels) == pytest.approx(0.05, abs=0.005)
    assert sum(rule.patterns(0.3).values()) == pytest.approx(1.0)


def test_combinations_are_as_likely_as_the_rule_says() -> None:
    chances = rule.level_probabilities()
    assert chances.sum() == pytest.approx(1.0)
    clear, other = chances[0, 0, 0, 0, 0], chances[2, 2, 1, 1, 1]  # 0 and 12 points
    assert clear == pytest.approx(4 * other)  # two first levels of two, against one of two others
    assert chances[1, 1, 0, 0, 0] == pytest.approx(other * rule.CLOSE_SHARE)  # 4 points
    assert chances[1, 1, 1, 1, 0] == pytest.approx(other)  # 8 points


@given(st.floats(0, 1, exclude_max=True))
def test_levels_are_drawn_where_their_share_lies(number: float) -> None:
    levels = rule.draw_levels(np.array([number]))
    at = np.ravel_multi_index(tuple(levels[0]), rule.level_probabilities().shape)
    ends = rule.level_probabilities().ravel().cumsum()
    assert (0 if at == 0 else ends[at - 1]) <= number
    assert number < ends[at] or at == len(ends) - 1


def test_readme_has_every_ceiling(written: Tickets) -> None:
    assert written.path is not None
    text = (written.path / "README.md").read_text(encoding="utf-8")
    assert text == written.readme()
    for columns, ceiling in written.ceilings.items():
        assert f"| {', '.join(column for column in COLUMNS if column in columns)} | {ceiling:.4f} |" in text


@given(n=st.integers(1, 500), weights=st.lists(st.integers(1, 9), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_splits_hold_every_row_once(n: int, weights: list[int]) -> None:
    splits = {f"part{k}": weight / sum(weights) for k, weight in enumerate(weights)}
    tickets = make_tickets(n, 0, splits=splits)
    assert [row for rows in tickets.splits.values() for row in rows] == list(range(n))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"n": 0}, "n=0"),
        ({"seed": -1}, "seed=-1"),
        ({"missing": 1.0}, "missing"),
        ({"missing": float("nan")}, "missing"),
        ({"label_noise": 0.6}, "label_noise"),
        ({"splits": {"train": 0.5, "test": 0.4}}, "splits"),
        ({"splits": {"../train": 1.0}}, "splits"),
        ({"splits": {"train": 1.5, "test": -0.5}}, "splits"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make_tickets(**settings)  # type: ignore[arg-type]


def test_unknown_names_are_refused_with_the_nearest(written: Tickets) -> None:
    with pytest.raises(ConfigError, match="did you mean 'message'"):
        written.best_accuracy(["mesage"])
    with pytest.raises(ConfigError, match="train, val, test"):
        written.best_labels(split="dev")
    with pytest.raises(ConfigError, match="write"):
        _ = make_tickets(1).tables


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageError, match="taken"):
        make_tickets(1, 0, tmp_path / "taken")


def test_the_listing_makes_what_it_says(tmp_path: Path) -> None:
    for make, line in SAMPLES.values():
        assert "\n" not in line
        made = make(2, 0, tmp_path)
        assert all(file.is_file() for file in made.tables.values())
