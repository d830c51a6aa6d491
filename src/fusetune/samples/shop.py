"""`make_shop`: users and items of a shop, whose taste lies in ids, in descriptions and in pictures."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fusetune.errors import ConfigError, StorageError, nearest, reason
from fusetune.samples import rule, wares
from fusetune.samples.choices import choose, mean_figures
from fusetune.samples.scenes import png_bytes
from fusetune.samples.splits import split_rows

USER, ITEM, TIME = "user_id", "item_id", "time"
COLUMNS = (ITEM, "description", "picture")
"""The sources of taste: each shows one factor of an item, in this order in `Shop.levels`. The first one is shown by no
cell: it must be learned from who chose the item."""
NUM_LEVELS = len(wares.COLOURS)
MATCH = (16.0, 8.0, 8.0)
"""By factor: a user chooses an item so many times as often if the item has the user's level of it."""
ROWS_PER_USER = 20
NUM_ITEMS = 256
NEW_SHARE = 0.3
"""Share of the items that can be chosen only after the first split."""
REDRAWS = 20
"""How often the choices of the last split are drawn again for `Shop.ceilings`."""

Items = Literal["all", "known", "new"]


@dataclass(frozen=True)
class Shop:
    """Choices of users with their ground truth.

    Attributes:
        num_rows: choices of all splits together, in the order of time.
        seed: of all random draws.
        missing: probability that a description or a picture is missing.
        label_noise: probability that a choice is made at random, not by taste.
        splits: by table, its range of rows; the ranges are contiguous, each after the one before in time.
        tastes: `(users, 3)` int64, the level that each user likes of each factor.
        levels: `(items, 3)` int64, the level of each item in the factors of `COLUMNS`.
        present: `(items, 3)` bool, False where the item's cell is missing; an id never is.
        new: `(items,)` bool, the items that nobody can choose before the first split ends.
        users, items: `(rows,)` int64, who chose and what.
        path: the folder that holds the files, None before `write`.
    """

    num_rows: int
    seed: int
    missing: float
    label_noise: float
    splits: Mapping[str, range]
    tastes: np.ndarray
    levels: np.ndarray
    present: np.ndarray
    new: np.ndarray
    users: np.ndarray
    items: np.ndarray
    path: Path | None = None

    @functools.cached_property
    def ceilings(self) -> dict[frozenset[str], float]:
        """The best reachable nDCG@10 of each set of columns, for the users of the last split.

        The mean of `best` over `REDRAWS` draws of the last split's choices, each by the same probabilities.
        """
        rows, weights = self._rows(None), self.weights(COLUMNS, known=None)
        asked, query = np.unique(self.users[rows.start : rows.stop], return_inverse=True)
        right = np.zeros((len(asked), len(self.levels)))  # how often an item is right: a figure is linear in it
        for number in range(REDRAWS):
            rng = np.random.default_rng([self.seed, 5, number])
            again = self.items.copy()
            choose(again, self.users, rows, weights=weights, noise=self.label_noise, rng=rng)
            right[query, again[rows.start : rows.stop]] += 1 / REDRAWS
        known, seen = self._before(rows)
        return {
            chosen: mean_figures(np.where(seen[asked], -np.inf, self.weights(chosen, known)[asked]), right)["ndcg@10"]
            for chosen in column_sets()
        }

    def best(
        self, columns: Collection[str] = COLUMNS, split: str | None = None, items: Items = "all"
    ) -> dict[str, float]:
        """Return the best reachable ndcg@10 and mean_recall@10 from these columns, on the rows of a split.

        Each user of the split is a query. All items but those that the user chose in the first split are ranked by the
        probability of being chosen, given the user's taste and the items' factors that the columns show. The id of a
        known item shows all three, as they follow from who chose it; the id of a new one shows none. The right answers
        are the split's items of the user. Items of equal probability are in random order: the figures are the mean over
        all orders.

        Args:
            columns: names out of `COLUMNS`.
            split: a table; None: the last one, or the last fifth of a single one.
            items: the right answers: "known" ones, which someone chose in the first split, "new" ones, or all. Right
                answers of the other kind count neither as right nor as wrong.

        Raises:
            ConfigError: there is no such column or split.
        """
        rows = self._rows(split)
        known, seen = self._before(rows)
        asked, query = np.unique(self.users[rows.start : rows.stop], return_inverse=True)
        scores = self.weights(_checked(columns), known=known)[asked]
        right = np.zeros(scores.shape, bool)
        right[query, self.items[rows.start : rows.stop]] = True
        left_out = seen[asked]
        if items != "all":
            other = known if items == "new" else ~known
            left_out = left_out | (right & other)
        scores = np.where(left_out, -np.inf, scores)
        right &= ~left_out
        return mean_figures(scores, right)

    def weights(self, columns: Iterable[str], known: np.ndarray | None) -> np.ndarray:
        """Return how often users choose items, relative to each other, as far as columns show it, (users, items).

        A factor that is not shown counts as its mean over the levels.

        Args:
            columns: the columns that are seen.
            known: (items,) bool, the items whose id shows all their factors; None: all factors are known.
        """
        result = np.ones((len(self.tastes), len(self.levels)))
        for factor, name in enumerate(COLUMNS):
            shown = np.ones(len(self.levels), bool)
            if known is not None:
                by_id = known & (ITEM in columns)
                shown = by_id | (self.present[:, factor] & (name in columns) & (factor > 0))
            likes = np.where(self.tastes[:, factor, None] == self.levels[None, :, factor], MATCH[factor], 1.0)
            result *= np.where(shown, likes, (MATCH[factor] + NUM_LEVELS - 1) / NUM_LEVELS)
        return result

    @property
    def tables(self) -> dict[str, Path]:
        """The CSV file of each split.

        Raises:
            ConfigError: the shop has not been written.
        """
        return {name: self._folder / f"{name}.csv" for name in self.splits}

    @property
    def catalogue(self) -> Path:
        """The CSV file of the items.

        Raises:
            ConfigError: the shop has not been written.
        """
        return self._folder / "items.csv"

    @property
    def _folder(self) -> Path:
        if self.path is None:
            raise ConfigError("the shop has no files yet", do="call write(folder), or give make_shop a folder")
        return self.path

    def cells(self, row: int) -> dict[str, object]:
        """Return a row of a table of choices."""
        return {USER: f"u{self.users[row]:05d}", ITEM: f"i{self.items[row]:05d}", TIME: 1_700_000_000 + 60 * row}

    def item_cells(self, item: int) -> dict[str, str]:
        """Return a row of the catalogue; missing cells are empty."""
        rng = np.random.default_rng([self.seed, item, 3])
        description = wares.write_description(int(self.levels[item, 1]), rng) if self.present[item, 1] else ""
        picture = f"pictures/{item:05d}.png" if self.present[item, 2] else ""
        return {ITEM: f"i{item:05d}", "description": description, "picture": picture}

    def write(self, folder: Path | str) -> Shop:
        """Write the tables of choices, `items.csv`, `pictures/` and a `README.md` with the ceilings.

        Existing files of these names are overwritten. Paths in the catalogue are relative to it.

        Args:
            folder: created if it does not exist.

        Returns:
            This shop with `path` set.

        Raises:
            StorageError: a file could not be written.
        """
        written = dataclasses.replace(self, path=Path(folder))
        try:
            (Path(folder) / "pictures").mkdir(parents=True, exist_ok=True)
            for item in np.flatnonzero(self.present[:, 2]).tolist():
                picture = wares.draw_ware(int(self.levels[item, 2]), np.random.default_rng([self.seed, item, 4]))
                (Path(folder) / f"pictures/{item:05d}.png").write_bytes(png_bytes(picture))
            for name, file in written.tables.items():
                file.write_bytes(_csv_bytes([self.cells(row) for row in self.splits[name]]))
            written.catalogue.write_bytes(_csv_bytes([self.item_cells(item) for item in range(len(self.levels))]))
            (Path(folder) / "README.md").write_text(self.readme(), encoding="utf-8")
        except OSError as error:
            raise StorageError(f"the shop cannot be written to {folder}: {reason(error)}") from error
        return written

    def readme(self) -> str:
        """Return the folder's README as Markdown: the columns, the rule and the ceilings."""
        return _readme(self)

    def _before(self, rows: range) -> tuple[np.ndarray, np.ndarray]:
        """Return the known items, (items,) bool, and who chose what in the first split, (users, items) bool.

        Args:
            rows: those to be measured; only rows before them count.
        """
        end = min(rows.start, _train_rows(self.splits))
        known, seen = np.zeros(len(self.levels), bool), np.zeros((len(self.tastes), len(self.levels)), bool)
        known[self.items[:end]] = True
        seen[self.users[:end], self.items[:end]] = True
        return known, seen

    def _rows(self, split: str | None) -> range:
        if split is None:
            last = list(self.splits.values())[-1]
            return range(max(last.start, _train_rows(self.splits)), last.stop)
        if split not in self.splits:
            raise ConfigError(f"there is no split {split!r}", expected=", ".join(self.splits))
        return self.splits[split]


