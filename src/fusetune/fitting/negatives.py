"""Documents that a query should not find: columns of the table, read as the document's is, and those that are mined."""

from __future__ import annotations

from dataclasses import replace

from fusetune.config.config import Config
from fusetune.data.schema import Schema
from fusetune.errors import ConfigError
from fusetune.registry import MODALITIES


def as_documents(schema: Schema, config: Config) -> Schema:
    """Return the schema with the kind and options of the document's column for all negatives.

    Raises:
        ConfigError: no backbone reads documents of this kind.
    """
    if not config.negative:
        return schema
    (document,) = config.document
    spec = schema.columns[document]
    if not MODALITIES.get(spec.kind).needs_backbone:
        raise ConfigError(
            f"negatives are texts, images or sounds, and the document {document!r} is a {spec.kind}",
            expected="a document that an encoder reads",
            do=f"leave negative out, or name the kind: columns.{document}.kind=text",
        )
    own = {
        name: replace(schema.columns[name], kind=spec.kind, role="input", options=spec.options, reason="negatives")
        for name in config.negative
    }
    return replace(schema, columns={**schema.columns, **own})


def num_mined(config: Config) -> int:
    """Return how many negatives are mined for each train row (`objectives.contrastive.mine`)."""
    return int(config.objectives.get("contrastive", {}).get("mine", 0))


def check_mined(config: Config) -> None:
    """Refuse to mine negatives without pairs, or beside a target.

    Raises:
        ConfigError: there are no pairs, or there is a target.
    """
    if config.query and config.document and not config.targets:
        return
    raise ConfigError(
        "objectives.contrastive.mine finds documents for queries, and there are no pairs of these",
        expected="--query and --document, without a target",
        came=f"target {', '.join(config.targets)}" if config.targets else "no query and document",
        do="name the columns of both sides, or leave mine out",
    )
