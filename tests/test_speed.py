"""FLOPs of a model and of its machine."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nima.monitoring.speed import flops_per_token, known_peak, measured_peak, peak_flops
from nima.network import fused
from nima.network.decoder import Decoder, DecoderConfig, init_parameters


def decoder(*, tied: bool) -> Decoder:
    config = DecoderConfig(
        vocab_size=256,
        num_layers=3,
        width=64,
        num_heads=4,
        num_kv_heads=2,
        mlp="swiglu" if tied else "relu2",
        mlp_width=128,
        context_tokens=64,
        dropout=0.0,
        tie_embeddings=tied,
        rope_theta=10_000.0,
        norm_eps=1e-6,
    )
    model = Decoder(config)
    init_parameters(model, seed=0)
    return model


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_flops_of_a_token_are_those_that_torch_counts(
    monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    monkeypatch.setattr(fused, "by_hand", lambda _: False)  # what is fused by hand is hidden from the counter
    model, tokens = decoder(tied=tied), 64
    ids = torch.arange(2 * tokens).reshape(2, tokens) % 256
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        logits = model.hidden(ids) @ model.head.weight.T
        logits.sum().backward()
    counted = counter.get_total_flops() / ids.numel()
    assert flops_per_token(model, tokens) == pytest.approx(counted, rel=0.02)


def test_a_longer_block_costs_more_attention_and_nothing_else() -> None:
    model = decoder(tied=False)
    assert flops_per_token(model, 64) - flops_per_token(model, 32) == 12 * 3 * 64 * 32


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_peak_of_a_processor_is_measured_without_touching_random_numbers(precision: str) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    peak = peak_flops(torch.device("cpu"), precision)
    assert torch.equal(torch.get_rng_state(), before)
    assert 1e9 < peak < 1e14
    assert peak / 20 < measured_peak(torch.device("cpu"), precision) < peak * 20


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("Tesla T4", 65e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA T400 4GB", None),
        ("Something else", None),
    ],
)
def test_gpus_are_known_by_whole_words_of_their_names(name: str, peak: float | None) -> None:
    assert known_peak(name) == peak
