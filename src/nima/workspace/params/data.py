"""From text to tokens: the sections `prepare`, `tokenize` and `split`."""

import math
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nima.workspace.params.section import (
    PositiveFloat,
    PositiveInt,
    Ratio,
    Section,
    Seed,
    nearest,
    refuse,
    repeated_names,
)
from nima.workspace.params.sources import SourceParams

# --------------------------------------------------------------------------------------------- prepare


class BoilerplateParams(Section):
    """Lines at the beginnings and ends of documents that many documents share."""

    edge_lines: PositiveInt = 5
    min_documents: Annotated[int, Field(ge=2)] = 10
    min_chars: PositiveInt = 12


class CleaningParams(Section):
    """Repairs to prose. Fenced and indented code is never touched."""

    encoding_repair: bool = False
    unicode: Literal["none", "NFC", "NFKC"] = "NFC"
    control_characters: bool = True
    html_residue: bool = False
    trailing_space: bool = True
    max_blank_lines: PositiveInt | None = 2
    boilerplate: BoilerplateParams | None = None


class LanguageParams(Section):
    """Languages that are kept, by ISO 639-1 code."""

    keep: list[Annotated[str, Field(pattern=r"^[a-z]{2}$")]] = Field(min_length=1)
    min_confidence: Ratio = 0.5


class RepetitionParams(Section):
    """Limits on what repeats inside one document, as shares of it; null switches one off.

    Defaults are Gopher's (Rae et al. 2021, https://arxiv.org/abs/2112.11446, table A1).
    """

    duplicate_lines: Ratio | None = 0.30
    duplicate_paragraphs: Ratio | None = 0.30
    duplicate_line_chars: Ratio | None = 0.20
    duplicate_paragraph_chars: Ratio | None = 0.20
    top_2gram_chars: Ratio | None = 0.20
    top_3gram_chars: Ratio | None = 0.18
    top_4gram_chars: Ratio | None = 0.16
    duplicate_5gram_chars: Ratio | None = 0.15
    duplicate_6gram_chars: Ratio | None = 0.14
    duplicate_7gram_chars: Ratio | None = 0.13
    duplicate_8gram_chars: Ratio | None = 0.12
    duplicate_9gram_chars: Ratio | None = 0.11
    duplicate_10gram_chars: Ratio | None = 0.10


class QualityParams(Section):
    """Which documents are kept; null switches a rule off. Code blocks count for lengths only.

    Words, symbols and lines: Gopher's rules (Rae et al. 2021, https://arxiv.org/abs/2112.11446, A1.1)
    and C4's (Raffel et al. 2020, https://arxiv.org/abs/1910.10683, 2.2).
    """

    min_chars: PositiveInt = 1
    max_chars: PositiveInt = 1_000_000
    min_words: PositiveInt | None = None
    max_words: PositiveInt | None = None
    min_mean_word_chars: PositiveFloat | None = None
    max_mean_word_chars: PositiveFloat | None = None
    max_symbols_per_word: PositiveFloat | None = None
    max_bullet_lines: Ratio | None = None
    max_ellipsis_lines: Ratio | None = None
    min_alphabetic_words: Ratio | None = None
    min_stop_words: Annotated[int, Field(ge=1, le=8)] | None = None
    min_sentences: PositiveInt | None = None
    min_punctuated_lines: Ratio | None = None
    placeholder_text: bool = False
    repetition: RepetitionParams | None = None
    language: LanguageParams | None = None

    @cached_property
    def judges_prose(self) -> bool:
        """Whether any rule looks at more than the length."""
        return any(
            value not in (None, False) for name, value in self if name not in ("min_chars", "max_chars")
        )

    @model_validator(mode="after")
    def limits_leave_room(self) -> Self:
        problems = []
        for low, high in (
            ("min_chars", "max_chars"),
            ("min_words", "max_words"),
            ("min_mean_word_chars", "max_mean_word_chars"),
        ):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                problems += [(low, f"{least} must not exceed {high} ({most})")]
        refuse(problems)
        return self


Privacy = Literal["keep", "mask", "drop"]


class PrivacyParams(Section):
    """What happens to personal data and secrets: kept, masked, or the whole document dropped."""

    secrets: Privacy = "keep"
    emails: Privacy = "keep"
    ip_addresses: Privacy = "keep"
    phone_numbers: Privacy = "keep"
    payment_cards: Privacy = "keep"

    @cached_property
    def keeps_all(self) -> bool:
        return all(treatment == "keep" for _, treatment in self)


