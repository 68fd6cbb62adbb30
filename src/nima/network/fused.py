"""Pieces of the network differentiated by hand, each with fewer passes over memory than its parts have.

On a CPU, a training step of a small model spends more time moving activations than multiplying matrices.
These functions keep activations in the dtype they come in (bfloat16 in mixed precision), reduce in float32,
save only what backward needs, and reuse memory that nobody else sees. Their gradients are exact: the tests
compare them with autograd's in float64. On a GPU, and under `torch.compile`, which writes such functions
itself, PyTorch's own are taken; only the cross-entropy is used everywhere.

Suffixes of tensors are those of `decoder.py`.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from nima.network.targets import IGNORED

# Logits of one chunk: few enough to stay in a CPU's cache, enough to fill its matrix products.
CHUNK_LOGITS = 4 * 1024 * 1024
# Queries of one chunk, and the rows from which on all their probabilities would take too much memory.
CHUNK_QUERIES = 128
LONGEST_KEPT_TOKENS = 2048


def by_hand(x: Tensor) -> bool:
    """Whether the functions below beat PyTorch's own for this tensor."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """`x / rms(x) · gain` over the last dimension (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467)."""
    if not by_hand(x):
        return F.rms_norm(x, gain.shape, gain.to(x.dtype), eps)
    return Normalise.apply(x, eps) * gain.to(x.dtype)


def normalised_and_rotated(
    x_BTHC: Tensor, gain_HC: Tensor, rotation: tuple[Tensor, Tensor], eps: float
) -> Tensor:
    """Heads normalised, scaled by their gains and turned by their positions; tables are (T, 1, C/2)."""
    cos, sin = (table.to(x_BTHC.dtype) for table in rotation)
    if not by_hand(x_BTHC):
        x_BTHC = F.rms_norm(x_BTHC, x_BTHC.shape[-1:], None, eps) * gain_HC.to(x_BTHC.dtype)
        first, second = x_BTHC.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return NormaliseAndRotate.apply(x_BTHC, gain_HC, cos, sin, eps)


def causal_attention(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor) -> Tensor:
    """Softmax attention (B, T, H, C) of every position to itself and those before it."""
    if by_hand(q_BTHC) and q_BTHC.shape[1] <= LONGEST_KEPT_TOKENS:
        return CausalAttention.apply(q_BTHC, k_BTKC, v_BTKC)
    q_BHTC, k_BKTC, v_BKTC = (x.transpose(1, 2) for x in (q_BTHC, k_BTKC, v_BTKC))
    grouped = q_BHTC.shape[1] != k_BKTC.shape[1]
    y_BHTC = F.scaled_dot_product_attention(q_BHTC, k_BKTC, v_BKTC, is_causal=True, enable_gqa=grouped)
    return y_BHTC.transpose(1, 2)


def squared_relu_mlp(x_BTD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """`relu(x @ up.T)² @ down.T` (https://arxiv.org/abs/2109.08668)."""
    if by_hand(x_BTD):
        return SquaredReluMLP.apply(x_BTD.flatten(0, -2), up_FD, down_DF).view_as(x_BTD)
    return F.linear(F.linear(x_BTD, up_FD.to(x_BTD.dtype)).relu().square(), down_DF.to(x_BTD.dtype))


def linear_cross_entropy(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, kernels: str = "torch"
) -> Tensor:
    """Summed cross-entropy (nats, float32 scalar) of `x @ weight.T` against the targets.

    With the kernels of `liger` (Hsu et al. 2024, https://arxiv.org/abs/2410.10989) logits stay in the dtype
    of `x` and are read and written twice, where PyTorch's own operations go over them in float32 many times.
    """
    if kernels == "torch":
        return LinearCrossEntropy.apply(x_ND, weight_VD, targets_N)
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Liger

    no_bias = no_weights_of_classes = None
    no_z_loss = no_smoothing = 0.0
    loss: Tensor = Liger.apply(
        x_ND,
        weight_VD.to(x_ND.dtype),
        targets_N,
        no_bias,
        no_weights_of_classes,
        IGNORED,
        no_z_loss,
        no_smoothing,
        "sum",
        None,
        False,
        torch.float32,  # in which the weight's gradient is summed over the chunks
    )[0]
    return loss


def accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class Normalise(Function):
    """`x / rms(x)` over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        scale = inverse_rms(x, eps)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, y_grad: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        return normalise_backward(y_grad, y, scale), None


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """(..., 1): what `x` is multiplied by to have a mean square of one."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=accumulation_dtype(x))
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)


