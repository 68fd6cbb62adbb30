"""Which rule owns which parameter, and what the rules do."""

import copy
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nima.network.decoder import Decoder, DecoderConfig, init_parameters
from nima.network.tensors import read_tensors, write_tensors
from nima.optimizer import (
    AdamWScale,
    Muon,
    Optimizer,
    Rates,
    ScheduleFreeAdamW,
    orthogonalised,
    parameter_groups,
)
from nima.workspace.errors import UserError
from nima.workspace.params.presets import PRESETS, resolve

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


RULES = ["muon", "adamw", "adam", "sgd", "adamw_scale", "adamw_8bit", "schedule_free"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tiny(tied: bool = False, mlp_width: int = 32) -> Decoder:
    shape = {"num_layers": 2, "width": 16, "num_heads": 2, "num_kv_heads": 1, "mlp_width": mlp_width}
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


@pytest.mark.parametrize("optimizer", RULES)
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


# ------------------------------------------------------------------------------------------- other rules


def test_sgd_can_do_without_nesterov_and_without_momentum() -> None:
    for changes, expected in (({"nesterov": False}, (0.9, False)), ({"momentum": 0.0}, (0.0, False))):
        [inner] = Optimizer(tiny(), replace(RATES, optimizer="sgd", **changes)).optimizers
        assert (inner.defaults["momentum"], inner.defaults["nesterov"]) == expected


def test_a_relative_step_is_adamws_times_the_size_of_the_parameter() -> None:
    start = [torch.randn(6, 4), torch.full((5,), 30.0), torch.zeros(3)]
    ours, theirs = ([nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-10}
    relative, adamw = AdamWScale(ours, **settings), torch.optim.AdamW(theirs, **settings, weight_decay=0.0)
    for step in range(3):
        before = [
            (mine.detach().clone(), other.detach().clone()) for mine, other in zip(ours, theirs, strict=True)
        ]
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=torch.Generator().manual_seed(step))
            other.grad = mine.grad.clone()
        relative.step()
        adamw.step()
        for mine, other, (old, plain) in zip(ours, theirs, before, strict=True):
            size = max(1e-3, float(old.square().mean().sqrt()))
            expected = (other.detach() - plain) * size
            torch.testing.assert_close(mine.detach() - old, expected, rtol=2e-3, atol=1e-5 * size)


def test_relative_steps_decay_by_the_rate_alone() -> None:
    parameter = nn.Parameter(torch.full((4, 4), 8.0))
    parameter.grad = torch.zeros(4, 4)
    groups = [{"params": [parameter], "lr": 0.1, "weight_decay": 0.5}]
    AdamWScale(groups, betas=(0.9, 0.95), eps=1e-10).step()
    torch.testing.assert_close(parameter.detach(), torch.full((4, 4), 7.6))


def test_schedule_free_follows_the_papers_three_sequences() -> None:
    beta1, beta2, decay = 0.9, 0.95, 0.1
    parameter = nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
    group = {"params": [parameter], "lr": 0.0, "weight_decay": decay}
    rule = ScheduleFreeAdamW([group], betas=(beta1, beta2), eps=1e-10)
    x = z = y = parameter.detach().clone()
    square, weights = torch.zeros_like(z), []
    for step, lr in enumerate([0.01, 0.02, 0.04, 0.04, 0.02]):
        gradient = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        rule.param_groups[0]["lr"] = lr
        parameter.grad = gradient.clone()
        rule.step()
        y = (1 - beta1) * z + beta1 * x
        square = beta2 * square + (1 - beta2) * gradient**2
        update = gradient / ((square / (1 - beta2 ** (step + 1))).sqrt() + 1e-10) + decay * y
        z = z - lr * update
        weights.append(max([lr, *(math.sqrt(weight) for weight in weights)]) ** 2)
        x = x + weights[-1] / sum(weights) * (z - x)
        torch.testing.assert_close(parameter.detach(), (1 - beta1) * z + beta1 * x)
        [(_, average)] = rule.averages()
        torch.testing.assert_close(average, x)


def test_schedule_free_without_beta1_has_no_average_to_recover() -> None:
    with pytest.raises(ValueError, match="beta1 must be above 0"):
        ScheduleFreeAdamW([nn.Parameter(torch.zeros(2))], betas=(0.0, 0.9), eps=1e-10)


def test_judging_the_average_leaves_the_trained_weights_to_the_bit() -> None:
    model = tiny()
    optimizer = Optimizer(model, replace(RATES, optimizer="schedule_free"))
    for step in range(3):
        give_gradients(model, step)
        optimizer.step()
    trained = copy.deepcopy(model.state_dict())
    with optimizer.weights("averaged"):
        average = copy.deepcopy(model.state_dict())
        with optimizer.weights("trained"):
            assert all(torch.equal(model.state_dict()[name], trained[name]) for name in trained)
        with optimizer.weights("averaged"):
            assert all(torch.equal(model.state_dict()[name], average[name]) for name in trained)
    assert all(torch.equal(model.state_dict()[name], trained[name]) for name in trained)
    assert not any(torch.equal(average[name], trained[name]) for name in trained)
    optimizer.hold("averaged")
    assert all(torch.equal(model.state_dict()[name], average[name]) for name in trained)


@pytest.mark.parametrize("optimizer", sorted(set(RULES) - {"schedule_free"}))
def test_other_rules_judge_what_they_train(optimizer: str) -> None:
    model = tiny()
    rules = Optimizer(model, replace(RATES, optimizer=optimizer))
    give_gradients(model, 0)
    rules.step()
    trained = copy.deepcopy(model.state_dict())
    with rules.weights("averaged"):
        assert all(torch.equal(model.state_dict()[name], trained[name]) for name in trained)


def test_eight_bits_keep_close_to_adamw_in_a_quarter_of_its_state() -> None:
    models = {name: tiny(mlp_width=256) for name in ("adamw", "adamw_8bit")}
    sizes = {}
    for name, model in models.items():
        optimizer = Optimizer(model, replace(ONE_RATE, optimizer=name, lr=1e-3))
        for step in range(5):
            give_gradients(model, step)
            optimizer.step()
        found = optimizer.tensors()
        sizes[name] = sum(
            tensor.nbytes for key, tensor in found.items() if "mlp.up" in key and "qmap" not in key
        )
    assert sizes["adamw_8bit"] < 0.27 * sizes["adamw"]
    for parameter, expected in zip(
        models["adamw_8bit"].parameters(), models["adamw"].parameters(), strict=True
    ):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=2e-3)


