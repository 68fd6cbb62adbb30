"""Attention that stays inside documents, by a kernel for sequences of unlike lengths.

A mask that cuts attention at document borders keeps a GPU from FlashAttention (Dao 2023,
https://arxiv.org/abs/2307.08691), which takes none. Its kernel for sequences laid end to end needs no mask:
it is told where each begins, and computes nothing between two of them. It is taken where a probe on the very
device finds it right. With deterministic algorithms switched on, torch has its backward pass sum in a fixed
order (`_flash_attention_backward` in aten's attention_backward.cu), and the probe looks for that too.

Suffixes of tensors are those of `decoder.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# What FlashAttention takes: widths of heads (channels), and dtypes.
MAX_HEAD_WIDTH, HEAD_WIDTH_STEP = 256, 8
HALF_PRECISION = (torch.bfloat16, torch.float16)
# The probe's rows, and their documents: one of a single token, one of a whole row, some that fill no block.
PROBE_ROWS, PROBE_TOKENS = 2, 384
PROBE_LENGTHS = (1, 37, 346, 384)
# Steps between numbers of the dtype by which rounding may set the two ways apart, at the largest value.
ROUNDING_STEPS = 4


@dataclass(eq=False)
class Segments:
    """Documents of B rows laid end to end."""

    borders: Tensor
    """int32 (documents + 1), on the rows' device: where each begins, and the end, which is B·T."""
    longest_tokens: int


# What says which document each position belongs to: numbers (B, T), or segments.
Documents = Tensor | Segments


def segments_of(borders: NDArray[np.int32], device: torch.device) -> Segments:
    """Of borders that are known on the host, so that nothing has to wait for the device."""
    return Segments(torch.from_numpy(borders).to(device), int(np.diff(borders).max()))


def document_mask(documents_BT: Tensor) -> Tensor:
    """(B, 1, T, T): each position sees its own document up to itself, so none is left without any."""
    same_B1TT = documents_BT[:, None, :, None] == documents_BT[:, None, None, :]
    return same_B1TT.tril()


def kernel() -> Callable[..., Any]:
    """Torch's. Loaded when it is asked for: it brings the compiler along. Raises `ImportError` without."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


# Left out by torch.compile, which would compile for each number of documents anew.
@torch._disable_dynamo
def segment_attention(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, segments: Segments) -> Tensor:
    """Softmax attention (B, T, H, C) of every position to its document's positions up to itself."""
    q_NHC, k_NKC, v_NKC = (x.to(v_BTKC.dtype).flatten(0, 1) for x in (q_BTHC, k_BTKC, v_BTKC))
    y_NHC: Tensor = kernel()(
        q_NHC,
        k_NKC,
        v_NKC,
        segments.borders,
        segments.borders,
        segments.longest_tokens,
        segments.longest_tokens,
        window_size=(-1, 0),  # all before, nothing after
        enable_gqa=q_NHC.shape[1] != k_NKC.shape[1],
        num_splits=1,  # else how a document's sums are split may depend on the others' lengths
    )
    return y_NHC.unflatten(0, q_BTHC.shape[:2])


def obstacle(
    device: torch.device, dtype: torch.dtype, *, num_heads: int, num_kv_heads: int, head_width: int
) -> str | None:
    """Why the kernel can't be taken for such heads; None if it can.

    That follows from the device, torch and the arguments alone: a run that goes on comes to the same. Lack
    of memory for the probe is no answer and is raised.
    """
    if device.type != "cuda":
        return f"the kernel runs on a GPU, not on {device.type}"
    if dtype not in HALF_PRECISION:
        return f"the kernel takes bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if head_width % HEAD_WIDTH_STEP or head_width > MAX_HEAD_WIDTH:
        return (
            f"the kernel takes heads of {HEAD_WIDTH_STEP}, {2 * HEAD_WIDTH_STEP} ... {MAX_HEAD_WIDTH} "
            f"channels, not {head_width}"
        )
    return flaw(device, dtype, num_heads=num_heads, num_kv_heads=num_kv_heads, head_width=head_width)


def flaw(
    device: torch.device, dtype: torch.dtype, *, num_heads: int, num_kv_heads: int, head_width: int
) -> str | None:
    """What is wrong with the kernel's attention or its gradients on a small example; None if nothing is."""
    # A generator of its own: the run's random numbers stay what they are.
    draw = torch.Generator().manual_seed(0)
    shape = (PROBE_ROWS, PROBE_TOKENS)
    q, k, v, gradient = (
        torch.randn(*shape, heads, head_width, generator=draw).to(device, dtype)
        for heads in (num_heads, num_kv_heads, num_kv_heads, num_heads)
    )
    segments = segments_of(np.cumsum((0, *PROBE_LENGTHS), dtype=np.int32), device)
    expected = outcome(masked_attention, q, k, v, gradient)
    try:
        found, again = (
            outcome(lambda q, k, v: segment_attention(q, k, v, segments), q, k, v, gradient) for _ in range(2)
        )
    except torch.OutOfMemoryError:
        raise
    except (ImportError, TypeError, ValueError, RuntimeError) as error:
        said = (str(error).strip() or "no reason given").splitlines()[0]
        return f"the kernel failed with {type(error).__name__}: {said[:200]}"
    limit = ROUNDING_STEPS * torch.finfo(dtype).eps
    for name in expected:
        apart = float((found[name] - expected[name]).abs().max() / expected[name].abs().max())
        if not apart <= limit:  # which is true of a nan
            return f"the kernel's {name} are {apart:.1e} off, more than by rounding ({limit:.1e})"
    if torch.are_deterministic_algorithms_enabled():
        unlike = [name for name in found if not torch.equal(found[name], again[name])]
        if unlike:
            return f"the kernel's {unlike[0]} differ from call to call"
    return None


def outcome(
    attention: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor, gradient: Tensor
) -> dict[str, Tensor]:
    """Outputs and gradients, float32 on their device, of attention to which `gradient` comes back."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    y = attention(*leaves)
    names = ("outputs", "gradients of queries", "gradients of keys", "gradients of values")
    values = (y.detach(), *torch.autograd.grad(y, leaves, gradient))
    return {name: value.float() for name, value in zip(names, values, strict=True)}


def masked_attention(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor) -> Tensor:
    """The probe's attention as a mask has it."""
    numbers = torch.arange(len(PROBE_LENGTHS)).repeat_interleave(torch.tensor(PROBE_LENGTHS))
    mask_B1TT = document_mask(numbers.view(PROBE_ROWS, PROBE_TOKENS).to(q_BTHC.device))
    q_BHTC, k_BKTC, v_BKTC = (x.transpose(1, 2) for x in (q_BTHC, k_BTKC, v_BTKC))
    grouped = q_BHTC.shape[1] != k_BKTC.shape[1]
    y_BHTC = F.scaled_dot_product_attention(q_BHTC, k_BKTC, v_BKTC, attn_mask=mask_B1TT, enable_gqa=grouped)
    return y_BHTC.transpose(1, 2)
