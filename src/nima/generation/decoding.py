"""Continues prompts: greedy, by sampling (temperature, top-k, top-p) or by beam search.

One sequence of ids goes in and one comes out, in the precision of the model's weights. What comes out is
what `transformers`' `generate` gives for the same model and settings, beam search included.

Suffixes of tensors as in `network/decoder.py`; here B counts beams.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nima.network.decoder import Cache, Decoder
from nima.tokenizer import Tokenizer
from nima.workspace.params import GenerateParams, StrategyParams


@dataclass(frozen=True)
class Sample:
    """One continuation of one prompt."""

    prompt: str
    strategy: StrategyParams
    seed: int
    """Of this sample alone; strategies that draw nothing have one too."""
    tokens: list[int]
    """The new tokens; the last is end-of-text if the model ended the text."""
    text: str
    """The new text, without the prompt."""
    finished: Literal["end_of_text", "length"]
    mean_logprob: float
    """Mean log-probability of the new tokens under the model itself (temperature 1), nats."""
    dropped_prompt_tokens: int
    """How many of the prompt's first tokens did not fit the model's context, and were left out."""


@dataclass(frozen=True)
class Continuation:
    """New tokens, and the sum of their log-probabilities in nats."""

    tokens: list[int]
    logprob: float


Poll = Callable[[], None]
"""Called before each forward pass; may raise to stop."""


def samples(
    model: Decoder, tokenizer: Tokenizer, settings: GenerateParams, poll: Poll = lambda: None
) -> Iterator[Sample]:
    """Each prompt under each strategy, prompt by prompt."""
    for number, prompt in enumerate(settings.prompts):
        for strategy in settings.strategies:
            seed = seed_of(settings.seed, number, strategy.name)
            yield sample(
                model,
                tokenizer,
                prompt,
                strategy,
                max_new_tokens=settings.max_new_tokens,
                seed=seed,
                poll=poll,
            )


def seed_of(seed: int, prompt_number: int, strategy: str) -> int:
    """A sample's own seed: another prompt at the end, or another strategy, changes no other sample."""
    digest = hashlib.sha256(f"{seed}/{prompt_number}/{strategy}".encode()).digest()
    return int.from_bytes(digest[:6], "little")  # 48 bits: any JSON reader keeps them exactly


def sample(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: str,
    strategy: StrategyParams,
    *,
    max_new_tokens: int,
    seed: int,
    poll: Poll = lambda: None,
) -> Sample:
    """Continue `prompt`, which begins a document, until end-of-text or `max_new_tokens` new tokens.

    Of a prompt that does not fit the context with them, the last tokens are kept. The model is put back
    into the mode it was in; the global random numbers are not touched.
    """
    room = model.config.context_tokens - max_new_tokens
    if room < 1:
        raise ValueError(f"{max_new_tokens} new tokens leave no room for a prompt in the model's context")
    ids = [tokenizer.end_of_text, *tokenizer.encode(prompt)]
    found = continuation(
        model,
        ids[-room:],
        strategy,
        end_of_text=tokenizer.end_of_text,
        max_new_tokens=max_new_tokens,
        seed=seed,
        poll=poll,
    )
    return Sample(
        prompt=prompt,
        strategy=strategy,
        seed=seed,
        tokens=found.tokens,
        text=tokenizer.decode(found.tokens),
        finished="end_of_text" if found.tokens[-1] == tokenizer.end_of_text else "length",
        mean_logprob=found.logprob / len(found.tokens),
        dropped_prompt_tokens=max(0, len(ids) - room),
    )


@torch.inference_mode()
def continuation(
    model: Decoder,
    prompt: list[int],
    strategy: StrategyParams,
    *,
    end_of_text: int,
    max_new_tokens: int,
    seed: int,
    poll: Poll = lambda: None,
) -> Continuation:
    """The tokens that follow the prompt's tokens; prompt and new tokens must fit the model's context."""
    with evaluating(model):
        if strategy.num_beams is not None:
            return beam_search(model, prompt, strategy.num_beams, end_of_text, max_new_tokens, poll)
        generator = torch.Generator().manual_seed(seed)
        return one_by_one(model, prompt, strategy, generator, end_of_text, max_new_tokens, poll)


