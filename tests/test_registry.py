"""Names of parts, and plug-ins that are not there."""

import pytest

from fusetune.errors import ConfigError
from fusetune.registry import Registry


def test_a_plug_in_that_cannot_be_loaded_is_told():
    table = Registry("fusion", {"plain": "collections:OrderedDict"})
    table.register("there", "collections:Counter")
    table.register("gone", "fusetune_gone.parts:Gone")
    table.register("renamed", "collections:Contre")
    assert table.get("plain").__name__ == "OrderedDict" and table.get("there").__name__ == "Counter"
    for name in ("gone", "renamed"):
        with pytest.raises(ConfigError, match=rf"(?s)plug-in of the fusion '{name}'.*install or update"):
            table.get(name)
    with pytest.raises(ConfigError, match=r"(?s)no fusion called 'xyzzy'.*install the plug-in"):
        table.get("xyzzy")
