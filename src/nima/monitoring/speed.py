"""How fast a training is against what its machine could do."""

import math
import re
import time
from collections.abc import Mapping

import torch

from nima.network.decoder import DTYPES, Decoder

# The highest rate of bf16 matrix products (V100 and T4: fp16) without sparsity, FLOP/s, from the makers' data
# sheets. The first name that stands in what the driver calls the GPU counts.
PEAK_FLOPS: Mapping[str, float] = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 150e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX A6000": 155e12,
    "RTX 5090": 209e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "MI300X": 1307e12,
}

MATRIX_WIDTH = 1024
MEASURE_SECONDS = 0.1


def flops_per_token(model: Decoder, block_tokens: int) -> int:
    """Multiplications and additions of one trained token, forward and backward.

    6 for each parameter in a matrix product, and 12 · layers · attention's width · sequence length for the
    products of attention (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B). The embedding
    table counts where it serves as the head.
    """
    config = model.config
    matrices = sum(math.prod(shape) for shape in model.shapes.values() if len(shape) == 2)
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


def known_peak(name: str) -> float | None:
    """The rate of a GPU's matrix products by its name, FLOP/s; None if it is not in the table."""
    return next((peak for known, peak in PEAK_FLOPS.items() if re.search(rf"\b{known}\b", name)), None)