class NearDuplicatesParams(Section):
    """Documents that share most of their word n-grams (MinHash, Broder 1997)."""

    min_similarity: Annotated[float, Field(ge=0.5, lt=1)] = 0.8
    ngram_words: PositiveInt = 5
    action: Literal["group", "drop"] = "group"


class DuplicatesParams(Section):
    exact: bool = True
    near: NearDuplicatesParams | None = None


class LimitsParams(Section):
    """How much one file, record or archive may hold, so that a hostile one can't fill memory or disk."""

    max_record_bytes: PositiveInt = 16_000_000
    max_file_bytes: PositiveInt = 512_000_000
    max_archive_bytes: PositiveInt = 100_000_000_000
    max_archive_ratio: PositiveInt = 200


class PrepareParams(Section):
    sources: list[SourceParams] = Field(min_length=1)
    cleaning: CleaningParams = CleaningParams()
    quality: QualityParams = QualityParams()
    privacy: PrivacyParams = PrivacyParams()
    duplicates: DuplicatesParams = DuplicatesParams()
    limits: LimitsParams = LimitsParams()
    max_shard_bytes: PositiveInt = 64_000_000

    @model_validator(mode="after")
    def names_differ(self) -> Self:
        refuse(repeated_names("sources", [source.name for source in self.sources]))
        return self


# ------------------------------------------------------------------------------------ tokenize and split


class TokenizeParams(Section):
    kind: Literal["bpe", "unigram", "char", "byte", "pretrained"] = "bpe"
    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)] | None = None
    pretrained: str | None = None
    special_tokens: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    train_max_bytes: PositiveInt = 100_000_000
    min_vocab_size: PositiveInt = 101
    chat_template: str | None = Field(default=None, pattern=r"^templates/[^/].*$")
    system_prompt: str | None = None
    loss_on: Literal["assistant", "all"] = "all"
    max_input_tokens: PositiveInt | None = None
    max_total_tokens: PositiveInt | None = None
    over_budget: Literal["drop", "truncate"] = "drop"
    max_shard_tokens: PositiveInt = 500_000_000

    @model_validator(mode="after")
    def fields_fit_the_kind(self) -> Self:
        problems = []
        if self.kind in ("bpe", "unigram") and self.vocab_size is None:
            problems += [("vocab_size", f"missing; kind {self.kind} learns that many tokens")]
        if self.kind not in ("bpe", "unigram") and self.vocab_size is not None:
            problems += [
                ("vocab_size", f"must be null: the vocabulary of kind {self.kind} follows by itself")
            ]
        if (self.kind == "pretrained") != (self.pretrained is not None):
            problems += [("pretrained", "a folder or hub id, with kind pretrained and only there")]
        if self.vocab_size is not None and self.min_vocab_size > self.vocab_size:
            message = f"{self.min_vocab_size} must not exceed vocab_size ({self.vocab_size})"
            problems += [("min_vocab_size", message)]
        if self.max_input_tokens and self.max_total_tokens and self.max_input_tokens > self.max_total_tokens:
            message = f"{self.max_input_tokens} must not exceed max_total_tokens ({self.max_total_tokens})"
            problems += [("max_input_tokens", message)]
        problems += repeated_names("special_tokens", self.special_tokens)
        refuse(problems)
        return self


class RatiosParams(Section):
    """Shares of documents in each split."""

    train: Ratio
    validation: Ratio
    test: Ratio

    @model_validator(mode="after")
    def ratios_add_to_one(self) -> Self:
        total = self.train + self.validation + self.test
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            refuse([("", f"train + validation + test must be 1, found {total:g}")])
        return self


class LeakageParams(Section):
    """What training text must not share with the other splits, with prompts and with benchmarks."""

    ngram_words: Annotated[int, Field(ge=3)] = 13
    min_shared: Ratio = 0.5
    prompts: bool = True
    benchmarks: list[SourceParams] = Field(default=[])
    action: Literal["report", "drop", "fail"] = "report"

    @model_validator(mode="after")
    def names_differ(self) -> Self:
        refuse(repeated_names("benchmarks", [source.name for source in self.benchmarks]))
        return self


class SplitParams(RatiosParams):
    seed: Seed
    sources: dict[str, RatiosParams] = Field(default={})
    leakage: LeakageParams = LeakageParams()


def unknown_sources(prepare: PrepareParams, split: SplitParams) -> list[tuple[str, str]]:
    """Problems with the names under `split.sources`."""
    known = [source.name for source in prepare.sources]
    return [
        (f"split.sources.{name}", f"no source has this name{nearest(name, known)}")
        for name in split.sources
        if name not in known
    ]
