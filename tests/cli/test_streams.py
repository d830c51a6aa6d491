"""Outputs that cannot take every character, or are closed."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from fusetune.cli.streams import make_safe
from fusetune.cli import common
make_safe()
common.print_json({"label": "caf\\u00e9 \\u65e5\\u672c \\U0001F600 \\udcff"})
print("naïve→", file=sys.stderr)
common.console().print("日本")
"""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8", "latin-1"])
def test_every_label_is_printed(encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    label = json.loads(done.stdout.decode(encoding).splitlines()[0])["label"]
    assert label == "café 日本 \U0001f600 \udcff"


@pytest.mark.parametrize("closing", [">&-", "2>&-", ">&- 2>&-", "> /dev/full 2>&1"])
def test_closed_and_full_outputs_show_no_traceback(closing):
    command = f'"{sys.executable}" -m fusetune samples --json {closing}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    assert done.returncode == (1 if "full" in closing else 0), done.stderr
