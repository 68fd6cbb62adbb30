"""The peers that the trainer is measured against: a GPT of nanoGPT's shape, LitGPT's GPT, and Llama.

The first is written here from its description: GPT-2 (Radford et al. 2019) with PyTorch's fused attention,
tied embeddings, no biases and no dropout, trained by AdamW with betas (0.9, 0.95) and weight decay 0.1 on
matrices, warm-up and a cosine to a tenth, gradients clipped at 1. The others are the packages' own models;
LitGPT pins an older hub client than `transformers`, so it is looked for in the folder `build/peers` too:

    pip install --no-deps --target build/peers litgpt==0.5.13 lightning==2.6.6 lightning-utilities==0.15.3 \
        pytorch-lightning==2.6.6 torchmetrics==1.9.0 jsonargparse==4.41.0 docstring_parser==0.18.0 \
        typeshed_client==2.14.0
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parent.parent / "build" / "peers"))


@dataclass(frozen=True)
class Shape:
    """Of a decoder; the MLP is four times as wide as the rest."""

    num_layers: int
    width: int
    num_heads: int
    vocab_size: int
    block_tokens: int


class GPTBlock(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.heads = shape.num_heads
        self.norm1 = nn.LayerNorm(shape.width, bias=False)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.output = nn.Linear(shape.width, shape.width, bias=False)
        self.norm2 = nn.LayerNorm(shape.width, bias=False)
        self.up = nn.Linear(shape.width, 4 * shape.width, bias=False)
        self.down = nn.Linear(4 * shape.width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """GPT-2 without biases. `forward` gives the mean loss over all positions."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab_size, shape.width)
        self.positions = nn.Embedding(shape.block_tokens, shape.width)
        self.blocks = nn.ModuleList(GPTBlock(shape) for _ in range(shape.num_layers))
        self.norm = nn.LayerNorm(shape.width, bias=False)
        self.head = nn.Linear(shape.width, shape.vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                into_residual = name.endswith(("output.weight", "down.weight"))
                std = 0.02 / math.sqrt(2 * shape.num_layers) if into_residual else 0.02
                nn.init.normal_(parameter, std=std)

    def hidden(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.hidden(ids)).flatten(0, 1), targets.flatten())


def nanogpt_optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    rest = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def nanogpt_rate(step: int, total_steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate in update `step`, from 0."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))


class LitGPT(nn.Module):
    """LitGPT's own model with the mean loss in chunks, as its `pretrain` takes it."""

    def __init__(self, shape: Shape):
        super().__init__()
        from litgpt import model
        from litgpt.config import Config

        config = Config(
            n_layer=shape.num_layers,
            n_head=shape.num_heads,
            n_embd=shape.width,
            block_size=shape.block_tokens,
            vocab_size=shape.vocab_size,
            padded_vocab_size=shape.vocab_size,
            bias=False,
        )
        self.model = model.GPT(config)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        from litgpt.utils import chunked_cross_entropy

        return chunked_cross_entropy(self.model(ids), targets, chunk_size=0)


def llama(shape: Shape) -> Any:
    """`transformers`' Llama; its SwiGLU has as many parameters as an MLP of four times the width."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=shape.width,
            intermediate_size=shape.width * 8 // 3,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            vocab_size=shape.vocab_size,
            max_position_embeddings=shape.block_tokens,
            tie_word_embeddings=True,
        )
    )
