"""Attention inside documents by a kernel for unlike lengths; a plain loop stands in its place here."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_document_borders import batch_of, documents
from test_training import Attempt, StopAt, assert_same_run, settings_of
from tiny_models import random_ids, tiny_model
from torch import Tensor

from nima.batches import Batch
from nima.network import varlen
from nima.network.decoder import Decoder, autocast
from nima.network.varlen import Segments, document_mask, flaw, obstacle, segments_of
from nima.training import compilation
from nima.training.compilation import choose_cut
from nima.training.loop import on_device
from nima.training.memory_trials import Work, WorstCase
from nima.workspace.errors import Interrupted

CPU, GPU = torch.device("cpu"), torch.device("cuda")
HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_width": 8}
# Runs of equal numbers, as batches have them; the last are padding.
DOCUMENTS = torch.tensor([[0] * 7 + [1] * 9 + [2] * 4 + [-1] * 4, [0] * 12 + [1] * 1 + [2] * 11])


def one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int],
    enable_gqa: bool,
    num_splits: int,
) -> Tensor:
    """What the kernel computes, with its arguments: each sequence by itself."""
    assert cu_seq_q.dtype == torch.int32
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert max_q == max_k == cu_seq_q.diff().max()
    assert (window_size, num_splits) == ((-1, 0), 1)
    found = []
    for start, stop in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        q, k, v = (x[start:stop].transpose(0, 1)[None] for x in (query, key, value))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=enable_gqa)
        found.append(y[0].transpose(0, 1))
    return torch.cat(found)


def take(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Tensor]) -> None:
    monkeypatch.setattr(varlen, "kernel", lambda: function)


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.set_num_threads(1)
    take(monkeypatch, one_by_one)
    yield
    torch.use_deterministic_algorithms(False)


def batch_with(numbers: Tensor) -> Batch:
    nothing = np.zeros(numbers.shape, dtype=np.int64)
    return Batch(nothing, nothing, numbers.numpy())


def segments(numbers: Tensor = DOCUMENTS) -> Segments:
    return segments_of(batch_with(numbers).borders, CPU)


def shown_by(borders: np.ndarray, rows: int, slots: int) -> Tensor:
    """Which positions of its row each one sees, from the borders alone."""
    place = np.repeat(np.arange(len(borders) - 1), np.diff(borders)).reshape(rows, slots)
    return document_mask(torch.from_numpy(place))


# ---------------------------------------------------------------------------------------------- borders


def test_borders_are_those_of_rows_laid_end_to_end() -> None:
    found = batch_with(DOCUMENTS).borders
    assert found.dtype == np.int32
    assert found.tolist() == [0, 7, 16, 20, 24, 36, 37, 48]
    assert segments().longest_tokens == 12
    assert batch_with(torch.zeros(3, 5, dtype=torch.int64)).borders.tolist() == [0, 5, 10, 15]
    assert batch_with(torch.tensor([[4]])).borders.tolist() == [0, 1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=6), min_size=1, max_size=4))
def test_borders_show_each_position_what_the_mask_does(lengths: list[list[int]]) -> None:
    slots = max(map(sum, lengths))
    rows = [np.repeat(np.arange(len(row)), row).tolist() for row in lengths]
    numbers = torch.tensor([row + [-1] * (slots - len(row)) for row in rows])
    borders = batch_with(numbers).borders
    assert torch.equal(shown_by(borders, *numbers.shape), document_mask(numbers))


@pytest.mark.parametrize("batching", ["blocks", "packed"])
def test_borders_of_real_micro_batches_show_what_the_mask_does(batching: Any) -> None:
    counts = set()
    for step in range(6):
        for part in batch_of(documents(), batching, step).micro_batches(32):
            mask = document_mask(torch.from_numpy(part.documents))
            assert torch.equal(shown_by(part.borders, *part.ids.shape), mask)
            counts.add(len(part.borders))
    assert len(counts) > 1, "their number differs from one to the next"


# ------------------------------------------------------------------------------------------ the same sums


def loss_and_gradients(model: Decoder, precision: str, numbers: Tensor | Segments) -> list[Tensor]:
    ids, targets = random_ids(2, 24), random_ids(2, 24, seed=1)
    model.zero_grad()
    with autocast(CPU, precision):
        loss = model.loss_sum(ids, targets, numbers)
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("bf16", 5e-2)])
def test_segments_give_the_masks_loss_and_gradients_to_rounding(
    num_kv_heads: int, precision: str, limit: float
) -> None:
    model = tiny_model(num_kv_heads=num_kv_heads)
    masked, cut, uncut = (
        loss_and_gradients(model, precision, numbers)
        for numbers in (DOCUMENTS, segments(), torch.zeros_like(DOCUMENTS))
    )
    assert float((cut[0] - masked[0]).abs() / masked[0]) < limit
    for found, expected in zip(cut, masked, strict=True):
        assert float((found - expected).norm() / expected.norm()) < limit
    assert float((uncut[0] - masked[0]).abs() / masked[0]) > 5e-2, "so the limit tells borders from none"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@torch.no_grad()
def test_changing_a_document_leaves_the_logits_of_the_others_equal_bit_for_bit(precision: str) -> None:
    model, ids = tiny_model(), random_ids(2, 24)

    def logits(ids: Tensor) -> Tensor:
        with autocast(CPU, precision):
            return model.head(model.hidden(ids, documents_BT=segments()))

    before = logits(ids)
    for row, number in ((0, 0), (0, 1), (0, -1), (1, 0), (1, 1)):
        changed = (number == DOCUMENTS) & (torch.arange(2) == row)[:, None]
        after = logits(torch.where(changed, (ids + 7) % 40, ids))
        assert torch.equal(before[~changed], after[~changed])
        assert not (before[changed] == after[changed]).all(dim=-1).any()


def test_computing_layers_again_changes_no_bit() -> None:
    model = tiny_model()
    kept = loss_and_gradients(model, "bf16", segments())
    model.recomputes = True
    again = loss_and_gradients(model, "bf16", segments())
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


def test_compiled_layers_take_any_number_of_documents_without_compiling_anew() -> None:
    torch.compiler.reset()
    plain, compiled = tiny_model(), tiny_model()
    for layer in compiled.layers:
        layer.compile(dynamic=False, backend="aot_eager")  # graphs as ever, and no C++ made of them
    graphs = []
    for size in (24, 5, 9, 2):
        numbers = (torch.arange(24) // size).expand(2, 24)
        found, expected = (
            loss_and_gradients(model, "fp32", segments(numbers)) for model in (compiled, plain)
        )
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert len(set(graphs)) == 1


# ------------------------------------------------------------------------------------------ torch's kernel


@pytest.fixture
def torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention.varlen import varlen_attn

    take(monkeypatch, varlen_attn)


@pytest.mark.usefixtures("torchs_own")
def test_torchs_kernel_takes_the_arguments_and_nothing_is_read_back_from_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # which knows no such device
    # Tensors of the device "meta" have shapes and no values: to read one raises.
    with torch.device("meta"):
        model = Decoder(tiny_model().config)
        ids = torch.zeros(2, 24, dtype=torch.int64)
    found = model.hidden(ids, documents_BT=segments_of(batch_with(DOCUMENTS).borders, torch.device("meta")))
    assert found.shape == (2, 24, 32)
    found.sum().backward()
    assert all(
        parameter.grad is not None for name, parameter in model.named_parameters() if "head" not in name
    )


@pytest.mark.usefixtures("torchs_own")
def test_where_torchs_kernel_cannot_run_the_probe_says_so() -> None:
    assert "the kernel failed with NotImplementedError: " in str(flaw(CPU, torch.bfloat16, **HEADS))


# ------------------------------------------------------------------------------------------------- choice


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_kv_heads", [1, 4])
def test_the_probe_finds_nothing_wrong_with_what_is_right(
    dtype: torch.dtype, num_kv_heads: int, deterministic: bool
) -> None:
    torch.use_deterministic_algorithms(deterministic)
    assert flaw(CPU, dtype, **HEADS | {"num_kv_heads": num_kv_heads}) is None


class Scaled(torch.autograd.Function):
    """The same values, and a gradient that is a tenth too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 1.1


