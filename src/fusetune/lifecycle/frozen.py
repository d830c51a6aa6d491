"""Rows encoded by the pretrained encoders before any tuning, so that the vectors have learned none of their labels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fusetune.backbones.tuned import is_tuned
from fusetune.config.backbone import BackboneConfig
from fusetune.config.config import Config
from fusetune.config.fusion import neural
from fusetune.data.column import Progress
from fusetune.data.examples import Examples
from fusetune.data.storage.feature_cache import FeatureCache
from fusetune.data.table import Table
from fusetune.deploy.bundle import Bundle
from fusetune.deploy.tuned import read_examples
from fusetune.errors import ConfigError, TableError
from fusetune.inference.features import fill_features
from fusetune.modalities.base import Modality
from fusetune.models.build import Backbones, build_model
from fusetune.models.understand import Understand
from fusetune.registry import MODALITIES
from fusetune.security.model_folder import CONFIG
from fusetune.security.untrusted import read_bytes
from fusetune.security.yaml_text import YAML_BYTES, parse_yaml
from fusetune.training.probes.extra_blocks import Key, NgramBlock
from fusetune.training.probes.probe import SplitRows, block, column_scales
from fusetune.types import Tokens


@dataclass(frozen=True)
class FrozenRows:
    """Rows with the outputs of pretrained encoders.

    Attributes:
        examples: the rows, decoded; with their targets if they were read.
        features: by column with features before any training, (cells, tokens, dim).
        left_out: the columns without such features.
    """

    examples: Examples
    features: Mapping[str, Tokens]
    left_out: list[str]

    @property
    def table(self) -> Table:
        """The rows."""
        return self.examples.table

    def blocks(self, rows: np.ndarray) -> dict[Key, np.ndarray]:
        """Return what a linear model reads of some rows: a block a column, and of texts one of their n-grams.

        Each block is standardised on all used rows, which reads no label. See `fusetune.training.probes.probe`.

        Args:
            rows: (rows,) positions in the table.

        Returns:
            By block, (rows, features) float32.
        """
        split = SplitRows(self.examples, self.features, rows, np.zeros(0))
        scales = column_scales(self.examples, self.features)
        blocks: dict[Key, np.ndarray] = {name: block(split, name, scale) for name, scale in scales.items()}
        for name in self.features:
            for part in self.examples.columns[name].modality.ngrams:
                ngrams = NgramBlock.fit((name, part), self.examples, self.examples.used)
                if ngrams is not None:
                    blocks[ngrams.key] = ngrams.values(self.examples, rows)
        return blocks


def read_frozen(bundle: Bundle, table: Table, *, targets: bool, progress: Progress | None = None) -> FrozenRows:
    """Read rows with the encoders that a model was tuned from.

    Columns whose encoder was trained from scratch have no features before that and are left out. An encoder that was
    itself tuned by an earlier run is replaced by the one that run began with.

    Args:
        bundle: the tuned model, of the family that predicts targets.
        table: with the input columns, and with the targets if they are read.
        targets: whether to read the targets; a row with a target that the model does not know is rejected.
        progress: wraps iterators.

    Raises:
        ConfigError: the model is of another family, or no column has features before tuning.
        TableError: the table lacks a column, or no row can be read.
    """
    if not isinstance(bundle.model, Understand):
        raise ConfigError(
            "only models that predict targets have rows to read with their encoders before tuning",
            came=f"a model that {'writes' if bundle.model.name == 'generate' else 'compares pairs'}",
        )
    fresh = untuned(bundle)
    examples = read_examples(fresh, table, targets=targets, progress=progress)
    if targets:
        examples.check_targets()
    if not len(examples):
        raise TableError("no row can be read", file=table.source)
    cache = FeatureCache.of(bundle.config.data.cache, bundle.config.data.cache_gib)
    features = fill_features(fresh.model, examples, cache=cache, progress=progress)
    left_out = [name for name in fresh.modalities if name not in features]
    if not features:
        raise ConfigError(
            "no column has features before tuning",
            expected="a column of numbers or categories, or one with a pretrained encoder",
            came=f"encoders trained from scratch: {', '.join(left_out)}",
            do="fit with a pretrained encoder, as image=FOLDER",
        )
    examples.learn_ngrams()
    return FrozenRows(examples, features, left_out)


def untuned(bundle: Bundle) -> Bundle:
    """Return a model's fitted processors and tasks with its encoders as they were before any tuning."""
    config = bundle.config
    settings: dict[str, BackboneConfig] = {"text": config.text, "image": config.image, "audio": config.audio}
    backbones = Backbones(
        {
            kind: part.model_copy(update={"name": first_source(part.name, kind), "adapter": None})
            for kind, part in settings.items()
        }
    )
    modalities: dict[str, Modality] = {}
    for name, modality in bundle.modalities.items():
        kind, source = MODALITIES.get(modality.kind), bundle.schema.columns[name].options.get("backbone")
        backbone = backbones.get(modality.kind, first_source(source, modality.kind)) if kind.needs_backbone else None
        modalities[name] = kind.from_state(name, modality.state(), backbone)
    with torch.random.fork_rng(devices=[]):
        model = build_model(modalities, bundle.tasks, neural(config.fusion))
    return replace(bundle, model=model, modalities=modalities, stack=None)


def first_source(source: str | None, kind: str) -> str | None:
    """Return the encoder that a tuned model's encoder was tuned from, and so on to the first; others unchanged."""
    while source is not None and is_tuned(source):
        folder = Path(os.path.expanduser(source))
        config = Config.build(parse_yaml(read_bytes(folder / CONFIG, YAML_BYTES).decode("utf-8")))
        part: BackboneConfig = getattr(config, kind)
        source = part.name
    return source
