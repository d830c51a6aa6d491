"""Folders for sentence-transformers: the library, and a reader by hand, give texts the model's vectors."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

from fusetune.backbones.adapters import adapt
from fusetune.backbones.load import load_backbone
from fusetune.cli.main import app
from fusetune.config.adapter import AdapterConfig
from fusetune.config.config import Config
from fusetune.config.section import NamedConfig
from fusetune.data.examples import Examples
from fusetune.data.schema import Schema
from fusetune.data.table import Table
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.export.sentence_transformers import save_sentence_transformer
from fusetune.deploy.fine_tuned import FineTuned
from fusetune.errors import ConfigError
from fusetune.inference.predict import row_vectors
from fusetune.modalities.category import CategoryModality
from fusetune.modalities.text import TextModality
from fusetune.models.build import build_model
from fusetune.tasks.retrieval import alignment_tasks, pair_tasks
from fusetune.tasks.similarity import SimilarityTask
from fusetune.training.alignment import Identity

TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15", "w2 w1"]


def similarity_tasks():
    task = SimilarityTask("score")
    task.compare(["a"], ["b"])
    return {"score": task}


def make(tiny, *, pool="mean", tasks=None, fusion=None, adapter=None, own=False, more=None) -> tuple[Bundle, Examples]:
    """Return a model of two columns of texts, with random projections, or the encoder's own vectors, and four rows."""
    backbone = load_backbone(tiny("bert"), "text", pool=pool, max_tokens=12)
    backbone.normalised = own
    if adapter is not None:
        torch.manual_seed(3)
        adapt(backbone, adapter)
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    modalities = {name: TextModality(name, backbone=backbone) for name in "ab"} | (more or {})
    records = [{"a": text, "b": other, "c": "x"} for text, other in zip(TEXTS, reversed(TEXTS), strict=True)]
    table = Table.from_records(records)
    examples = Examples(table, modalities)
    examples.prepare(on_bad_cell="reject")
    examples.fit()
    tasks = pair_tasks(["a"], ["b"]) if tasks is None else tasks
    fusion = {"name": "none", "dim": backbone.dim} | (fusion or {})
    torch.manual_seed(0)
    model = build_model(modalities, tasks, NamedConfig.model_validate(fusion)).eval()
    for projection in model.projections:
        torch.nn.init.normal_(projection.shift, std=0.1)
        torch.nn.init.uniform_(projection.scale, 0.5, 2)
    if own:
        Identity(["a", "b"]).install(model)
    return Bundle(model, modalities, dict(tasks), Schema.detect(table), Config()), examples


def wanted(bundle: Bundle, examples: Examples, name: str) -> np.ndarray:
    return row_vectors(bundle.model, examples, examples.used)[name].numpy()