def blind_to_one_border(*qkv: Any, **named: Any) -> Tensor:
    query, key, value, borders, _, _, _ = qkv
    fewer = borders[[0, 2, 3, 4]]
    longest = int(fewer.diff().max())
    return one_by_one(query, key, value, fewer, fewer, longest, longest, **named)


def without_a_value(*qkv: Any, **named: Any) -> Tensor:
    y = one_by_one(*qkv, **named)
    return torch.where(torch.arange(len(y))[:, None, None] == 5, torch.nan, y)


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (blind_to_one_border, "the kernel's outputs are "),
        (without_a_value, "the kernel's outputs are nan off"),
        (
            lambda q, k, v, *rest, **named: one_by_one(Scaled.apply(q), k, v, *rest, **named),
            "gradients of queries are",
        ),
        (
            lambda q, k, v, *rest, **named: one_by_one(q, Scaled.apply(k), v, *rest, **named),
            "gradients of keys are",
        ),
        (
            lambda q, k, v, *rest, **named: one_by_one(q, k, Scaled.apply(v), *rest, **named),
            "gradients of values are",
        ),
        (lambda q, k, v: one_by_one(q, k, v), "failed with TypeError: "),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_probe_names_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Tensor], said: str, dtype: torch.dtype
) -> None:
    take(monkeypatch, kernel)
    assert said in str(flaw(CPU, dtype, **HEADS))