def make_shop(
    n: int = 8000,
    seed: int = 0,
    folder: Path | str | None = None,
    *,
    missing: float = 0.0,
    label_noise: float = 0.05,
    splits: Mapping[str, float] | None = None,
) -> Shop:
    """Generate choices of users among items, to be recommended by ids, descriptions and pictures.

    Tables of choices, in the order of time: `user_id`, `item_id`, `time`. The catalogue, `items.csv`: `item_id`,
    `description`, `picture` (PNG). An item has three hidden factors of four levels: a theme, which its description
    tells; a colour, which its picture shows; and a circle, which no cell shows. A user likes one level of each, and
    chooses an item 8 times as often if it has the user's theme, 8 times if it has the colour, 16 times if it has the
    circle; never one twice. 30 % of the items are new: they can be chosen only after the first split, and until then
    nothing but their cells is known.

    Args:
        n: number of choices, at least 1, by n / 20 users among 256 items.
        seed: 0 or more. The same seed gives the same files, byte for byte, with the same numpy and pillow.
        folder: where to write them; None generates them without writing.
        missing: probability in [0, 1) that a description or a picture is missing.
        label_noise: probability in [0, 1/2] that a choice is made at random.
        splits: table names with their shares of the rows, which sum to 1 and follow each other in time, such as
            {"train": 0.8, "test": 0.2}; each becomes `<name>.csv`. None makes one table, `choices.csv`, in which new
            items come after 80 % of the rows.

    Raises:
        ConfigError: an argument is out of range.
        StorageError: a file could not be written.

    Example:
        >>> shop = make_shop(2000, seed=1, splits={"train": 0.8, "test": 0.2})
        >>> shop.best(["item_id"])["ndcg@10"] < shop.best()["ndcg@10"]
        True
    """
    if n < 1 or seed < 0:
        raise ConfigError(
            "cannot make this shop", expected="n of 1 or more, seed of 0 or more", came=f"n={n}, seed={seed}"
        )
    rule.check_missing(missing)
    rule.check_noise(label_noise)
    parts = split_rows(n, splits or {"choices": 1.0})
    num_users, num_items = max(n // ROWS_PER_USER, 1), NUM_ITEMS
    rng = np.random.default_rng([seed, 1])
    tastes, levels = (rng.integers(NUM_LEVELS, size=(num, len(COLUMNS))) for num in (num_users, num_items))
    present = rng.random((num_items, len(COLUMNS))) >= missing
    present[:, 0] = True
    present[~present[:, 1:].any(1), 1] = True
    new = np.zeros(num_items, bool)
    new[rng.permutation(num_items)[: round(NEW_SHARE * num_items)]] = True
    users = rng.permutation(np.arange(n) % num_users)
    items = np.full(n, -1)
    shop = Shop(n, seed, missing, label_noise, parts, tastes, levels, present, new, users, items)
    weights = shop.weights(COLUMNS, known=None)
    end = _train_rows(parts)
    choose(items, users, range(end), weights=np.where(new, 0.0, weights), noise=label_noise, rng=rng)
    choose(items, users, range(end, n), weights=weights, noise=label_noise, rng=rng)
    return shop if folder is None else shop.write(folder)


def _train_rows(splits: Mapping[str, range]) -> int:
    """Return the number of rows of the first split, or 80 % of those of a single one: until then no item is new."""
    first = next(iter(splits.values()))
    return first.stop if len(splits) > 1 else min(round(0.8 * first.stop), first.stop - 1)


def column_sets() -> list[frozenset[str]]:
    """Return every non-empty set of columns, the small ones first."""
    sets = [frozenset(name for bit, name in enumerate(COLUMNS) if number >> bit & 1) for number in range(1, 8)]
    return sorted(sets, key=lambda chosen: (len(chosen), [name not in chosen for name in COLUMNS]))


def _checked(columns: Collection[str]) -> frozenset[str]:
    chosen = frozenset([columns] if isinstance(columns, str) else columns)
    for name in sorted(chosen - set(COLUMNS)):
        do = nearest(name, COLUMNS) or "choose one of the columns above"
        raise ConfigError(f"the shop sample has no column {name!r}", expected=", ".join(COLUMNS), do=do)
    return chosen


def _csv_bytes(rows: list[dict[str, object]] | list[dict[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _readme(shop: Shop) -> str:
    tables = "\n".join(f"- `{name}.csv`: {len(rows)} rows" for name, rows in shop.splits.items())
    lines = []
    for chosen, value in shop.ceilings.items():
        kinds = " | ".join(f"{shop.best(chosen, items=items)['ndcg@10']:.4f}" for items in ("all", "known", "new"))
        lines.append(f"| {', '.join(name for name in COLUMNS if name in chosen)} | {value:.4f} | {kinds} |")
    ceilings = "\n".join(lines)
    return f"""# Choices in a shop, generated by fusetune

`make_shop(n={shop.num_rows}, seed={shop.seed}, missing={shop.missing}, label_noise={shop.label_noise})`. Nothing here \
is real.

{tables}
- `items.csv`: {len(shop.levels)} items, {int(shop.new.sum())} of them new after the first split, or after 80 % of the \
rows of a single one

    fusetune fit {next(iter(shop.splits))}.csv --user {USER} --item {ITEM} catalogue=items.csv

Each item has three factors of {NUM_LEVELS} levels: a theme ({", ".join(wares.THEMES)}), which its description tells; \
a colour ({", ".join(wares.COLOURS)}), which its picture shows; a circle, which no cell shows. Each of \
{len(shop.tastes)} users likes one level of each factor and chooses an item {MATCH[1]:g} times as often if it has \
the user's theme, {MATCH[2]:g} times if it has the colour and {MATCH[0]:g} times if it has the circle; with \
probability {shop.label_noise} a choice is made at random. No user chooses an item twice. A description or a picture \
is missing with probability {shop.missing}.

Best reachable nDCG@10, by the probabilities that made the choices: for each user of the last split, among all items \
but those that the user chose in the first one. The id of a known item, which someone chose in the first split, shows \
all three factors; the id of a new one none. Expected, and on these rows; of known and of new items, the right answers \
of one kind alone.

| columns | expected | these rows | known items | new items |
| --- | --- | --- | --- | --- |
{ceilings}
"""
