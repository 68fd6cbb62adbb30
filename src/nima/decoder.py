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
        return F.rms_norm(x, self.gain.shape, self.gain.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Grouped-query attention (https://arxiv.org/abs/2305.13245) with QK-norm (https://arxiv.org/abs/2302.05442)."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.head_width = config.head_width
        self.query = nn.Linear(config.width, config.num_heads * config.head_width, bias=False)
        self.key = nn.Linear(config.width, config.num_kv_heads * config.head_width, bias=False)
        self.value = nn.Linear(config.width, config.num_kv_heads * config.head_width, bias=False)
        self.output = nn.Linear(config.num_heads * config.head_width, config.width, bias=False)
        self.query_norm = RMSNorm(config.head_width, config.norm_eps)
        self.key_norm = RMSNorm(config.head_width, config.norm_eps)

    def forward(
        self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor], cache: Cache | None, mask_B1TT: Tensor | None
    ) -> Tensor:
        q_BTHC = self.query(x_BTD).unflatten(-1, (-1, self.head_width))
        k_BTKC = self.key(x_BTD).unflatten(-1, (-1, self.head_width))
        v_BTKC = self.value(x_BTD).unflatten(-1, (-1, self.head_width))
        q_BTHC = rotate(self.query_norm(q_BTHC), rotation)
        k_BTKC = rotate(self.key_norm(k_BTKC), rotation)
        q_BHTC, k_BKTC, v_BKTC = (x.transpose(1, 2) for x in (q_BTHC, k_BTKC, v_BTKC))
        past_tokens = 0
        if cache is not None:
            past_tokens = cache.length_tokens
            k_BKTC, v_BKTC = cache.append(self.layer, k_BKTC, v_BKTC)
        y_BHTC = attend(q_BHTC, k_BKTC, v_BKTC, past_tokens, mask_B1TT)
        return self.output(y_BHTC.transpose(1, 2).flatten(2))


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


def document_mask(documents_BT: Tensor) -> Tensor:
    """(B, 1, T, T): each position sees its own document up to itself, so none is left without any."""
    same_B1TT = documents_BT[:, None, :, None] == documents_BT[:, None, None, :]
    return same_B1TT.tril()


def rotation_table(config: DecoderConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (context, 1, C/2), of RoFormer's rotary positions (https://arxiv.org/abs/2104.09864)."""
    exponents = torch.arange(0, config.head_width, 2, dtype=torch.float32) / config.head_width
    angles = torch.outer(torch.arange(config.context_tokens).float(), config.rope_theta**-exponents)
    return angles.cos()[:, None], angles.sin()[:, None]


def rotate(x_BTHC: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (c, c + C/2) of channels by the angle of its position."""
    cos, sin = (table.to(x_BTHC.dtype) for table in rotation)
    first, second = x_BTHC.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class MLP(nn.Module):
    """SwiGLU (https://arxiv.org/abs/2002.05202) or squared ReLU (https://arxiv.org/abs/2109.08668)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate = nn.Linear(config.width, config.mlp_width, bias=False) if config.mlp == "swiglu" else None
        self.up = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(F.relu(self.up(x_BTD)).square())
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
        self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor], cache: Cache | None, mask_B1TT: Tensor | None
    ) -> Tensor:
        x_BTD = x_BTD + self.drop(self.attention(self.attention_norm(x_BTD), rotation, cache, mask_B1TT))
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

    def hidden(
        self, ids_BT: Tensor, cache: Cache | None = None, documents_BT: Tensor | None = None
    ) -> Tensor:
        """The last layer's normalised output (B, T, D), from which `head` makes logits.

        With documents, which exclude a cache, attention stays among positions of equal number. Positions go
        on through the row: attention knows only their distances, which are the same inside a document.
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
        mask_B1TT = None if documents_BT is None else document_mask(documents_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, rotation, cache, mask_B1TT)
        if cache:
            cache.length_tokens = stop
        return self.norm(x_BTD)

    def forward(self, ids_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, V) of the token that follows each position; with a cache, of the new positions."""
        return self.head(self.hidden(ids_BT, cache))

    def loss_sum(self, ids_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Cross-entropy in nats, summed over the targets that are not `IGNORED`."""
        x_BTD = self.hidden(ids_BT, documents_BT=documents_BT)
        return linear_cross_entropy(x_BTD.flatten(0, 1), self.head.weight, targets_BT.flatten())

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision: matrix products in bf16 or fp16, parameters and sums in float32."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


# --------------------------------------------------------------------------------------------- loss

IGNORED = -100
CHUNK_LOGITS = 8 * 1024 * 1024


class _LinearCrossEntropy(torch.autograd.Function):
    """Logits, loss and gradients chunk by chunk: full-precision logits of the whole batch never exist.

    The gradients are made in the forward pass, where the logits are at hand; backward only scales them.
    """

    @staticmethod
    def forward(ctx, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        weight = weight_VD.to(x_ND.dtype)
        needs_gradient = x_ND.requires_grad or weight_VD.requires_grad
        total = torch.zeros((), dtype=torch.float32, device=x_ND.device)
        x_grad = torch.empty_like(x_ND, dtype=torch.float32) if needs_gradient else None
        weight_grad = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_gradient else None
        step = max(1, CHUNK_LOGITS // weight.shape[0])
        for start in range(0, x_ND.shape[0], step):
            rows = slice(start, start + step)
            logits = (x_ND[rows] @ weight.T).float()
            losses, gradient = cross_entropy_with_gradient(logits, targets_N[rows])
            total += losses
            if x_grad is not None and weight_grad is not None:
                gradient = gradient.to(x_ND.dtype)
                x_grad[rows] = gradient @ weight
                weight_grad += gradient.T @ x_ND[rows]
        ctx.save_for_backward(x_grad, weight_grad)
        ctx.dtype = x_ND.dtype
        return total

    @staticmethod
    def backward(ctx, scale: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[no-untyped-def]
        x_grad, weight_grad = ctx.saved_tensors
        return (x_grad * scale).to(ctx.dtype), weight_grad * scale, None


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


def linear_cross_entropy(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Summed cross-entropy (nats, float32 scalar) of `x @ weight.T` against the targets."""
    return _LinearCrossEntropy.apply(x_ND, weight_VD, targets_N)


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
