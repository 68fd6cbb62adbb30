"""Samples as files and figures."""

import json
import re
from typing import Any

import pytest

from nima.generation import samples
from nima.generation.decoding import Sample
from nima.workspace.params import StrategyParams

TOP_K = StrategyParams(name="top-k", temperature=0.8, top_k=40)
GREEDY = StrategyParams(name="greedy")


def sample(**changes: Any) -> Sample:
    fields: dict[str, Any] = {
        "prompt": "Docker is",
        "strategy": GREEDY,
        "seed": 11,
        "tokens": [5, 6, 7],
        "text": " a tool",
        "finished": "length",
        "mean_logprob": -1.5,
        "dropped_prompt_tokens": 0,
    }
    return Sample(**(fields | changes))


# ------------------------------------------------------------------------------------------------ files


def test_a_record_says_how_its_text_came_about() -> None:
    made = sample(strategy=TOP_K, finished="end_of_text")
    assert json.loads(samples.jsonl([made])) == {
        "prompt": "Docker is",
        "strategy": "top-k",
        "settings": {"temperature": 0.8, "top_k": 40},
        "seed": 11,
        "text": " a tool",
        "num_tokens": 3,
        "finished": "end_of_text",
        "mean_logprob": -1.5,
        "dropped_prompt_tokens": 0,
    }


@pytest.mark.parametrize("text", ["two\nlines\r\n", 'quote " and \\', "Việt — ☸", "\x00\x1b\ufffd"])
def test_each_sample_is_one_line_of_json(text: str) -> None:
    written = samples.jsonl([sample(text=text), sample(prompt=text)])
    lines = written.split("\n")
    assert lines.pop() == ""
    assert [json.loads(line)["text"] for line in lines] == [text, " a tool"]


def blocks(page: str) -> list[str]:
    """The contents of a page's fenced blocks, as CommonMark reads them."""
    found, fence, content = [], None, []
    for line in page.split("\n"):
        if fence is None:
            if opening := re.match(r"(`{3,})[^`]*$", line):
                fence, content = opening[1], []
        elif re.fullmatch(r"`+", line.strip()) and len(line.strip()) >= len(fence):
            found.append("\n".join(content))
            fence = None
        else:
            content.append(line)
    assert fence is None
    return found


@pytest.mark.parametrize(
    "text", ["plain", "```bash\nls\n```\n", "`````\n", "# no heading\n~~~~", "a `b` ```` c"]
)
def test_the_page_shows_each_text_untouched(text: str) -> None:
    page = samples.markdown([sample(text=text), sample(text="next")])
    assert blocks(page) == [f"Docker is{text}", "Docker isnext"]


def test_the_page_has_a_heading_for_each_prompt_and_strategy() -> None:
    page = samples.markdown(
        [sample(), sample(strategy=TOP_K), sample(prompt="Use `ls`\nnow", finished="end_of_text")]
    )
    headings = [line for line in page.split("\n") if line.startswith("#")]
    assert headings == [
        "# Samples",
        "## `Docker is`",
        "### greedy",
        "### top-k (temperature 0.8, top_k 40)",
        "## ``Use `ls` now``",
        "### greedy",
    ]
    assert "3 tokens, cut at the length limit; mean log-probability -1.500 nats per token" in page
    assert "ended by the model" in page


def test_the_page_says_what_the_model_did_not_see() -> None:
    page = samples.markdown([sample(dropped_prompt_tokens=12)])
    assert "did not see the prompt's first 12 tokens" in page
    assert "did not see" not in samples.markdown([sample()])


# ---------------------------------------------------------------------------------------------- figures


def test_repeated_text_scores_as_repetition() -> None:
    scores = samples.scores([sample(tokens=[1, 2, 3, 4] * 5), sample(strategy=TOP_K, tokens=list(range(20)))])
    # 17 sequences of four tokens, 4 different ones; 19 pairs, 4 different ones.
    assert scores["greedy"]["repetition"] == pytest.approx(13 / 17)
    assert scores["greedy"]["distinct_2"] == pytest.approx(4 / 19)
    assert (scores["top-k"]["repetition"], scores["top-k"]["distinct_2"]) == (0.0, 1.0)


def test_pairs_count_over_all_samples_and_repetition_within_each() -> None:
    scores = samples.scores([sample(tokens=[1, 2, 3, 4]), sample(tokens=[1, 2, 3, 4])])["greedy"]
    assert scores["distinct_2"] == 0.5
    assert scores["repetition"] == 0.0


def test_log_probabilities_are_averaged_over_tokens() -> None:
    some = [sample(tokens=[1], mean_logprob=-4.0), sample(tokens=[1, 2, 3], mean_logprob=-1.0)]
    assert samples.scores(some)["greedy"]["mean_logprob"] == pytest.approx(-7 / 4)


def test_finished_is_the_share_of_texts_that_the_model_ended() -> None:
    some = [sample(finished="end_of_text"), sample(), sample(), sample()]
    assert samples.scores(some)["greedy"]["finished"] == 0.25


def test_samples_of_one_token_have_figures_too() -> None:
    scores = samples.scores([sample(tokens=[1], mean_logprob=-2.0)])["greedy"]
    assert scores == {"mean_logprob": -2.0, "distinct_2": 1.0, "repetition": 0.0, "finished": 0.0}
