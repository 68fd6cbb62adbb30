"""The schema of params.yaml: every key, its type, its range, and what must agree with what."""

from typing import Self

from pydantic import model_validator

from nima.workspace.params.data import (
    BoilerplateParams,
    CleaningParams,
    DuplicatesParams,
    LanguageParams,
    LeakageParams,
    LimitsParams,
    NearDuplicatesParams,
    PrepareParams,
    PrivacyParams,
    QualityParams,
    RatiosParams,
    RepetitionParams,
    SplitParams,
    TokenizeParams,
    unknown_sources,
)
from nima.workspace.params.lr_finder import LrFinderParams
from nima.workspace.params.model import ModelParams
from nima.workspace.params.section import Section, nearest, refuse
from nima.workspace.params.sources import FieldsParams, HubParams, PackageParams, QdrantParams, SourceParams
from nima.workspace.params.stopping import EarlyStoppingParams, PlateauParams, RecoveryParams
from nima.workspace.params.training import TrainingParams, metric_problems, mixture_problems
from nima.workspace.params.tune import (
    UNTRACKED,
    DimensionParams,
    PruningParams,
    TuneParams,
    field_kinds,
    is_whole,
    space_problems,
)
from nima.workspace.params.use import EvaluateParams, GenerateParams, RunParams, StrategyParams

__all__ = [
    "UNTRACKED",
    "BoilerplateParams",
    "CleaningParams",
    "DimensionParams",
    "DuplicatesParams",
    "EarlyStoppingParams",
    "EvaluateParams",
    "FieldsParams",
    "GenerateParams",
    "HubParams",
    "LanguageParams",
    "LeakageParams",
    "LimitsParams",
    "LrFinderParams",
    "ModelParams",
    "NearDuplicatesParams",
    "PackageParams",
    "Params",
    "PlateauParams",
    "PrepareParams",
    "PrivacyParams",
    "PruningParams",
    "QdrantParams",
    "QualityParams",
    "RatiosParams",
    "RecoveryParams",
    "RepetitionParams",
    "RunParams",
    "Section",
    "SourceParams",
    "SplitParams",
    "StrategyParams",
    "TokenizeParams",
    "TrainingParams",
    "TuneParams",
    "field_kinds",
    "is_whole",
    "nearest",
]


class Params(Section):
    prepare: PrepareParams
    tokenize: TokenizeParams
    split: SplitParams
    model: ModelParams
    training: TrainingParams
    evaluate: EvaluateParams
    generate: GenerateParams
    run: RunParams = RunParams()
    tune: TuneParams | None = None
    lr_finder: LrFinderParams = LrFinderParams()

    @model_validator(mode="after")
    def sections_agree(self) -> Self:
        context = self.model.shape()["context_tokens"]
        problems: list[tuple[str | tuple[str, ...], str]] = [*unknown_sources(self.prepare, self.split)]
        problems += space_problems(self.tune, type(self))
        sources = [source.name for source in self.prepare.sources]
        problems += mixture_problems(self.training, sources) + metric_problems(self.training, sources)
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
