"""What all sections of params.yaml share: strictness, number types, and how they refuse."""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

Ratio = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
# What every random generator takes, also after the products that seeds go through.
Seed = Annotated[int, Field(ge=0, lt=2**32)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def whole_or_auto(value: Any) -> Any:
    if value == "auto" or (type(value) is int and value > 0):
        return value
    raise PydanticCustomError("whole_or_auto", "a whole number greater than 0, or auto")


# One validator, and so one message, where a union of types would have several.
WholeOrAuto = Annotated[int | Literal["auto"], PlainValidator(whole_or_auto)]


class Section(BaseModel):
    """A mapping in params.yaml: no unknown keys, no silent conversions, frozen."""

    # A section's own validator is built only if it is read by itself, not as a part of all params.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


def refuse(problems: Sequence[tuple[str | tuple[str, ...], str]]) -> None:
    """Report what is wrong with a section as a whole, if anything: pairs of key and message.

    A key is dotted ("" for all of the section), or a tuple where a part has dots in it.
    """
    if problems:
        raise PydanticCustomError("cross_field", "does not agree with itself", {"problems": problems})


def repeated_names(key: str, names: list[str]) -> list[tuple[str, str]]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    return [(key, f"names must differ, found twice: {', '.join(repeated)}")] if repeated else []


def nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