def failing(error: Exception) -> Callable[[], None]:
    def kernel() -> None:
        raise error

    return kernel


def test_a_kernel_that_is_absent_or_raises_is_named_and_lack_of_memory_is_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(varlen, "kernel", failing(ImportError("no varlen here")))
    assert flaw(CPU, torch.bfloat16, **HEADS) == "the kernel failed with ImportError: no varlen here"
    monkeypatch.setattr(varlen, "kernel", failing(RuntimeError("not built\nat some.cpp:3")))
    assert flaw(CPU, torch.bfloat16, **HEADS) == "the kernel failed with RuntimeError: not built"
    monkeypatch.setattr(varlen, "kernel", failing(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        flaw(CPU, torch.bfloat16, **HEADS)


def test_sums_in_changing_order_are_refused_where_arithmetic_is_deterministic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def restless(query: Tensor, *rest: Any, **named: Any) -> Tensor:
        calls.append(1)
        return one_by_one(query, *rest, **named) * (1 + len(calls) % 2 * 2**-7)

    take(monkeypatch, restless)
    assert flaw(CPU, torch.bfloat16, **HEADS) is None
    torch.use_deterministic_algorithms(True)
    assert flaw(CPU, torch.bfloat16, **HEADS) == "the kernel's outputs differ from call to call"


def test_the_probe_leaves_the_runs_random_numbers_alone() -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    flaw(CPU, torch.bfloat16, **HEADS)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("device", "dtype", "head_width", "said"),
    [
        (CPU, torch.bfloat16, 64, "the kernel runs on a GPU, not on cpu"),
        (GPU, torch.float32, 64, "the kernel takes bfloat16 and float16, not float32"),
        (GPU, torch.bfloat16, 12, "the kernel takes heads of 8, 16 ... 256 channels, not 12"),
        (GPU, torch.bfloat16, 264, "the kernel takes heads of 8, 16 ... 256 channels, not 264"),
        (GPU, torch.bfloat16, 256, "asked the probe"),
        (GPU, torch.float16, 8, "asked the probe"),
    ],
)
def test_what_the_kernel_cannot_take_is_known_without_trying(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, dtype: torch.dtype, head_width: int, said: str
) -> None:
    monkeypatch.setattr(varlen, "flaw", lambda *_, **__: "asked the probe")
    assert obstacle(device, dtype, **HEADS | {"head_width": head_width}) == said


def on_a_gpu() -> Any:
    """A model as far as the choice looks at it."""
    parameters = lambda: iter([SimpleNamespace(device=GPU)])  # noqa: E731
    return SimpleNamespace(config=tiny_model().config, cuts_by="mask", parameters=parameters)


def test_a_gpu_without_a_right_kernel_gets_the_mask_and_one_line_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    masked, cut = on_a_gpu(), on_a_gpu()
    cutting = settings_of(mask_documents=True, precision="bf16")
    monkeypatch.setattr(compilation, "obstacle", lambda *_, **__: "the kernel failed with X: y")
    choose_cut(masked, cutting, said.append)
    assert masked.cuts_by == "mask"
    assert said == [
        "attention is cut at document borders by a mask, which takes longer: the kernel failed with X: y"
    ]
    monkeypatch.setattr(compilation, "obstacle", lambda *_, **__: None)
    choose_cut(cut, cutting, said.append)
    assert cut.cuts_by == "segments"
    assert len(said) == 1


def test_nothing_is_tried_where_attention_is_not_cut_or_the_users_step_is_given_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compilation, "obstacle", lambda *_, **__: pytest.fail("tried"))
    for chosen in (settings_of(), settings_of(mask_documents=True, step="losses:own")):
        model = on_a_gpu()
        choose_cut(model, chosen, pytest.fail)
        assert model.cuts_by == "mask"


