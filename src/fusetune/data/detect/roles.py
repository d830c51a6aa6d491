"""Detection of roles by a column's name and cells: identifiers, groups, splits, weights, constants."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MIN_ROWS = 20
MIN_GROUPS = 10
UNIQUE = 0.98
REPEATED = 0.3
"""Minimum share of distinct cells in a column that its name calls an identifier."""

SPLIT_NAMES = {"split", "fold", "subset", "partition", "set", "phase", "data_split", "dataset_split"}
FOLD_NAMES = {"fold", "folds", "cv_fold", "kfold", "fold_id", "cv"}
WEIGHT_NAMES = {"sample_weight", "sample_weights", "row_weight", "instance_weight", "case_weight"}
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "development": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Maps the cells of a split column, in lower case, to splits."""

_ID_WORDS = {"id", "ids", "uuid", "guid", "idx", "index", "rowid", "hash", "md5", "sha1", "sha256", "key", "pk"}
_OWNERS = {
    "patient", "subject", "participant", "person", "speaker", "user", "customer", "client", "student", "member",
    "household", "volunteer", "donor", "respondent", "author", "singer", "actor", "sender", "narrator", "caller",
}  # fmt: skip
_SOURCES = {"dialogue", "dialog", "conversation", "session", "document", "doc", "thread", "recording"}
"""What several rows may come from; they count only with a suffix such as "id", as `document` may hold the text."""
_ROW_THINGS = {"row", "record", "sample", "utterance", "utt", "message", "turn", "sentence", "segment", "line", "entry"}
"""Names of a row: their identifiers only number the rows, even if they restart in every document."""
_OWNER_ENDINGS = _ID_WORDS | {"no", "nr", "number", "num", "code", "name"}
_NUMBERED = {
    ("sr", "no"),
    ("s", "no"),
    ("sl", "no"),
    ("serial", "no"),
    ("serial", "number"),
    ("serial", "num"),
    ("row", "no"),
    ("row", "num"),
    ("row", "number"),
    ("line", "no"),
    ("no",),
    ("nr",),
    ("sno",),
    ("srno",),
    ("slno",),
    ("lfd", "nr"),
}
"""Names of row numbers, split into words."""
_INDEXES = re.compile(
    r"unnamed: ?\d+(\.\d+)*(_level_\d+)?|level_\d+|row[._ ]?names?|__index_level_\d+__|\.{3}1|_c0", re.IGNORECASE
)
"""Names that pandas, R and Spark give to an exported index."""
_CODES = {
    "zip", "zipcode", "postcode", "postal", "plz", "sku", "dept", "department", "fips", "naics", "sic", "isbn", "ean",
    "upc", "gtin", "msa", "code", "codes", "cd",
}  # fmt: skip
"""Words in the names of columns whose integers are codes, without magnitude or order."""
FEW_OWNERS = 3
_THINGS = _OWNERS | {
    "item", "product", "order", "image", "case", "session", "record", "row", "doc", "document", "sample", "account",
    "ticket", "movie", "film", "post", "tweet", "video", "article", "study", "file", "question", "review", "listing",
} | _SOURCES | _ROW_THINGS  # fmt: skip
_TIME_WORDS = {"year", "date", "day", "month", "time", "timestamp", "hour", "week"}

