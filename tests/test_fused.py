"""The pieces differentiated by hand: autograd's values and gradients, in every shape."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import cross_entropy

from nima.network import fused
from nima.network.fused import (
    causal_attention,
    linear_cross_entropy,
    normalised_and_rotated,
    rms_norm,
    squared_relu_mlp,
)
from nima.network.targets import IGNORED


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def tables(tokens: int, width: int) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(tokens).double(), 10 ** -torch.arange(width // 2).double())
    return angles.cos()[:, None], angles.sin()[:, None]


def assert_like(f, g, *inputs: Tensor) -> None:  # type: ignore[no-untyped-def]
    """Equal values, and equal gradients of a weighted sum of them."""
    copies = [x.detach().clone().requires_grad_() for x in inputs]
    y, expected = f(*inputs), g(*copies)
    torch.testing.assert_close(y, expected)
    weights = random(*y.shape, seed=99).detach()
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    for x, copy in zip(inputs, copies, strict=True):
        torch.testing.assert_close(x.grad, copy.grad)


# ------------------------------------------------------------------------------------------------- norms


def test_a_norm_is_torchs() -> None:
    gain = random(10, seed=1)
    assert_like(
        lambda x, gain: rms_norm(x, gain, 1e-6),
        lambda x, gain: F.rms_norm(x, (10,), gain, 1e-6),
        random(3, 5, 10),
        gain,
    )


def rotated_by_complex_numbers(x: Tensor, gain: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    x = F.rms_norm(x, x.shape[-1:], None, 1e-6) * gain
    turned = torch.complex(*x.chunk(2, dim=-1)) * torch.complex(*rotation)
    return torch.cat((turned.real, turned.imag), dim=-1)


def test_heads_are_normalised_scaled_and_turned_by_their_positions() -> None:
    rotation = tables(7, 6)
    assert_like(
        lambda x, gain: normalised_and_rotated(x, gain, rotation, 1e-6),
        lambda x, gain: rotated_by_complex_numbers(x, gain, rotation),
        random(2, 7, 3, 6),
        random(3, 6, seed=1),
    )


# --------------------------------------------------------------------------------------------- attention


def torchs_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


@pytest.mark.parametrize("chunk", [1, 4, 5, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (4, 2), (6, 1)])
def test_attention_is_torchs_whatever_the_chunks(
    monkeypatch: pytest.MonkeyPatch, chunk: int, heads: int, kv_heads: int
) -> None:
    monkeypatch.setattr(fused, "CHUNK_QUERIES", chunk)
    q, k, v = random(2, 11, heads, 6), random(2, 11, kv_heads, 6, seed=1), random(2, 11, kv_heads, 6, seed=2)
    assert_like(causal_attention, torchs_attention, q, k, v)


def test_rows_too_long_for_keeping_probabilities_go_through_torchs_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    q, k, v = (random(1, 9, 2, 4, seed=seed) for seed in range(3))
    kept = causal_attention(q, k, v)
    monkeypatch.setattr(fused, "LONGEST_KEPT_TOKENS", 8)
    monkeypatch.setattr(fused.CausalAttention, "apply", None)
    torch.testing.assert_close(causal_attention(q, k, v), kept)


def test_attention_keeps_its_dtype_and_comes_close_in_bfloat16() -> None:
    q, k, v = (random(2, 20, 2, 8, seed=seed, dtype=torch.bfloat16) for seed in range(3))
    y = causal_attention(q, k, v)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(
        y.double(), torchs_attention(q.double(), k.double(), v.double()), atol=0.03, rtol=0
    )


# --------------------------------------------------------------------------------------------------- MLP


def test_the_mlp_is_the_square_of_the_relu() -> None:
    assert_like(
        squared_relu_mlp,
        lambda x, up, down: F.linear(F.linear(x, up).relu() ** 2, down),
        random(2, 5, 4),
        random(7, 4, seed=1),
        random(4, 7, seed=2),
    )


def test_pieces_for_other_devices_and_compilers_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, gain, rotation = random(2, 7, 3, 6), random(3, 6, seed=1), tables(7, 6)
    up, down = random(9, 6, seed=2), random(6, 9, seed=3)

    def pieces() -> list[Tensor]:
        return [
            rms_norm(x, gain[0], 1e-6),
            normalised_and_rotated(x, gain, rotation, 1e-6),
            causal_attention(x, x, x),
            squared_relu_mlp(x, up, down),
        ]

    by_hand = pieces()
    monkeypatch.setattr(fused, "by_hand", lambda _: False)
    torch.testing.assert_close(by_hand, pieces())


# ------------------------------------------------------------------------------------------------- loss


def loss_inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 16, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(23, 16, generator=generator).requires_grad_()
    targets = torch.randint(0, 23, (50,), generator=generator)
    targets[::3] = IGNORED
    return x, weight, targets


@pytest.mark.parametrize("chunk_rows", [1, 7, 50, 1000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_the_loss_and_its_gradients_are_torchs(
    monkeypatch: pytest.MonkeyPatch, chunk_rows: int, dtype: torch.dtype, tolerance: float
) -> None:
    monkeypatch.setattr(fused, "CHUNK_LOGITS", chunk_rows * 23)
    x, weight, targets = loss_inputs(dtype)
    loss = linear_cross_entropy(x, weight, targets)
    (loss * 0.25).backward()
    x2, weight2, _ = loss_inputs(dtype)
    logits = x2.float() @ weight2.to(dtype).float().T
    expected = cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    (expected * 0.25).backward()
    assert loss.dtype == torch.float32
    assert x.grad is not None
    assert weight.grad is not None
    assert x.grad.dtype == dtype
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(x.grad, x2.grad, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(weight.grad, weight2.grad, rtol=tolerance, atol=tolerance)


def test_targets_that_are_all_ignored_cost_nothing_and_pull_nowhere() -> None:
    x, weight, targets = loss_inputs(torch.float32)
    loss = linear_cross_entropy(x, weight, torch.full_like(targets, IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()  # type: ignore[union-attr]
    assert not weight.grad.any()  # type: ignore[union-attr]


def test_huge_logits_give_a_finite_loss() -> None:
    x, weight, targets = loss_inputs(torch.float32)
    assert torch.isfinite(linear_cross_entropy(x * 1e4, weight, targets))
