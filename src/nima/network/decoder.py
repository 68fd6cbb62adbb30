"""The network: one decoder-only transformer.

RMSNorm before each sub-layer, rotary positions, grouped-query attention with normalised queries and keys,
and either SwiGLU or squared ReLU. With SwiGLU it is the architecture that `transformers` calls Qwen3, with
squared ReLU the one it calls Apertus; `pretrained.py` holds the names.

Suffixes of tensors name their dimensions:

    B sequences   T positions   D width          V vocabulary   N positions of all sequences (B·T)
    H query heads K key heads   C head channels  F MLP width    S positions with those in the cache
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nima.network.fused import (
    causal_attention,
    linear_cross_entropy,
    normalised_and_rotated,
    rms_norm,
    squared_relu_mlp,
)
from nima.network.varlen import Documents, Segments, document_mask, segment_attention

# What attention is cut by: what each position sees (B, 1, T, T), or segments.
Mask = Tensor | Segments


@dataclass(frozen=True)
class DecoderConfig:
    """Everything that decides the network's shape. Widths are numbers of channels."""

    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    mlp: Literal["swiglu", "relu2"]
    mlp_width: int
    context_tokens: int
    dropout: float
    tie_embeddings: bool
    rope_theta: float
    norm_eps: float

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads


class Cache:
    """Keys and values of the positions seen so far, so that each new token costs one position."""

    def __init__(self, config: DecoderConfig, num_sequences: int, device: torch.device, dtype: torch.dtype):
        shape = (
            config.num_layers,
            num_sequences,
            config.num_kv_heads,
            config.context_tokens,
            config.head_width,
        )
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length_tokens = 0

    def append(self, layer: int, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new positions; returns that layer's keys and values so far, both (B, K, S, C)."""
        start, stop = self.length_tokens, self.length_tokens + k_BKTC.shape[2]
        self.keys[layer, :, :, start:stop] = k_BKTC
        self.values[layer, :, :, start:stop] = v_BKTC
        return self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]

    def reorder(self, sequences: Tensor) -> None:
        """Keep the given sequences, in that order: what a beam search does after each token."""
        filled = slice(0, self.length_tokens)
        self.keys[:, :, :, filled] = self.keys[:, sequences, :, filled]
        self.values[:, :, :, filled] = self.values[:, sequences, :, filled]


class RMSNorm(nn.Module):
    """Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.gain = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.gain, self.eps)


class Attention(nn.Module):
    """Grouped-query attention (https://arxiv.org/abs/2305.13245) with QK-norm (https://arxiv.org/abs/2302.05442)."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_width = config.head_width
        self.query = nn.Linear(config.width, config.num_heads * config.head_width, bias=False)
        self.key = nn.Linear(config.width, config.num_kv_heads * config.head_width, bias=False)
        self.value = nn.Linear(config.width, config.num_kv_heads * config.head_width, bias=False)
        self.output = nn.Linear(config.num_heads * config.head_width, config.width, bias=False)
        self.query_norm = RMSNorm(config.head_width, config.norm_eps)
        self.key_norm = RMSNorm(config.head_width, config.norm_eps)

    def forward(
        self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor], cache: Cache | None, mask: Mask | None
    ) -> Tensor:
        # One product instead of three, and one turn for queries and keys.
        weight = torch.cat([linear.weight.to(x_BTD.dtype) for linear in (self.query, self.key, self.value)])
        qkv = F.linear(x_BTD, weight).unflatten(-1, (-1, self.head_width))
        qk, v_BTKC = qkv.split((self.num_heads + self.num_kv_heads, self.num_kv_heads), dim=2)
        gains = (
            self.query_norm.gain.expand(self.num_heads, -1),
            self.key_norm.gain.expand(self.num_kv_heads, -1),
        )
        qk = normalised_and_rotated(qk, torch.cat(gains), rotation, self.query_norm.eps)
        q_BTHC, k_BTKC = qk.split((self.num_heads, self.num_kv_heads), dim=2)
        if isinstance(mask, Segments):
            y_BTHC = segment_attention(q_BTHC, k_BTKC, v_BTKC, mask)
        elif cache is None and mask is None:
            y_BTHC = causal_attention(q_BTHC, k_BTKC, v_BTKC)
        else:
            y_BTHC = self.attend(q_BTHC, k_BTKC, v_BTKC, cache, mask)
        return self.output(y_BTHC.flatten(2))

    def attend(
        self, q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, cache: Cache | None, mask_B1TT: Tensor | None
    ) -> Tensor:
        """Attention to the positions in the cache too, or to those that the mask shows."""
        q_BHTC, k_BKSC, v_BKSC = (x.transpose(1, 2) for x in (q_BTHC, k_BTKC, v_BTKC))
        past_tokens = 0
        if cache is not None:
            past_tokens = cache.length_tokens
            k_BKSC, v_BKSC = cache.append(self.layer, k_BKSC, v_BKSC)
        return attend(q_BHTC, k_BKSC, v_BKSC, past_tokens, mask_B1TT).transpose(1, 2)


