"""The section `trainer`: how the model is tuned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fusetune.config.adversarial import AdversarialConfig
from fusetune.config.section import ByName, Section, StrList, known_name

OPTIMIZERS = ("adamw", "adam", "nadam", "radam", "sgd", "rmsprop", "adagrad", "adafactor", "lion")
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
"""transformers' schedules that need a warmup and a number of steps, and nothing else."""


def _known_optimizer(name: str) -> str:
    return known_name(name.lower(), OPTIMIZERS)


def _known_schedule(name: str) -> str:
    return known_name(name, SCHEDULES)


class TrainerConfig(Section):
    """How the model is tuned."""

    epochs: Annotated[float, Field(ge=0)] = 5
    """Passes over the train rows with everything unfrozen that is not frozen by a rule. 0: only the head stage."""
    head_epochs: Annotated[float, Field(ge=0)] | None = None
    """First, the fusion and heads alone learn on the frozen backbones' features, which are computed once
    (linear probing, then fine-tuning: Kumar et al. 2022, arXiv 2202.10054). None: 60, or 12 where an image or audio
    encoder is trained from scratch, or 0 where a task answers about the tokens of the only column: its linear start is
    the best for them. 0: skip this stage."""
    probe: Literal["auto", "columns"] = "auto"
    """What the linear probe reads, which the model starts from. `columns`: all columns. `auto`: also n-grams
    of texts (of tokens and of characters) and |u − v| and u ∘ v of two to four columns of one encoder, without what
    does not help on held-out rows; but `columns` where that scores better. Validation rows decide; with fewer than
    1,500 train and validation rows, cross-validation over both."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Rows an update, over all devices and micro-batches."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Micro-batches an update: each has batch_size / accumulate rows."""
    optimizer: Annotated[str, AfterValidator(_known_optimizer)] = "adamw"
    """adamw, adam, nadam, radam, sgd, rmsprop, adagrad, adafactor or lion."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate of fusion, projections and heads while they learn on frozen features."""
    head_lr: Annotated[float, Field(gt=0)] = 3e-4
    """Their peak learning rate once the backbones move too."""
    backbone_lr: Annotated[float, Field(gt=0)] = 5e-5
    """Peak learning rate of a pretrained backbone's last block. Encoders from scratch learn as the fusion does."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Each block nearer to the input learns this much slower."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Not on biases and norms."""
    schedule: Annotated[str, AfterValidator(_known_schedule)] = "cosine"
    """A name of transformers' `SchedulerType`: linear, cosine, cosine_with_restarts, polynomial, constant,
    constant_with_warmup or inverse_sqrt."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises from 0."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of an update's gradient. None: not clipped."""
    precision: Annotated[
        Literal["auto", "no", "bf16", "fp16"], BeforeValidator(lambda v: "no" if v is False else v)  # as YAML reads no
    ] = "auto"
    """Autocast where encoders are trained. `auto`: bf16 on a GPU that has it; on a processor that has it, for models of
    wide layers if a batch's loss stays near; else float32. It follows from hardware and model, not from a clock."""
    gradient_checkpointing: bool = False
    """Compute activations twice to save memory."""
    cuda_graphs: bool = False
    """On one GPU, small passes of trained encoders are captured once a shape and replayed from CUDA graphs, so that the
    chip does not wait for its kernels to be launched one by one.
    Off until tests/training/test_gpu.py has passed on a GPU."""
    compile: bool = False
    """Compile the layers of trained encoders (torch.compile) for a few lengths of text, seconds each: for long runs."""
    shard: bool = False
    """Spread the layers of trained encoders over the processes (FSDP2), for models too large for one device; without
    checkpoints."""
    adversarial: Annotated[AdversarialConfig | None, ByName] = None
    """Adversarial training once the backbones move, or of the heads alone where no backbone moves: `fgm`, `pgd` or
    `freelb`, with its settings."""
    sam: Annotated[float, Field(gt=0)] | None = None
    """Sharpness-aware minimisation (arXiv 2010.01412) in the last stage: gradients are taken this far up the slope,
    0.05 for example; twice the time."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Evaluate and keep the exponential moving average of the weights with this decay, 0.999 for example."""
    soup: Annotated[int, Field(ge=2)] | None = None
    """Average the weights of up to so many of the best steps, each joining only if the validation score rises with it
    (arXiv 2203.05482)."""
    interpolate: bool = False
    """Go back towards the weights before tuning as far as the validation score says (WiSE-FT, arXiv 2109.01903)."""
    balance: Literal["sum", "uncertainty", "dwa", "famo", "pcgrad", "upgrad"] = "sum"
    """What several tasks' losses count, each divided by that of the constant guess: all alike, by learned
    uncertainties, by the last epochs' progress (`dwa`), falling at one rate (`famo`), or with gradients that do not
    work against each other (`pcgrad`, `upgrad`: the extra `multitask`)."""
    metric: str | dict[str, str] | None = None
    """The main metric, one of the task's: by it validation rows choose the best step, when to stop and the fusion, and
    the report's headline shows it. For several targets `{rating: mae, label: f1_macro}`. In Python also a function
    of y_true and y_pred. None: accuracy, `map_macro`, `r2` or `qwk`, as the task has it."""
    patience: Annotated[int, Field(ge=1)] | None = 3
    """Stop after so many evaluations without a better main metric on validation rows. None: never."""
    evals_per_epoch: Annotated[int, Field(ge=1)] = 2
    """Evaluations on validation rows an epoch; the best step is what is kept."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Time for the whole fit, its report included. Training stops once four fifths are spent and the best step so far
    is kept; trees and the report's extra models take what is left, or are left out. Steps that cannot be cut, as the
    pass of frozen backbones, may take longer. A run that hits its limit is not reproducible. None: no limit."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that decode cells."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] | None = 5.0
    """Minutes between checkpoints in the run's folder, from which `--resume` goes on; they take a twentieth of the time
    at most. 0: one an update. None: none."""
    skip_nonfinite: Annotated[int, Field(ge=0)] | None = None
    """Leave out up to so many updates whose loss or gradient is NaN or infinite. None: stop at the first."""
    trackers: StrList = ["tensorboard"]
    """tensorboard, wandb or any other that accelerate knows by name; [] for none."""

    @model_validator(mode="after")
    def _no_checkpoints(self) -> TrainerConfig:
        if self.shard and "checkpoint_minutes" not in self.model_fields_set:
            self.checkpoint_minutes = None
        return self

    @model_validator(mode="after")
    def _balance_alone(self) -> TrainerConfig:
        if self.adversarial is not None and self.balance in ("famo", "pcgrad", "upgrad"):
            raise ValueError(f"adversarial goes with balance sum, uncertainty or dwa, not with {self.balance}")
        others = {"adversarial": self.adversarial, "sam": self.sam, "compile": self.compile}
        others |= {"precision": self.precision == "fp16", "balance": self.balance in ("famo", "pcgrad", "upgrad")}
        for name, kept in (("compile", ["adversarial"]), ("shard", list(others))):
            if getattr(self, name) and (said := [one for one in kept if others[one]]):
                raise ValueError(f"{name} does not go with {', '.join(said)} as it is set; leave one of them out")
        if self.sam is not None and (self.adversarial is not None or self.balance == "famo"):
            other = "adversarial" if self.adversarial is not None else "balance=famo"
            raise ValueError(f"sam and {other} both say where gradients are taken; leave one of them out")
        return self
