"""Tables of names: what a user writes in a config, to the class that does it.

A part is one file and one line in a table here; a plug-in is an entry point in the group `fusetune.<table>`.
Classes are imported when they are asked for, so that naming the tables costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

from fusetune.errors import ConfigError, MissingExtra, nearest


class Registry:
    """Names of one sort of part, each with the place of its class as "module:Class"."""

    def __init__(self, sort: str, table: dict[str, str]) -> None:
        """
        Args:
            sort: what the parts are, in the singular: "fusion". Entry points are read from "fusetune.fusion".
            table: name to "module:Class".
        """
        self.sort = sort
        self._builtin = dict(table)
        self._table: dict[str, str] | None = None

    @property
    def table(self) -> dict[str, str]:
        """All names with their places, built-in ones first.

        Raises:
            ConfigError: a plug-in's name is taken already.
        """
        if self._table is None:
            self._table = dict(self._builtin)
            for point in entry_points(group=f"fusetune.{self.sort}"):
                self.register(point.name, point.value)
        return self._table

    def register(self, name: str, place: str) -> None:
        """Add a name for this process; plug-ins are added by their entry points.

        Raises:
            ConfigError: the name stands for another place already.
        """
        taken = self.table.get(name)
        if taken not in (None, place):
            raise ConfigError(
                f"the {self.sort} {name!r} is registered twice",
                came=f"{taken} and {place}",
                do="rename or uninstall one of the two plug-ins",
            )
        self.table[name] = place

    def get(self, name: str) -> Any:
        """The class of this name.

        Raises:
            ConfigError: the name is unknown, the message has the nearest known one; or its plug-in cannot be loaded.
        """
        place = self.table.get(name)
        if place is None:
            raise ConfigError(
                f"there is no {self.sort} called {name!r}",
                expected=", ".join(self.table),
                do=nearest(name, self.table)
                or f"choose one of these names, or install the plug-in that brings this {self.sort}",
            )
        module, _, attribute = place.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            if name in self._builtin or isinstance(error, MissingExtra):
                raise
            raise ConfigError(
                f"the plug-in of the {self.sort} {name!r} cannot be loaded",
                came=str(error),
                expected=f"a class at {place}",
                do="install or update the package that brings it",
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __contains__(self, name: object) -> bool:
        return name in self.table


MODALITIES = Registry(
    "modality",
    {
        "image": "fusetune.modalities.image:ImageModality",
        "audio": "fusetune.modalities.audio:AudioModality",
        "number": "fusetune.modalities.number:NumberModality",
        "date": "fusetune.modalities.date:DateModality",
        "category": "fusetune.modalities.category:CategoryModality",
        "text": "fusetune.modalities.text:TextModality",
    },
)

FUSIONS = Registry(
    "fusion",
    {
        "attention": "fusetune.fusion.attention:AttentionFusion",
        "concat": "fusetune.fusion.concat:ConcatFusion",
        "gated": "fusetune.fusion.gated:GatedFusion",
        "cross_attention": "fusetune.fusion.cross_attention:CrossAttentionFusion",
        "bottleneck": "fusetune.fusion.bottleneck:BottleneckFusion",
        "convolution": "fusetune.fusion.convolution:ConvolutionFusion",
        "low_rank": "fusetune.fusion.low_rank:LowRankFusion",
        "film": "fusetune.fusion.film:FilmFusion",
        "mixture": "fusetune.fusion.mixture:MixtureFusion",
        "mean": "fusetune.fusion.mean:MeanFusion",
    },
)

TASKS = Registry(
    "task",
    {
        "binary": "fusetune.tasks.classification:BinaryTask",
        "multiclass": "fusetune.tasks.classification:MulticlassTask",
        "multilabel": "fusetune.tasks.multilabel:MultilabelTask",
        "ordinal": "fusetune.tasks.ordinal:OrdinalTask",
        "regression": "fusetune.tasks.regression:RegressionTask",
    },
)

OBJECTIVES = Registry(
    "objective",
    {
        "contrastive": "fusetune.objectives.contrastive:ContrastiveObjective",
        "supcon": "fusetune.objectives.supcon:SupConObjective",
        "mixup": "fusetune.objectives.mixup:Mixup",
        "rdrop": "fusetune.objectives.rdrop:RDrop",
        "unimodal": "fusetune.objectives.unimodal:Unimodal",
        "vat": "fusetune.objectives.vat:VirtualAdversarial",
    },
)