def attend(
    q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, past_tokens: int, mask: Tensor | None = None
) -> Tensor:
    """Causal attention; query t stands at position `past_tokens` + t. A mask says what each query sees."""
    num_queries, num_keys = q_BHTC.shape[2], k_BKSC.shape[2]
    is_causal = mask is None and past_tokens == 0 and num_queries > 1
    if mask is None and past_tokens > 0 and num_queries > 1:
        mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q_BHTC.device).tril(past_tokens)
    return F.scaled_dot_product_attention(
        q_BHTC,
        k_BKSC,
        v_BKSC,
        attn_mask=mask,
        is_causal=is_causal,
        enable_gqa=q_BHTC.shape[1] != k_BKSC.shape[1],
    )


def rotation_table(config: DecoderConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (context, 1, C/2), of RoFormer's rotary positions (https://arxiv.org/abs/2104.09864)."""
    exponents = torch.arange(0, config.head_width, 2, dtype=torch.float32) / config.head_width
    angles = torch.outer(torch.arange(config.context_tokens).float(), config.rope_theta**-exponents)
    return angles.cos()[:, None], angles.sin()[:, None]


class MLP(nn.Module):
    """SwiGLU (https://arxiv.org/abs/2002.05202) or squared ReLU (https://arxiv.org/abs/2109.08668)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate = nn.Linear(config.width, config.mlp_width, bias=False) if config.mlp == "swiglu" else None
        self.up = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.gate is None:
            return squared_relu_mlp(x_BTD, self.up.weight, self.down.weight)
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


class Layer(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config, layer)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)
        self.dropout = config.dropout

    def forward(
        self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor], cache: Cache | None, mask: Mask | None
    ) -> Tensor:
        x_BTD = x_BTD + self.drop(self.attention(self.attention_norm(x_BTD), rotation, cache, mask))
        return x_BTD + self.drop(self.mlp(self.mlp_norm(x_BTD)))

    def drop(self, x_BTD: Tensor) -> Tensor:
        return F.dropout(x_BTD, self.dropout, self.training) if self.dropout else x_BTD


class Decoder(nn.Module):
    cos: Tensor
    sin: Tensor

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        cos, sin = rotation_table(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.shapes = {name: tuple(parameter.shape) for name, parameter in self.named_parameters()}
        """Of all parameters, also when other processes hold them."""
        self.kernels = "torch"
        """Whose kernels compute the loss: torch's or liger's."""
        self.cuts_by = "mask"
        """What attention is best cut by at document borders: a mask, or segments."""
        self.recomputes = False
        """Whether backward computes each layer again instead of keeping what is inside it."""

    def hidden(
        self, ids_BT: Tensor, cache: Cache | None = None, documents_BT: Documents | None = None
    ) -> Tensor:
        """The last layer's normalised output (B, T, D), from which `head` makes logits.

        With documents, which exclude a cache, attention stays among positions of equal number, or of one
        segment. Positions go on through the row: attention knows only their distances, which are the same
        inside a document.
        """
        start = cache.length_tokens if cache else 0
        stop = start + ids_BT.shape[1]
        if stop > self.config.context_tokens:
            raise ValueError(f"{stop} positions do not fit a context of {self.config.context_tokens} tokens")
        rotation = (self.cos[start:stop], self.sin[start:stop])
        x_BTD = self.embedding(ids_BT)
        if torch.is_autocast_enabled(ids_BT.device.type):
            x_BTD = x_BTD.to(torch.get_autocast_dtype(ids_BT.device.type))
        if self.config.dropout:
            x_BTD = F.dropout(x_BTD, self.config.dropout, self.training)
        mask = document_mask(documents_BT) if isinstance(documents_BT, Tensor) else documents_BT
        recomputes = self.recomputes and cache is None and torch.is_grad_enabled()
        for layer in self.layers:
            if recomputes:
                x_BTD = recomputed(layer, x_BTD, rotation, mask, draws=self.config.dropout > 0)
            else:
                x_BTD = layer(x_BTD, rotation, cache, mask)
        if cache:
            cache.length_tokens = stop
        return self.norm(x_BTD)

    def forward(self, ids_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, V) of the token that follows each position; with a cache, of the new positions."""
        return self.head(self.hidden(ids_BT, cache))

    def loss_sum(self, ids_BT: Tensor, targets_BT: Tensor, documents_BT: Documents | None = None) -> Tensor:
        """Cross-entropy in nats, summed over the targets that are not `IGNORED`."""
        x_BTD = self.hidden(ids_BT, documents_BT=documents_BT)
        x_ND, targets_N = x_BTD.flatten(0, 1), targets_BT.flatten()
        return linear_cross_entropy(x_ND, self.head.weight, targets_N, self.kernels)

    def num_parameters(self) -> int:
        return sum(map(math.prod, self.shapes.values()))


def recomputed(
    layer: nn.Module,
    x_BTD: Tensor,
    rotation: tuple[Tensor, Tensor],
    mask: Mask | None,
    *,
    draws: bool,
) -> Tensor:
    """A layer of which only the input is kept until backward, which runs it a second time, with the same
    random numbers if it draws any (Chen et al. 2016, https://arxiv.org/abs/1604.06174)."""
    return checkpoint(layer, x_BTD, rotation, None, mask, use_reentrant=False, preserve_rng_state=draws)


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision: matrix products in bf16 or fp16, parameters and sums in float32."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


# --------------------------------------------------------------------------------------------- loss

# ------------------------------------------------------------------------------------ initialisation


EMBEDDING_STD = 0.05  # of 0.02, 0.05 and 1, the best validation loss after 120 updates of the default recipe


def init_parameters(model: Decoder, seed: int) -> None:
    """Give every parameter its initial value; a parameter that no rule names is a bug.

    Outputs of sub-layers and the head begin at zero, so that the first steps only move what is certain: the
    residual stream begins as the embedding, the first loss is ln V. A tied head can't be zero; the last norm
    begins so small that a token's own logit is about 1, which leaves the first loss close to ln V.
    """
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            match init_rule(name):
                case "zeros":
                    parameter.zero_()
                case "ones":
                    parameter.fill_(1.0)
                case "last norm":
                    parameter.fill_(1 / (EMBEDDING_STD * config.width) if config.tie_embeddings else 1.0)
                case "embedding":
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * EMBEDDING_STD)
                case "fan in":
                    bound = math.sqrt(3 / parameter.shape[1])
                    parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)


def init_rule(name: str) -> str:
    """Which rule a parameter's initial value follows, by the last parts of its name."""
    owner, _, kind = name.rpartition(".")
    module = owner.rpartition(".")[2]
    if kind == "gain":
        return "last norm" if owner == "norm" else "ones"
    if module == "embedding":
        return "embedding"
    if module in ("output", "down", "head"):
        return "zeros"
    if module in ("query", "key", "value", "up", "gate"):
        return "fan in"
    raise ValueError(f"no rule of initialisation names {name}")
