"""Write a side of a model as a folder of sentence-transformers: a text in, its vector out.

    config.json, model.safetensors, tokenizer files    the encoder, as transformers writes it
    modules.json                                       Transformer, Pooling, [Normalize,] [Dense,] Normalize
    sentence_bert_config.json                          the maximum number of tokens
    1_Pooling/config.json                              mean, first or last token
    N_Dense/config.json, model.safetensors             the projection and standardisation, unless they are the identity
    config_sentence_transformers.json                  the similarity: cosine

The format is that of sentence-transformers 2 and later; the library is not needed to write it.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from fusetune.backbones.adapters import merge
from fusetune.backbones.backbone import Backbone
from fusetune.deploy.bundle import Bundle, write_text
from fusetune.errors import ConfigError, StorageError, nearest
from fusetune.modalities.text import TextModality
from fusetune.models.match import Match
from fusetune.objectives.total import trained_dims
from fusetune.tasks.abilities import Writes

POOLINGS = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}
"""By `Backbone.pool`, the end of the key in the library's configuration."""


def save_sentence_transformer(bundle: Bundle, folder: Path, side: str | None = None) -> Path:
    """Write a side of a model as a folder of sentence-transformers.

    Args:
        bundle: the tuned model.
        folder: to write; files of the same names are replaced.
        side: "query" or "document", or a column of a model without a target. None: any, if all give a text the same
            vector.

    Raises:
        ConfigError: the model has no such side, it is not one text column that one encoder reads, or it must be named
            as the sides differ.
        StorageError: the folder cannot be written.
    """
    column = _column(bundle, side)
    encoder, (weight, bias) = _encoder(bundle, column), _projection(bundle, column)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _save_encoder(encoder, folder)
        modules: list[tuple[str, dict[str, Any] | None]] = [("Transformer", None), ("Pooling", _pooling(encoder))]
        modules += [("Normalize", None)] if encoder.normalised else []
        if not _is_identity(weight, bias):
            modules.append(("Dense", _dense(weight)))
        if modules[-1][0] != "Normalize":
            modules.append(("Normalize", None))
        entries = []
        for index, (name, config) in enumerate(modules):
            path = f"{index}_{name}" if index else ""
            entry = {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
            entries.append(entry)
            (folder / path).mkdir(exist_ok=True)
            if config is not None:
                _write_json(folder / path / "config.json", config)
            if name == "Dense":
                tensors = {"linear.weight": weight, "linear.bias": bias}
                save_file(
                    {key: value.contiguous() for key, value in tensors.items()}, folder / path / "model.safetensors"
                )
    except OSError as error:
        raise StorageError(f"the model cannot be written to {folder}: {error}") from error
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": encoder.max_tokens, "do_lower_case": False})
    _write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})
    _write_json(folder / "modules.json", entries)
    write_text(folder / "README.md", _readme(bundle, column))
    return folder


def _column(bundle: Bundle, side: str | None) -> str:
    """Return the only column of a side.

    Raises:
        ConfigError: see `save_sentence_transformer`.
    """
    model = bundle.model
    if not isinstance(model, Match):
        writes = any(isinstance(task, Writes) for task in bundle.tasks.values())
        raise ConfigError(
            "only a model of pairs or of aligned columns gives a text a vector of its own",
            expected="a model that was fitted with --query and --document",
            came=f"a model that {'writes' if writes else 'predicts'} {', '.join(bundle.targets)}",
            do="export it with --to transformers" if writes else "use text=RUN to start another model from its encoder",
        )
    sides = model.compared
    if side is not None and side not in sides:
        raise ConfigError(f"the model has no side {side!r}", expected=", ".join(sides), do=nearest(side, sides))
    usable = {name: names[0] for name, names in sides.items() if _why_not(bundle, name) is None}
    if side is None and usable:
        first, *others = usable.values()
        if all(model.projection(first) is model.projection(other) for other in others) and len(usable) == len(sides):
            return first
        if len(usable) > 1:
            raise ConfigError(
                "the sides of this model have projections of their own",
                expected=f"a side: {', '.join(usable)}",
                do=f"write a folder for each, as --side {next(iter(usable))}",
            )
    name = side if side is not None else next(iter(usable or sides))
    if (why := _why_not(bundle, name)) is not None:
        raise ConfigError(
            f"{name!r} cannot be written for sentence-transformers: {why}",
            expected="one column of texts, read by one encoder, and no fusion",
            do="fit it with fusion=none" if "fused" in why else None,
        )
    return sides[name][0]


