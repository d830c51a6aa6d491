"""Where the documents of pairs are, if they have a table of their own."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from fusetune.config.section import Section


def _by_path(value: Any) -> Any:
    if isinstance(value, str):
        return {"path": value}
    if isinstance(value, dict) and "name" in value and "path" not in value:  # given by its path, then by more keys
        return {"path": value["name"], **{key: part for key, part in value.items() if key != "name"}}
    return value


class CatalogueConfig(Section):
    """The table of documents that the rows of the query table name by a key; `catalogue: items.csv` is its path."""

    path: str | None = None
    """A table with one row per document. None: each row of the train table has its document itself."""
    key: str | dict[str, str] | None = None
    """The column of both tables by which a query names its documents, or `{query_column: item_column}` if they differ.
    None: the column that both have and whose values match."""
    relevance: str | None = None
    """The query table's column of grades, 0 or more; 0 is judged not relevant. None: `relevance`, if there is such a
    column; without one every named document is relevant."""

    @model_validator(mode="after")
    def _one_key(self) -> CatalogueConfig:
        if isinstance(self.key, dict) and len(self.key) != 1:
            raise ValueError("key has one entry, as {query_column: item_column}")
        return self


ByPath = BeforeValidator(_by_path)
Catalogue = Annotated[CatalogueConfig, ByPath]
