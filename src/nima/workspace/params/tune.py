"""The search of `nima tune`: the section `tune`. No stage tracks it."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from nima.workspace.params.section import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Seed,
    nearest,
    refuse,
)

FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Location = tuple[str, ...]
# Sections that no stage depends on.
UNTRACKED = ("run", "tune", "lr_finder")


class DimensionParams(Section):
    """What one param may be: a range, or one of several values."""

    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    log: bool = False
    step: PositiveFloat | None = None
    choices: list[Any] = Field(default=[])

    @property
    def bounds(self) -> tuple[float, float]:
        """Of a range."""
        return float(self.low or 0), float(self.high or 0)

    @model_validator(mode="after")
    def is_a_range_or_choices(self) -> Self:
        refuse(self.problems_of_choices() if self.choices else self.problems_of_range())
        return self

    def problems_of_choices(self) -> list[tuple[str, str]]:
        if any((self.low is not None, self.high is not None, self.log, self.step)):
            return [("choices", "excludes low, high, log and step")]
        if len(self.choices) < 2 or len(set(map(repr, self.choices))) < len(self.choices):
            return [("choices", "needs at least two values, all different")]
        if odd := [value for value in self.choices if isinstance(value, dict | list)]:
            return [("choices", f"expected numbers, texts, true, false or null, found {odd[0]!r}")]
        return []

    def problems_of_range(self) -> list[tuple[str, str]]:
        if self.low is None or self.high is None:
            return [("", "needs low and high, or choices")]
        if self.low >= self.high:
            return [("high", f"{self.high:g} must be above low ({self.low:g})")]
        if self.log and self.low <= 0:
            return [("low", f"{self.low:g} must be above 0 with log: true")]
        if self.log and self.step:
            return [("step", "excludes log: true")]
        return []


class PruningParams(Section):
    """When a trial is stopped: its best validation so far is worse than others' at the same step."""

    percentile: Annotated[float, Field(gt=0, lt=100)] = 50.0
    after_trials: PositiveInt = 4
    after_steps: NonNegativeInt = 0


class TuneParams(Section):
    metric: Literal["loss", "perplexity", "bits_per_byte", "accuracy"] = "loss"
    trials: PositiveInt = 20
    random_trials: PositiveInt = 8
    seed: Seed = 0
    pruning: PruningParams | None = None
    space: dict[str, DimensionParams] = Field(min_length=1)


def space_problems(tune: TuneParams | None, params: type[Section]) -> list[tuple[Location, str]]:
    """Problems with the names under `tune.space`, which must be those of params, and with their ranges."""
    problems: list[tuple[Location, str]] = []
    for key, dimension in tune.space.items() if tune else ():
        found = field_kinds(params, key)
        message = found if isinstance(found, str) else range_problem(dimension, found)
        if message:
            problems.append((("tune", "space", key), message))
    return problems


def field_kinds(params: type[Section], key: str) -> set[Any] | str:
    """The types that the param of this dotted key may have; what is wrong if it can't be searched."""
    section: Any = params
    for part in key.split("."):
        fields = {name: field for name, field in section.model_fields.items() if name not in UNTRACKED}
        if part not in fields:
            return f"no param of a stage has this name{nearest(part, list(fields))}"
        kinds = leaves(fields[part].annotation)
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
        if section is None:
            return kinds if key.endswith(part) else f"{part} has no keys of its own"
    return f"is a section; name one of its keys{nearest('', list(section.model_fields))}"


def leaves(annotation: Any) -> set[Any]:
    arguments = getattr(annotation, "__args__", None)
    return {annotation} if arguments is None else {leaf for part in arguments for leaf in leaves(part)}


def is_whole(kinds: set[Any]) -> bool:
    return int in kinds and float not in kinds


def range_problem(dimension: DimensionParams, kinds: set[Any]) -> str:
    if dimension.choices:
        return ""
    if not kinds & {int, float}:
        return "is no number: expected choices, found a range"
    numbers = (dimension.low, dimension.high, dimension.step or 1.0)
    if is_whole(kinds) and not all(number is not None and number.is_integer() for number in numbers):
        return "takes whole numbers: expected whole low, high and step"
    return ""
