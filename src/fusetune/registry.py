"""Registries: map the names that a user writes in a config to classes.

A built-in part is one file and one line in a registry here. A plug-in is an entry point in the group
`fusetune.<kind>`, such as `fusetune.fusion`. Classes are imported on first use, so importing this module is fast.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

from fusetune.errors import ConfigError, MissingExtra, nearest


class Registry:
    """Maps the names of one kind of part to import paths, "module:Class"."""

    def __init__(self, kind: str, table: dict[str, str]) -> None:
        """
        Args:
            kind: of the parts, in the singular: "fusion". Entry points are read from the group "fusetune.fusion".
            table: import path "module:Class" by name.
        """
        self.kind = kind
        self._builtin = dict(table)
        self._table: dict[str, str] | None = None

    @property
    def table(self) -> dict[str, str]:
        """Import paths by name, built-in ones first.

        Raises:
            ConfigError: a plug-in uses the name of another part.
        """
        if self._table is None:
            self._table = dict(self._builtin)
            for point in entry_points(group=f"fusetune.{self.kind}"):
                self.register(point.name, point.value)
        return self._table

    def register(self, name: str, path: str) -> None:
        """Register a class in this process; installed plug-ins are registered by their entry points.

        Args:
            name: that a config uses.
            path: "module:Class".

        Raises:
            ConfigError: the name is registered with another path.
        """
        registered = self.table.get(name)
        if registered not in (None, path):
            raise ConfigError(
                f"the {self.kind} {name!r} is registered twice",
                came=f"{registered} and {path}",
                do="rename or uninstall one of the two plug-ins",
            )
        self.table[name] = path

    def get(self, name: str) -> Any:
        """Import and return the class of a name.

        Raises:
            ConfigError: the name is unknown (the message suggests the nearest one), or its plug-in cannot be imported.
        """
        path = self.table.get(name)
        if path is None:
            raise ConfigError(
                f"there is no {self.kind} called {name!r}",
                expected=", ".join(self.table),
                do=nearest(name, self.table)
                or f"choose one of these names, or install the plug-in that brings this {self.kind}",
            )
        module, _, attribute = path.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            if name in self._builtin or isinstance(error, MissingExtra):
                raise
            raise ConfigError(
                f"the plug-in of the {self.kind} {name!r} cannot be loaded",
                came=str(error),
                expected=f"a class at {path}",
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
        "identifier": "fusetune.modalities.identifier:IdentifierModality",
        "history": "fusetune.modalities.history:HistoryModality",
        "prompt": "fusetune.modalities.prompt:PromptModality",
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
        "answer": "fusetune.tasks.answers.task:AnswerTask",
        "binary": "fusetune.tasks.classes.classification:BinaryTask",
        "choice": "fusetune.tasks.choice.task:MultipleChoiceTask",
        "entities": "fusetune.tasks.entities.task:EntitiesTask",
        "generate": "fusetune.tasks.text.task:GenerateTask",
        "multiclass": "fusetune.tasks.classes.classification:MulticlassTask",
        "multilabel": "fusetune.tasks.classes.multilabel:MultilabelTask",
        "ordinal": "fusetune.tasks.classes.ordinal:OrdinalTask",
        "recommendation": "fusetune.tasks.recommendation:RecommendationTask",
        "preference": "fusetune.tasks.text.preference:PreferenceTask",
        "pair_classification": "fusetune.tasks.pair_classification:PairClassificationTask",
        "regression": "fusetune.tasks.regression:RegressionTask",
        "relation": "fusetune.tasks.relation:RelationTask",
        "retrieval": "fusetune.tasks.retrieval:RetrievalTask",
        "similarity": "fusetune.tasks.similarity:SimilarityTask",
        "triples": "fusetune.tasks.triples.task:TriplesTask",
    },
)

OBJECTIVES = Registry(
    "objective",
    {
        "contrastive": "fusetune.objectives.contrastive:ContrastiveObjective",
        "supcon": "fusetune.objectives.supcon:SupConObjective",
        "mixup": "fusetune.objectives.mixup:Mixup",
        "sampled_softmax": "fusetune.objectives.sampled_softmax:SampledSoftmaxObjective",
        "distill": "fusetune.objectives.distill:Distillation",
        "rdrop": "fusetune.objectives.rdrop:RDrop",
        "semi": "fusetune.objectives.semi:SemiSupervised",
        "similarity": "fusetune.objectives.similarity:SimilarityObjective",
        "unimodal": "fusetune.objectives.unimodal:Unimodal",
        "vat": "fusetune.objectives.vat:VirtualAdversarial",
    },
)