_HASH = re.compile(r"[0-9a-f]{16,}|[0-9A-F]{16,}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,30}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class DetectedRole:
    """A detected role with the reason."""

    role: str
    reason: str


def words_of(name: str) -> list[str]:
    """Split a column name into lower-case words: "patientID", "patient_id" and "patientid" give ["patient", "id"]."""
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    words: list[str] = []
    for word in re.split(r"[\W_]+", spaced.lower()):
        stem = word[:-2] if word.endswith("id") else ""
        words += [stem, "id"] if stem in _THINGS else [word] if word else []
    return words


def names_things(name: str) -> bool:
    """Return whether a column is named like an identifier."""
    words = words_of(name)
    return bool(words) and (words[-1] in _ID_WORDS or words[0] in _ID_WORDS)


def names_codes(name: str, cells: Sequence[Any]) -> bool:
    """Return whether a column is named like a code (a postal code, say) and its values repeat twice on average."""
    return bool(set(words_of(name)) & _CODES) and len({str(cell) for cell in cells}) * 2 <= len(cells)


def looks_like_owners(name: str, cells: Sequence[Any]) -> int:
    """Return the number of speakers, patients, users or documents in a column, with at least five rows each; else 0.

    `find_role` gives a column of many owners the role group. Few of them may be meant as an input.
    """
    num = len({str(cell) for cell in cells})
    if not _names_owners(words_of(name)) or not FEW_OWNERS <= num <= len(cells) / 5:
        return 0
    return num


def _names_owners(words: list[str]) -> bool:
    if not words or not set(words[1:]) <= _OWNER_ENDINGS:
        return False
    return words[0] in _OWNERS or (words[0] in _SOURCES and len(words) > 1 and words[-1] != "name")


def is_integer(cell: Any) -> bool:
    """Return whether a cell is an integer, or text that spells one."""
    return bool(_INTEGER.fullmatch(str(cell).strip()))


def find_role(name: str, kind: str, cells: Sequence[Any], num_missing: int) -> DetectedRole | None:
    """Return the role of a column that is not a plain input, or None.

    Args:
        name: the column's name.
        kind: its kind.
        cells: an evenly spaced sample of its cells, none missing, in the table's order; at least one.
        num_missing: number of missing cells at the sampled rows.
    """
    texts = [cell if isinstance(cell, bytes) else str(cell) for cell in cells]
    distinct = set(texts)
    plain_name = "_".join(words_of(name))
    lowered = {str(text).strip().casefold() for text in distinct} if len(distinct) <= 50 else set()
    if plain_name in SPLIT_NAMES and lowered and lowered <= SPLIT_WORDS.keys():
        named = {SPLIT_WORDS[word] for word in lowered}
        if "train" in named and len(named) > 1:
            return DetectedRole("split", f"its cells say {', '.join(sorted(lowered))}")
    if len(distinct) == 1 and not num_missing:
        return DetectedRole("ignore", f"constant: all {len(cells)} cells looked at are {_brief(texts[0])}")
    if plain_name in FOLD_NAMES and lowered and all(_INTEGER.fullmatch(word) for word in lowered):
        return DetectedRole("ignore", f"numbers {len(distinct)} folds; to split by it, name it as the split column")
    if plain_name in WEIGHT_NAMES and kind == "number" and all(_weight(text) for text in texts):
        return DetectedRole("weight", "the name says that it weighs the rows; no cell is negative")
    if kind in ("image", "audio", "date"):
        return None
    strings = [text for text in texts if isinstance(text, str)]
    if reason := _index(name, strings):
        return DetectedRole("id", reason)
    return _group(name, strings) or _identifier(name, kind, strings)


def _weight(text: Any) -> bool:
    return bool(_NUMBER.fullmatch(str(text).strip())) and float(text) >= 0


def _brief(text: Any) -> str:
    shown = repr(text)
    return shown if len(shown) <= 40 else f"{shown[:39]}…"


def _index(name: str, texts: list[str]) -> str | None:
    """Return the explanation if a column is an index or a row number, else None."""
    words, integers = words_of(name), bool(texts) and all(_INTEGER.fullmatch(text.strip()) for text in texts)
    distinct = len(set(texts))
    if _INDEXES.fullmatch(name.strip()) and (integers or distinct >= 0.9 * len(texts)):
        return "an index that another program wrote: it only tells rows apart"
    if integers and tuple(words) in _NUMBERED and distinct >= REPEATED * len(texts):
        return "the name says that it numbers the rows"
    if integers and len(words) > 1 and words[-1] in _ID_WORDS and words[-2] in _ROW_THINGS and distinct > FEW_OWNERS:
        return f"the name says that it numbers a {words[-2]}: it only tells rows apart"
    return None


def _group(name: str, texts: list[str]) -> DetectedRole | None:
    """Detect a column whose rows belong to persons or documents and must not be split across train and test."""
    words = words_of(name)
    if not _names_owners(words):
        return None
    counts = Counter(texts)
    if not MIN_GROUPS <= len(counts) <= 0.9 * len(texts) or max(counts.values()) > len(texts) / 3:
        return None
    return DetectedRole(
        "group", f"{len(counts)} {words[0]}s in {len(texts)} rows: the rows of one stay on one side of the split"
    )


def _identifier(name: str, kind: str, texts: list[str]) -> DetectedRole | None:
    """Detect a column whose values only identify rows."""
    num = len(texts)
    share = len(set(texts)) / num
    if num < 2 or share < REPEATED:
        return None
    unique = f"{len(set(texts))} distinct values in {num} cells"
    spaced = sum(any(char.isspace() for char in text.strip()) for text in texts) / num
    if names_things(name) and spaced < 0.05 and not _fractional(texts):
        if share >= UNIQUE:
            return DetectedRole("id", f"the name and {unique} say that it only tells rows apart")
        if num >= MIN_ROWS:
            return DetectedRole(
                "id",
                f"the name and {unique} say that it tells things apart; if their rows belong "
                "together, give it the role group",
            )
    if share < UNIQUE or num < MIN_ROWS or set(words_of(name)) & _TIME_WORDS:
        return None
    look = _counting(texts) or _code_like(texts, spaced)
    return DetectedRole("id", f"{unique}, {look}: it only tells rows apart") if look else None


def _fractional(texts: list[str]) -> bool:
    numbers = [text for text in texts if _NUMBER.fullmatch(text.strip())]
    return len(numbers) > len(texts) / 2 and any(not float(text).is_integer() for text in numbers)


def _counting(texts: list[str]) -> str | None:
    if not all(_INTEGER.fullmatch(text.strip()) for text in texts):
        return None
    numbers = [int(text) for text in texts]
    if max(numbers) - min(numbers) + 1 == len(numbers):
        return f"counting from {min(numbers)} to {max(numbers)}"
    steps = {after - before for before, after in itertools.pairwise(numbers)}
    if len(steps) <= 2 and min(steps) > 0 and max(steps) - min(steps) <= 1:
        return f"rising evenly from {min(numbers)} to {max(numbers)}"
    if min(map(abs, numbers)) > 2**53:
        return "integers beyond 2^53"
    return None


def _code_like(texts: list[str], spaced: float) -> str | None:
    num = len(texts)
    quantities = sum(
        bool(_NUMBER.fullmatch(text.strip())) and not text.strip().lstrip("+-").isdigit() for text in texts
    )
    if spaced > 0.05 or quantities >= 0.95 * num:  # 1.5e-01 has digits and a letter, but is a number
        return None
    if sum(bool(_HASH.fullmatch(text)) for text in texts) / num >= 0.95:
        return "hexadecimal like hashes"
    shapes: dict[str, int] = {}
    for text in texts:
        shape = re.sub(r"\d", "9", text)
        shapes[shape] = shapes.get(shape, 0) + 1
    shape, count = max(shapes.items(), key=lambda item: item[1])
    # A number with a unit or a currency ("12kg") is a quantity; a code is longer and begins with letters.
    if count / num >= 0.9 and len(shape) >= 5 and "99" in shape and shape[0].isalpha():
        return f"all of the form {shape!r}"
    mixed = sum(len(text) >= 8 and bool(re.search(r"\d", text)) and bool(re.search("[A-Za-z]", text)) for text in texts)
    if mixed / num >= 0.9 and len({len(text) for text in texts}) == 1:
        return f"codes of {len(texts[0])} characters"
    return None
