"""What must agree inside the section `training`, and between it and the sources."""

from typing import Any

import pytest
from pydantic import ValidationError

from nima.params import TrainingParams
from nima.params.training import mixture_problems


def training(**changes: Any) -> TrainingParams:
    settings = {"seed": 1, "max_steps": 9, "lr": 0.01, "block_tokens": 8, "batch_tokens": 64}
    return TrainingParams(**settings | {"micro_batch_tokens": 32} | changes)


def problems_of(**changes: Any) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        training(**changes)
    return [problem for error in caught.value.errors() for problem in error["ctx"]["problems"]]


@pytest.mark.parametrize("batching", ["blocks", "packed"])
def test_rows_of_equal_length_fill_batches_exactly(batching: str) -> None:
    assert problems_of(batching=batching, batch_tokens=60) == [
        ("batch_tokens", "60 must be whole blocks of block_tokens (8)"),
        ("micro_batch_tokens", "32 must divide batch_tokens (60)"),
    ]


def test_padded_rows_only_have_to_fit() -> None:
    training(batching="padded", batch_tokens=61, micro_batch_tokens=13)
    assert problems_of(batching="padded", micro_batch_tokens=7) == [
        ("micro_batch_tokens", "7 must hold a row of block_tokens (8)")
    ]
    assert problems_of(batching="padded", micro_batch_tokens=65) == [
        ("micro_batch_tokens", "65 must not exceed batch_tokens (64)")
    ]


def test_padded_rows_have_no_borders_to_cut_at() -> None:
    assert problems_of(batching="padded", mask_documents=True) == [
        ("mask_documents", "must be false: a padded row holds one document")
    ]


def test_a_mixture_has_a_share_above_0() -> None:
    assert problems_of(mixture={"wiki": 0.0}) == [("mixture", "needs a share above 0")]
    assert training(mixture={"wiki": 0.0, "code": 2.5}).mixture == {"wiki": 0.0, "code": 2.5}


def test_a_mixture_names_every_source_and_nothing_else() -> None:
    assert mixture_problems(training(mixture={}), ["wiki", "code"]) == []
    assert mixture_problems(training(mixture={"wiki": 1.0, "code": 0.0}), ["wiki", "code"]) == []
    found = mixture_problems(training(mixture={"wkii": 1.0}), ["wiki", "code"])
    assert found == [
        ("training.mixture.wkii", "no source has this name; did you mean 'wiki'?"),
        ("training.mixture", "no share for wiki, code; give every source one (0 leaves it out)"),
    ]