def _why_not(bundle: Bundle, side: str) -> str | None:
    """Return why a side cannot be written, or None."""
    model, columns = bundle.model, bundle.model.compared[side]
    assert isinstance(model, Match)
    if len(columns) > 1:
        return f"it has several columns, {', '.join(columns)}"
    modality = bundle.modalities[columns[0]]
    if not isinstance(modality, TextModality) or modality.by_passages:
        return f"{columns[0]!r} is no column of single texts"
    encoder = model.encoders[model.routes[columns[0]]]
    if not isinstance(encoder, Backbone) or not isinstance(encoder.model, PreTrainedModel):
        return "its encoder is no model of transformers"
    if encoder.method != "forward" or encoder.pool not in POOLINGS:
        return f"its encoder makes its vector by {encoder.pool!r}, not by pooling tokens"
    if model.side_names and model.sides[model.side_names.index(side)].fusion is not None:
        return "its column is fused"
    return None


def _encoder(bundle: Bundle, column: str) -> Backbone:
    """Return a column's encoder on the CPU, with its adapter merged; the model is left as it is."""
    encoder = bundle.model.encoders[bundle.model.routes[column]]
    assert isinstance(encoder, Backbone)
    if encoder.adapter is not None:
        encoder = copy.deepcopy(encoder)
        merge(encoder)
    return encoder


def _save_encoder(encoder: Backbone, folder: Path) -> None:
    model = encoder.model
    assert isinstance(model, PreTrainedModel)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    encoder.inputs.save(folder)


@torch.no_grad()
def _projection(bundle: Bundle, column: str) -> tuple[Tensor, Tensor]:
    """Return a column's projection of the encoder's vectors as weight, (dim, encoder dim), and bias, (dim,)."""
    projection = bundle.model.projection(column)
    weight = projection.linear.weight.double()
    shift, scale = projection.shift.double(), projection.scale.double()
    bias = projection.linear.bias.double() - weight @ (shift * scale)
    return (weight * scale).float().cpu(), bias.float().cpu()


def _is_identity(weight: Tensor, bias: Tensor) -> bool:
    square = weight.shape[0] == weight.shape[1]
    return square and torch.equal(weight, torch.eye(len(weight))) and not bool(bias.any())


def _pooling(encoder: Backbone) -> dict[str, Any]:
    modes = {f"pooling_mode_{end}": pool == encoder.pool for pool, end in POOLINGS.items()}
    return {"word_embedding_dimension": encoder.dim, **modes}


def _dense(weight: Tensor) -> dict[str, Any]:
    sizes = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": True}
    return {**sizes, "activation_function": "torch.nn.modules.linear.Identity"}


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def _cut(bundle: Bundle) -> str:
    """Return how vectors are cut, if the model was tuned for it."""
    if not (dims := trained_dims(bundle.config.objectives)):
        return ""
    shown = ", ".join(map(str, dims))
    return f"Vectors may be cut to their first {shown} numbers: `SentenceTransformer(PATH, truncate_dim={dims[0]})`.\n"


def _readme(bundle: Bundle, column: str) -> str:
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
---

# Vectors of `{column}`

Tuned with fusetune on pairs of {" with ".join(", ".join(names) for names in bundle.model.compared.values())}.
{_cut(bundle)}
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("PATH")
vectors = model.encode(["a text", "another one"])
print(model.similarity(vectors, vectors))
```
"""
