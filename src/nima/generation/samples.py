"""Generated samples as files to read and as figures to compare."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from nima.generation.decoding import Sample
from nima.workspace.params import StrategyParams

ENDINGS = {"end_of_text": "ended by the model", "length": "cut at the length limit"}


def jsonl(samples: Iterable[Sample]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(record(sample), ensure_ascii=False) + "\n" for sample in samples)


def record(sample: Sample) -> dict[str, Any]:
    return {
        "prompt": sample.prompt,
        "strategy": sample.strategy.name,
        "settings": settings(sample.strategy),
        "seed": sample.seed,
        "text": sample.text,
        "num_tokens": len(sample.tokens),
        "finished": sample.finished,
        "mean_logprob": round(sample.mean_logprob, 6),
        "dropped_prompt_tokens": sample.dropped_prompt_tokens,
    }


def settings(strategy: StrategyParams) -> dict[str, float]:
    """What the strategy sets; nothing for greedy decoding."""
    return strategy.model_dump(exclude={"name"}, exclude_none=True)


# ------------------------------------------------------------------------------------------- Markdown


def markdown(samples: Iterable[Sample]) -> str:
    """A page with a heading for each prompt and, under it, each strategy's text behind the prompt."""
    lines = ["# Samples"]
    heading = None
    for sample in samples:
        if sample.prompt != heading:
            heading = sample.prompt
            lines += ["", f"## {code_span(heading)}"]
        lines += ["", f"### {title(sample)}", "", *notes(sample), "", *fenced(sample.prompt + sample.text)]
    return "\n".join(lines) + "\n"


def title(sample: Sample) -> str:
    chosen = ", ".join(f"{name} {value:g}" for name, value in settings(sample.strategy).items())
    return f"{sample.strategy.name} ({chosen})" if chosen else sample.strategy.name


def notes(sample: Sample) -> list[str]:
    lines = [
        f"{len(sample.tokens)} tokens, {ENDINGS[sample.finished]}; "
        f"mean log-probability {sample.mean_logprob:.3f} nats per token"
    ]
    if sample.dropped_prompt_tokens:
        lines.append(f"The model did not see the prompt's first {sample.dropped_prompt_tokens} tokens.")
    return lines


def fenced(text: str) -> list[str]:
    fence = "`" * max(3, 1 + longest_backticks(text))
    return [f"{fence}text", text, fence]


def code_span(text: str) -> str:
    """`text` on one line, between more backticks than it holds."""
    line = " ".join(text.split())
    ticks = "`" * (1 + longest_backticks(line))
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{padding}{line}{padding}{ticks}"


def longest_backticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


# -------------------------------------------------------------------------------------------- figures


def scores(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Figures of each strategy over all prompts.

    mean_logprob (nats per token), distinct_2 (different pairs of tokens / pairs), repetition (share of
    four-token sequences that their sample held before), finished (share of samples ended by the model).
    """
    names = dict.fromkeys(sample.strategy.name for sample in samples)
    return {name: scores_of([sample for sample in samples if sample.strategy.name == name]) for name in names}


def scores_of(samples: Sequence[Sample]) -> dict[str, float]:
    num_tokens = sum(len(sample.tokens) for sample in samples)
    pairs = [pair for sample in samples for pair in sequences(sample.tokens, 2)]
    fours = [sequences(sample.tokens, 4) for sample in samples]
    num_fours = sum(map(len, fours))
    return {
        "mean_logprob": sum(sample.mean_logprob * len(sample.tokens) for sample in samples) / num_tokens,
        "distinct_2": len(set(pairs)) / len(pairs) if pairs else 1.0,
        "repetition": sum(len(found) - len(set(found)) for found in fours) / num_fours if num_fours else 0.0,
        "finished": sum(sample.finished == "end_of_text" for sample in samples) / len(samples),
    }


def sequences(tokens: list[int], length: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1)]