def by_hand(folder, texts) -> np.ndarray:
    """Read a folder by its files alone, as the library documents them."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    limit = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    with torch.no_grad():
        states, mask = model(**inputs).last_hidden_state, inputs["attention_mask"].unsqueeze(-1).float()
        for module in json.loads((folder / "modules.json").read_text())[1:]:
            kind, path = module["type"].rpartition(".")[2], folder / module["path"]
            if kind == "Pooling":
                config = json.loads((path / "config.json").read_text())
                last = states[torch.arange(len(texts)), inputs["attention_mask"].sum(1) - 1]
                poolings = {
                    "pooling_mode_mean_tokens": (states * mask).sum(1) / mask.sum(1),
                    "pooling_mode_cls_token": states[:, 0],
                    "pooling_mode_lasttoken": last,
                }
                (chosen,) = [name for name in poolings if config[name]]
                vectors = poolings[chosen]
            elif kind == "Dense":
                dense = load_file(path / "model.safetensors")
                vectors = F.linear(vectors, dense["linear.weight"], dense["linear.bias"])
            else:
                vectors = F.normalize(vectors, dim=1)
    return vectors.numpy()


def by_the_library(folder, texts) -> np.ndarray:
    library = pytest.importorskip("sentence_transformers")
    return library.SentenceTransformer(str(folder), device="cpu").encode(texts)


READERS = pytest.mark.parametrize("read", [by_hand, by_the_library])


@READERS
@pytest.mark.parametrize("pool", ["mean", "cls", "last"])
def test_a_named_side(tiny, tmp_path, read, pool):
    bundle, examples = make(tiny, pool=pool)
    for side, column in (("query", "a"), ("document", "b")):
        folder = save_sentence_transformer(bundle, tmp_path / side, side)
        texts = examples.table.cells(column)
        np.testing.assert_allclose(read(folder, texts), wanted(bundle, examples, side), atol=1e-5)


@READERS
def test_sides_that_share_their_projection_need_no_name(tiny, tmp_path, read):
    bundle, examples = make(tiny, tasks=similarity_tasks(), fusion={"tied": True, "dim": 8})
    folder = FineTuned(bundle, folder=None, results=None).save_sentence_transformer(tmp_path / "st")
    for side, column in (("query", "a"), ("document", "b")):
        texts = examples.table.cells(column)
        np.testing.assert_allclose(read(folder, texts), wanted(bundle, examples, side), atol=1e-5)
    assert read(folder, TEXTS).shape == (4, 8)


@READERS
def test_an_encoders_own_space_has_no_dense_layer(tiny, tmp_path, read):
    bundle, examples = make(tiny, tasks=similarity_tasks(), fusion={"tied": True}, own=True)
    folder = save_sentence_transformer(bundle, tmp_path / "st")
    modules = [entry["type"].rpartition(".")[2] for entry in json.loads((folder / "modules.json").read_text())]
    assert modules == ["Transformer", "Pooling", "Normalize"]
    np.testing.assert_allclose(read(folder, TEXTS), wanted(bundle, examples, "query"), atol=1e-5)


def test_an_adapter_is_merged_in_the_copy_alone(tiny, tmp_path):
    adapter = AdapterConfig.model_validate({"name": "lora", "rank": 2})
    bundle, examples = make(tiny, tasks=similarity_tasks(), fusion={"tied": True}, adapter=adapter)
    before = wanted(bundle, examples, "query")
    folder = save_sentence_transformer(bundle, tmp_path / "st")
    np.testing.assert_allclose(by_hand(folder, TEXTS), before, atol=1e-5)
    assert bundle.modalities["a"].backbone.adapter is not None
    np.testing.assert_array_equal(wanted(bundle, examples, "query"), before)


def test_a_column_of_aligned_columns(tiny, tmp_path):
    bundle, examples = make(tiny, tasks=alignment_tasks({"a": "text", "b": "text"}))
    folder = save_sentence_transformer(bundle, tmp_path / "st", "b")
    np.testing.assert_allclose(by_hand(folder, examples.table.cells("b")), wanted(bundle, examples, "b"), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "side", "said"),
    [
        ({}, None, "projections of their own(.|\n)*query, document"),
        ({}, "documents", "no side 'documents'(.|\n)*document"),
        ({"fusion": {"name": "concat"}}, "query", "fused(.|\n)*fusion=none"),
        ({"pool": "none"}, "query", "by 'none'"),
        ({"tasks": partial(pair_tasks, ["a", "c"], ["b"]), "more": {"c": CategoryModality("c")}}, "query", "a, c"),
        (
            {"tasks": partial(pair_tasks, ["a"], ["c"]), "more": {"c": CategoryModality("c")}},
            "document",
            "'c' is no column",
        ),
    ],
)
def test_what_cannot_be_written(tiny, tmp_path, settings, side, said):
    if "tasks" in settings:
        settings = settings | {"tasks": settings["tasks"]()}
    bundle, _ = make(tiny, **settings)
    with pytest.raises(ConfigError, match=said):
        save_sentence_transformer(bundle, tmp_path / "st", side)
    assert not (tmp_path / "st").exists()


def test_on_the_command_line(tiny, tmp_path):
    bundle, examples = make(tiny, tasks=similarity_tasks(), fusion={"tied": True})
    bundle.config = Config.build({"fusion": {"name": "none", "dim": bundle.model.dim, "tied": True}})
    run, out = FineTuned(bundle, folder=None, results=None).save(tmp_path / "run"), tmp_path / "st"
    runner = CliRunner()
    done = runner.invoke(app, ["export", str(run), "--to", "sentence-transformers", "-o", str(out), "--json"])
    assert done.exit_code == 0, done.output
    np.testing.assert_allclose(by_hand(out, TEXTS), wanted(bundle, examples, "query"), atol=1e-5)
    again = runner.invoke(app, ["export", str(run), "-o", str(out)])
    assert again.exit_code == 2 and "--overwrite" in again.output
    assert runner.invoke(app, ["export", str(run), "-o", str(out), "--overwrite"]).exit_code == 0