@contextmanager
def evaluating(model: Decoder) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def one_by_one(
    model: Decoder,
    prompt: list[int],
    strategy: StrategyParams,
    generator: torch.Generator,
    end_of_text: int,
    max_new_tokens: int,
    poll: Poll,
) -> Continuation:
    """Greedy decoding or sampling."""
    cache = new_cache(model, 1)
    tokens: list[int] = []
    logprob = 0.0
    while len(tokens) < max_new_tokens and tokens[-1:] != [end_of_text]:
        poll()
        logits_V = next_logits(model, [tokens[-1:] or prompt], cache)[0]
        token = next_token(logits_V, strategy, generator)
        logprob += float(logits_V.log_softmax(dim=-1)[token])
        tokens.append(token)
    return Continuation(tokens, logprob)


def new_cache(model: Decoder, num_sequences: int) -> Cache:
    weight = model.embedding.weight
    return Cache(model.config, num_sequences, weight.device, weight.dtype)


def next_logits(model: Decoder, ids: list[list[int]], cache: Cache) -> Tensor:
    """Logits (B, V) of the token behind the given new ones: float32, on the CPU, where choices are made."""
    x_BTD = model.hidden(torch.tensor(ids, device=model.embedding.weight.device), cache)
    return model.head(x_BTD[:, -1]).float().cpu()


def next_token(logits_V: Tensor, strategy: StrategyParams, generator: torch.Generator) -> int:
    if (strategy.temperature, strategy.top_k, strategy.top_p) == (None, None, None):
        return int(logits_V.argmax())
    probabilities_V = warped(logits_V, strategy).softmax(dim=-1)
    return int(torch.multinomial(probabilities_V, num_samples=1, generator=generator))


def warped(logits_V: Tensor, strategy: StrategyParams) -> Tensor:
    """Logits under temperature, then top-k, then top-p; the tokens left out get minus infinity."""
    if strategy.temperature is not None:
        logits_V = logits_V / strategy.temperature
    if strategy.top_k is not None:
        smallest = logits_V.topk(min(strategy.top_k, len(logits_V))).values[-1]
        logits_V = logits_V.masked_fill(logits_V < smallest, -torch.inf)
    if strategy.top_p is not None:
        ascending_V, order_V = logits_V.sort()
        left_out_V = ascending_V.softmax(dim=-1).cumsum(dim=-1) <= 1 - strategy.top_p
        left_out_V[-1] = False
        logits_V = logits_V.masked_fill(left_out_V.scatter(0, order_V, left_out_V), -torch.inf)
    return logits_V


# ---------------------------------------------------------------------------------------- beam search


@dataclass(frozen=True)
class Hypothesis:
    """A finished beam. `score` is its mean log-probability per new token."""

    tokens: list[int]
    score: float


def beam_search(
    model: Decoder, prompt: list[int], num_beams: int, end_of_text: int, max_new_tokens: int, poll: Poll
) -> Continuation:
    """The best of `num_beams` finished beams, by mean log-probability per token.

    The rules are those of `transformers` (length_penalty=1, early_stopping=False): of the 2·num_beams best
    candidates, the first num_beams may finish and the best unfinished ones live on; the search ends when
    the best living beam's mean so far does not exceed the worst finished one's.
    """
    cache = new_cache(model, num_beams)
    beams: list[list[int]] = [[] for _ in range(num_beams)]
    ids = [prompt] * num_beams
    # All beams begin alike: only the first may branch at first.
    scores_B = torch.full((num_beams,), -torch.inf)
    scores_B[0] = 0.0
    finished: list[Hypothesis] = []
    for length in range(1, max_new_tokens + 1):
        poll()
        logprobs_BV = next_logits(model, ids, cache).log_softmax(dim=-1)
        best, places = (logprobs_BV + scores_B[:, None]).flatten().topk(2 * num_beams)
        means = (best / length).tolist()
        living = []
        for rank, place in enumerate(places.tolist()):
            parent, token = divmod(place, logprobs_BV.shape[1])
            if token != end_of_text and length < max_new_tokens:
                living.append((rank, parent, token))
            elif rank < num_beams:
                finished.append(Hypothesis([*beams[parent], token], means[rank]))
        finished = sorted(finished, key=lambda hypothesis: -hypothesis.score)[:num_beams]
        if not living or (len(finished) == num_beams and means[living[0][0]] <= finished[-1].score):
            break
        # At least num_beams live on: each beam has only one candidate that ends the text.
        ranks, parents, tokens = (list(column) for column in zip(*living[:num_beams], strict=True))
        scores_B = best[ranks]
        cache.reorder(torch.tensor(parents, device=cache.keys.device))
        beams = [[*beams[parent], token] for parent, token in zip(parents, tokens, strict=True)]
        ids = [[token] for token in tokens]
    return Continuation(finished[0].tokens, finished[0].score * len(finished[0].tokens))
