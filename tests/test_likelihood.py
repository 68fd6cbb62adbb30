"""Scoring text: every token once, whatever the windows and batches."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_model
from torch.nn.functional import cross_entropy

from nima.batches import Stream, evenly_spread, scoring_windows
from nima.network.decoder import Decoder
from nima.network.targets import IGNORED
from nima.scoring import likelihood
from nima.scoring.likelihood import Likelihood, Scorer, scoring_batches, total
from nima.workspace.errors import Interrupted

END = 0
VOCAB = 40
TOKEN_BYTES = np.array([0] + [1 + token % 5 for token in range(1, VOCAB)])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Documents:
    """Tokens in memory. Each document ends with end-of-text; `holes` are not scored."""

    def __init__(self, lengths: list[int], holes: bool = False) -> None:
        generator = np.random.default_rng(0)
        self.texts = [np.append(generator.integers(1, VOCAB, size - 1), END) for size in lengths]
        self.holes = holes
        self.num_documents = len(lengths)
        self.lengths = np.array(lengths, dtype=np.int64)
        self.weights = np.ones(len(lengths))
        self.ids = [f"document {number}" for number in range(len(lengths))]
        self.sources = [("guides", "manuals", "questions")[number % 3] for number in range(len(lengths))]

    def document(self, index: int) -> np.ndarray:
        return self.texts[index]

    def spans(self, index: int) -> np.ndarray:
        size = len(self.texts[index])
        if not self.holes:
            return np.array([[0, size]])
        return np.array([[start, min(start + 2, size)] for start in range(1, size, 3)]).reshape(-1, 2)


def scorer(
    documents: Documents, window: int = 16, stride: int = 8, batch: int = 64, **changes: object
) -> Scorer:
    chosen = np.arange(documents.num_documents)
    stream = Stream(documents, chosen)
    made = Scorer(
        stream=stream,
        windows=scoring_windows(stream.num_tokens, window, stride),
        end_of_text=END,
        token_bytes=TOKEN_BYTES,
        sources=documents.sources,
        micro_batch_tokens=batch,
        precision="fp32",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


LENGTHS = [5, 1, 23, 40, 2, 17, 9]


# -------------------------------------------------------------------- against a straightforward computation


def straightforward(
    model: Decoder, documents: Documents, window: int, stride: int
) -> dict[str, list[tuple[float, bool, int]]]:
    """(loss, correct, bytes) of each scored token by source, one forward pass for each window, in float32."""
    text = np.concatenate(documents.texts)
    owner = np.repeat(np.arange(documents.num_documents), documents.lengths)
    trained = np.zeros(len(text), dtype=bool)
    for number, start in enumerate(np.cumsum(documents.lengths) - documents.lengths):
        for low, high in documents.spans(number):
            trained[start + low : start + high] = True
    inputs = np.concatenate(([END], text[:-1]))
    found: dict[str, list[tuple[float, bool, int]]] = {}
    done = 0
    while done < len(text):
        stop = min(len(text), done + (window if done == 0 else stride))
        start = max(0, stop - window)
        with torch.no_grad():
            logits = model(torch.from_numpy(inputs[None, start:stop]))[0]
        losses = cross_entropy(logits, torch.from_numpy(text[start:stop]), reduction="none")
        for place in range(done, stop):
            if trained[place]:
                token = int(text[place])
                correct = int(logits[place - start].argmax()) == token
                source = documents.sources[owner[place]]
                outcome = (float(losses[place - start]), correct, int(TOKEN_BYTES[token]))
                found.setdefault(source, []).append(outcome)
        done = stop
    return found


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize(("window", "stride"), [(16, 8), (16, 16), (16, 15), (7, 1), (64, 32)])
def test_likelihoods_are_those_of_a_straightforward_computation(
    window: int, stride: int, holes: bool
) -> None:
    model, documents = tiny_model(), Documents(LENGTHS, holes)
    found = scorer(documents, window, stride)(model)
    expected = straightforward(model, documents, window, stride)
    assert set(found) == set(expected)
    for source, outcomes in expected.items():
        losses, correct, sizes = zip(*outcomes, strict=True)
        assert found[source].nats == pytest.approx(sum(losses), rel=1e-5)
        assert found[source].num_tokens == len(outcomes)
        assert found[source].num_correct == sum(correct)
        assert found[source].num_bytes == sum(sizes)


def test_more_context_changes_the_likelihood_of_text_that_depends_on_it() -> None:
    model, documents = tiny_model(), Documents(LENGTHS)
    few, many = (total(scorer(documents, window, 4)(model)) for window in (4, 32))
    assert few.num_tokens == many.num_tokens
    assert abs(few.nats - many.nats) > 0.1


# ------------------------------------------------------------------------------------ each token exactly once


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    window=st.integers(1, 40),
    overlap=st.integers(0, 39),
    batch=st.integers(1, 100),
    holes=st.booleans(),
)
def test_each_token_is_scored_exactly_once(
    lengths: list[int], window: int, overlap: int, batch: int, holes: bool
) -> None:
    documents = Documents(lengths, holes)
    made = scorer(documents, window, max(1, window - overlap), batch)
    targets: dict[int, list[int]] = {number: [] for number in range(len(lengths))}
    for rows in scoring_batches(made.stream, made.windows, END, batch):
        assert rows.ids.shape[1] <= window
        assert rows.ids.size <= max(batch, window)
        assert ((rows.targets == IGNORED) == (rows.documents == -1)).all()
        for number, target in zip(rows.documents.ravel(), rows.targets.ravel(), strict=True):
            if number >= 0:
                targets[int(number)].append(int(target))
    for number, found in targets.items():
        scored = [documents.texts[number][low:high].tolist() for low, high in documents.spans(number)]
        assert found == list(itertools.chain.from_iterable(scored))


@settings(max_examples=100, deadline=None)
@given(window=st.integers(1, 40), overlap=st.integers(0, 39), num_tokens=st.integers(0, 300))
def test_a_window_scores_its_last_tokens_with_all_the_context_it_can_hold(
    window: int, overlap: int, num_tokens: int
) -> None:
    stride = max(1, window - overlap)
    place = 0
    for found in scoring_windows(num_tokens, window, stride):
        assert 1 <= found.num_scored <= found.num_tokens <= window
        assert found.start + found.num_tokens - found.num_scored == place
        assert found.start == 0 or found.num_tokens == window
        place += found.num_scored
    assert place == num_tokens


def test_fewer_tokens_are_spread_evenly_over_the_text() -> None:
    windows = scoring_windows(1000, 10, 10)
    chosen = evenly_spread(windows, 100)
    assert [window.start for window in chosen] == list(range(0, 1000, 100))
    assert evenly_spread(windows, None) == evenly_spread(windows, 5000) == windows
    assert len(evenly_spread(windows, 1)) == 1


# ------------------------------------------------------------------------------------- what must not matter


def test_the_size_of_a_batch_does_not_matter() -> None:
    model, documents = tiny_model(), Documents(LENGTHS)
    expected = scorer(documents, batch=1)(model)
    for batch in (16, 50, 10_000):
        found = scorer(documents, batch=batch)(model)
        assert list(found) == list(expected)
        for source, part in found.items():
            assert part.nats == pytest.approx(expected[source].nats, rel=1e-5)
            assert replace(part, nats=0.0) == replace(expected[source], nats=0.0)


def test_logits_of_a_batch_may_come_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, documents = tiny_model(), Documents(LENGTHS)
    expected = total(scorer(documents)(model))
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", 3 * VOCAB)
    found = total(scorer(documents)(model))
    assert found.nats == pytest.approx(expected.nats, rel=1e-6)
    assert replace(found, nats=0.0) == replace(expected, nats=0.0)


def test_mixed_precision_stays_close_to_float32() -> None:
    model, documents = tiny_model(), Documents(LENGTHS)
    exact, mixed = (total(scorer(documents, precision=name)(model)) for name in ("fp32", "bf16"))
    assert mixed.nats == pytest.approx(exact.nats, rel=2e-2)
    assert mixed.num_tokens == exact.num_tokens


def test_scoring_leaves_random_numbers_weights_and_mode_alone() -> None:
    model, documents = tiny_model(dropout=0.5), Documents(LENGTHS)
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()
    outcomes = []
    for training in (True, False):
        model.train(training)
        outcomes.append(scorer(documents)(model))
        assert model.training is training
    assert outcomes[0] == outcomes[1], "dropout acted"
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before[1])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_interruption_stops_between_batches_and_restores_the_mode() -> None:
    model, documents = tiny_model().train(), Documents(LENGTHS)
    calls = iter(range(3))

    def poll() -> None:
        if next(calls) == 2:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        scorer(documents, batch=16)(model, poll)
    assert model.training


# ------------------------------------------------------------------------------------------------ the figures


def uniform_model() -> Decoder:
    model = tiny_model()
    with torch.no_grad():
        model.head.weight.zero_()
    return model


def test_a_uniform_model_needs_log2_of_the_vocabulary_bits_for_each_token() -> None:
    documents = Documents(LENGTHS)
    found = total(scorer(documents)(uniform_model()))
    num_tokens = sum(LENGTHS)
    num_bytes = int(TOKEN_BYTES[np.concatenate(documents.texts)].sum())
    metrics = found.metrics()
    assert metrics["bits_per_byte"] == pytest.approx(math.log2(VOCAB) * num_tokens / num_bytes, rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(VOCAB, rel=1e-5)
    assert metrics["loss"] == pytest.approx(math.log(VOCAB), rel=1e-6)


def test_the_sources_add_up_to_the_total() -> None:
    parts = scorer(Documents(LENGTHS))(tiny_model())
    assert list(parts) == ["guides", "manuals", "questions"]
    whole = total(parts)
    assert whole.nats == pytest.approx(sum(part.nats for part in parts.values()))
    counts: list[Callable[[Likelihood], int]] = [
        lambda part: part.num_tokens,
        lambda part: part.num_correct,
        lambda part: part.num_bytes,
    ]
    for count in counts:
        assert count(whole) == sum(map(count, parts.values()))
    assert whole.num_tokens == sum(LENGTHS)


def test_figures_beyond_all_numbers_do_not_crash() -> None:
    assert Likelihood(nats=5000.0, num_tokens=1, num_bytes=3).metrics()["perplexity"] == math.inf
    assert math.isnan(Likelihood(nats=1.0, num_tokens=1).metrics()["bits_per_byte"])
