"""The schema of params.yaml: every key, its type, its range, and what must agree with what."""

import difflib
import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from nima import presets

Ratio = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
# What every random generator takes, also after the products that seeds go through.
Seed = Annotated[int, Field(ge=0, lt=2**32)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A mapping in params.yaml: no unknown keys, no silent conversions, frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def refuse(problems: list[tuple[str, str]]) -> None:
    """Report what is wrong with a section as a whole, if anything: pairs of key ("" for all) and message."""
    if problems:
        raise PydanticCustomError("cross_field", "does not agree with itself", {"problems": problems})


# --------------------------------------------------------------------------------------------- prepare


class PackageParams(Section):
    """A pinned package whose files are read where they lie, inside the archive."""

    index: Literal["pypi"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+!-]*$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class SourceParams(Section):
    """Where documents come from: a path or a package, and which files in it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    path: str | None = None
    package: PackageParams | None = None
    glob: str = "**/*"
    exclude: list[str] = []
    format: Literal["auto", "markdown", "rst", "text", "json", "jsonl"] = "auto"
    record: Literal["auto", "document", "qa"] = "auto"
    weight: PositiveFloat = 1.0
    max_documents: PositiveInt | None = None
    licence: str | None = None

    @model_validator(mode="after")
    def names_one_place(self) -> Self:
        if (self.path is None) == (self.package is None):
            refuse([("", "needs exactly one of 'path' and 'package'")])
        return self


class CleaningParams(Section):
    """Repairs to prose. Fenced and indented code is never touched."""

    unicode: Literal["none", "NFC"] = "NFC"
    control_characters: bool = True
    trailing_space: bool = True
    max_blank_lines: PositiveInt | None = 2


class PrepareParams(Section):
    sources: list[SourceParams] = Field(min_length=1)
    cleaning: CleaningParams = CleaningParams()
    min_chars: PositiveInt = 1
    max_chars: PositiveInt = 1_000_000
    drop_exact_duplicates: bool = True
    max_shard_bytes: PositiveInt = 64_000_000

    @model_validator(mode="after")
    def agrees_with_itself(self) -> Self:
        problems = repeated_names("sources", [source.name for source in self.sources])
        if self.min_chars > self.max_chars:
            problems += [("min_chars", f"{self.min_chars} must not exceed max_chars ({self.max_chars})")]
        refuse(problems)
        return self


# ------------------------------------------------------------------------------------ tokenize and split


class TokenizeParams(Section):
    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)]
    train_max_bytes: PositiveInt = 100_000_000
    min_vocab_size: PositiveInt = 101
    loss_on: Literal["assistant", "all"] = "all"
    max_shard_tokens: PositiveInt = 500_000_000

    @model_validator(mode="after")
    def vocabulary_can_pass_its_gate(self) -> Self:
        if self.min_vocab_size > self.vocab_size:
            message = f"{self.min_vocab_size} must not exceed vocab_size ({self.vocab_size})"
            refuse([("min_vocab_size", message)])
        return self


class SplitParams(Section):
    seed: Seed
    train: Ratio
    validation: Ratio
    test: Ratio

    @model_validator(mode="after")
    def ratios_add_to_one(self) -> Self:
        total = self.train + self.validation + self.test
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            refuse([("", f"train + validation + test must be 1, found {total:g}")])
        return self


# ---------------------------------------------------------------------------------------------- model


class ModelParams(Section):
    """A preset, and any field of it overridden."""

    preset: str
    num_layers: PositiveInt | None = None
    width: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    num_kv_heads: PositiveInt | None = None
    mlp: Literal["swiglu", "relu2"] | None = None
    mlp_width: PositiveInt | None = None
    context_tokens: PositiveInt | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    tie_embeddings: bool | None = None
    rope_theta: PositiveFloat | None = None
    norm_eps: PositiveFloat | None = None

    @field_validator("preset")
    @classmethod
    def preset_exists(cls, preset: str) -> str:
        if preset not in presets.PRESETS:
            refuse([("", f"unknown preset {preset!r}{nearest(preset, list(presets.PRESETS))}")])
        return preset

    @model_validator(mode="after")
    def heads_fit(self) -> Self:
        shape = self.shape()
        width, heads, kv_heads = shape["width"], shape["num_heads"], shape["num_kv_heads"]
        problems = []
        if width % heads:
            problems += [("num_heads", f"{heads} must divide width ({width})")]
        elif (width // heads) % 2:
            message = f"{width} / num_heads ({heads}) must be even: rotary positions turn pairs"
            problems += [("width", message)]
        if heads % kv_heads:
            problems += [("num_kv_heads", f"{kv_heads} must divide num_heads ({heads})")]
        refuse(problems)
        return self

    def shape(self) -> dict[str, Any]:
        """The resolved fields of the network's shape (all but the vocabulary's size)."""
        return presets.resolve(self.preset, self.model_dump(exclude={"preset"}))


# -------------------------------------------------------------------------------------------- training


class EarlyStoppingParams(Section):
    metric: Literal["loss", "perplexity", "bits_per_byte", "accuracy"] = "loss"
    patience: NonNegativeInt = 0
    min_delta: NonNegativeFloat = 0.0


class TrainingParams(Section):
    seed: Seed
    max_steps: PositiveInt | None = None
    max_epochs: PositiveFloat | None = None
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
        for key in ("batch_tokens", "micro_batch_tokens"):
            if (tokens := getattr(self, key)) % self.block_tokens:
                problems += [(key, f"{tokens} must be whole blocks of block_tokens ({self.block_tokens})")]
        if self.batch_tokens % self.micro_batch_tokens:
            message = f"{self.micro_batch_tokens} must divide batch_tokens ({self.batch_tokens})"
            problems += [("micro_batch_tokens", message)]
        refuse(problems)
        return self


# ------------------------------------------------------------------------- evaluate, generate and run


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
    """How often progress is saved and printed. No stage tracks these keys: they change no result."""

    save_every_steps: PositiveInt | None = None
    save_every_seconds: PositiveFloat | None = 30.0
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    print_every_steps: PositiveInt = 10


class Params(Section):
    prepare: PrepareParams
    tokenize: TokenizeParams
    split: SplitParams
    model: ModelParams
    training: TrainingParams
    evaluate: EvaluateParams
    generate: GenerateParams
    run: RunParams = RunParams()

    @model_validator(mode="after")
    def sections_agree(self) -> Self:
        context = self.model.shape()["context_tokens"]
        problems = []
        for key, tokens in (
            ("training.block_tokens", self.training.block_tokens),
            ("evaluate.window_tokens", self.evaluate.window_tokens),
        ):
            if tokens > context:
                problems += [(key, f"{tokens} must not exceed the model's context_tokens ({context})")]
        if (tokens := self.generate.max_new_tokens) >= context:
            message = f"{tokens} must be below the model's context_tokens ({context})"
            problems += [("generate.max_new_tokens", message)]
        refuse(problems)
        return self


def repeated_names(key: str, names: list[str]) -> list[tuple[str, str]]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    return [(key, f"names must differ, found twice: {', '.join(repeated)}")] if repeated else []


def nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
