"""The run: the section `training`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nima.params.section import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Ratio,
    Section,
    Seed,
    nearest,
    refuse,
)


class EarlyStoppingParams(Section):
    metric: Literal["loss", "perplexity", "bits_per_byte", "accuracy"] = "loss"
    patience: NonNegativeInt = 0
    min_delta: NonNegativeFloat = 0.0


class TrainingParams(Section):
    seed: Seed
    max_steps: PositiveInt | None = None
    max_epochs: PositiveFloat | None = None
    batching: Literal["blocks", "packed", "padded"] = "blocks"
    mask_documents: bool = False
    mixture: dict[str, NonNegativeFloat] = Field(default={})
    block_tokens: Annotated[int, Field(ge=2)]
    batch_tokens: PositiveInt
    micro_batch_tokens: PositiveInt
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    optimizer: Literal["muon", "adamw"] = "muon"
    lr: PositiveFloat
    embedding_lr_ratio: PositiveFloat = 1.0
    head_lr_ratio: PositiveFloat = 1.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: NonNegativeInt = 0
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_lr_ratio: Ratio = 0.0
    weight_decay: NonNegativeFloat = 0.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    max_grad_norm: PositiveFloat | None = 1.0
    log_every_steps: PositiveInt = 1
    validate_every_steps: PositiveInt = 100
    validation_max_tokens: PositiveInt | None = None
    best_metric: Literal["loss", "perplexity", "bits_per_byte", "accuracy"] = "loss"
    keep: Literal["best", "last"] = "best"
    early_stopping: EarlyStoppingParams = EarlyStoppingParams()

    @model_validator(mode="after")
    def agrees_with_itself(self) -> Self:
        problems = []
        if (self.max_steps is None) == (self.max_epochs is None):
            problems += [("", "needs exactly one of max_steps and max_epochs")]
        if self.max_steps is not None and self.warmup_steps >= self.max_steps:
            problems += [("warmup_steps", f"{self.warmup_steps} must be below max_steps ({self.max_steps})")]
        problems += self.rows_of_unlike_length() if self.batching == "padded" else self.whole_blocks()
        if self.mixture and not any(self.mixture.values()):
            problems += [("mixture", "needs a share above 0")]
        refuse(problems)
        return self

    def whole_blocks(self) -> list[tuple[str, str]]:
        """Problems with the numbers of tokens when all rows have block_tokens."""
        problems = []
        for key in ("batch_tokens", "micro_batch_tokens"):
            if (tokens := getattr(self, key)) % self.block_tokens:
                problems += [(key, f"{tokens} must be whole blocks of block_tokens ({self.block_tokens})")]
        if self.batch_tokens % self.micro_batch_tokens:
            message = f"{self.micro_batch_tokens} must divide batch_tokens ({self.batch_tokens})"
            problems += [("micro_batch_tokens", message)]
        return problems

    def rows_of_unlike_length(self) -> list[tuple[str, str]]:
        """Problems when rows have up to block_tokens."""
        problems = []
        if self.micro_batch_tokens < self.block_tokens:
            message = f"{self.micro_batch_tokens} must hold a row of block_tokens ({self.block_tokens})"
            problems += [("micro_batch_tokens", message)]
        if self.batch_tokens < self.micro_batch_tokens:
            message = f"{self.micro_batch_tokens} must not exceed batch_tokens ({self.batch_tokens})"
            problems += [("micro_batch_tokens", message)]
        if self.mask_documents:
            problems += [("mask_documents", "must be false: a padded row holds one document")]
        return problems


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
