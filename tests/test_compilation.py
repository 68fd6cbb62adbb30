"""Layers by torch.compile: the same numbers to rounding, one translation for all, and what it needs."""

import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from tiny_models import random_ids, tiny_model

from nima.training import compilation
from nima.training.compilation import compile_layers
from nima.workspace.errors import UserError


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


def test_compiled_layers_compute_the_same_to_rounding_and_share_one_translation(tmp_path: Path) -> None:
    ids = random_ids(2, 16)
    plain, compiled = tiny_model(num_layers=4), tiny_model(num_layers=4)
    compile_layers(compiled)
    torch._dynamo.utils.counters.clear()
    losses = [model.loss_sum(ids, ids) for model in (plain, compiled)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for loss in losses:
        loss.backward()
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-4)
    assert compiled.state_dict().keys() == plain.state_dict().keys(), "names in checkpoints stay"
    assert any((tmp_path / "inductor").rglob("*.so")), "kept for the next run"


def test_without_a_compiler_the_error_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"^training\.compile: needs a C\+\+ compiler, found none"):
        compile_layers(tiny_model())
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(UserError, match=r"CXX names '/nowhere/g\+\+', which is not there"):
        compile_layers(tiny_model())


def test_without_pythons_headers_the_error_names_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", sys.executable)  # there, whatever else is
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match=r"^training\.compile: needs the headers of this Python"):
        compilation.require_compiler(torch.device("cpu"))
