"""LightGBM's text format: read by LightGBM's own reader, once it is known to be whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from fusetune._optional import optional_import

EXTRAS = ("split_gain", "internal_value", "internal_weight", "internal_count")


def lightgbm() -> ModuleType:
    """The library.

    Raises:
        MissingExtra: it is not installed.
    """
    return optional_import("lightgbm", "to grow or read trees (fusion: stack)")


def read_trees(text: str, width: int, many: int) -> Any:
    """The booster that LightGBM wrote.

    Args:
        text: as `Booster.model_to_string` gives it.
        width: features.
        many: trees a round.

    Raises:
        MissingExtra: LightGBM is not installed.
        KeyError, ValueError: it is no whole model of these features.
    """
    library = lightgbm()
    check_trees(text, width, many)
    return library.Booster(model_str=text)


def check_trees(text: str, width: int, many: int = 1) -> None:
    """Refuse text that is no whole LightGBM model of so many features, with so many trees a round.

    LightGBM's reader trusts the sizes in its text and reads past its end where they are wrong; so everything by which
    it finds its way is checked before: the trees' sizes, the lengths of their lists, and that children come after
    their parents and features, leaves and categories are there.

    Raises:
        ValueError: it is none.
    """
    head, found, _ = text.partition("\nTree=0\n")
    said = dict(line.split("=", 1) for line in head.splitlines() if "=" in line)
    if not found or not head.startswith("tree\n") or int(said["max_feature_idx"]) != width - 1:
        raise ValueError(f"no trees on {width} features")
    sizes = [int(part) for part in said["tree_sizes"].split()]
    if len(sizes) % many or {int(said["num_class"]), int(said["num_tree_per_iteration"])} != {many}:
        raise ValueError(f"no rounds of {many} trees")
    raw, start = text.encode("utf-8"), len(head.encode("utf-8")) + 1
    if len(said["feature_names"].split(" ")) != width or len(said["feature_infos"].split(" ")) != width:
        raise ValueError("features that are not those of the trees")
    for number, size in enumerate(sizes):
        block = raw[start : start + size].decode("utf-8")
        start += size
        if size < 1 or not re.match(rf"Tree={number}\n", block) or not block.endswith("\n\n"):
            raise ValueError(f"tree {number} is not where it should be")
        _check_tree({key: value for key, _, value in (line.partition("=") for line in block.splitlines())}, width)
    if not raw[start:].startswith(b"end of trees\n"):
        raise ValueError("trees without an end")


def _check_tree(said: Mapping[str, str], width: int) -> None:
    """Refuse a tree whose lists do not fit together."""
    leaves, cats = int(said["num_leaves"]), int(said["num_cat"])

    def numbers(name: str, length: int, low: float, high: float) -> np.ndarray:
        values = np.asarray(said.get(name, "").split(), dtype=np.float64)
        if len(values) != length or not ((values >= low) & (values <= high)).all():
            raise ValueError(f"a tree's {name} cannot be so")
        return values

    nodes, any_number = leaves - 1, np.finfo(np.float64).max
    if leaves < 1 or int(said.get("is_linear", 0)):
        raise ValueError("a tree of another sort")
    numbers("leaf_value", leaves, -any_number, any_number)
    for name, length in {"leaf_weight": leaves, "leaf_count": leaves}.items() | dict.fromkeys(EXTRAS, nodes).items():
        if name in said and (nodes or said[name]):
            numbers(name, length, -any_number, any_number)
    if not nodes:
        return
    numbers("split_feature", nodes, 0, width - 1)
    kinds = numbers("decision_type", nodes, 0, 255).astype(int)
    thresholds = numbers("threshold", nodes, -np.inf, np.inf)  # infinite where only missing ones part
    for side in ("left_child", "right_child"):
        children = numbers(side, nodes, -leaves, nodes - 1)  # below 0: a leaf, counted from -1
        if ((children >= 0) & (children <= np.arange(nodes))).any():
            raise ValueError("a tree whose child comes before its parent")
    categorical = kinds % 2 == 1
    if cats:
        ends = numbers("cat_boundaries", cats + 1, 0, 2**31 - 1)
        numbers("cat_threshold", int(ends[-1]), 0, 2**32 - 1)
        if ends[0] != 0 or (np.diff(ends) < 0).any():
            raise ValueError("a tree's cat_boundaries cannot be so")
    places = thresholds[categorical]
    if not ((places >= 0) & (places < cats) & (np.floor(places) == places)).all():
        raise ValueError("a tree that splits by categories it does not have")
