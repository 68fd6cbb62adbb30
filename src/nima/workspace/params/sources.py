"""Where documents come from: the places, what is taken there, and how its records are read."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nima.workspace.params.section import PositiveFloat, PositiveInt, Section, refuse

NAME = r"^[a-z0-9][a-z0-9_-]*$"
PYPI_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NPM_NAME = re.compile(r"(@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*")
PLACES = ("path", "package", "url", "hub", "qdrant")

Texts = str | Annotated[list[str], Field(min_length=1)]
"""One text, or several."""

Scalar = str | int | float | bool


class PackageParams(Section):
    """A pinned package whose files are read where they lie, inside the archive."""

    index: Literal["pypi", "npm"]
    name: str
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+!-]*$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def name_is_possible(self) -> Self:
        if not (PYPI_NAME if self.index == "pypi" else NPM_NAME).fullmatch(self.name):
            refuse([("name", f"{self.name!r} is not the name of a package of {self.index}")])
        return self


class HubParams(Section):
    """A data set of the Hugging Face hub, or a local folder of one; streamed."""

    dataset: str = Field(min_length=1)
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: Texts | None = None


class QdrantParams(Section):
    """A collection of a Qdrant server, or of its embedded form on disk. The key is QDRANT_API_KEY's."""

    collection: str = Field(min_length=1)
    url: str | None = Field(default=None, pattern=r"^https?://")
    path: str | None = None
    filter: dict[str, Scalar | list[Scalar]] = Field(default={})
    page_points: PositiveInt = 256

    @model_validator(mode="after")
    def names_one_place(self) -> Self:
        if (self.url is None) == (self.path is None):
            refuse([("", "needs exactly one of 'url' and 'path'")])
        return self


class FieldsParams(Section):
    """How a source's records call their parts, where that is not the usual name. `a.b` goes into objects."""

    text: str | None = None
    title: str | None = None
    question: str | None = None
    answer: str | None = None
    instruction: str | None = None
    input: str | None = None
    output: str | None = None
    system: str | None = None
    messages: str | None = None
    role: str | None = None
    content: str | None = None


class SourceParams(Section):
    """One place, which files in it, and how their records are read."""

    name: str = Field(pattern=NAME)
    path: Texts | None = None
    package: PackageParams | None = None
    url: Texts | None = None
    hub: HubParams | None = None
    qdrant: QdrantParams | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    glob: Texts = "**/*"
    exclude: list[str] = Field(default=[])
    format: Literal[
        "auto",
        "markdown",
        "mdx",
        "rst",
        "text",
        "html",
        "json",
        "jsonl",
        "csv",
        "tsv",
        "parquet",
        "yaml",
        "python",
        "javascript",
        "typescript",
        "xml",
    ] = "auto"
    record: Literal["auto", "document", "qa", "instruction", "chat"] = "auto"
    fields: FieldsParams = FieldsParams()
    encoding: str = "utf-8"
    weight: PositiveFloat = 1.0
    max_samples: PositiveInt | None = None
    split: Literal["train", "validation", "test"] | None = None
    group_by: str | None = Field(default=None, pattern=r"^(file|folder|field:.+)$")
    licence: str | None = None

    @model_validator(mode="after")
    def agrees_with_itself(self) -> Self:
        problems = []
        if sum(getattr(self, place) is not None for place in PLACES) != 1:
            named = ", ".join(map(repr, PLACES[:-1]))
            problems += [("", f"needs exactly one of {named} and {PLACES[-1]!r}")]
        if self.sha256 is not None and not isinstance(self.url, str):
            problems += [("sha256", "belongs to a single url; a package has its own")]
        refuse(problems)
        return self
