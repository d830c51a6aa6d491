"""Adapters: they start as the model itself, are all that is trained, and merge into the same function."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from fusetune import api
from fusetune.backbones.adapters import (
    KINDS_OF_MODULE,
    RATE,
    RATES,
    adapt,
    adapter_state_dict,
    merge,
    rate,
    target_modules,
)
from fusetune.backbones.freeze import freeze
from fusetune.backbones.load import load_backbone
from fusetune.config.adapter import ADAPTERS, AdapterConfig
from fusetune.config.backbone import BackboneConfig
from fusetune.errors import ConfigError, FolderError

KINDS = {"bert": "text", "gpt2": "text", "vit": "image", "mobilenet": "image", "wav2vec2": "audio"}


UNFIT = [("vera", "mobilenet"), ("oft", "mobilenet"), ("oft", "gpt2")]


def inputs(backbone) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    if backbone.kind == "text":
        return backbone.collate_text([backbone.tokenize(text) for text in ("w1 w2 w3", "w4 w5", "w6")])
    if backbone.kind == "image":
        return {"pixel_values": torch.randn(3, 3, *backbone.image_size)}
    return backbone.collate_audio([torch.randn(4000).numpy(), torch.randn(5000).numpy()])


def load(tiny, name: str):
    backbone = load_backbone(tiny(name), KINDS[name])
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and name == "mobilenet":  # so that random maps do not fade away
            nn.init.kaiming_normal_(module.weight)
    return backbone


def shake(backbone) -> None:
    """Give the adapter weights other than those it starts with."""
    torch.manual_seed(2)
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)


def cases():
    return [(name, model) for name in ADAPTERS for model in KINDS if (name, model) not in UNFIT]


@pytest.mark.parametrize(("name", "model"), cases())
def test_it_starts_as_the_model_is_all_that_is_trained_and_merges(tiny, name, model):
    backbone = load(tiny, model)
    given = inputs(backbone)
    with torch.no_grad():
        plain = backbone(**given).values
    base = {n: v.clone() for n, v in backbone.model.state_dict().items()}
    adapt(backbone, AdapterConfig(name=name))
    assert torch.allclose(backbone.eval()(**given).values, plain, atol=5e-5)  # convolutions add up in any order
    freeze(backbone, "none")
    trained = {n for n, p in backbone.model.named_parameters() if p.requires_grad}
    assert trained and trained <= backbone.adapter_tensors
    share = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert share < sum(p.numel() for p in backbone.parameters()) / 2
    backbone.train()(**given).values.square().sum().backward()
    for n, p in backbone.model.named_parameters():
        assert (p.grad is not None) == (n in trained), n
    shake(backbone)
    # Rounding grows through random maps; in float64 little of it is left.
    backbone.double().eval()
    base = {n: v.double() if v.is_floating_point() else v for n, v in base.items()}
    given = {n: v.double() if v.is_floating_point() else v for n, v in given.items()}
    with torch.no_grad():
        tuned = backbone(**given).values
        assert not torch.allclose(tuned.float(), plain, atol=1e-3)
        for n, v in base.items():  # what was pretrained has not moved
            now = backbone.model.state_dict()
            assert torch.equal(now.get(n, now.get(n.rpartition(".")[0] + ".base_layer." + n.rpartition(".")[2])), v)
        merge(backbone)
        assert torch.allclose(backbone(**given).values, tuned, atol=1e-5)
    assert not any(isinstance(m, BaseTunerLayer) for m in backbone.modules())
    assert backbone.model.state_dict().keys() == base.keys() and all(p.requires_grad for p in backbone.parameters())
    assert backbone.adapter is None and not backbone.adapter_tensors


def test_the_difference_of_lora_is_the_papers(tiny):
    backbone = load(tiny, "bert")
    adapt(backbone, AdapterConfig(name="lora", rank=3, alpha=5))
    shake(backbone)
    path = backbone.adapted[0]
    layer = backbone.model.get_submodule(path)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.shape[0] == b.shape[1] == 3
    wanted = layer.base_layer.weight + 5 / 3 * b @ a
    merge(backbone)
    assert torch.allclose(backbone.model.get_submodule(path).weight, wanted, atol=1e-6)


def test_targets_are_found_by_looking(tiny):
    bert, mobilenet = load(tiny, "bert").model, load(tiny, "mobilenet").model
    attention = target_modules(bert, "auto")
    assert attention and all("attention" in path for path in attention)
    assert set(attention) < set(target_modules(bert, "linear"))
    assert target_modules(bert, r"layer\.0\..*query$") == ["encoder.layer.0.attention.self.query"]
    convolutions = target_modules(mobilenet, "auto")
    assert convolutions == target_modules(mobilenet, "conv")
    assert all(mobilenet.get_submodule(path).groups == 1 for path in convolutions)
    depthwise = [m for m in mobilenet.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert depthwise
    for model, how, said in (
        (bert, "conv", "no module fits targets=conv"),
        (bert, "querry", "no module fits targets=querry(.|\n)*attention"),
        (bert, "(", "no regular expression|not a regular expression"),
    ):
        with pytest.raises(ConfigError, match=said):
            target_modules(model, how)
    with pytest.raises(ConfigError, match=r"no module fits(.|\n)*Linear, Conv1D"):
        target_modules(mobilenet, "auto", fits=KINDS_OF_MODULE["vera"])


def test_what_cannot_be_adapted_is_refused(tiny):
    with pytest.raises(ConfigError, match="trained from scratch, so there is nothing to adapt"):
        adapt(load_backbone(None, "image"), AdapterConfig(name="lora"))
    backbone = load(tiny, "bert")
    adapt(backbone, AdapterConfig(name="lora"))
    with pytest.raises(ConfigError, match="has an adapter already"):
        adapt(backbone, AdapterConfig(name="ia3"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("lorra", "lora"),
        ({"name": "ia3", "rank": 4}, "no rank"),
        ({"name": "vera", "alpha": 4}, "no alpha"),
        ({"name": "lora", "rank": 0}, "greater than or equal to 1"),
        ({"name": "lora", "dropout": 1.0}, "less than 1"),
    ],
)
def test_wrong_settings(settings, said):
    with pytest.raises(ValueError, match=said):
        BackboneConfig(adapter=settings)


def test_rules_keep_to_the_adapter_and_rates_are_higher(tiny):
    backbone = load(tiny, "bert")
    assert rate(backbone) == 1
    adapt(backbone, AdapterConfig(name="lora"))
    assert rate(backbone) == RATE
    freeze(backbone, "bottom:2")  # embeddings and the first layer
    trained = [n for n, p in backbone.model.named_parameters() if p.requires_grad]
    assert trained and all(n in backbone.adapter_tensors and "layer.0." not in n for n in trained)
    freeze(backbone, "all")
    assert not any(p.requires_grad for p in backbone.parameters())
    other = load(tiny, "bert")
    adapt(other, AdapterConfig(name="ia3"))
    assert rate(other) == RATES["ia3"]


def test_shared_projections_are_kept_once(tiny):
    backbone = load(tiny, "bert")
    adapt(backbone, AdapterConfig(name="vera"))
    names = [name for name in adapter_state_dict(backbone) if "vera_A" in name]
    assert len(names) == 1 and sum("vera_A" in name for name in backbone.adapter_tensors) > 1


@pytest.fixture(scope="module")
def tune(tiny, shop_tables, quick, tmp_path_factory):
    def made(adapter, **more):
        out = tmp_path_factory.mktemp("adapted") / "model"
        settings = quick | {
            "text": {"name": tiny("bert"), "adapter": adapter},
            "image": {"name": tiny("mobilenet"), "freeze": "all"},
            "audio": {"name": tiny("wav2vec2"), "freeze": "all"},
            "trainer": {"epochs": 2, "head_epochs": 1, "trackers": [], "backbone_lr": 1e-3, "patience": None},
        }
        tables = {name: str(shop_tables[name]) for name in ("val", "test")}
        train = str(shop_tables["train"])
        return api.fit(train, target="label", **tables, out=out, config=settings | more, progress=False)

    return made


@pytest.mark.parametrize("name", ["lora", "vera"])
def test_a_folder_holds_the_adapter_alone_and_a_merged_one_needs_no_other(tune, tiny, shop_tables, tmp_path, name):
    tuned = tune(name)
    shake(next(e for e in tuned.bundle.model.encoders.values() if getattr(e, "adapter", None)))
    folder = tuned.save(tmp_path / "adapted")
    wanted = tuned.predict(str(shop_tables["test"])).table
    again = api.load(folder)
    numbers = [c for c in wanted.column_names if wanted.column(c).type in ("double", "float")]
    assert again.predict(str(shop_tables["test"])).table.equals(wanted)
    used = next(one for one in tuned.results.backbones if one.kind == "text")
    assert used.trained < used.parameters / 2
    assert used.how.startswith(f"{name} on " if used.trained else "as pretrained: the best step lies before")

    from safetensors import safe_open

    with safe_open(str(folder / "model.safetensors"), framework="pt") as file:
        names = [key for key in file.keys() if key.startswith("encoders.text")]  # noqa: SIM118
    assert names and all(name in key for key in names)
    merged = again.merge().save(tmp_path / "merged")
    found = api.load(merged).predict(str(shop_tables["test"])).table
    for column in numbers:
        assert found.column(column).to_pylist() == pytest.approx(wanted.column(column).to_pylist(), abs=1e-5)
    assert (merged / "model.safetensors").stat().st_size > (folder / "model.safetensors").stat().st_size
    with pytest.raises(ConfigError, match="no backbone of this model has an adapter"):
        api.load(merged).merge()


def test_the_base_must_be_there_and_be_the_same(tune, tiny, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    base = shutil.copytree(tiny("bert"), tmp_path / "base")
    tuned = tune("lora", text={"name": str(base), "adapter": "lora"})
    weights = base / "model.safetensors"
    state = load_file(weights)
    kept = {name: value.clone() for name, value in state.items()}
    next(iter(state.values())).add_(1e-3)
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(FolderError, match="is not the pretrained model that the adapter was trained on"):
        api.load(tuned.folder)
    shutil.rmtree(base)
    with pytest.raises(FolderError, match="base"):
        api.load(tuned.folder)
    assert kept


def test_a_fit_can_start_from_an_adapted_encoder(tune, tmp_path):
    tuned = tune("dora")
    encoder = next(e for e in tuned.bundle.model.encoders.values() if getattr(e, "adapter", None))
    shake(encoder)
    folder = tuned.save(tmp_path / "adapted")
    loaded = load_backbone(str(folder), "text")
    given = inputs(loaded)
    with torch.no_grad():
        assert torch.allclose(loaded(**given).values, encoder.cpu().eval()(**given).values, atol=1e-5)
    assert loaded.adapter is None
