"""From a finished run to its figures."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_documents import ListedDocuments, numbered
from tiny_models import tiny_model

from nima.batches import training_batches
from nima.training.loop import Result, State
from nima.training.recipe import Recipe, summary_of, timing_of


class TwoSources(ListedDocuments):
    @property
    def sources(self) -> np.ndarray:
        return np.array(["a", "b"])[np.arange(self.num_documents) % 2]


def recipe_of(**changes: Any) -> Recipe:
    tokens = TwoSources(numbered([5, 6] * 20).contents)
    settings: dict[str, Any] = {"seed": 1, "batching": "blocks", "mixture": {}, "block_tokens": 10}
    settings |= {"batch_tokens": 20, "end_of_text": 0}
    batches = training_batches(tokens, np.arange(40), **settings | changes)
    scorer = SimpleNamespace(micro_batch_tokens=20)
    return Recipe(tiny_model(), None, batches, scorer, total_steps=9, text={})  # type: ignore[arg-type]


def result_at(step: int, first_step: int = 0) -> Result:
    return Result(State(step=step), {}, {}, stopped_early=False, seconds=2.0, first_step=first_step)


def test_the_summary_counts_epochs_and_says_how_full_rows_are() -> None:
    found = summary_of(recipe_of(), result_at(33))
    assert (found["tokens_per_epoch"], found["epochs"], found["packing_efficiency"]) == (220, 3.0, 1.0)
    assert "epochs_by_source" not in found
    packed = summary_of(recipe_of(batching="packed", block_tokens=8, batch_tokens=16), result_at(20))
    assert (packed["tokens_per_epoch"], packed["epochs"]) == (220, 1.0)
    assert packed["packing_efficiency"] == pytest.approx(220 / 320)


def test_the_summary_of_a_mixture_has_the_epochs_of_each_source() -> None:
    found = summary_of(recipe_of(mixture={"a": 1, "b": 3}), result_at(20))
    assert found["epochs_by_source"] == {"a": 1.0, "b": 2.5}


def test_speed_counts_the_tokens_of_this_process_and_no_padding() -> None:
    assert timing_of(recipe_of(), result_at(30, 10))["tokens_per_second"] == 200
    packed = recipe_of(batching="packed", block_tokens=8, batch_tokens=16)
    assert timing_of(packed, result_at(30, 10))["tokens_per_second"] == 110
