"""Parse YAML of strangers: no custom tags, no duplicate keys, no anchors that expand without measure."""

from __future__ import annotations

from typing import Any

import yaml

from fusetune.security.untrusted import MIB, refuse_code

YAML_BYTES = 4 * MIB
_IMPLICIT = {f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "null", "timestamp", "value")}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """A YAML loader that refuses duplicate keys, which PyYAML accepts, and reads keys as strings.

    Keys are names of settings, columns and labels: `no`, `01` and `2020` are not a boolean and numbers.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is no text", key_node.start_mark)
            if key_node.tag in _IMPLICIT:
                key_node.tag = "tag:yaml.org,2002:str"
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]


def parse_yaml(text: str) -> Any:
    """Parse YAML without custom tags; anchors may be used within a limit on the expanded size.

    Raises:
        YAMLError, ValueError: it is not valid YAML, has a custom tag, asks for code to be run, or is too long, nested
            too deeply or expands too much.
    """
    if len(text) > YAML_BYTES:
        raise ValueError(f"it has {len(text):,} characters; at most {YAML_BYTES:,} are read")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        sizes: dict[int, int] = {}
        if _expanded(node, sizes) > 10_000 + 10 * len(sizes):
            raise ValueError("its anchors make too much of it")
        data = loader.construct_document(node)
        refuse_code(data)
        return data
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (OverflowError, AttributeError, TypeError, KeyError) as error:  # PyYAML's own, for odd figures and dates
        raise ValueError(f"a value cannot be read: {error}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _expanded(node: Any, sizes: dict[int, int]) -> int:
    """Count a node and the nodes below it, with every repetition by an anchor."""
    if id(node) in sizes:
        if sizes[id(node)] == 0:
            raise ValueError("it contains itself")
        return sizes[id(node)]
    sizes[id(node)], size = 0, 1
    for part in node.value if not isinstance(node, yaml.ScalarNode) else ():
        size += sum(_expanded(child, sizes) for child in (part if isinstance(part, tuple) else (part,)))
    sizes[id(node)] = size
    return size
