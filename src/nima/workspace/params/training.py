"""The run: the section `training`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nima.workspace.params.section import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Ratio,
    Section,
    Seed,
    WholeOrAuto,
    nearest,
    refuse,
)
from nima.workspace.params.stopping import EarlyStoppingParams, NonFinite, PlateauParams, RecoveryParams

# A function in a module that Python can import, as `module:function`.
Function = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")]


class TrainingParams(Section):
    seed: Seed
    init_from: str | None = None
    max_steps: PositiveInt | None = None
    max_epochs: PositiveFloat | None = None
    max_tokens: PositiveInt | None = None
    batching: Literal["blocks", "packed", "padded"] = "blocks"
    mask_documents: bool = False
    mixture: dict[str, NonNegativeFloat] = Field(default={})
    block_tokens: Annotated[int, Field(ge=2)]
    batch_tokens: PositiveInt
    micro_batch_tokens: WholeOrAuto
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    compile: bool = False
    kernels: Literal["torch", "liger"] = "torch"
    loss: Function | None = None
    step: Function | None = None
    optimizer: Literal["muon", "adamw", "adam", "sgd", "adamw_scale", "adamw_8bit", "schedule_free"] = "muon"
    lr: PositiveFloat
    embedding_lr_ratio: PositiveFloat = 1.0
    head_lr_ratio: PositiveFloat = 1.0
    schedule: Literal["cosine", "cosine_restarts", "linear", "constant", "wsd", "plateau"] = "cosine"
    warmup_steps: NonNegativeInt = 0
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    decay_shape: Literal["linear", "cosine", "1-sqrt"] = "linear"
    num_cycles: Annotated[int, Field(ge=1, le=1000)] = 1
    cycle_growth: Annotated[float, Field(ge=0.1, le=10)] = 1.0
    min_lr_ratio: Ratio = 0.0
    weight_decay: NonNegativeFloat = 0.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    nesterov: bool = True
    max_grad_norm: PositiveFloat | None = 1.0
    log_every_steps: PositiveInt = 1
    validate_every_steps: PositiveInt = 100
    validation_max_tokens: PositiveInt | None = None
    best_metric: Literal["loss", "perplexity", "bits_per_byte", "accuracy"] = "loss"
    keep: Literal["best", "last"] = "best"
    early_stopping: EarlyStoppingParams = EarlyStoppingParams()
    plateau: PlateauParams = PlateauParams()
    recovery: RecoveryParams = RecoveryParams()
    non_finite: NonFinite = "stop"

    @property
    def tokens_at_once(self) -> int:
        """`micro_batch_tokens` as a number; while it is still open, the least that there is."""
        return self.block_tokens if self.micro_batch_tokens == "auto" else self.micro_batch_tokens

    @model_validator(mode="after")
    def agrees_with_itself(self) -> Self:
        problems = []
        if (self.max_steps, self.max_epochs, self.max_tokens).count(None) != 2:
            problems += [("", "needs exactly one of max_steps, max_epochs and max_tokens")]
        if self.max_steps is not None and self.warmup_steps >= self.max_steps:
            problems += [("warmup_steps", f"{self.warmup_steps} must be below max_steps ({self.max_steps})")]
        problems += self.rules_that_exclude_each_other() + self.rules_without_effect()
        problems += self.rows_of_unlike_length() if self.batching == "padded" else self.whole_blocks()
        if self.mixture and not any(self.mixture.values()):
            problems += [("mixture", "needs a share above 0")]
        refuse(problems)
        return self

    def rules_that_exclude_each_other(self) -> list[tuple[str, str]]:
        """Problems with optimizer and schedule."""
        problems = []
        if self.loss and self.step:
            problems += [("step", f"{self.step!r} excludes loss: a step computes its own")]
        if self.warmup_steps and self.warmup_fraction:
            problems += [("warmup_fraction", f"{self.warmup_fraction} excludes warmup_steps; set one to 0")]
        if self.schedule == "wsd" and self.decay_fraction == 1:
            problems += [("decay_fraction", "1.0 must be below 1: wsd is stable before it decays")]
        if self.schedule != "wsd" and self.decay_shape != "linear":
            problems += [("decay_shape", f"{self.decay_shape!r} is for schedule wsd, not {self.schedule}")]
        if self.schedule == "cosine_restarts" and self.num_cycles == 1:
            problems += [("num_cycles", "1 must be at least 2 for schedule cosine_restarts")]
        if self.schedule != "cosine_restarts" and (self.num_cycles, self.cycle_growth) != (1, 1.0):
            message = f"{self.num_cycles} is for schedule cosine_restarts, not {self.schedule}"
            problems += [("num_cycles", message)]
        if self.optimizer == "schedule_free" and self.schedule != "constant":
            message = f"{self.schedule!r} must be constant: schedule_free averages in place of a decay"
            problems += [("schedule", message)]
        if self.optimizer == "schedule_free" and self.beta1 == 0:
            problems += [("beta1", "0.0 must be above 0: schedule_free interpolates by it")]
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            problems += [("nesterov", "must be false without momentum")]
        return problems

    def rules_without_effect(self) -> list[tuple[str, str]]:
        """Problems with what ends, slows or turns back a run."""
        problems = []
        recovers, never_falls = self.recovery.max_recoveries > 0, self.schedule == "constant"
        if self.schedule != "plateau" and self.plateau != PlateauParams():
            problems += [("plateau", f"is for schedule plateau, not {self.schedule}")]
        if self.non_finite == "roll_back" and not recovers:
            problems += [("non_finite", "'roll_back' needs recovery.max_recoveries above 0")]
        if recovers and self.non_finite != "roll_back" and not self.early_stopping.can_be_recovered:
            message = "nothing calls for it: set a rule of early_stopping, or non_finite: roll_back"
            problems += [("recovery.max_recoveries", message)]
        if (ratio := self.early_stopping.lr_plateau.ratio) is not None and not recovers:
            if never_falls:
                problems += [
                    ("early_stopping.lr_plateau.ratio", f"{ratio} is never reached: constant schedule")
                ]
            elif ratio < self.min_lr_ratio:
                message = f"{ratio} is never reached: min_lr_ratio is {self.min_lr_ratio}"
                problems += [("early_stopping.lr_plateau.ratio", message)]
        return problems

    def whole_blocks(self) -> list[tuple[str, str]]:
        """Problems with the numbers of tokens when all rows have block_tokens."""
        problems = []
        for key, tokens in (
            ("batch_tokens", self.batch_tokens),
            ("micro_batch_tokens", self.tokens_at_once),
        ):
            if tokens % self.block_tokens:
                problems += [(key, f"{tokens} must be whole blocks of block_tokens ({self.block_tokens})")]
        if self.batch_tokens % self.tokens_at_once:
            message = f"{self.tokens_at_once} must divide batch_tokens ({self.batch_tokens})"
            problems += [("micro_batch_tokens", message)]
        return problems

    def rows_of_unlike_length(self) -> list[tuple[str, str]]:
        """Problems when rows have up to block_tokens."""
        problems = []
        if self.tokens_at_once < self.block_tokens:
            message = f"{self.tokens_at_once} must hold a row of block_tokens ({self.block_tokens})"
            problems += [("micro_batch_tokens", message)]
        if self.batch_tokens < self.tokens_at_once:
            message = f"{self.tokens_at_once} must not exceed batch_tokens ({self.batch_tokens})"
            problems += [("micro_batch_tokens", message)]
        if self.mask_documents:
            problems += [("mask_documents", "must be false: a padded row holds one document")]
        if self.compile:
            problems += [("compile", "must be false: rows of unlike length would be compiled one by one")]
        return problems


def metric_problems(training: TrainingParams, sources: list[str]) -> list[tuple[str, str]]:
    """Problems with the metrics of single sources that rules look at."""
    watched = {
        "early_stopping.metric": training.early_stopping.metric,
        "early_stopping.degradation.metric": training.early_stopping.degradation.metric,
        "plateau.metric": training.plateau.metric,
    }
    return [
        (f"training.{key}", f"{metric}: no source has this name{nearest(source, sources)}")
        for key, metric in watched.items()
        if (source := metric.rpartition("/")[0]) and source not in sources
    ]


def mixture_problems(training: TrainingParams, sources: list[str]) -> list[tuple[str, str]]:
    """Problems with the names under `training.mixture`, which must be those of all sources."""
    unknown = [name for name in training.mixture if name not in sources]
    problems = [
        (f"training.mixture.{name}", f"no source has this name{nearest(name, sources)}") for name in unknown
    ]
    if training.mixture and (missing := [name for name in sources if name not in training.mixture]):
        message = f"no share for {', '.join(missing)}; give every source one (0 leaves it out)"
        problems += [("training.mixture", message)]
    return problems
