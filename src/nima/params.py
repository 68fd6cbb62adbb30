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
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scalarbool import ScalarBoolean

from nima import presets
from nima.errors import ParamsError

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


# --------------------------------------------------------------------------------------------- reading


def load(path: Path) -> Params:
    """Read and check a params file. Raises `ParamsError` with every problem found, one per line."""
    tree = parse(path)
    try:
        return Params.model_validate(plain(tree))
    except ValidationError as error:
        problems = [line for problem in error.errors() for line in describe(problem, tree, path)]
        raise ParamsError(problems) from None


def parse(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParamsError([f"{path}: not found; run from the project's root, where it lies"]) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ParamsError([f"{path}:{line}: not UTF-8 at byte {error.start}"]) from None
    except OSError as error:
        raise ParamsError([f"{path}: cannot be read: {error.strerror}"]) from None
    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ParamsError([f"{path}:{line}: not valid YAML: {error.problem}"]) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        found = f"control character {chr(error.character)!r}"
        raise ParamsError([f"{path}:{line}: not valid YAML: {found}"]) from None
    except (YAMLError, ValueError) as error:  # written like a date or tagged as a number, but none
        raise ParamsError([f"{path}: not valid YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else "a list" if isinstance(tree, list) else repr(tree)
        raise ParamsError([f"{path}:1: expected a mapping of sections, found {found}"])
    return tree


def plain(node: Any) -> Any:
    """ruamel's round-trip nodes as the plain Python values that strict checks accept."""
    if isinstance(node, dict):
        return {str(key): plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [plain(value) for value in node]
    if isinstance(node, ScalarBoolean):  # an anchored one; ruamel derives it from int
        return bool(node)
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def describe(problem: ErrorDetails, tree: Any, path: Path) -> list[str]:
    """Lines of the form file:line: key: what is wrong, what was found, what would be right."""
    location = problem["loc"]
    if problem["type"] == "cross_field":
        return [
            place(location + tuple(key.split(".") if key else ()), tree, path) + message
            for key, message in problem["ctx"]["problems"]
        ]
    return [place(location, tree, path) + what_is_wrong(problem)]


def place(location: tuple[int | str, ...], tree: Any, path: Path) -> str:
    return f"{path}:{line_of(location, tree)}: {dotted(location)}: "


def what_is_wrong(problem: ErrorDetails) -> str:
    location, message = problem["loc"], problem["msg"]
    match problem["type"]:
        case "extra_forbidden":
            return f"unknown key{nearest(str(location[-1]), known_keys(location[:-1]))}"
        case "missing":
            return "missing; add it to this section"
        case "model_type":
            message = "a mapping of keys"
        case "string_pattern_mismatch":
            message = f"text that matches {problem['ctx']['pattern']}"
    expected = message.removeprefix("Input should be ").removeprefix("a valid ").removeprefix("valid ")
    expected = expected.replace("should have ", "of ").replace(" after validation", "")
    return f"expected {expected[:1].lower()}{expected[1:]}, found {shortened(repr(problem['input']))}"


def shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


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
    stages = parse(path).get("stages") or {}
    return [Path(str(entry)) for entry in (stages.get(stage) or {}).get("deps") or []]
