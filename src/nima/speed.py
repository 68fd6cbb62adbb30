"""How fast a training is against what its machine could do."""

import time

import torch

from nima.decoder import DTYPES, Decoder
from nima.hardware import known_peak

MATRIX_WIDTH = 1024
MEASURE_SECONDS = 0.1


def flops_per_token(model: Decoder, block_tokens: int) -> int:
    """Multiplications and additions of one trained token, forward and backward.

    6 for each parameter in a matrix product, and 12 · layers · attention's width · sequence length for the
    products of attention (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B). The embedding
    table counts where it serves as the head.
    """
    config = model.config
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 2)
    looked_up = 0 if config.tie_embeddings else config.vocab_size * config.width
    attention = 12 * config.num_layers * config.num_heads * config.head_width * block_tokens
    return 6 * (matrices - looked_up) + attention


def peak_flops(device: torch.device, precision: str) -> float:
    """The FLOP/s that the device's matrix products can reach.

    For a GPU of the table the maker's figure for half precision; else what a product of two large matrices
    in the run's precision reaches here and now.
    """
    if device.type == "cuda" and precision != "fp32":
        peak = known_peak(torch.cuda.get_device_name(device))
        if peak is not None:
            return peak
    return measured_peak(device, precision)


def measured_peak(device: torch.device, precision: str) -> float:
    """The best of several products of square matrices. Draws no random numbers."""
    matrix = torch.full((MATRIX_WIDTH, MATRIX_WIDTH), 0.5, dtype=DTYPES[precision], device=device)
    seconds: list[float] = []
    while sum(seconds) < MEASURE_SECONDS:
        started = time.perf_counter()
        product = matrix @ matrix
        float(product[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * MATRIX_WIDTH**3 / min(seconds)
