"""The learning-rate finder: the section `lr_finder`. No stage tracks it."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from nima.workspace.params.section import PositiveFloat, PositiveInt, Section, refuse


class LrFinderParams(Section):
    """Short trainings whose learning rate rises from step to step by the same factor."""

    min_lr: PositiveFloat = 1e-4
    max_lr: PositiveFloat = 1.0
    steps: Annotated[int, Field(ge=10)] = 100
    runs: PositiveInt = 2

    @model_validator(mode="after")
    def rate_rises(self) -> Self:
        if self.min_lr >= self.max_lr:
            refuse([("max_lr", f"{self.max_lr:g} must be above min_lr ({self.min_lr:g})")])
        return self
