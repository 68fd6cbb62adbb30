"""Continuing prompts, one way or another."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from nima.generation import decoding
from nima.generation.decoding import Continuation, continuation, seed_of, warped
from nima.network import pretrained
from nima.network.decoder import Decoder
from nima.tokenizer import Tokenizer
from nima.workspace.errors import Interrupted
from nima.workspace.params import GenerateParams, StrategyParams

END = 0
GREEDY = StrategyParams(name="greedy")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["kubernetes is a system for containers, pods and nodes. " * 3], 300)


@pytest.fixture(scope="module")
def words_model(tokenizer: Tokenizer) -> Decoder:
    return tiny_model(seed=2, vocab_size=tokenizer.vocab_size)


def strategy(**settings: Any) -> StrategyParams:
    return StrategyParams(name="tested", **settings)


def continued(
    model: Decoder, prompt: Sequence[int], how: StrategyParams, max_new_tokens: int = 20, seed: int = 0
) -> Continuation:
    return continuation(model, list(prompt), how, end_of_text=END, max_new_tokens=max_new_tokens, seed=seed)


@torch.no_grad()
def logprobs_of(model: Decoder, prompt: Sequence[int], tokens: list[int]) -> torch.Tensor:
    """What the whole sequence in one pass, without a cache, says about the new tokens."""
    ids = torch.tensor([[*prompt, *tokens]])
    logprobs = model(ids)[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
    return logprobs.gather(1, torch.tensor(tokens)[:, None]).squeeze(1)


# ------------------------------------------------------------------------------- against `transformers`


def ends_often(model: Decoder, bias: float) -> Decoder:
    """A model that is the likelier to end its text, the larger `bias` is."""
    with torch.no_grad():
        model.head.weight[END] += bias
    return model


# Chosen so that beams end early, late and never, and that stopping at the first full set would be wrong.
@pytest.mark.parametrize(("seed", "bias"), [(0, 1.0), (1, 0.3), (5, 1.0), (8, 0.6), (9, 0.3), (10, 0.3)])
def test_beam_search_and_greedy_are_transformers(seed: int, bias: float, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = ends_often(tiny_model(seed=seed), bias)
    pretrained.save(model, model.state_dict(), tmp_path, end_of_text=END, pad=1)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    for prompt in ([END], [END, 5, 6, 7]):
        for num_beams in (1, 2, 3, 5):
            how = strategy(num_beams=num_beams) if num_beams > 1 else GREEDY
            found = continued(model, prompt, how)
            ids = torch.tensor([prompt])
            expected = theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=20,
                num_beams=num_beams,
                output_scores=True,
                return_dict_in_generate=True,
            )
            assert found.tokens == expected.sequences[0, len(prompt) :].tolist()
            if num_beams > 1:
                score = float(expected.sequences_scores[0])
                assert found.logprob / len(found.tokens) == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("settings", [{"temperature": 0.7}, {"top_k": 5}, {"top_k": 500}, {"top_p": 0.5}])
@pytest.mark.parametrize("more", [{}, {"top_p": 0.05}, {"temperature": 2.0, "top_k": 10, "top_p": 0.9}])
def test_temperature_top_k_and_top_p_are_transformers(settings: dict, more: dict) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    merged = settings | more
    logits = torch.randn(8, 40, generator=torch.Generator().manual_seed(1)) * 3
    expected = logits
    for name, warper in (
        ("temperature", TemperatureLogitsWarper),
        ("top_k", TopKLogitsWarper),
        ("top_p", TopPLogitsWarper),
    ):
        if name in merged:
            expected = warper(merged[name])(None, expected)
    for row, expected_row in zip(logits, expected, strict=True):
        assert torch.equal(warped(row, strategy(**merged)), expected_row)


# ---------------------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.5}, {"top_k": 3, "top_p": 0.9}, {"num_beams": 4}])
def test_the_log_probability_is_that_of_a_pass_without_cache(settings: dict) -> None:
    model, prompt = tiny_model(seed=1), [END, 4, 9]
    found = continued(model, prompt, strategy(**settings), seed=3)
    expected = logprobs_of(model, prompt, found.tokens)
    assert found.logprob == pytest.approx(float(expected.sum()), abs=1e-3)


@torch.no_grad()
def test_greedy_takes_the_likeliest_token_of_a_pass_without_cache() -> None:
    model, prompt = tiny_model(seed=3), [END, 4, 9]
    tokens = continued(model, prompt, GREEDY).tokens
    logits = model(torch.tensor([[*prompt, *tokens]]))[0, len(prompt) - 1 : -1]
    assert logits.argmax(dim=-1).tolist() == tokens


def test_top_k_of_one_and_a_tiny_top_p_are_greedy() -> None:
    model, prompt = tiny_model(seed=3), [END, 4, 9]
    expected = continued(model, prompt, GREEDY).tokens
    assert continued(model, prompt, strategy(temperature=2.0, top_k=1)).tokens == expected
    assert continued(model, prompt, strategy(top_p=1e-6)).tokens == expected


def test_sampling_follows_the_models_probabilities() -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(1)) * 3
    generator = torch.Generator().manual_seed(2)
    how = strategy(temperature=3.0)
    draws = [decoding.next_token(logits, how, generator) for _ in range(4000)]
    found = torch.bincount(torch.tensor(draws), minlength=40) / len(draws)
    assert (found - (logits / 3).softmax(dim=-1)).abs().max() < 0.03


def test_generation_stops_at_end_of_text_and_at_the_length_limit() -> None:
    chatty, short = tiny_model(seed=1), ends_often(tiny_model(seed=1), bias=3.0)
    for how in (GREEDY, strategy(temperature=1.0), strategy(num_beams=3)):
        found = continued(short, [END, 3], how)
        assert found.tokens[-1] == END
        assert END not in found.tokens[:-1]
        assert len(continued(chatty, [END, 3], how, max_new_tokens=7).tokens) <= 7


def test_more_beams_than_half_the_vocabulary_still_search() -> None:
    model = tiny_model(vocab_size=8)
    found = continued(model, [END, 3], strategy(num_beams=7), max_new_tokens=6)
    assert found.logprob / len(found.tokens) == pytest.approx(
        float(logprobs_of(model, [END, 3], found.tokens).mean()), abs=1e-4
    )


# ------------------------------------------------------------------------------------ seeds and the model


def test_a_seed_decides_a_sample() -> None:
    model, how = tiny_model(), strategy(temperature=2.0)
    assert continued(model, [END], how, seed=1) == continued(model, [END], how, seed=1)
    assert continued(model, [END], how, seed=1) != continued(model, [END], how, seed=2)


def test_seeds_differ_by_prompt_strategy_and_setting() -> None:
    seeds = {seed_of(seed, prompt, name) for seed in range(3) for prompt in range(20) for name in "abc"}
    assert len(seeds) == 3 * 20 * 3
    assert all(0 <= seed < 2**53 for seed in seeds), "some readers of JSON hold numbers as doubles"
    assert seed_of(7, 0, "greedy") == 116_909_674_515_689, "samples of earlier commits would change"


def settings_of(prompts: list[str], *names: str) -> GenerateParams:
    strategies = [StrategyParams(name=name, temperature=2.0) for name in names]
    return GenerateParams(seed=1, prompts=prompts, strategies=strategies, max_new_tokens=8)


def test_another_prompt_or_strategy_changes_no_other_sample(
    words_model: Decoder, tokenizer: Tokenizer
) -> None:
    few = list(decoding.samples(words_model, tokenizer, settings_of(["pods", "nodes"], "b")))
    many = list(decoding.samples(words_model, tokenizer, settings_of(["pods", "nodes", "for"], "a", "b")))
    kept = [one for one in many if one.strategy.name == "b" and one.prompt != "for"]
    assert kept == few
    assert len(many) == 6


def test_generating_leaves_random_numbers_and_the_models_mode_alone(tokenizer: Tokenizer) -> None:
    model = tiny_model(vocab_size=tokenizer.vocab_size, dropout=0.5)
    settings = settings_of(["pods"], "a")
    before = torch.get_rng_state()
    for training in (True, False):
        model.train(training)
        outcomes = list(decoding.samples(model, tokenizer, settings))
        assert model.training is training
    assert torch.equal(torch.get_rng_state(), before)
    assert outcomes == list(decoding.samples(model.train(), tokenizer, settings)), "dropout acted"
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_interruption_stops_between_tokens_and_restores_the_mode(
    words_model: Decoder, tokenizer: Tokenizer
) -> None:
    calls = []

    def poll() -> None:
        calls.append(len(calls))
        if len(calls) == 5:
            raise Interrupted("stopped")

    words_model.train()
    with pytest.raises(Interrupted):
        list(decoding.samples(words_model, tokenizer, settings_of(["pods"], "a"), poll))
    assert words_model.training
    assert len(calls) == 5


# ------------------------------------------------------------------------------------------------- text


def test_a_sample_holds_text_ending_and_score(words_model: Decoder, tokenizer: Tokenizer) -> None:
    found = decoding.sample(words_model, tokenizer, "pods are", GREEDY, max_new_tokens=9, seed=5)
    prompt = [tokenizer.end_of_text, *tokenizer.encode("pods are")]
    assert found.tokens == continued(words_model, prompt, GREEDY, max_new_tokens=9).tokens
    assert found.text == tokenizer.decode(found.tokens)
    assert found.finished == ("end_of_text" if found.tokens[-1] == tokenizer.end_of_text else "length")
    assert found.mean_logprob == pytest.approx(
        float(logprobs_of(words_model, prompt, found.tokens).mean()), abs=1e-4
    )
    assert (found.seed, found.dropped_prompt_tokens) == (5, 0)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}])
def test_of_a_long_prompt_the_end_is_kept(words_model: Decoder, tokenizer: Tokenizer, settings: dict) -> None:
    text = "zebra " * 40 + "pods and nodes"
    found = decoding.sample(words_model, tokenizer, text, strategy(**settings), max_new_tokens=20, seed=0)
    ids = [tokenizer.end_of_text, *tokenizer.encode(text)]
    room = words_model.config.context_tokens - 20
    assert found.dropped_prompt_tokens == len(ids) - room > 0
    assert found.tokens == continued(words_model, ids[-room:], strategy(**settings)).tokens
    assert len(found.tokens) == 20 or found.finished == "end_of_text"


def test_new_tokens_that_fill_the_context_raise(words_model: Decoder, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="64 new tokens leave no room"):
        decoding.sample(words_model, tokenizer, "pods", GREEDY, max_new_tokens=64, seed=0)
