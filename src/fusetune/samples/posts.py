"""`make_posts`: short posts with a picture, which alone tells the types of most entities."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusetune.errors import ConfigError, StorageError, nearest, reason
from fusetune.samples import rule, scenes
from fusetune.samples.splits import split_rows

TARGET = "entities"
COLUMNS = ("text", "picture")
LABELS = ("person", "place", "product")
"""The types of entities, each as frequent as the others."""

CLEAR_SHARE = 0.5
"""Probability that a post has a second entity, whose type its name tells."""

AMBIGUOUS = (
    "Jordan", "Georgia", "Florence", "Chelsea", "Austin", "Sydney", "Mercedes", "Bentley", "Lincoln", "Tesla",
    "Madison", "Aspen", "Orlando", "Savannah", "Denver", "Dakota", "Brooklyn", "Phoenix", "Victoria", "Paris",
)  # fmt: skip
"""Names of people, places and products alike."""

CLEAR = (
    ("Messi", "Beyonce", "Barack Obama", "Greta Thunberg", "Serena Williams", "Rihanna"),
    ("Tokyo", "Lisbon", "Nairobi", "New York", "Lake Garda", "Buenos Aires"),
    ("Nutella", "Lego", "PlayStation", "Coca Cola", "Apple Watch", "Thermomix"),
)
"""Names that have one type, by type."""

_POSTS = (
    "just saw {x} again and i am speechless", "nobody talks about {x} enough", "{x} is all i think about today",
    "told you {x} would be worth it", "my sister loves {x} more than me lol", "day 3 with {x} , no regrets",
    "can we please talk about {x} ?", "finally {x} ! waited so long", "this is why i adore {x}",
    "first impression of {x} : wow", "look who found {x} this morning", "{x} never gets old",
    "so happy about {x} right now", "honestly {x} was better last year", "i could look at {x} all day",
)  # fmt: skip
_MORE = ("", "", " #mood", " #monday", " :)", " !!!", " no filter", " haha", " #throwback")
_CLEAR_POSTS = (" and next is {y}", " , like {y} back then", " ( {y} is jealous )", " , then {y} tomorrow")


@dataclass(frozen=True)
class Posts:
    """Posts with their ground truth.

    Attributes:
        num_rows: rows of all splits together.
        seed: of all random draws; row i of a seed is the same for every `num_rows`.
        missing: probability that a picture is missing.
        label_noise: probability that the type of an ambiguous name is one of the other two.
        splits: by table, its range of rows; the ranges are contiguous.
        shown: `(rows,)` int64, the type that the picture shows, an index into `LABELS`.
        labels: `(rows,)` int64, the type of the ambiguous name, label noise included.
        present: `(rows,)` bool, False where the picture is missing.
        texts: the posts.
        spans: by row, its entities as (start, end, label), the ambiguous name first.
        path: the folder that holds the files, None before `write`.
    """

    num_rows: int
    seed: int
    missing: float
    label_noise: float
    splits: Mapping[str, range]
    shown: np.ndarray
    labels: np.ndarray
    present: np.ndarray
    texts: list[str]
    spans: list[list[tuple[int, int, str]]]
    path: Path | None = None

    @property
    def ceilings(self) -> dict[frozenset[str], float]:
        """The best reachable F1 of exact entities, micro-averaged, from the text alone and with the picture.

        It is the F1 of the expected counts: every name is found, names of one type are right, and the others are right
        as often as the best guess of their type, or left out where that scores higher. A picture alone has no F1.
        """
        return {frozenset({"text"}): self._best({"text"})[0], frozenset(COLUMNS): self._best(COLUMNS)[0]}

    def _best(self, columns: Collection[str]) -> tuple[float, bool]:
        """Return the best reachable F1, and whether ambiguous names without a picture are guessed for it."""
        shares = (1 - self.missing, self.missing) if "picture" in columns else (0.0, 1.0)
        return _best_f1(shares[0], 1 - self.label_noise, shares[1], 1 / len(LABELS))

    @property
    def tables(self) -> dict[str, Path]:
        """The JSONL file of each split.

        Raises:
            ConfigError: the posts have not been written.
        """
        if self.path is None:
            raise ConfigError("these posts are not written yet", do="call write(folder) and use the value it returns")
        return {name: self.path / f"{name}.jsonl" for name in self.splits}

    def best_f1(self, columns: Iterable[str] = COLUMNS, *, split: str | None = None) -> float:
        """Return the F1 on the rows of a split of someone who knows the names and reads these columns.

        Unlike `ceilings`, it has the sampling noise of these rows, as a model's F1 on them has. Without a picture the
        type "person" is guessed, or the name is left out where that scores higher.

        Args:
            columns: "text", or "text" and "picture".
            split: a name in `splits`, None for all rows.
        """
        chosen = set(columns)
        for name in sorted(chosen - set(COLUMNS)):
            do = nearest(name, COLUMNS) or "choose one of the columns above"
            raise ConfigError(f"the posts sample has no column {name!r}", expected=", ".join(COLUMNS), do=do)
        rows = self._rows(split)
        seen = (self.present & ("picture" in chosen))[rows]
        right = np.where(seen, self.shown[rows], 0) == self.labels[rows]
        guessed = seen | self._best(chosen)[1]
        clear = sum(len(self.spans[row]) - 1 for row in rows)
        return float(2 * ((right & guessed).sum() + clear) / (guessed.sum() + len(rows) + 2 * clear))

    def cells(self, row: int) -> dict[str, object]:
        """Return a row of the JSONL file; the picture is None where it is missing, the target comes last."""
        entities = [{"start": start, "end": end, "label": label} for start, end, label in self.spans[row]]
        picture = f"pictures/{row:06d}.png" if self.present[row] else None
        return {"text": self.texts[row], "picture": picture, TARGET: entities}

    def write(self, folder: Path | str) -> Posts:
        """Write the tables, `pictures/` and a `README.md` with the ceilings.

        Existing files of these names are overwritten. Paths in the tables are relative to the tables.

        Args:
            folder: created if it does not exist.

        Returns:
            These posts with `path` set.

        Raises:
            StorageError: a file could not be written.
        """
        written = dataclasses.replace(self, path=Path(folder))
        try:
            (Path(folder) / "pictures").mkdir(parents=True, exist_ok=True)
            for row in np.flatnonzero(self.present).tolist():
                picture = scenes.draw_scene(int(self.shown[row]), np.random.default_rng([self.seed, row, 2]))
                (Path(folder) / f"pictures/{row:06d}.png").write_bytes(scenes.png_bytes(picture))
            for name, file in written.tables.items():
                lines = [json.dumps(self.cells(row)) + "\n" for row in self.splits[name]]
                file.write_text("".join(lines), encoding="utf-8")
            (Path(folder) / "README.md").write_text(self.readme(), encoding="utf-8")
        except OSError as error:
            raise StorageError(f"the posts cannot be written to {folder}: {reason(error)}") from error
        return written

    def readme(self) -> str:
        """Return the folder's README as Markdown: the columns, the rule and the ceilings."""
        return _readme(self)

    def _rows(self, split: str | None) -> range:
        if split is None:
            return range(self.num_rows)
        if split not in self.splits:
            raise ConfigError(f"there is no split {split!r}", expected=", ".join(self.splits))
        return self.splits[split]