def normalise_backward(y_grad: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """The gradient by x of y = x · scale: what is left of `y_grad` when its part along y is taken out."""
    along = (y_grad * y).sum(dim=-1, keepdim=True).div_(-y.shape[-1])
    return torch.addcmul(y_grad, y, along).mul_(scale)


class NormaliseAndRotate(Function):
    """See `normalised_and_rotated`; the gradient of the gains is summed over sequences and positions."""

    @staticmethod
    def forward(
        ctx: Any, x_BTHC: Tensor, gain_HC: Tensor, cos_T1C: Tensor, sin_T1C: Tensor, eps: float
    ) -> Tensor:
        scale = inverse_rms(x_BTHC, eps)
        y = x_BTHC * scale
        gain = gain_HC.to(x_BTHC.dtype)
        ctx.save_for_backward(y, scale, gain, cos_T1C, sin_T1C)
        ctx.gain_dtype = gain_HC.dtype
        return rotated(y * gain, cos_T1C, sin_T1C)

    @staticmethod
    def backward(ctx: Any, grad_BTHC: Tensor) -> tuple[Tensor | None, ...]:
        y, scale, gain, cos, sin = ctx.saved_tensors
        unrotated = rotated(grad_BTHC, cos, -sin)
        gain_grad = (unrotated * y).sum(dim=(0, 1), dtype=ctx.gain_dtype)
        return normalise_backward(unrotated.mul_(gain), y, scale), gain_grad, None, None, None


def rotated(x_BTHC: Tensor, cos_T1C: Tensor, sin_T1C: Tensor) -> Tensor:
    """Each pair (c, c + C/2) of channels turned by its position's angle."""
    half = x_BTHC.shape[-1] // 2
    y = torch.empty_like(x_BTHC)
    first, second = x_BTHC[..., :half], x_BTHC[..., half:]
    torch.mul(first, cos_T1C, out=y[..., :half]).addcmul_(second, sin_T1C, value=-1)
    torch.mul(second, cos_T1C, out=y[..., half:]).addcmul_(first, sin_T1C)
    return y


class CausalAttention(Function):
    """Attention whose probabilities are kept for backward.

    For rows of some hundred tokens this is faster on a CPU than the blockwise kernel, which computes them
    twice. Queries go in chunks, so that most of what lies in their future is never multiplied; the G query
    heads of one key head share its products.
    """

    @staticmethod
    def forward(ctx: Any, q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor) -> Tensor:
        heads = k_BTKC.shape[2]
        q, k, v = (by_key_head(x, heads) for x in (q_BTHC, k_BTKC, v_BTKC))
        k, v = k[:, 0], v[:, 0]
        y, kept = torch.empty_like(q), []
        for chunk, seen in query_chunks(q.shape[2]):
            mask = future(chunk, seen, q).repeat(q.shape[1], 1)
            scores = torch.baddbmm(mask, q[:, :, chunk].flatten(1, 2), k[:, seen].mT, alpha=scale_of(q))
            kept.append(torch.softmax(scores, dim=-1, out=scores))
            y[:, :, chunk] = torch.bmm(scores, v[:, seen]).unflatten(1, (q.shape[1], -1))
        ctx.save_for_backward(q, k, v, *kept)
        ctx.heads = heads
        return by_position(y, heads)

    @staticmethod
    def backward(ctx: Any, y_grad_BTHC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *kept = ctx.saved_tensors
        y_grad = by_key_head(y_grad_BTHC, ctx.heads)
        q_grad, k_grad, v_grad = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (chunk, seen), p in zip(query_chunks(q.shape[2]), kept, strict=True):
            y_part, q_part = y_grad[:, :, chunk].flatten(1, 2), q[:, :, chunk].flatten(1, 2)
            v_grad[:, seen].baddbmm_(p.mT, y_part)
            p_grad = torch.bmm(y_part, v[:, seen].mT)
            scores_grad = torch._softmax_backward_data(p_grad, p, -1, p.dtype)
            part = torch.bmm(scores_grad, k[:, seen]).mul_(scale_of(q))
            q_grad[:, :, chunk] = part.unflatten(1, (q.shape[1], -1))
            k_grad[:, seen].baddbmm_(scores_grad.mT, q_part, alpha=scale_of(q))
        return tuple(  # type: ignore[return-value]
            by_position(x, ctx.heads) for x in (q_grad, k_grad[:, None], v_grad[:, None])
        )


def scale_of(q: Tensor) -> float:
    return 1 / math.sqrt(q.shape[-1])


def query_chunks(tokens: int) -> Iterator[tuple[slice, slice]]:
    """Positions of some queries, and those that the last of them sees."""
    for start in range(0, tokens, CHUNK_QUERIES):
        stop = min(tokens, start + CHUNK_QUERIES)
        yield slice(start, stop), slice(0, stop)


def future(chunk: slice, seen: slice, like: Tensor) -> Tensor:
    """Minus infinity where a query of the chunk would see a later position, else zero."""
    shape = (chunk.stop - chunk.start, seen.stop)
    return torch.full(shape, -math.inf, dtype=like.dtype, device=like.device).triu_(chunk.start + 1)


def by_key_head(x_BTHC: Tensor, heads: int) -> Tensor:
    """(B·K, G, T, C): the G query heads of one key head together."""
    return x_BTHC.transpose(1, 2).unflatten(1, (heads, -1)).flatten(0, 1).contiguous()


def by_position(x: Tensor, heads: int) -> Tensor:
    """What `by_key_head` was given; a view."""
    return x.unflatten(0, (-1, heads)).flatten(1, 2).transpose(1, 2)


class SquaredReluMLP(Function):
    """See `squared_relu_mlp`."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
        up, down = up_FD.to(x_ND.dtype), down_DF.to(x_ND.dtype)
        active = (x_ND @ up.T).relu_()
        squared = active * active
        ctx.save_for_backward(x_ND, up, down, active, squared)
        ctx.dtype = up_FD.dtype
        return squared @ down.T

    @staticmethod
    def backward(ctx: Any, y_grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, up, down, active, squared = ctx.saved_tensors
        down_grad = y_grad.T @ squared
        # 2 · active is the derivative of the square, and zero where the ReLU is.
        hidden_grad = torch.addmm(y_grad.new_empty(1), y_grad, down, beta=0, alpha=2).mul_(active)
        up_grad = hidden_grad.T @ x
        return hidden_grad @ up, up_grad.to(ctx.dtype), down_grad.to(ctx.dtype)


class LinearCrossEntropy(Function):
    """Logits, loss and gradients chunk by chunk: full-precision logits of the whole batch never exist.

    The gradients are made in the forward pass, where the logits are at hand; backward only scales them.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        weight = weight_VD.to(x_ND.dtype)
        needs_gradient = any(ctx.needs_input_grad)
        total = torch.zeros((), dtype=accumulation_dtype(x_ND), device=x_ND.device)
        x_grad = torch.empty_like(x_ND) if needs_gradient else None
        weight_grad = torch.zeros_like(weight_VD, dtype=total.dtype) if needs_gradient else None
        step = max(1, CHUNK_LOGITS // weight.shape[0])
        for start in range(0, x_ND.shape[0], step):
            rows = slice(start, start + step)
            logits = (x_ND[rows] @ weight.T).to(total.dtype)
            losses, gradient = cross_entropy_with_gradient(logits, targets_N[rows])
            total += losses
            if x_grad is not None and weight_grad is not None:
                gradient = gradient.to(x_ND.dtype)
                torch.mm(gradient, weight, out=x_grad[rows])
                weight_grad += gradient.T @ x_ND[rows]
        ctx.save_for_backward(x_grad, weight_grad)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None]:
        x_grad, weight_grad = ctx.saved_tensors
        return x_grad * scale, weight_grad * scale, None


def cross_entropy_with_gradient(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss, and its gradient by the logits (softmax minus one-hot), written over the logits."""
    counted_N = targets_N != IGNORED
    index_N1 = targets_N.clamp(min=0)[:, None]
    largest_N1 = logits_NV.amax(dim=-1, keepdim=True)
    target_N1 = logits_NV.gather(1, index_N1)
    gradient_NV = logits_NV.sub_(largest_N1).exp_()
    total_N1 = gradient_NV.sum(dim=-1, keepdim=True)
    losses_N1 = total_N1.log() + largest_N1 - target_N1
    loss = losses_N1.squeeze(1).masked_fill(~counted_N, 0).sum()
    gradient_NV.mul_(counted_N[:, None] / total_N1)
    gradient_NV.scatter_add_(1, index_N1, -counted_N[:, None].to(gradient_NV.dtype))
    return loss, gradient_NV