def test_eight_bits_without_the_package_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UserError, match=r"adamw_8bit needs the extra bitsandbytes: pip install"):
        Optimizer(tiny(), replace(RATES, optimizer="adamw_8bit"))


@pytest.mark.parametrize("optimizer", RULES)
def test_every_rule_finds_the_bottom_of_a_valley(optimizer: str) -> None:
    model = tiny()
    targets = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    rules = Optimizer(model, replace(ONE_RATE, optimizer=optimizer, lr=0.05))

    def distance() -> float:
        return sum(float((p.detach() - targets[name]).square().sum()) for name, p in model.named_parameters())

    begin = distance()
    for step in range(200):
        rules.set_rate(1 - step / 200 if optimizer != "schedule_free" else 1.0)
        for name, parameter in model.named_parameters():
            parameter.grad = parameter.detach() - targets[name]
        rules.step()
    rules.hold("averaged")
    assert distance() < (0.7 if optimizer == "adamw_scale" else 0.2) * begin


# --------------------------------------------------------------------------------------- AdamW and state


ONE_RATE = replace(RATES, embedding_lr_ratio=1.0, head_lr_ratio=1.0, weight_decay=0.0)
TORCHS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, lr=0.02, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0),
    "adam": partial(torch.optim.Adam, lr=0.02, betas=(0.9, 0.95), eps=1e-10),
    "sgd": partial(torch.optim.SGD, lr=0.02, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("optimizer", TORCHS)
def test_what_torch_has_is_torchs(optimizer: str) -> None:
    model = tiny()
    reference = copy.deepcopy(model)
    ours = Optimizer(model, replace(ONE_RATE, optimizer=optimizer))
    theirs = TORCHS[optimizer](reference.parameters())
    for step in range(4):
        give_gradients(model, step)
        give_gradients(reference, step)
        ours.step()
        theirs.step()
    for parameter, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", RULES)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_state_that_travelled_in_a_file_gives_the_same_bits_afterwards(
    tmp_path: Path, optimizer: str, steps: int
) -> None:
    rates = replace(RATES, optimizer=optimizer)
    model = tiny(mlp_width=256)  # matrices of 4,096 values, which 8-bit state is for
    whole = Optimizer(model, rates)

    def go(model: Decoder, optimizer: Optimizer, step: int) -> None:
        give_gradients(model, step)
        optimizer.set_rate(1 / (step + 1))
        optimizer.step()

    for step in range(steps):
        go(model, whole, step)
    other = tiny(mlp_width=256)
    other.load_state_dict(model.state_dict())
    resumed = Optimizer(other, rates)
    path = tmp_path / "optimizer.safetensors"
    write_tensors(path, whole.tensors())
    resumed.load_tensors(read_tensors(path))
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
