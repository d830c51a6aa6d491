"""Frozen weights are in bf16 while an adapter is trained, and bit by bit as before afterwards."""

import pytest
import torch

import fusetune as ft
from fusetune.backbones.adapters import adapt
from fusetune.backbones.language import Embedded
from fusetune.backbones.load_language import load_language
from fusetune.config.adapter import AdapterConfig
from fusetune.data.table import Table
from fusetune.inference.predict import evaluating
from fusetune.training.hardware.frozen import frozen_in_bf16

WRITERS = ["llama_writer", "gpt2_writer", "t5_writer"]


def language(tiny, name: str, adapter: str = "lora"):
    torch.manual_seed(0)
    loaded = load_language(tiny(name))
    adapt(loaded, AdapterConfig(name=adapter, targets="linear"))
    for key, value in loaded.model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(value, std=0.1)
    return loaded


def passed(model) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of two rows under autocast, and the gradients."""
    ids, answer = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[11, 12, 2], [13, 2, -1]])
    with torch.autocast("cpu", torch.bfloat16):
        prompt = Embedded(model.embed(ids), torch.tensor([3, 2]))
        loss = -model.log_likelihoods(prompt, answer)[..., 0].sum()
    model.zero_grad()
    loss.backward()
    trained = {name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad}
    return loss.detach(), trained


@pytest.mark.parametrize("name", WRITERS)
def test_passes_are_the_same_within_the_noise_of_bf16(tiny, name):
    model = language(tiny, name)
    loss, gradients = passed(model)
    with frozen_in_bf16(model) as num:
        low_loss, low_gradients = passed(model)
        assert num > 0 and all(value.dtype == torch.float32 for value in model.parameters() if value.requires_grad)
    torch.testing.assert_close(low_loss, loss, rtol=5e-3, atol=0)
    for key, gradient in gradients.items():
        assert low_gradients[key].dtype == torch.float32
        assert (low_gradients[key] - gradient).norm() <= 0.05 * gradient.norm() + 1e-4, key


@pytest.mark.parametrize("name", WRITERS)
def test_weights_are_as_before_afterwards_even_after_an_error(tiny, name):
    model = language(tiny, name)
    exact = next(value for key, value in model.model.named_parameters() if key.endswith("base_layer.weight"))
    exact.data = exact.data.bfloat16().float()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), frozen_in_bf16(model):
        kinds = {value.dtype for key, value in model.named_parameters() if "base_layer.weight" in key}
        assert kinds == {torch.bfloat16} and exact.dtype == torch.bfloat16
        raise RuntimeError("stop")
    after = model.state_dict()
    assert all(torch.equal(after[key], value) and after[key].dtype == value.dtype for key, value in before.items())


def test_it_is_left_alone_without_mixed_precision_or_where_the_adapter_reads_the_weights(tiny):
    for adapter, enabled in (("lora", False), ("dora", True), ("ia3", True)):
        model = language(tiny, "llama_writer", adapter)
        with frozen_in_bf16(model, enabled=enabled) as num:
            assert num == 0 and {value.dtype for value in model.parameters()} == {torch.float32}


def test_a_fit_in_bf16_saves_float32_and_the_pretrained_weights(tiny, tmp_path):
    rows = [{"source": f"w{number % 9 + 1} w{number % 5 + 1}", "out": f"w2{number % 9} w3"} for number in range(40)]
    settings = {
        "text": {"name": str(tiny("llama_writer")), "adapter": "lora"},
        "tasks": {"out": "generate"},
        "trainer": {"epochs": 1, "precision": "bf16", "trackers": [], "checkpoint_minutes": None},
        "report": {"bootstrap": 0, "zero_shot": False},
        "generation": {"val_rows": 2},
    }
    tuned = ft.fit(Table.from_records(rows), target="out", config=settings, out=tmp_path / "run")
    start, after = load_language(str(tiny("llama_writer"))).model, tuned.bundle.model.language.model
    embeddings = [model.get_input_embeddings().weight for model in (start, after)]
    assert torch.equal(*embeddings) and {value.dtype for value in after.parameters()} == {torch.float32}
    answers = [model.predict(rows[:3]).table["out"].to_pylist() for model in (tuned, ft.load(tmp_path / "run"))]
    assert answers[0] == answers[1]


def test_evaluation_runs_under_autocast_meanwhile(tiny):
    model = language(tiny, "llama_writer").eval()
    prompt = Embedded(model.embed(torch.tensor([[5, 6, 7]])), torch.tensor([3]))
    answer = torch.tensor([[11, 12, 2]])
    with torch.no_grad():
        before = model.log_likelihoods(prompt, answer)
    with frozen_in_bf16(model), evaluating(model):
        during = model.log_likelihoods(prompt, answer)
    with evaluating(model):
        assert torch.equal(model.log_likelihoods(prompt, answer), before)
    torch.testing.assert_close(during, before, rtol=0.02, atol=0.02)
