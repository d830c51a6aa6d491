"""Finding, refusing and loading: what is right equals transformers, what is wrong says what to do."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from fusetune.backbones.hub import embedded
from fusetune.backbones.hub.listing import describe, list_backbones
from fusetune.backbones.load import load_backbone, restore_backbone
from fusetune.backbones.passes import grouping
from fusetune.errors import BackboneError, FolderError
from fusetune.testing import tiny_models
from fusetune.testing.backbones import collate, example_cells


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    for name in (
        "bert",
        "vit",
        "clip",
        "llama",
        "resnet",
        "dinov2",
        "t5",
        "whisper",
        "mobilenet",
        "siglip",
        "swin",
        "wav2vec2",
    ):
        tiny_models.make(name, home / name)
    return home


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "bert", tmp_path / "bert"))


@pytest.mark.parametrize("name", ["bert", "clip", "llama", "t5"])
def test_tokens_equal_the_processor(name: str, home: Path) -> None:
    """Also after somebody else has let the processor cut and pad as they like."""
    backbone = load_backbone(str(home / name), "text")
    texts = ["w1", "", "w1 w2 \n 🎉 [SEP]", "w3 " * 500]
    for _ in range(2):
        for text in texts:
            wanted = backbone.processor(text, truncation=True, max_length=backbone.max_tokens)["input_ids"]
            backbone.processor(
                "w1 w2 w3 w4", truncation=True, max_length=3, padding="max_length" if name == "bert" else False
            )
            assert backbone.tokenize(text).tolist() == (wanted or [backbone.inputs.filler])


@pytest.mark.parametrize("name", ["vit", "clip", "resnet", "dinov2", "mobilenet"])
@pytest.mark.parametrize("size", [(50, 70), (64, 64), (300, 41), (32, 32)])
def test_images_equal_the_processor(name: str, size: tuple[int, int], home: Path) -> None:
    backbone = load_backbone(str(home / name), "image")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    theirs = AutoImageProcessor.from_pretrained(str(home / name), backend="pil")(picture, return_tensors="pt")
    prepared = backbone.prepare_image(picture)
    assert prepared.dtype == np.uint8 and prepared.shape == (3, *backbone.image_size)
    torch.testing.assert_close(backbone.collate_images([prepared]), dict(theirs), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_pooling_equals_transformers(home: Path) -> None:
    bert, tokenizer = AutoModel.from_pretrained(str(home / "bert")), AutoTokenizer.from_pretrained(str(home / "bert"))
    ours = load_backbone(str(home / "bert"), "text")
    text = "w1 w2 w3"
    hidden = bert(**tokenizer(text, return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(ours(**ours.collate_text([ours.tokenize(text)])).values[0, 0], hidden[0].mean(0))
    llama = load_backbone(str(home / "llama"), "text")
    assert llama.pool == "last"
    ids = torch.tensor(llama.tokenize(text).astype(np.int64))[None]
    last = AutoModel.from_pretrained(str(home / "llama"))(input_ids=ids).last_hidden_state[0, -1]
    torch.testing.assert_close(llama(**llama.collate_text([llama.tokenize(text)])).values[0, 0], last)
    clip = AutoModel.from_pretrained(str(home / "clip"))
    tower = load_backbone(str(home / "clip"), "text")
    given = tower.collate_text([tower.tokenize(text)])
    torch.testing.assert_close(tower(**given).values[:, 0], clip.get_text_features(**given).pooler_output)
    assert tower.key != load_backbone(str(home / "clip"), "image").key
    assert tower.dim == load_backbone(str(home / "clip"), "image").dim == 12


def test_parts_belong_to_cells(home: Path) -> None:
    pixels = torch.randn(4, 3, 32, 32)
    owner = torch.tensor([1, 0, 1, 1])
    mean = load_backbone(str(home / "vit"), "image")
    alone, joined = mean(pixel_values=pixels).values, mean(pixel_values=pixels, owner=owner).values
    torch.testing.assert_close(joined[0], alone[1])
    torch.testing.assert_close(joined[1], alone[[0, 2, 3]].mean(0))
    every = load_backbone(str(home / "vit"), "image", pool="none")
    alone, cells = every(pixel_values=pixels).values, every(pixel_values=pixels, owner=owner)
    torch.testing.assert_close(cells.values[1], alone[[0, 2, 3]].flatten(0, 1))
    assert cells.mask.sum(1).tolist() == [17, 51]


@pytest.mark.parametrize("pool", ["mean", "none"])
def test_many_pictures_are_encoded_some_at_a_time(home: Path, monkeypatch, pool) -> None:
    pixels, owner = torch.randn(5, 3, 32, 32), torch.tensor([1, 0, 1, 1, 2])
    encoder = load_backbone(str(home / "vit"), "image", pool=pool).eval()
    passes = []
    whole = encoder.hidden_states
    monkeypatch.setattr(
        encoder, "hidden_states", lambda **given: passes.append(len(given["pixel_values"])) or whole(**given)
    )
    with torch.no_grad():
        plain = encoder(pixel_values=pixels, owner=owner)
        monkeypatch.setattr(grouping, "PICTURES", 2)
        pieces = encoder(pixel_values=pixels, owner=owner)
    torch.testing.assert_close(plain.values, pieces.values)
    assert torch.equal(plain.mask, pieces.mask) and plain.grid == pieces.grid
    assert passes == [5, 2, 2, 1]
    assert len(encoder(pixel_values=pixels, owner=owner).values) == 3 and passes[4:] == [5], "with gradients in one"


@pytest.mark.parametrize(
    ("name", "kind", "grid"),
    [
        ("resnet", "image", (0, 4, 4)),
        ("vit", "image", (1, 4, 4)),
        ("clip", "image", (1, 4, 4)),
        ("siglip", "image", (0, 4, 4)),
        ("swin", "image", None),  # it joins patches on the way
        ("bert", "text", None),
        ("wav2vec2", "audio", None),
    ],
)
def test_tokens_of_a_picture_say_how_they_lie_in_it(home: Path, name: str, kind: str, grid: object) -> None:
    backbone = load_backbone(str(home / name), kind, pool="none")
    tokens = backbone(**collate(backbone, example_cells(backbone)))
    assert backbone.grid == tokens.grid == grid
    assert load_backbone(str(home / name), kind, pool="mean").grid is None
    if grid is not None:
        extra, height, width = grid
        assert tokens.values.shape[1] == extra + height * width


def test_maps_are_row_by_row(home: Path) -> None:
    """A spot low on the left changes most what stands there in the map."""
    for name in ("resnet", "vit", "dinov2"):
        backbone = load_backbone(str(home / name), "image", pool="none")
        pixels = torch.zeros(2, 3, 32, 32)
        pixels[1, :, 24:, :8] = 3.0  # the last of four rows, the first of four columns
        first, second = backbone(pixel_values=pixels, owner=torch.tensor([0, 1])).values
        extra, height, width = backbone.grid
        changed = (second - first)[extra:].norm(dim=1).view(height, width)
        quarters = [
            changed[rows, columns].sum() for rows in (slice(2), slice(2, 4)) for columns in (slice(2), slice(2, 4))
        ]
        assert max(quarters) == quarters[2]


def test_sentence_transformers_pooling(copy: Path) -> None:
    (copy / "1_Pooling").mkdir()
    for name, pool in (("pooling_mode_cls_token", "cls"), ("pooling_mode_mean_tokens", "mean")):
        (copy / "1_Pooling" / "config.json").write_text(json.dumps({name: True}))
        assert load_backbone(str(copy), "text").pool == pool


def test_long_and_strange_text(home: Path) -> None:
    backbone = load_backbone(str(home / "bert"), "text", max_tokens=8)
    assert len(backbone.tokenize("w1 " * 1000)) == 8
    assert len(backbone.tokenize("")) == 2
    assert len(backbone.tokenize("\ud800 w1")) >= 3
    with pytest.raises(BackboneError, match="at most 32"):
        load_backbone(str(home / "bert"), "text", max_tokens=33)
    with pytest.raises(BackboneError, match="special tokens"):
        load_backbone(str(home / "bert"), "text", max_tokens=2)


def test_wrong_kind(home: Path) -> None:
    for name, kind, reads in (("bert", "image", "text"), ("vit", "text", "image"), ("whisper", "text", "audio")):
        with pytest.raises(BackboneError, match=f"(?s)cannot encode {kind}.*reads {reads}"):
            load_backbone(str(home / name), kind)
    with pytest.raises(BackboneError, match="did you mean 'audio'"):
        load_backbone(str(home / "bert"), "audi")


def test_refuses_pickles(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"(?s)pytorch_model.bin.*convert"):
        load_backbone(str(copy), "text")


def test_refuses_code(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoModel": "evil.Model"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w')")
    with pytest.raises(BackboneError, match="never run"):
        load_backbone(str(copy), "text")
    assert not (copy / "ran").exists()


def test_refuses_a_tokenizer_without_offsets(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "vocab.txt").write_text("a 1\nb 2\n")
    (copy / "bpe.codes").write_text("a b 1\n")
    (copy / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertweetTokenizer"}))
    with pytest.raises(BackboneError, match=r"(?s)BertweetTokenizer.*take a model that has one") as caught:
        load_backbone(str(copy), "text")
    assert str(copy) in str(caught.value)


def test_refuses_missing_weights(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"(?s)lacks weights.*encoder.layer.1.output.dense.weight"):
        load_backbone(str(copy), "text")


@pytest.mark.parametrize("cut", [0, 5, 500])
def test_refuses_broken_weights(copy: Path, cut: int) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[:cut])
    with pytest.raises(BackboneError, match="cannot be loaded safely"):
        load_backbone(str(copy), "text")


def test_unknown_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BackboneError, match=r"(?s)HF_HUB_OFFLINE is set.*hf download nobody/no-such-model"):
        load_backbone("nobody/no-such-model", "text")
    with pytest.raises(BackboneError, match="no backbone folder"):
        load_backbone(str(tmp_path / "absent"), "text")
    with pytest.raises(BackboneError, match=r"no config\.json"):
        load_backbone(str(tmp_path), "text")


def test_broken_saved_folders(home: Path, tmp_path: Path) -> None:
    load_backbone(str(home / "bert"), "text").save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(FolderError, match="auto_map"):
        restore_backbone(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "backbone.json").write_text("{}")
    with pytest.raises(FolderError, match="cannot be restored"):
        restore_backbone(tmp_path)
    (tmp_path / "backbone.json").unlink()
    with pytest.raises(FolderError, match=r"backbone\.json"):
        restore_backbone(tmp_path)


def test_embedded_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    if not embedded.is_installed():
        pytest.skip("the extra offline is not installed")
    monkeypatch.setattr(embedded, "SHA256", "0" * 64)
    with pytest.raises(BackboneError, match="pip install --force-reinstall"):
        embedded.folder()


@torch.no_grad()
def test_embedded_equals_sentence_transformers() -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    if not embedded.is_installed():
        pytest.skip("the extra offline is not installed")
    texts = ["The parcel never came.", "", "🙂 שלום " * 300]
    backbone = load_backbone(None, "text")
    ours = backbone(**backbone.collate_text([backbone.tokenize(text) for text in texts])).values[:, 0]
    model = sentence_transformers.SentenceTransformer(str(embedded.folder()), device="cpu")
    theirs = model.encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(torch.nn.functional.normalize(ours, dim=1), theirs, atol=1e-5, rtol=1e-4)


def test_listing(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--me--tiny"
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs" / "main").write_text("abc")
    shutil.copytree(home / "bert", snapshot / "snapshots" / "abc")
    listed = {each.name: each for each in list_backbones([home])}
    assert listed["me/tiny"].kinds == ("text",) and listed["me/tiny"].where == "hub cache"
    assert listed[str(home / "clip")].kinds == ("text", "image")
    assert listed[str(home / "whisper")].kinds == ("audio",)
    facts = describe(str(home / "clip"))
    assert [each["kind"] for each in facts] == ["text", "image"] and facts[0]["dim"] == 12
    assert sum(block["parameters"] for block in facts[1]["blocks"]) == facts[1]["parameters"]
    assert facts[1]["image_size"] == [32, 32]
