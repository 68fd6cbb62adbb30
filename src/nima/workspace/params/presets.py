"""Named model shapes. Every field can be overridden in params.yaml under `model`.

Parameter counts are at a vocabulary of 32,768; the tokenizer decides the real one.
"""

from typing import Any

# What a preset leaves out.
DEFAULTS: dict[str, Any] = {
    "mlp": "swiglu",
    "context_tokens": 1024,
    "dropout": 0.0,
    "tie_embeddings": True,
    "rope_theta": 10_000.0,
    "norm_eps": 1e-6,
}

PRESETS: dict[str, dict[str, Any]] = {
    # The technical trainer: squared ReLU and separate embeddings, which learn fastest per step when small.
    "gpt-tiny": {"num_layers": 4, "width": 256, "num_heads": 4, "num_kv_heads": 4, "mlp_width": 1024}
    | {"mlp": "relu2", "tie_embeddings": False},
    "gpt-small": {"num_layers": 6, "width": 384, "num_heads": 6, "num_kv_heads": 6, "mlp_width": 1536}
    | {"mlp": "relu2", "tie_embeddings": False},
    "gpt-medium": {"num_layers": 12, "width": 768, "num_heads": 12, "num_kv_heads": 12, "mlp_width": 3072}
    | {"mlp": "relu2", "tie_embeddings": False},
    # By size: about 5, 10, 50, 100 and 200 million parameters.
    "custom-nano": {"num_layers": 3, "width": 128, "num_heads": 2, "num_kv_heads": 2, "mlp_width": 384},
    "custom-tiny": {"num_layers": 4, "width": 256, "num_heads": 4, "num_kv_heads": 2, "mlp_width": 640},
    "custom-small": {"num_layers": 8, "width": 512, "num_heads": 8, "num_kv_heads": 4, "mlp_width": 2048},
    "custom-medium": {"num_layers": 12, "width": 768, "num_heads": 12, "num_kv_heads": 4, "mlp_width": 2048},
    "custom-large": {"num_layers": 16, "width": 1024, "num_heads": 16, "num_kv_heads": 8, "mlp_width": 2560},
}


def resolve(preset: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """All fields of a model's shape: the defaults, the preset's, then the overrides that are not None."""
    given = {name: value for name, value in overrides.items() if value is not None}
    return DEFAULTS | PRESETS[preset] | given
