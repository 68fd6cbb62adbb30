"""How a network's weights and gradients are spread."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from nima.trackers.tracked_run import Histogram

NUM_BINS = 64
# Of a larger tensor so many values, evenly spread, so that the cost has a limit.
MAX_VALUES = 1_000_000


def histograms_of(model: nn.Module) -> dict[str, Histogram]:
    """weights/NAME of every parameter and gradients/NAME of those that have one; changes nothing."""
    return dict(named_histograms(model))


def named_histograms(model: nn.Module) -> Iterator[tuple[str, Histogram]]:
    for name, parameter in model.named_parameters():
        for kind, tensor in (("weights", parameter), ("gradients", parameter.grad)):
            if tensor is not None and (values := finite_values(tensor)).size:
                yield f"{kind}/{name}", histogram(values)


def finite_values(tensor: Tensor) -> NDArray[np.float32]:
    flat = tensor.detach().flatten()
    values = flat[:: max(1, -(-flat.numel() // MAX_VALUES))].float().cpu().numpy()
    return values[np.isfinite(values)]


def histogram(values: NDArray[np.float32]) -> Histogram:
    wide = values.astype(np.float64)  # values that hardly differ leave no room for edges in single precision
    counts, edges = np.histogram(wide, bins=NUM_BINS)
    return Histogram(
        edges=[float(edge) for edge in edges],
        counts=[int(number) for number in counts],
        num_values=int(values.size),
        total=float(wide.sum()),
        total_squares=float(wide @ wide),
    )
