"""The network: attention, cache, loss and initialisation."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from tiny_models import random_ids, tiny_config, tiny_model
from torch.nn.functional import cross_entropy

from nima.network.decoder import (
    Cache,
    Decoder,
    DecoderConfig,
    autocast,
    init_parameters,
)
from nima.network.targets import IGNORED
from nima.workspace.params.presets import PRESETS, resolve


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def new_cache(model: Decoder, num_sequences: int) -> Cache:
    return Cache(model.config, num_sequences, torch.device("cpu"), torch.float32)


# ------------------------------------------------------------------------------------- forward and cache


@pytest.mark.parametrize("mlp", ["swiglu", "relu2"])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@torch.no_grad()
def test_the_cache_gives_the_logits_of_the_full_forward_pass(mlp: str, num_kv_heads: int) -> None:
    model, ids = tiny_model(mlp=mlp, num_kv_heads=num_kv_heads), random_ids(3, 20)
    cache = new_cache(model, 3)
    pieces = [(0, 7), (7, 11), (11, 12), (12, 13), (13, 20)]
    stepwise = torch.cat([model(ids[:, start:stop], cache) for start, stop in pieces], dim=1)
    assert cache.length_tokens == 20
    torch.testing.assert_close(stepwise, model(ids), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_reordered_cache_continues_the_chosen_sequences() -> None:
    model, ids, following = tiny_model(), random_ids(3, 9), random_ids(3, 1, seed=1)
    cache = new_cache(model, 3)
    model(ids, cache)
    chosen = torch.tensor([2, 0, 2])
    cache.reorder(chosen)
    expected = model(torch.cat((ids[chosen], following), dim=1))[:, -1:]
    torch.testing.assert_close(model(following, cache), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changed", [1, 8, 15])
@torch.no_grad()
def test_a_token_changes_no_logits_before_it(changed: int) -> None:
    model, ids = tiny_model(), random_ids(2, 16)
    other = ids.clone()
    other[:, changed] = (ids[:, changed] + 1) % model.config.vocab_size
    before, after = model(ids), model(other)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.equal(before[:, changed], after[:, changed])


@torch.no_grad()
def test_positions_matter_but_only_relative_to_each_other() -> None:
    model, ids = tiny_model(num_layers=1), random_ids(1, 6)
    swapped = ids[:, [1, 0, 2, 3, 4, 5]]
    assert not torch.allclose(model(ids)[:, -1], model(swapped)[:, -1], atol=1e-3)
    # All positions moved by the same distance: the scores of attention, and so the logits, stay.
    cos, sin = model.cos, model.sin
    expected = model(ids)
    model.cos, model.sin = cos[10:], sin[10:]
    torch.testing.assert_close(model(ids), expected, rtol=1e-3, atol=1e-4)


# --------------------------------------------------------------------------------- attention cut at borders

DOCUMENTS = torch.tensor([[0] * 7 + [1] * 9 + [2] * 4 + [-1] * 4, [3] * 12 + [4] * 1 + [3] * 11])


def logits(model: Decoder, ids: torch.Tensor, precision: str, documents: torch.Tensor | None) -> torch.Tensor:
    with autocast(torch.device("cpu"), precision):
        return model.head(model.hidden(ids, documents_BT=documents))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("num_kv_heads", [1, 4])
@pytest.mark.parametrize("threads", [1, 2])
@torch.no_grad()
def test_changing_a_document_leaves_the_logits_of_the_others_equal_bit_for_bit(
    precision: str, num_kv_heads: int, threads: int
) -> None:
    torch.set_num_threads(threads)
    model, ids = tiny_model(num_kv_heads=num_kv_heads), random_ids(2, 24)
    before = logits(model, ids, precision, DOCUMENTS)
    for row, number in ((0, 0), (0, 1), (0, 2), (0, -1), (1, 3), (1, 4)):
        changed = (number == DOCUMENTS) & (torch.arange(2) == row)[:, None]
        after = logits(model, torch.where(changed, (ids + 7) % 40, ids), precision, DOCUMENTS)
        assert torch.equal(before[~changed], after[~changed])
        assert not (before[changed] == after[changed]).all(dim=-1).any()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@torch.no_grad()
def test_without_documents_a_change_reaches_all_that_comes_after(precision: str) -> None:
    model, ids = tiny_model(), random_ids(2, 24)
    other = ids.clone()
    other[:, 2] = (ids[:, 2] + 7) % 40
    differ = (logits(model, ids, precision, None) != logits(model, other, precision, None)).any(dim=-1)
    assert differ[:, 2:].all()


def test_no_gradient_crosses_a_border() -> None:
    model, ids = tiny_model(), random_ids(2, 24)
    inputs = []
    model.embedding.register_forward_hook(
        lambda *call: inputs.append(call[2].detach().requires_grad_()) or inputs[0]
    )
    logits(model, ids, "fp32", DOCUMENTS)[DOCUMENTS == 1].sum().backward()
    reached = inputs[0].grad.ne(0).any(dim=-1)
    assert torch.equal(reached, DOCUMENTS == 1)


@torch.no_grad()
def test_a_document_behind_others_has_the_logits_it_has_alone() -> None:
    model, ids = tiny_model(), random_ids(1, 24)
    together = model.head(model.hidden(ids, documents_BT=DOCUMENTS[:1]))
    torch.testing.assert_close(together[:, 7:16], model(ids[:, 7:16]), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_one_document_a_row_is_plain_causal_attention() -> None:
    model, ids = tiny_model(), random_ids(2, 24)
    documents = torch.tensor([[5], [6]]).expand(2, 24)
    torch.testing.assert_close(
        model.hidden(ids, documents_BT=documents), model.hidden(ids), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_of_padding_alone_are_finite(precision: str) -> None:
    model, ids = tiny_model(), random_ids(2, 24)
    documents, targets = torch.full((2, 24), -1), torch.full((2, 24), IGNORED)
    with autocast(torch.device("cpu"), precision):
        loss = model.loss_sum(ids, targets, documents)
    loss.backward()
    assert loss.item() == 0
    assert all(not parameter.grad.any() for parameter in model.parameters())
    assert logits(model, ids, precision, documents).isfinite().all()


def test_more_positions_than_the_context_raise() -> None:
    model = tiny_model(context_tokens=8)
    with pytest.raises(ValueError, match="9 positions do not fit a context of 8"):
        model(random_ids(1, 9))
    cache = new_cache(model, 1)
    model(random_ids(1, 8), cache)
    with pytest.raises(ValueError, match="9 positions"):
        model(random_ids(1, 1), cache)


@torch.no_grad()
def test_dropout_acts_in_training_only() -> None:
    model, ids = tiny_model(dropout=0.5), random_ids(1, 8)
    assert torch.equal(model.eval()(ids), model(ids))
    assert not torch.equal(model.train()(ids), model(ids))


# ------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("tied", [True, False])
def test_a_models_loss_has_the_gradients_of_its_logits(tied: bool) -> None:
    ids, targets = random_ids(2, 12), random_ids(2, 12, seed=1)
    model, same = tiny_model(tie_embeddings=tied), tiny_model(tie_embeddings=tied)
    model.loss_sum(ids, targets).backward()
    cross_entropy(same(ids).flatten(0, 1), targets.flatten(), reduction="sum").backward()
    for (name, parameter), other in zip(model.named_parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-3, msg=name)


@torch.no_grad()
def test_mixed_precision_stays_close_to_float32() -> None:
    model, ids, targets = tiny_model(), random_ids(4, 30), random_ids(4, 30, seed=1)
    exact = model.loss_sum(ids, targets)
    with autocast(torch.device("cpu"), "bf16"):
        assert model.hidden(ids).dtype == torch.bfloat16
        torch.testing.assert_close(model.loss_sum(ids, targets), exact, rtol=2e-2, atol=0)
    with autocast(torch.device("cpu"), "fp32"):
        assert torch.equal(model.loss_sum(ids, targets), exact)


# --------------------------------------------------------------------------------------- initialisation


@pytest.mark.parametrize("mlp", ["swiglu", "relu2"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_initialised(mlp: str, tied: bool) -> None:
    model = Decoder(tiny_config(mlp=mlp, tie_embeddings=tied))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    init_parameters(model, seed=0)
    assert [name for name, parameter in model.named_parameters() if parameter.isnan().any()] == []


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_numbers_alone() -> None:
    first, second, other = (Decoder(tiny_config()) for _ in range(3))
    before = torch.get_rng_state()
    for model, seed in ((first, 3), (second, 3), (other, 4)):
        init_parameters(model, seed)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    assert not torch.equal(first.layers[0].attention.query.weight, other.layers[0].attention.query.weight)


@pytest.mark.parametrize("preset", ["gpt-tiny", "gpt-small"])
def test_an_untrained_model_with_its_own_head_finds_all_tokens_equally_likely(preset: str) -> None:
    model = Decoder(DecoderConfig(vocab_size=300, **resolve(preset, {"num_layers": 2})))
    init_parameters(model, seed=0)
    ids = random_ids(2, 16, vocab_size=300)
    assert model.loss_sum(ids, ids).item() / 32 == pytest.approx(math.log(300), rel=1e-5)


@pytest.mark.parametrize("preset", ["custom-nano", "custom-small", "custom-large"])
def test_an_untrained_model_with_a_tied_head_begins_near_the_same(preset: str) -> None:
    model = Decoder(DecoderConfig(vocab_size=300, **resolve(preset, {"num_layers": 1})))
    init_parameters(model, seed=0)
    ids = random_ids(2, 16, vocab_size=300)
    assert model.loss_sum(ids, ids.roll(1, dims=1)).item() / 32 == pytest.approx(math.log(300), abs=0.2)


def test_a_parameter_that_no_rule_names_raises() -> None:
    model = tiny_model()
    model.extra = torch.nn.Linear(2, 2, bias=False)
    with pytest.raises(ValueError, match=r"no rule of initialisation names extra\.weight"):
        init_parameters(model, seed=0)


def test_tied_embeddings_are_one_parameter() -> None:
    model = tiny_model(tie_embeddings=True)
    assert model.head.weight is model.embedding.weight
    assert "head.weight" not in dict(model.named_parameters())
    assert model.num_parameters() == tiny_model().num_parameters() - model.head.weight.numel()


# ---------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize(
    ("preset", "millions", "num_layers", "width"),
    [
        ("custom-nano", 5, 3, 128),
        ("custom-tiny", 10, 4, 256),
        ("custom-small", 50, 8, 512),
        ("custom-medium", 100, 12, 768),
        ("custom-large", 200, 16, 1024),
    ],
)
def test_presets_have_the_size_they_are_named_for(
    preset: str, millions: int, num_layers: int, width: int
) -> None:
    config = DecoderConfig(vocab_size=32_768, **resolve(preset, {}))
    with torch.device("meta"):
        model = Decoder(config)
    assert (config.num_layers, config.width) == (num_layers, width)
    assert model.num_parameters() == pytest.approx(millions * 1e6, rel=0.2)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_field_of_a_preset_can_be_overridden(preset: str) -> None:
    config = DecoderConfig(vocab_size=300, **resolve(preset, {}))
    changes = {
        "num_layers": 1,
        "width": 64,
        "num_heads": 4,
        "num_kv_heads": 1,
        "mlp": "swiglu",
        "mlp_width": 96,
    }
    changes |= {
        "context_tokens": 32,
        "dropout": 0.1,
        "tie_embeddings": False,
        "rope_theta": 5e5,
        "norm_eps": 1e-5,
    }
    overridden = DecoderConfig(vocab_size=300, **resolve(preset, changes | {"width": 64}))
    assert overridden == replace(config, **changes)
    assert set(asdict(config)) == {"vocab_size", *changes}
    assert resolve(preset, dict.fromkeys(changes)) == resolve(preset, {})


@pytest.mark.parametrize(("dropout", "precision"), [(0.0, "bf16"), (0.1, "fp32")])
@pytest.mark.parametrize("masked", [False, True])
def test_computing_layers_again_changes_no_bit_of_loss_and_gradients(
    dropout: float, precision: str, masked: bool
) -> None:
    found = []
    for recomputes in (False, True):
        model = tiny_model(dropout=dropout).train()
        model.recomputes = recomputes
        torch.manual_seed(3)
        ids = random_ids(3, 16)
        documents = (torch.arange(16) // 5).expand(ids.shape) if masked else None
        with autocast(torch.device("cpu"), precision):
            loss = model.loss_sum(ids, ids, documents)
        loss.backward()
        after = torch.rand(1)
        found.append([loss.detach(), after, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(kept, again) for kept, again in zip(*found, strict=True))


def bytes_kept_for_backward(model: Decoder) -> int:
    """Of distinct memory that autograd holds between the passes, parameters aside."""
    owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.loss_sum(random_ids(4, 64), random_ids(4, 64)).backward()
    return sum(storage.nbytes() for storage in kept.values())


def test_computing_layers_again_keeps_a_fraction_of_the_bytes() -> None:
    model = tiny_model(num_layers=8)
    whole = bytes_kept_for_backward(model)
    model.recomputes = True
    assert bytes_kept_for_backward(model) < whole / 3
