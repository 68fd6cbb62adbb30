"""Tiny networks with weights that are random in every part: no zeros, no ones, all layers speak."""

from typing import Any

import torch

from nima.network.decoder import Decoder, DecoderConfig

SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "num_layers": 2,
    "width": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp": "swiglu",
    "mlp_width": 48,
    "context_tokens": 64,
    "dropout": 0.0,
    "tie_embeddings": False,
    "rope_theta": 10_000.0,
    "norm_eps": 1e-6,
}


def tiny_config(**changes: Any) -> DecoderConfig:
    return DecoderConfig(**(SHAPE | changes))


def tiny_model(seed: int = 0, **changes: Any) -> Decoder:
    model = Decoder(tiny_config(**changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            centre = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + centre)
    return model


def random_ids(num_sequences: int, num_tokens: int, vocab_size: int = 40, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab_size, (num_sequences, num_tokens), generator=generator)