def test_a_cpu_cuts_by_a_mask_and_says_nothing() -> None:
    model = tiny_model()
    choose_cut(model, settings_of(mask_documents=True, precision="bf16"), pytest.fail)
    assert model.cuts_by == "mask"


# ----------------------------------------------------------------------------------------------- training


def test_the_loop_gets_segments_only_where_they_cut() -> None:
    part = batch_of(documents(), "packed", 0)
    assert on_device(part, CPU, None)[2] is None
    assert torch.equal(on_device(part, CPU, "mask")[2], torch.from_numpy(part.documents))
    found = on_device(part, CPU, "segments")[2]
    assert isinstance(found, Segments)
    assert found.borders.tolist() == part.borders.tolist()
    assert type(found.longest_tokens) is int


@pytest.mark.parametrize("batching", ["blocks", "packed"])
def test_training_by_segments_is_training_by_a_mask_to_rounding_and_goes_on_exactly(
    tmp_path: Path, batching: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr(varlen, "kernel", lambda: taken.append(1) or one_by_one)
    chosen = settings_of(batching=batching, mask_documents=True, max_steps=4, log_every_steps=1)
    masked, cut = Attempt(tmp_path / "masked", chosen), Attempt(tmp_path / "cut", chosen)
    halted = Attempt(tmp_path / "halted", chosen, stop=StopAt(8))
    resumed = Attempt(tmp_path / "halted", chosen)
    for attempt in (cut, halted, resumed):
        attempt.model.cuts_by = "segments"
    expected = masked.go()
    assert not taken
    found = cut.go()
    assert len(taken) == 4 * 2 * 2, "steps, micro-batches, layers"
    logged = [[row for row in run.state.rows if "train/loss" in row] for run in (found, expected)]
    losses = [[row["train/loss"] for row in rows] for rows in logged]
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    with pytest.raises(Interrupted):
        halted.go()
    assert_same_run(resumed, resumed.go(), cut, found)


def test_a_trial_of_memory_cuts_its_rows_into_short_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def counted(
        query: Tensor, key: Tensor, value: Tensor, borders: Tensor, *rest: Any, **named: Any
    ) -> Tensor:
        counts.append(len(borders) - 1)
        return one_by_one(query, key, value, borders, *rest, **named)

    take(monkeypatch, counted)
    monkeypatch.setattr(compilation, "obstacle", lambda *_, **__: None)
    chosen = settings_of(mask_documents=True, batch_tokens=8 * 40, block_tokens=40, micro_batch_tokens=40)
    run = WorstCase(Work(tiny_model().config, chosen, CPU, threads=1, recomputes=False))
    counts.clear()
    assert run(3) > 0
    assert set(counts) == {4}, "of 32 tokens, and what is left of 120"