def make_posts(
    n: int = 2000,
    seed: int = 0,
    folder: Path | str | None = None,
    *,
    missing: float = 0.0,
    label_noise: float = 0.05,
    splits: Mapping[str, float] | None = None,
) -> Posts:
    """Generate posts with named entities whose types only their pictures tell.

    Columns: `text`, `picture` (PNG) and the target `entities`, a list of `{"start", "end", "label"}`. Every post has
    one of 20 names that people, places and products share; its type is what the picture shows, and no word tells it.
    Half of the posts have a second name, which always has the same type.

    Args:
        n: number of rows, at least 1.
        seed: 0 or more. The same seed gives the same files, byte for byte, with the same numpy and pillow.
        folder: where to write them; None generates them without writing.
        missing: probability in [0, 1) that a picture is missing.
        label_noise: probability in [0, 1/2] that the type of an ambiguous name is one of the other two.
        splits: table names with their shares of the rows, which sum to 1, such as {"train": 0.7, "test": 0.3}; each
            becomes `<name>.jsonl`. None makes one table, `posts.jsonl`.

    Raises:
        ConfigError: an argument is out of range.
        StorageError: a file could not be written.

    Example:
        >>> posts = make_posts(1000, seed=1)
        >>> round(posts.ceilings[frozenset({"text"})], 3), round(posts.ceilings[frozenset({"text", "picture"})], 3)
        (0.556, 0.967)
    """
    if n < 1 or seed < 0:
        raise ConfigError(
            "cannot make these posts", expected="n of 1 or more, seed of 0 or more", came=f"n={n}, seed={seed}"
        )
    rule.check_missing(missing)
    rule.check_noise(label_noise)
    shown, labels = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    present, texts, spans = np.empty(n, dtype=bool), [], []
    for row in range(n):
        rng = np.random.default_rng([seed, row, 1])
        shown[row] = rng.integers(len(LABELS))
        other = int(rng.integers(1, len(LABELS)))
        labels[row] = (shown[row] + other * (rng.random() < label_noise)) % len(LABELS)
        present[row] = rng.random() >= missing
        text, own = _write_post(LABELS[labels[row]], rng)
        texts.append(text)
        spans.append(own)
    parts = split_rows(n, splits or {"posts": 1.0})
    posts = Posts(n, seed, missing, label_noise, parts, shown, labels, present, texts, spans)
    return posts if folder is None else posts.write(folder)


