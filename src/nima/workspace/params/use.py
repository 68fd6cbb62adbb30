"""The finished model at work: the sections `evaluate`, `generate` and `run`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nima.workspace.params.section import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Seed,
    refuse,
    repeated_names,
)


class EvaluateParams(Section):
    window_tokens: Annotated[int, Field(ge=2)]
    stride_tokens: PositiveInt
    micro_batch_tokens: PositiveInt = 8192
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"

    @model_validator(mode="after")
    def stride_fits(self) -> Self:
        if self.stride_tokens >= self.window_tokens:
            message = f"{self.stride_tokens} must be below window_tokens ({self.window_tokens})"
            refuse([("stride_tokens", message)])
        return self


class StrategyParams(Section):
    """One way of choosing the next token."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    temperature: PositiveFloat | None = None
    top_k: PositiveInt | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    num_beams: Annotated[int, Field(ge=2)] | None = None

    @model_validator(mode="after")
    def beams_do_not_sample(self) -> Self:
        samples = (self.temperature, self.top_k, self.top_p) != (None, None, None)
        if samples and self.num_beams is not None:
            message = "excludes temperature, top_k and top_p: beam search does not sample"
            refuse([("num_beams", message)])
        return self


class GenerateParams(Section):
    seed: Seed
    prompts: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    strategies: list[StrategyParams] = Field(min_length=1)
    max_new_tokens: PositiveInt

    @model_validator(mode="after")
    def names_differ(self) -> Self:
        refuse(repeated_names("strategies", [strategy.name for strategy in self.strategies]))
        return self


class RunParams(Section):
    """What the recipe is called, how progress is saved and printed, what is kept in memory.

    No stage tracks these keys: they change no result.
    """

    recipe: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")] | None = None
    save_every_seconds: PositiveFloat | None = 30.0
    save_every_steps: PositiveInt | None = None
    save_every_epochs: PositiveFloat | None = None
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    keep_best: NonNegativeInt = 0
    keep_best_by: Literal["loss", "perplexity", "bits_per_byte", "accuracy"] = "loss"
    compression: Literal["none", "gzip", "bz2", "xz", "zstd"] = "none"
    print_every_steps: PositiveInt = 10
    activation_checkpointing: bool = False
