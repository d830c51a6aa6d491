"""The stages of a fit: which parameters each trains, and with which learning rates."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from fusetune.backbones.adapters import rate
from fusetune.backbones.freeze import freeze, lr_scales
from fusetune.backbones.load import Backbone
from fusetune.config.trainer import TrainerConfig
from fusetune.errors import ConfigError
from fusetune.models.family import Family
from fusetune.models.generate import Generate
from fusetune.models.understand import Understand
from fusetune.objectives.balance import Balance
from fusetune.objectives.base import BatchObjective, Objective
from fusetune.training.deadline import Deadline
from fusetune.training.optim import no_decay, param_groups
from fusetune.training.stage import Stage
from fusetune.training.updates.adversarial import Adversarial
from fusetune.training.updates.grad_cache import cached
from fusetune.training.updates.sam import Sharpness
from fusetune.training.updates.surgery import balanced
from fusetune.training.updates.update import Gradients

HEAD_EPOCHS, HEAD_EPOCHS_SCRATCH = 60, 12
HEAD_PATIENCE = 8
HEAD_UPDATES = 40
"""Approximate maximum number of updates an epoch in the head stage, reached by batches of up to `HEAD_BATCH` rows."""
HEAD_BATCH = 512


@dataclass(frozen=True)
class BackboneRule:
    """How an encoder is tuned.

    Attributes:
        freeze: the setting `freeze` of its section, such as "bottom:4". With "auto" a trial chooses how many
            first blocks are frozen (`fusetune.training.frozen_blocks`).
        lr: peak learning rate of its last block; None takes the default.
    """

    freeze: str = "none"
    lr: float | None = None


class Recipe:
    """Build the stages of a fit.

    Args:
        model: the model to be tuned.
        objectives: what is minimised besides the task losses.
        settings: the section `trainer`.
        rules: how encoders are tuned, by key.
        seed: of batches and dropout.
        starts_linear: whether the linear part is initialised from probes.
        starts_pretrained: whether the model's new parameters start as the identity on the encoders' vectors. They then
            learn at the encoders' rate, and with the encoders if these are tuned: there is nothing to learn before. The
            objectives' own parameters, such as a temperature, learn at the rates of other new parameters.
        balance: of several tasks' losses.
        augmented: names of the columns whose train cells are augmented.
        deadline: the time that training may take.

    Attributes:
        notes: sentences on what was done otherwise than the settings say.
        stages: the stages that were run.

    Raises:
        ConfigError: an encoder without pretrained weights would be frozen.
    """

    def __init__(
        self,
        model: Family,
        objectives: Sequence[Objective],
        settings: TrainerConfig,
        rules: Mapping[str, BackboneRule],
        seed: int,
        *,
        starts_linear: bool,
        starts_pretrained: bool = False,
        balance: Balance | None = None,
        augmented: Collection[str] = (),
        deadline: Deadline | None = None,
    ) -> None:
        self.model, self.settings, self.rules, self.seed = model, settings, rules, seed
        self.objectives: list[nn.Module] = [*objectives, *([balance] if balance is not None else [])]
        self.starts_linear, self.balance = starts_linear, balance
        self.notes: list[str] = []
        self.stages: list[Stage] = []
        self.deadline, self.out_of_time = deadline or Deadline(), False
        self.augmented = augmented
        self.num_frozen: dict[str, int] | None = None  # of encoders with `freeze: auto`; None before the trial
        self.pretrained = {key for key, encoder in model.encoders.items() if encoder.pretrained}
        self.scratch = {
            key for key, encoder in model.encoders.items() if isinstance(encoder, Backbone) and not encoder.pretrained
        }
        if settings.head_epochs is None and starts_linear and self._tokens_alone():
            self.settings = settings.model_copy(update={"head_epochs": 0})
        if isinstance(model, Generate):
            asked = 1.0 if settings.head_epochs is None else settings.head_epochs
            own = {"head_epochs": asked if len(model.projections) else 0.0}  # a prompt of words alone has no new parts
            own |= {} if "layer_decay" in settings.model_fields_set else {"layer_decay": 1.0}
            self.settings = self.settings.model_copy(update=own)
        self.start_rate = settings.backbone_lr if starts_pretrained else None
        if starts_pretrained and settings.head_epochs is None and self.movable():
            self.settings = self.settings.model_copy(update={"head_epochs": 0.0})
        self.undecayed = no_decay(model).union(*(no_decay(objective) for objective in self.objectives))
        for key in self.scratch:
            if key in rules and rules[key].freeze not in ("none", "auto"):
                raise ConfigError(
                    f"the encoder {key!r} is trained from scratch and cannot be frozen",
                    came=f"freeze: {rules[key].freeze}",
                    do="name a pretrained backbone, or leave freeze out",
                )

    def _tokens_alone(self) -> bool:
        """Return whether a task answers about the tokens of the only column, whose encoder is tuned.

        There is no head stage then: the linear part is the task's best, and there are no columns to fuse. Heads that
        learn on the frozen features of every token fit them by heart.
        """
        reads = self.model.reads if isinstance(self.model, Understand) else {}
        return (
            any(reads.values()) and len(self.model.columns) == 1 and bool(self.settings.epochs) and bool(self.movable())
        )

    def new_parameters(self, lr: float) -> list[tuple[float, Sequence[Tensor]]]:
        """Return the parameters without pretrained weights, each list with its learning rate.

        Args:
            lr: of new parameters, those of objectives and balance included.
        """
        old = {id(p) for key in self.pretrained for p in self.model.encoders[key].parameters()}
        new = [p for p in self.model.parameters() if id(p) not in old]
        own = [p for objective in self.objectives for p in objective.parameters()]
        return [(lr, new + own)] if self.start_rate is None else [(self.start_rate, new), (lr, own)]

    def rule(self, key: str) -> BackboneRule:
        """Return how an encoder is tuned; `auto` as the trial chose, before the trial as if nothing were frozen."""
        rule = self.rules.get(key, BackboneRule())
        if rule.freeze != "auto":
            return rule
        count = (self.num_frozen or {}).get(key, 0)
        return replace(rule, freeze=f"bottom:{count}" if count else "none")

    def undecided(self) -> dict[str, Backbone]:
        """Return the encoders whose frozen blocks a trial is to choose; call it once `tune_stage` was.

        None where what enters the encoders is changed in training, as all layers then run in every update, or where
        layers are spread over processes.
        """
        if self.num_frozen is not None or not self.reads_cells_as_they_are() or self.settings.shard:
            return {}
        encoders = {key: self.model.encoders[key] for key in sorted(self.moving())}
        auto = [key for key, rule in self.rules.items() if rule.freeze == "auto"]
        return {
            key: encoder
            for key, encoder in encoders.items()
            if key in auto and isinstance(encoder, Backbone) and encoder.adapter is None
        }

    def head_stage(self, num_rows: int) -> Stage:
        """Return the stage that trains all new parameters, with frozen pretrained encoders."""
        epochs = self.settings.head_epochs
        if epochs is None:
            epochs = HEAD_EPOCHS_SCRATCH if self.scratch else HEAD_EPOCHS
        for key in self.pretrained:
            self.model.encoders[key].requires_grad_(False)
        linear = self.model.linear_part()
        if linear is not None and self.starts_linear:
            linear.requires_grad_(False)  # it already is the best linear model of these features
        patience = None if self.settings.patience is None else max(HEAD_PATIENCE, self.settings.patience)
        stage = self._stage("head", epochs, self.new_parameters(self.settings.lr), 1, patience)
        writes = isinstance(self.model, Generate)  # its language model runs in this stage, too
        if not self.scratch and not writes:
            stage.batch_size = max(stage.batch_size, min(num_rows // HEAD_UPDATES, HEAD_BATCH))
        stage.autocast = bool(self.scratch) or writes  # on precomputed features, lower precision is slower
        stage.gradients = balanced(self.settings.balance, self.balance, self.seed) or cached
        stage.fits_memory = bool(self.scratch) or writes
        if not self.tunes():
            stage.gradients = self.gradients()
        return stage

    def tunes(self) -> bool:
        """Return whether there is a tune stage: if an encoder is trained, or the cells that one reads are augmented."""
        anew = self.settings.head_epochs == 0 or any(self.read_anew(column) for column in self.model.columns)
        return bool(self.settings.epochs) and (anew or any(map(self._moves, self.pretrained)))

    def read_anew(self, column: str) -> bool:
        """Return whether a column's cells are augmented and read by a backbone, which the head stage does not run."""
        return column in self.augmented and isinstance(self.model.encoders[self.model.routes[column]], Backbone)

    def reads_cells_as_they_are(self) -> bool:
        """Return whether the encoders' inputs are not perturbed, so that frozen layers need to run only once."""
        return self.settings.adversarial is None and not self._perturbing()

    def _perturbing(self) -> list[str]:
        """Return the names of the objectives that change what enters the encoders."""
        return [part.name for part in self.objectives if isinstance(part, Objective) and part.perturbs_inputs]

    def _moves(self, key: str) -> bool:
        """Return whether an encoder has trainable parameters under its rule."""
        encoder = self.model.encoders[key]
        if not isinstance(encoder, Backbone):
            return False
        before = [parameter.requires_grad for parameter in encoder.parameters()]
        encoder.requires_grad_(True)
        freeze(encoder, self.rule(key).freeze)
        trainable = any(parameter.requires_grad for parameter in encoder.parameters())
        for parameter, flag in zip(encoder.parameters(), before, strict=True):
            parameter.requires_grad_(flag)
        return trainable

    def gradients(self) -> Gradients:
        """Return how gradients are computed in the last stage."""
        if self.settings.adversarial is not None:
            return Adversarial(self.model, self.settings.adversarial)
        gradients = balanced(self.settings.balance, self.balance, self.seed) or cached
        return gradients if self.settings.sam is None else Sharpness(self.settings.sam, gradients)

    def warnings(self) -> list[str]:
        """Return the objectives' warnings, warnings about the settings of gradients, and the notes."""
        warnings = [warning for objective in self.objectives for warning in getattr(objective, "warnings", [])]
        names = [objective.name for objective in self.objectives if isinstance(objective, BatchObjective)]
        gradients = self.gradients()
        gradients = gradients.gradients if isinstance(gradients, Sharpness) else gradients
        if names and self.settings.accumulate > 1 and gradients is not cached:
            warnings.append(
                f"objectives.{names[0]} compares the rows of one micro-batch, not of all {self.settings.accumulate}, "
                "as the trainer's settings have gradients computed one micro-batch at a time; take trainer.accumulate=1"
            )
        return [*warnings, *self.notes]

    def tune_stage(self) -> Stage:
        """Return the stage that trains everything that no rule freezes, with a learning rate per pretrained block."""
        if (linear := self.model.linear_part()) is not None:
            linear.requires_grad_(True)
        sets = self.new_parameters(self.settings.head_lr if self.settings.head_epochs != 0 else self.settings.lr)
        for key in sorted(self.pretrained):
            rule = self.rule(key)
            encoder = self.model.encoders[key]
            if not isinstance(encoder, Backbone):
                continue
            encoder.requires_grad_(True)
            freeze(encoder, rule.freeze)
            if self.settings.gradient_checkpointing:
                encoder.enable_checkpointing()
            for scale, named in lr_scales(encoder, self.settings.layer_decay):
                sets.append(((rule.lr or self.settings.backbone_lr * rate(encoder)) * scale, [p for _, p in named]))
        stage = self._stage("tune", self.settings.epochs, sets, self.settings.evals_per_epoch, self.settings.patience)
        stage.gradients = self.gradients()
        stage.fits_memory = not (self.settings.compile or self.settings.shard)
        return stage

    def _stage(
        self,
        name: str,
        epochs: float,
        sets: Sequence[tuple[float, Iterable[Tensor]]],
        evals_per_epoch: int,
        patience: int | None,
    ) -> Stage:
        settings = self.settings
        return Stage(
            name=name,
            epochs=epochs,
            groups=param_groups(sets, weight_decay=settings.weight_decay, undecayed=self.undecayed),
            optimizer=settings.optimizer,
            schedule=settings.schedule,
            warmup=settings.warmup,
            clip=settings.clip,
            batch_size=settings.batch_size,
            accumulate=settings.accumulate,
            evals_per_epoch=evals_per_epoch,
            patience=patience,
            workers=settings.workers,
            seed=self.seed,
            ema=settings.ema,
            skip=settings.skip_nonfinite,
            deadline=self.deadline,
        )

    def check_compile(self) -> None:
        """Refuse `trainer.compile` with an objective that perturbs the encoders' inputs.

        Raises:
            ConfigError: there is such an objective.
        """
        if self.settings.compile and not self.reads_cells_as_they_are():
            names = ", ".join(f"objectives.{name}" for name in self._perturbing()) or "trainer.adversarial"
            raise ConfigError(
                f"trainer.compile does not go with {names}, which changes what enters the encoders",
                do="leave one of them out",
            )

    def movable(self) -> list[str]:
        """Return the keys of the pretrained encoders that the tune stage trains; none if there is no such stage."""
        return [key for key in sorted(self.pretrained) if self._moves(key)] if self.tunes() else []

    def moving(self) -> set[str]:
        """Return the keys of the pretrained encoders that have trainable parameters at present."""
        return {k for k in self.pretrained if any(p.requires_grad for p in self.model.encoders[k].parameters())}
