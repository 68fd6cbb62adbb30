"""Which rule owns which parameter, and what the rules do."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nima.decoder import Decoder, DecoderConfig, init_parameters
from nima.optimizer import Muon, Optimizer, Rates, orthogonalised, parameter_groups
from nima.presets import PRESETS, resolve

RATES = Rates(
    optimizer="muon",
    lr=0.02,
    embedding_lr_ratio=0.5,
    head_lr_ratio=0.25,
    weight_decay=0.1,
    beta1=0.9,
    beta2=0.95,
    momentum=0.9,
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tiny(tied: bool = False) -> Decoder:
    shape = {"num_layers": 2, "width": 16, "num_heads": 2, "num_kv_heads": 1, "mlp_width": 32}
    shape |= {"context_tokens": 32, "tie_embeddings": tied}
    model = Decoder(DecoderConfig(vocab_size=48, **resolve("gpt-tiny", shape)))
    init_parameters(model, seed=0)
    return model


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


# ---------------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_parameter_of_every_preset_belongs_to_exactly_one_group(preset: str, tied: bool) -> None:
    shape: dict[str, Any] = resolve(preset, {"tie_embeddings": tied})
    with torch.device("meta"):
        model = Decoder(DecoderConfig(vocab_size=512, **shape))
    groups = parameter_groups(model)
    owned = [name for names in groups.values() for name in names]
    assert sorted(owned) == sorted(name for name, _ in model.named_parameters())
    assert groups["embedding"] == ["embedding.weight"]
    assert groups["head"] == ([] if tied else ["head.weight"])
    assert all(name.endswith(".gain") for name in groups["gains"])
    matrices = 4 + (3 if shape["mlp"] == "swiglu" else 2)
    assert len(groups["matrices"]) == matrices * shape["num_layers"]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_stepped_by_exactly_one_optimizer(optimizer: str, tied: bool) -> None:
    model = tiny(tied)
    owned = [
        id(parameter)
        for inner in Optimizer(model, replace(RATES, optimizer=optimizer)).optimizers
        for group in inner.param_groups
        for parameter in group["params"]
    ]
    assert sorted(owned) == sorted(id(parameter) for parameter in model.parameters())


def test_a_parameter_that_no_group_owns_is_a_bug() -> None:
    model = tiny()
    model.register_parameter("extra", nn.Parameter(torch.zeros(2, 2)))
    with pytest.raises(ValueError, match="no group of the optimizer owns extra"):
        parameter_groups(model)


def test_only_matrices_decay_and_each_group_has_its_own_peak() -> None:
    model = tiny()
    optimizer = Optimizer(model, replace(RATES, optimizer="adamw"))
    optimizer.set_rate(0.5)
    found = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.optimizers[0].param_groups:
        for parameter in group["params"]:
            found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    assert found["embedding.weight"] == (0.005, 0.0)
    assert found["head.weight"] == (0.0025, 0.0)
    assert found["norm.gain"] == (0.01, 0.0)
    assert found["layers.0.mlp.up.weight"] == (0.01, 0.1)


def test_setting_the_rate_twice_starts_from_the_peak() -> None:
    optimizer = Optimizer(tiny(), RATES)
    optimizer.set_rate(0.1)
    optimizer.set_rate(1.0)
    assert {group["lr"] for inner in optimizer.optimizers for group in inner.param_groups} == {
        0.02,
        0.01,
        0.005,
    }


# ------------------------------------------------------------------------------------------------ Muon


@pytest.mark.parametrize("shape", [(64, 64), (128, 32), (32, 128), (48, 8)])
def test_an_orthogonalised_matrix_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    for matrix in orthogonalised(matrices * 1e-3):
        values = torch.linalg.svdvals(matrix)
        assert values.max() < 1.4
        assert (values > 0.5).float().mean() > 0.95  # a random square matrix has one value near zero


def test_orthogonalising_keeps_directions() -> None:
    matrix = torch.randn(24, 16, generator=torch.Generator().manual_seed(2))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalised(matrix[None])[0]
    cosine = (found * (u @ v)).sum() / (found.norm() * (u @ v).norm())
    assert cosine > 0.97


def test_orthogonalising_nothing_gives_nothing() -> None:
    assert torch.equal(orthogonalised(torch.zeros(2, 8, 4)), torch.zeros(2, 8, 4))


def test_a_matrix_is_updated_alike_alone_and_among_others() -> None:
    start = [torch.randn(16, 24, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    gradients = [torch.randn(16, 24, generator=torch.Generator().manual_seed(9 + n)) for n in range(3)]

    def stepped(indices: list[int]) -> list[Tensor]:
        parameters = [nn.Parameter(start[index].clone()) for index in indices]
        muon = Muon(parameters, lr=0.1, momentum=0.9, weight_decay=0.0)
        for _ in range(2):
            for index, parameter in zip(indices, parameters, strict=True):
                parameter.grad = gradients[index].clone()
            muon.step()
        return [parameter.detach() for parameter in parameters]

    together = stepped([0, 1, 2])
    for index in range(3):
        torch.testing.assert_close(stepped([index])[0], together[index], rtol=0, atol=2e-3)


def test_a_tall_matrix_moves_further_and_decay_shrinks_by_the_rate() -> None:
    for rows, columns, scale in ((64, 16, 2.0), (16, 64, 1.0)):
        parameter = nn.Parameter(torch.zeros(rows, columns))
        parameter.grad = torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))
        Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0.0).step()
        rms_singular = parameter.detach().norm() / 16**0.5
        assert float(rms_singular) == pytest.approx(0.1 * scale, rel=0.3)
    parameter = nn.Parameter(torch.ones(4, 4))
    parameter.grad = torch.zeros(4, 4)
    Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0.5).step()
    torch.testing.assert_close(parameter.detach(), torch.full((4, 4), 0.95))


def test_the_momentum_is_nesterovs() -> None:
    gradients = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(4))
    parameter = nn.Parameter(torch.zeros(8, 8))
    muon = Muon([parameter], lr=1.0, momentum=0.75, weight_decay=0.0)
    average, expected = torch.zeros(8, 8), torch.zeros(8, 8)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        muon.step()
        average = 0.75 * average + 0.25 * gradient
        expected -= orthogonalised((0.25 * gradient + 0.75 * average)[None])[0]
    torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=2e-2)


def test_a_missing_gradient_is_a_bug() -> None:
    model = tiny()
    give_gradients(model, 0)
    model.layers[1].mlp.up.weight.grad = None
    with pytest.raises(ValueError, match=r"shape \(32, 16\) has no gradient"):
        Optimizer(model, RATES).step()


# --------------------------------------------------------------------------------------- AdamW and state


def test_adamw_is_torchs() -> None:
    model = tiny()
    reference = copy.deepcopy(model)
    rates = replace(RATES, optimizer="adamw", embedding_lr_ratio=1.0, head_lr_ratio=1.0, weight_decay=0.0)
    ours = Optimizer(model, rates)
    theirs = torch.optim.AdamW(
        reference.parameters(), lr=0.02, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0
    )
    for step in range(4):
        give_gradients(model, step)
        give_gradients(reference, step)
        ours.step()
        theirs.step()
    for parameter, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_state_that_travelled_as_tensors_gives_the_same_bits_afterwards(optimizer: str, steps: int) -> None:
    rates = replace(RATES, optimizer=optimizer)
    model = tiny()
    whole = Optimizer(model, rates)

    def go(model: Decoder, optimizer: Optimizer, step: int) -> None:
        give_gradients(model, step)
        optimizer.set_rate(1 / (step + 1))
        optimizer.step()

    for step in range(steps):
        go(model, whole, step)
    other = tiny()
    other.load_state_dict(model.state_dict())
    resumed = Optimizer(other, rates)
    resumed.load_tensors({name: tensor.clone() for name, tensor in whole.tensors().items()})
    for step in range(steps, steps + 3):
        go(model, whole, step)
        go(other, resumed, step)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name
    assert whole.tensors().keys() == resumed.tensors().keys()
    assert all(torch.equal(tensor, resumed.tensors()[name]) for name, tensor in whole.tensors().items())


def test_loaded_state_is_a_copy_of_what_was_given() -> None:
    model = tiny()
    optimizer = Optimizer(model, RATES)
    give_gradients(model, 0)
    optimizer.step()
    given = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    kept = {name: tensor.clone() for name, tensor in given.items()}
    optimizer.load_tensors(given)
    give_gradients(model, 1)
    optimizer.step()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in given.items())


def test_zeroing_gradients_drops_them() -> None:
    model = tiny()
    give_gradients(model, 0)
    Optimizer(model, RATES).zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
