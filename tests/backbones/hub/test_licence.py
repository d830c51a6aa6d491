"""The licence that a backbone's source states."""

from __future__ import annotations

import pytest

from fusetune.backbones.hub.licence import stated_licence


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({"README.md": "---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\nlicense: mit\n"}, "apache-2.0"),
        ({"README.md": '---\nlicense: "cc-by-nc-4.0"\n---\n', "LICENSE": "MIT License\n"}, "cc-by-nc-4.0"),
        ({"README.md": "# A model\nlicense: mit\n", "LICENSE": "\n  MIT License\nCopyright"}, "MIT License"),
        ({"README.md": b"---\n\xff\xfe"}, ""),
        ({}, ""),
    ],
)
def test_folders(files, licence, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert stated_licence(str(tmp_path)) == licence


def test_what_is_not_cached_is_not_stated():
    assert stated_licence("nobody/has-this-model@main") == ""
