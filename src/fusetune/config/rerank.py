"""The section `rerank`: a second model that reads a query and a document together."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from fusetune.config.section import Section


class RerankConfig(Section):
    """A re-ranker, tuned after the model of pairs; `rerank: true` takes the defaults."""

    depth: Annotated[int, Field(ge=2)] = 20
    """How many of the nearest documents are read together with the query in a search."""
    negatives: Annotated[int, Field(ge=1, le=100)] = 4
    """Documents near each train query that are no right answers to it, found by the tuned model. The re-ranker learns
    to tell them from the right ones."""
    margin: Annotated[float, Field(gt=0, le=1)] | None = 0.95
    """Documents that are more similar to the query than this share of its right answer's similarity are left out, as
    they may be right, too. null leaves out none."""


def _as_section(value: Any) -> Any:
    """`true` as the defaults, `false` as none."""
    return ({} if value else None) if isinstance(value, bool) else value


Rerank = Annotated[RerankConfig | None, BeforeValidator(_as_section)]