def _write_post(label: str, rng: np.random.Generator) -> tuple[str, list[tuple[int, int, str]]]:
    """Return a post and its entities; the ambiguous name, of this label, comes first."""

    def pick(choices: tuple[str, ...]) -> str:
        return choices[int(rng.integers(len(choices)))]

    before, after = pick(_POSTS).split("{x}")
    name = pick(AMBIGUOUS)
    text, spans = f"{before}{name}{after}", [(len(before), len(before) + len(name), label)]
    if rng.random() < CLEAR_SHARE:
        kind = int(rng.integers(len(LABELS)))
        between, rest = pick(_CLEAR_POSTS).split("{y}")
        second = pick(CLEAR[kind])
        start = len(text) + len(between)
        text += between + second + rest
        spans.append((start, start + len(second), LABELS[kind]))
    return text + pick(_MORE), spans


def _best_f1(seen: float, sure: float, unseen: float, chance: float) -> tuple[float, bool]:
    """Return the best F1 of the expected counts of a post, and whether unseen names are guessed for it.

    Args:
        seen, unseen: the shares of the posts whose ambiguous name is seen in the picture, and is not.
        sure, chance: the probabilities that the best guess of its type is right, with the picture and without.
    """
    true = 1 + CLEAR_SHARE
    left_out = 2 * (CLEAR_SHARE + seen * sure) / (CLEAR_SHARE + seen + true)
    guessed = 2 * (CLEAR_SHARE + seen * sure + unseen * chance) / (2 * true)
    return max(left_out, guessed), guessed >= left_out


def _readme(posts: Posts) -> str:
    tables = "\n".join(f"- `{name}.jsonl`: {len(rows)} rows" for name, rows in posts.splits.items())
    shows = "\n".join(f"| {label} | {scene} |" for label, scene in zip(LABELS, scenes.SCENES, strict=True))
    ceilings = "\n".join(
        f"| {', '.join(column for column in COLUMNS if column in chosen)} | {f1:.4f} |"
        for chosen, f1 in posts.ceilings.items()
    )
    return f"""# Posts with pictures, generated by fusetune

`make_posts(n={posts.num_rows}, seed={posts.seed}, missing={posts.missing}, \
label_noise={posts.label_noise})`. Nothing here is real.

{tables}

The target is `{TARGET}`: spans of characters with the labels {", ".join(LABELS)}. Every post has one of \
{len(AMBIGUOUS)} names that people, places and products share. Its type is what the picture shows, each as often as \
the others, and no word tells it; with probability {posts.label_noise} it is another one. With probability \
{CLEAR_SHARE} there is a second name, which always has the same type. A picture is missing with probability \
{posts.missing}.

| type | picture |
| --- | --- |
{shows}

Best reachable F1 of exact entities:

| columns | F1 |
| --- | --- |
{ceilings}
"""
