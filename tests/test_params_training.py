"""What must agree inside the section `training`, and between it and the sources."""

from typing import Any

import pytest
from pydantic import ValidationError

from nima.workspace.params import EarlyStoppingParams, PlateauParams, RecoveryParams, TrainingParams
from nima.workspace.params.training import metric_problems, mixture_problems


def training(**changes: Any) -> TrainingParams:
    settings = {"seed": 1, "max_steps": 9, "lr": 0.01, "block_tokens": 8, "batch_tokens": 64}
    return TrainingParams(**settings | {"micro_batch_tokens": 32} | changes)


def problems_of(**changes: Any) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        training(**changes)
    return [problem for error in caught.value.errors() for problem in error["ctx"]["problems"]]


def stopping(**changes: Any) -> EarlyStoppingParams:
    return EarlyStoppingParams.model_validate(changes)


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


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"max_tokens": 99}, "", "needs exactly one of max_steps, max_epochs and max_tokens"),
        ({"warmup_steps": 2, "warmup_fraction": 0.1}, "warmup_fraction", "0.1 excludes warmup_steps"),
        ({"schedule": "wsd"}, "decay_fraction", "must be below 1: wsd is stable before it decays"),
        ({"decay_shape": "1-sqrt"}, "decay_shape", "is for schedule wsd, not cosine"),
        ({"schedule": "cosine_restarts"}, "num_cycles", "1 must be at least 2"),
        ({"num_cycles": 3}, "num_cycles", "3 is for schedule cosine_restarts, not cosine"),
        ({"optimizer": "schedule_free"}, "schedule", "'cosine' must be constant"),
        (
            {"optimizer": "schedule_free", "schedule": "constant", "beta1": 0.0},
            "beta1",
            "0.0 must be above 0",
        ),
        ({"optimizer": "sgd", "momentum": 0.0}, "nesterov", "must be false without momentum"),
        ({"plateau": PlateauParams(patience=9)}, "plateau", "is for schedule plateau, not cosine"),
        ({"loss": "losses:a", "step": "losses:b"}, "step", "'losses:b' excludes loss"),
        ({"non_finite": "roll_back"}, "non_finite", "needs recovery.max_recoveries above 0"),
        (
            {"recovery": RecoveryParams(max_recoveries=1)},
            "recovery.max_recoveries",
            "nothing calls for it",
        ),
        (
            {"early_stopping": stopping(lr_plateau={"ratio": 0.1}), "schedule": "constant"},
            "early_stopping.lr_plateau.ratio",
            "0.1 is never reached: constant schedule",
        ),
        (
            {"early_stopping": stopping(lr_plateau={"ratio": 0.1}), "min_lr_ratio": 0.2},
            "early_stopping.lr_plateau.ratio",
            "0.1 is never reached: min_lr_ratio is 0.2",
        ),
    ],
)
def test_rules_that_exclude_each_other_are_named(changes: dict[str, Any], key: str, message: str) -> None:
    [(found, said)] = problems_of(**changes)
    assert found == key
    assert message in said


def test_a_run_is_as_long_as_steps_epochs_or_tokens_say() -> None:
    training(max_steps=None, max_tokens=1000)
    training(max_steps=None, max_epochs=0.5)


@pytest.mark.parametrize(
    "rules",
    [
        {"patience": 2},
        {"degradation": {"ratio": 0.1}},
        {"gradient_collapse": {"norm": 1e-6}},
        {"gradient_explosion": {"ratio": 10.0}},
    ],
)
def test_recovery_goes_with_any_rule_that_going_back_could_help(rules: dict[str, Any]) -> None:
    training(early_stopping=stopping(**rules), recovery=RecoveryParams(max_recoveries=2))
    training(non_finite="roll_back", recovery=RecoveryParams(max_recoveries=2))


@pytest.mark.parametrize("metric", ["loss", "wiki/loss", "my-code_2/bits_per_byte", "accuracy"])
def test_a_metric_is_of_the_whole_or_of_one_source(metric: str) -> None:
    assert stopping(metric=metric).metric == metric


@pytest.mark.parametrize("metric", ["los", "loss/wiki", "wiki/", "/loss", "a/b/loss"])
def test_no_other_text_is_a_metric(metric: str) -> None:
    with pytest.raises(ValidationError, match="string_pattern_mismatch"):
        stopping(metric=metric)


def test_a_metric_of_an_unknown_source_is_named() -> None:
    rules = stopping(metric="wkii/loss", degradation={"metric": "code/accuracy"})
    found = metric_problems(training(early_stopping=rules), ["wiki", "code"])
    [(key, message)] = found
    assert key == "training.early_stopping.metric"
    assert message == "wkii/loss: no source has this name; did you mean 'wiki'?"


@pytest.mark.parametrize("name", ["losses", "losses.smoothed", "a:b:c", "a b:c", ":f", "m:"])
def test_a_function_is_named_by_its_module_and_its_name(name: str) -> None:
    with pytest.raises(ValidationError, match="string_pattern_mismatch"):
        training(loss=name)
