"""The network: the section `model`."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from nima.workspace.params import presets
from nima.workspace.params.section import PositiveFloat, PositiveInt, Section, nearest, refuse


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
