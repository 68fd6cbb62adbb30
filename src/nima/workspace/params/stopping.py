"""What ends, slows or turns back a run: parts of the section `training`."""

from typing import Annotated, Literal

from pydantic import Field

from nima.workspace.params.section import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)

# A figure of the validation part, or of one source's share of it: loss, wiki/loss.
Metric = Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9_-]*/)?(loss|perplexity|bits_per_byte|accuracy)$")]
NonFinite = Literal["stop", "skip", "roll_back"]
# A share of the rate's peak or of the rate before, below 1.
Reduction = Annotated[float, Field(gt=0, lt=1)]


class DegradationParams(Section):
    metric: Metric = "loss"
    ratio: PositiveFloat | None = None
    patience: PositiveInt = 1


class GradientCollapseParams(Section):
    norm: PositiveFloat | None = None
    patience: PositiveInt = 100


class GradientExplosionParams(Section):
    ratio: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    patience: PositiveInt = 1


class LrPlateauParams(Section):
    ratio: Reduction | None = None
    patience: PositiveInt = 100


class EarlyStoppingParams(Section):
    metric: Metric = "loss"
    patience: NonNegativeInt = 0
    min_delta: NonNegativeFloat = 0.0
    degradation: DegradationParams = DegradationParams()
    gradient_collapse: GradientCollapseParams = GradientCollapseParams()
    gradient_explosion: GradientExplosionParams = GradientExplosionParams()
    lr_plateau: LrPlateauParams = LrPlateauParams()

    @property
    def can_be_recovered(self) -> bool:
        """Whether a rule is on whose stop can become a step back."""
        settings = (self.degradation.ratio, self.gradient_collapse.norm, self.gradient_explosion.ratio)
        return self.patience > 0 or any(setting is not None for setting in settings)


class RecoveryParams(Section):
    max_recoveries: NonNegativeInt = 0
    lr_ratio: Reduction = 0.5


class PlateauParams(Section):
    metric: Metric = "loss"
    patience: PositiveInt = 3
    factor: Reduction = 0.5
    min_delta: NonNegativeFloat = 0.0
    cooldown: NonNegativeInt = 0
