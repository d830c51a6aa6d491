"""Every family of encoder that transformers has, tiny and random, through the contract suite."""

from pathlib import Path

import pytest

from fusetune.backbones.load import load_backbone
from fusetune.testing import tiny_models as tiny
from fusetune.testing.backbones import check_backbone


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def model(home: Path, name: str) -> Path:
    return home / name if (home / name).exists() else tiny.make(name, home / name)


@pytest.mark.parametrize(("name", "kind"), tiny.CASES)
def test_contract(name: str, kind: str, home: Path, tmp_path: Path) -> None:
    check_backbone(load_backbone(str(model(home, name)), kind), tmp_path / "saved")


@pytest.mark.parametrize(("name", "kind"), tiny.CASES)
def test_every_token(name: str, kind: str, home: Path, tmp_path: Path) -> None:
    backbone = load_backbone(str(model(home, name)), kind, pool="none")
    check_backbone(backbone, tmp_path / "saved")


@pytest.mark.parametrize("kind", ["image", "audio"])
@pytest.mark.parametrize("pool", ["auto", "none"])
def test_small(kind: str, pool: str, tmp_path: Path) -> None:
    check_backbone(load_backbone(None, kind, pool=pool), tmp_path / "saved")
