"""`Generate`: vectors at their places in a prompt, columns that are hidden, gradients."""

import pytest
import torch

from fusetune.backbones.load_language import load_language
from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.table import Table
from fusetune.modalities.number import NumberModality
from fusetune.modalities.prompt import PromptModality
from fusetune.models.build import build_model, give_tokenizers
from fusetune.models.generate import Generate
from fusetune.models.projector import PROJECTORS
from fusetune.tasks.text.task import GenerateTask
from fusetune.types import Tokens

ROWS = [
    {"a": "w1 w2", "n": 1.0, "out": "w5"},
    {"a": None, "n": 2.0, "out": "w6 w7"},
    {"a": "w3", "n": None, "out": "w8 w9 w10"},
]


@pytest.fixture(scope="module", params=["llama_writer", "t5_writer"])
def parts(request, tiny):
    join = ["a", {"present": ["n"]}]
    table = Table.from_records(ROWS).with_joined({"prompt": join})
    options = {"template": "w4 {n} {a}", "soft": ["n"], "soft_tokens": 2}
    prompt = PromptModality("prompt", backbone=load_language(tiny(request.param)), join=join, **options)
    task = GenerateTask("out")
    task.prompt = "prompt"
    modalities = {"n": NumberModality("n"), "prompt": prompt}
    give_tokenizers({"out": task}, modalities)
    examples = Examples(table, modalities, {"out": task})
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    torch.manual_seed(0)
    model = build_model(modalities, {"out": task}, NamedConfig(name="attention"), dropout=0.0)
    return model, task, examples


def test_vectors_stand_at_their_places_and_missing_ones_close_up(parts):
    model, _, examples = parts
    assert isinstance(model, Generate) and model.columns == ["n"]
    batch = examples.batch(examples.used)
    outputs = model(batch)
    read = model.embedded("out", batch, outputs)
    start, end = (
        len(model.language.frame("auto", "", ends_in_space=False).__dict__[key]) for key in ("start", "ending")
    )
    assert (read.lengths - start - end).tolist() == [1 + 2 + 2, 1 + 2, 1 + 1]
    vectors = outputs.columns["n"].values
    torch.testing.assert_close(read.values[0, start + 1 : start + 3], vectors[0])
    torch.testing.assert_close(read.values[1, start + 1 : start + 3], vectors[1])


def test_a_hidden_column_is_as_a_missing_one(parts):
    model, _, examples = parts
    columns = {name: column for name, column in examples.columns.items() if name != "n"}
    hidden = examples.reading(examples.table, columns).batch([0, 2])
    with torch.no_grad():
        read = model.read("out", hidden)
        shown = model.read("out", examples.batch([2]))
    torch.testing.assert_close(read.values[1, : read.lengths[1]], shown.values[0, : shown.lengths[0]])
    assert read.lengths[0] == model.read("out", examples.batch([0])).lengths[0] - 2


def test_rows_of_a_batch_are_as_one_by_one_and_losses_add_up_by_tokens(parts):
    model, task, examples = parts
    batch = examples.batch([0, 1, 2])
    with torch.no_grad():
        together = model(batch).logits["out"]
        loss = task.loss(together, batch.targets["out"], batch.weights)
        total = tokens = 0.0
        for row in range(3):
            alone = examples.batch([row])
            scores = model(alone).logits["out"]
            torch.testing.assert_close(together[row, : scores.shape[1]], scores[0])
            size = float(alone.targets["out"].sizes[0])
            total += size * float(task.loss(scores, alone.targets["out"], alone.weights))
            tokens += size
    assert float(loss) == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.parametrize("projector", PROJECTORS)
def test_every_parameter_of_a_projector_has_a_gradient(projector):
    part = PROJECTORS[projector](16, 3, scale=0.5)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False], [False] * 5])
    out = part(Tokens(torch.randn(3, 5, 16), mask))
    assert out.shape == (3, 3, 16) and torch.isfinite(out).all()
    torch.testing.assert_close(out.square().mean(-1).sqrt(), torch.full((3, 3), 0.5), rtol=1e-3, atol=1e-3)
    (out[:2] * torch.randn(2, 3, 16)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_a_projector_ignores_padding():
    part = PROJECTORS["mlp"](8, 3, scale=1.0)
    values = torch.randn(1, 4, 8)
    longer = torch.cat([values, torch.randn(1, 3, 8)], 1)
    mask = torch.tensor([[True] * 4 + [False] * 3])
    torch.testing.assert_close(part(Tokens(values, mask[:, :4])), part(Tokens(longer, mask)))


def test_noise_is_only_in_training(parts):
    model, _, examples = parts
    batch = examples.batch([0, 2])
    quiet = model.prompts
    model.eval()
    with torch.no_grad():
        before = model.read("out", batch).values
        model.prompts = type(quiet)(quiet.columns, quiet.soft, quiet.soft_tokens, quiet.projector, 5.0)
        assert torch.equal(model.read("out", batch).values, before)
        model.train()
        noisy = model.read("out", batch)
    model.eval()
    size = 5.0 / float((noisy.lengths[0] * model.dim) ** 0.5)
    difference = (noisy.values - before)[0].abs()
    model.prompts = quiet
    assert 0 < difference.max() <= size + 1e-6
