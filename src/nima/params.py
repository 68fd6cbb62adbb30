"""The schema of params.yaml, and the only reader of it.

YAML 1.2 rules, so that `1e-05` is a number. Every problem of a file is reported at once, each with its
line, the value found and what would be right.
"""

import difflib
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from nima import presets
from nima.errors import ParamsError

Ratio = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A mapping in params.yaml: no unknown keys, no silent conversions, frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("cross_field", "{message}", {"message": message})


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
            raise wrong("needs exactly one of 'path' and 'package'")
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
        names = [source.name for source in self.sources]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise wrong(f"source names must differ, found twice: {', '.join(repeated)}")
        if self.min_chars > self.max_chars:
            raise wrong(f"min_chars ({self.min_chars}) must not exceed max_chars ({self.max_chars})")
        return self


# ------------------------------------------------------------------------------------ tokenize and split


class TokenizeParams(Section):
    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)]
    train_max_bytes: PositiveInt = 100_000_000
    min_vocab_size: PositiveInt = 101
    loss_on: Literal["assistant", "all"] = "all"
    max_shard_tokens: PositiveInt = 500_000_000


class SplitParams(Section):
    seed: NonNegativeInt
    train: Ratio
    validation: Ratio
    test: Ratio

    @model_validator(mode="after")
    def ratios_add_to_one(self) -> Self:
        total = self.train + self.validation + self.test
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            raise wrong(f"train + validation + test must be 1, found {total:g}")
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
            raise wrong(f"unknown preset {preset!r}{nearest(preset, list(presets.PRESETS))}")
        return preset

    @model_validator(mode="after")
    def heads_fit(self) -> Self:
        shape = self.shape()
        width, heads, kv_heads = shape["width"], shape["num_heads"], shape["num_kv_heads"]
        if width % heads:
            raise wrong(f"num_heads ({heads}) must divide width ({width})")
        if (width // heads) % 2:
            raise wrong(f"width / num_heads ({width // heads}) must be even: rotary positions turn pairs")
        if heads % kv_heads:
            raise wrong(f"num_kv_heads ({kv_heads}) must divide num_heads ({heads})")
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
    seed: NonNegativeInt
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
        if (self.max_steps is None) == (self.max_epochs is None):
            raise wrong("needs exactly one of max_steps and max_epochs")
        if self.max_steps is not None and self.warmup_steps >= self.max_steps:
            raise wrong(f"warmup_steps ({self.warmup_steps}) must be below max_steps ({self.max_steps})")
        for key in ("batch_tokens", "micro_batch_tokens"):
            if getattr(self, key) % self.block_tokens:
                raise wrong(
                    f"block_tokens ({self.block_tokens}) must divide {key} ({getattr(self, key)}): "
                    "a batch holds whole blocks"
                )
        if self.batch_tokens % self.micro_batch_tokens:
            raise wrong(
                f"micro_batch_tokens ({self.micro_batch_tokens}) must divide batch_tokens ({self.batch_tokens})"
            )
        return self


# ------------------------------------------------------------------------- evaluate, generate and run


class EvaluateParams(Section):
    window_tokens: Annotated[int, Field(ge=2)]
    stride_tokens: PositiveInt
    micro_batch_tokens: PositiveInt = 8192

    @model_validator(mode="after")
    def stride_fits(self) -> Self:
        if self.stride_tokens >= self.window_tokens:
            raise wrong(
                f"stride_tokens ({self.stride_tokens}) must be below window_tokens ({self.window_tokens})"
            )
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
            raise wrong("num_beams excludes temperature, top_k and top_p: beam search does not sample")
        return self


class GenerateParams(Section):
    seed: NonNegativeInt
    prompts: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    strategies: list[StrategyParams] = Field(min_length=1)
    max_new_tokens: PositiveInt

    @model_validator(mode="after")
    def names_differ(self) -> Self:
        names = [strategy.name for strategy in self.strategies]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise wrong(f"strategy names must differ, found twice: {', '.join(repeated)}")
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
        for key, tokens in (
            ("training.block_tokens", self.training.block_tokens),
            ("evaluate.window_tokens", self.evaluate.window_tokens),
        ):
            if tokens > context:
                raise wrong(f"{key} ({tokens}) must not exceed the model's context_tokens ({context})")
        if self.generate.max_new_tokens >= context:
            raise wrong(
                f"generate.max_new_tokens ({self.generate.max_new_tokens}) must be below the model's "
                f"context_tokens ({context})"
            )
        return self


# --------------------------------------------------------------------------------------------- reading


def load(path: Path) -> Params:
    """Read and check a params file. Raises `ParamsError` with every problem found, one per line."""
    tree = parse(path)
    try:
        return Params.model_validate(plain(tree))
    except ValidationError as error:
        raise ParamsError([describe(problem, tree, path) for problem in error.errors()]) from None


def parse(path: Path) -> Any:
    try:
        tree = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError([f"{path}: not found; run from the project's root, where params.yaml lies"]) from None
    except UnicodeDecodeError as error:
        raise ParamsError([f"{path}: not UTF-8 at byte {error.start}"]) from None
    except OSError as error:
        raise ParamsError([f"{path}: cannot be read: {error.strerror}"]) from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ParamsError([f"{path}:{line}: not valid YAML: {error.problem}"]) from None
    if not isinstance(tree, dict):
        raise ParamsError([f"{path}:1: expected a mapping of sections, found {type(tree).__name__}"])
    return tree


def plain(node: Any) -> Any:
    """ruamel's round-trip nodes as the plain Python values that strict checks accept."""
    if isinstance(node, dict):
        return {str(key): plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def describe(problem: ErrorDetails, tree: Any, path: Path) -> str:
    """One line: file:line: key: what is wrong, what was found, what would be right."""
    location = problem["loc"]
    where = f"{path}:{line_of(location, tree)}: {dotted(location) or 'params'}"
    kind = problem["type"]
    if kind == "extra_forbidden":
        known = known_keys(location[:-1])
        return f"{where}: unknown key{nearest(str(location[-1]), known)}"
    if kind == "missing":
        return f"{where}: missing; add it to this section"
    if kind == "cross_field":
        return f"{where}: {problem['ctx']['message']}"
    expected = problem["msg"].removeprefix("Input should be ").removeprefix("a ").removeprefix("valid ")
    return f"{where}: expected {expected}, found {problem['input']!r}"


def line_of(location: tuple[int | str, ...], tree: Any) -> int:
    """The line (from 1) of the deepest part of `location` that the file has."""
    node, line = tree, 0
    for part in location:
        try:
            line = node.lc.data[part][0]
            node = node[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line + 1


def dotted(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def known_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the section at `location` may have."""
    section: Any = Params
    for part in location:
        if isinstance(part, str):
            section = section.model_fields[part].annotation
        section = next((kind for kind in [section, *_arguments(section)] if _is_section(kind)), section)
    return list(section.model_fields) if _is_section(section) else []


def _arguments(annotation: Any) -> list[Any]:
    return list(getattr(annotation, "__args__", ()))


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def stage_dependencies(path: Path, stage: str) -> list[Path]:
    """The files and folders that dvc.yaml names as the stage's inputs; none without such a file."""
    if not path.is_file():
        return []
    stages = parse(path).get("stages", {})
    return [Path(str(entry)) for entry in stages.get(stage, {}).get("deps", [])]
