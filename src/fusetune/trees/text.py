"""Load boosters from LightGBM's text format, after checking that the text is a valid model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from fusetune._optional import optional_import

EXTRAS = ("split_gain", "internal_value", "internal_weight", "internal_count")


def lightgbm() -> ModuleType:
    """Return the module `lightgbm`.

    Raises:
        MissingExtra: it is not installed.
    """
    return optional_import("lightgbm", "to grow or read trees (fusion: stack)")


def load_booster(text: str, width: int, trees_per_round: int) -> Any:
    """Load a booster.

    Args:
        text: from `Booster.model_to_string`.
        width: number of features.
        trees_per_round: trees that each round adds.

    Raises:
        MissingExtra: LightGBM is not installed.
        KeyError, ValueError: the text is not a complete model with these numbers.
    """
    library = lightgbm()
    check_booster(text, width, trees_per_round)
    return library.Booster(model_str=text)


def check_booster(text: str, width: int, trees_per_round: int = 1) -> None:
    """Refuse text that is not a complete LightGBM model with these numbers of features and of trees per round.

    LightGBM's reader trusts the sizes in the text, and reads out of bounds if they are wrong. So all sizes and indices
    are checked first: the trees' sizes, the lengths of their lists, that children come after their parents, and that
    features, leaves and categories exist.

    Args:
        text: from `Booster.model_to_string`.
        width: number of features.
        trees_per_round: trees that each round adds.

    Raises:
        KeyError, ValueError: the text is not such a model.
    """
    head, separator, _ = text.partition("\nTree=0\n")
    header = dict(line.split("=", 1) for line in head.splitlines() if "=" in line)
    if not separator or not head.startswith("tree\n") or int(header["max_feature_idx"]) != width - 1:
        raise ValueError(f"no trees on {width} features")
    sizes = [int(part) for part in header["tree_sizes"].split()]
    if len(sizes) % trees_per_round or {int(header["num_class"]), int(header["num_tree_per_iteration"])} != {
        trees_per_round
    }:
        raise ValueError(f"no rounds of {trees_per_round} trees")
    raw, start = text.encode("utf-8"), len(head.encode("utf-8")) + 1
    if len(header["feature_names"].split(" ")) != width or len(header["feature_infos"].split(" ")) != width:
        raise ValueError("features that are not those of the trees")
    for number, size in enumerate(sizes):
        block = raw[start : start + size].decode("utf-8")
        start += size
        if size < 1 or not re.match(rf"Tree={number}\n", block) or not block.endswith("\n\n"):
            raise ValueError(f"tree {number} is not where it should be")
        _check_tree({key: value for key, _, value in (line.partition("=") for line in block.splitlines())}, width)
    if not raw[start:].startswith(b"end of trees\n"):
        raise ValueError("trees without an end")


def _check_tree(fields: Mapping[str, str], width: int) -> None:
    """Refuse a tree whose lists are inconsistent.

    Raises:
        KeyError, ValueError: a list is missing, has the wrong length or values out of range.
    """
    leaves, cats = int(fields["num_leaves"]), int(fields["num_cat"])

    def numbers(name: str, length: int, low: float, high: float) -> np.ndarray:
        values = np.asarray(fields.get(name, "").split(), dtype=np.float64)
        if len(values) != length or not ((values >= low) & (values <= high)).all():
            raise ValueError(f"a tree's {name} is invalid")
        return values

    nodes, any_number = leaves - 1, np.finfo(np.float64).max
    if leaves < 1 or int(fields.get("is_linear", 0)):
        raise ValueError("a tree with linear leaves, or without any leaf")
    numbers("leaf_value", leaves, -any_number, any_number)
    for name, length in {"leaf_weight": leaves, "leaf_count": leaves}.items() | dict.fromkeys(EXTRAS, nodes).items():
        if name in fields and (nodes or fields[name]):
            numbers(name, length, -any_number, any_number)
    if not nodes:
        return
    numbers("split_feature", nodes, 0, width - 1)
    kinds = numbers("decision_type", nodes, 0, 255).astype(int)
    thresholds = numbers("threshold", nodes, -np.inf, np.inf)  # infinite if only missing values are split off
    for side in ("left_child", "right_child"):
        children = numbers(side, nodes, -leaves, nodes - 1)  # below 0: a leaf, counted from -1
        if ((children >= 0) & (children <= np.arange(nodes))).any():
            raise ValueError("a tree whose child comes before its parent")
    categorical = kinds % 2 == 1
    if cats:
        ends = numbers("cat_boundaries", cats + 1, 0, 2**31 - 1)
        numbers("cat_threshold", int(ends[-1]), 0, 2**32 - 1)
        if ends[0] != 0 or (np.diff(ends) < 0).any():
            raise ValueError("a tree's cat_boundaries is invalid")
    category_sets = thresholds[categorical]
    if not ((category_sets >= 0) & (category_sets < cats) & (np.floor(category_sets) == category_sets)).all():
        raise ValueError("a tree that splits by categories it does not have")
