"""Liger's kernels compute what ours do.

Triton's interpreter runs them without a GPU, in a process of its own: it has to be named before Triton loads.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import random_ids, tiny_model

from nima.network.decoder import Decoder, autocast
from nima.network.targets import IGNORED
from nima.training import compilation
from nima.training.compilation import choose_kernels
from nima.workspace.errors import UserError


def loss_and_gradients(kernels: str, precision: str) -> dict[str, torch.Tensor]:
    """Of rows of which some targets don't count, at a scale as the loop's."""
    model = tiny_model()
    model.kernels = kernels
    ids, targets = random_ids(3, 16), random_ids(3, 16, seed=1)
    targets[1, 4:9] = IGNORED
    with autocast(torch.device("cpu"), precision):
        loss = model.loss_sum(ids, targets)
    (loss / 43).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"loss": loss.detach()} | {
        name: gradient for name, gradient in gradients.items() if gradient is not None
    }


def compare() -> None:
    torch.set_num_threads(1)
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 2e-2)):
        ours, theirs = (loss_and_gradients(kernels, precision) for kernels in ("torch", "liger"))
        assert ours.keys() == theirs.keys()
        assert ours["loss"].dtype == theirs["loss"].dtype == torch.float32
        for name, expected in ours.items():
            assert theirs[name].dtype == expected.dtype
            distance = float((theirs[name] - expected).norm() / expected.norm())
            assert distance < tolerance, (name, precision, distance)
    assert "liger_kernel.ops.fused_linear_cross_entropy" in sys.modules
    with torch.no_grad():
        model = tiny_model()
        model.kernels = "liger"
        ids = random_ids(1, 8)
        torch.testing.assert_close(model.loss_sum(ids, ids), tiny_model().loss_sum(ids, ids))


def test_loss_and_gradients_are_those_of_our_own_kernels() -> None:
    here = Path(__file__)
    paths = [str(here.parent), str(here.parent.parent / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, str(here)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_without_a_gpu_torch_computes_whatever_params_say() -> None:
    model = tiny_model()
    choose_kernels(model, "liger")
    assert model.kernels == "torch"


def test_without_the_package_one_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu(Decoder):
        def parameters(self, recurse: bool = True):  # type: ignore[no-untyped-def]
            return iter([type("Parameter", (), {"device": torch.device("cuda")})()])

    model = tiny_model()
    model.__class__ = OnGpu
    monkeypatch.setattr(compilation, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^training.kernels: liger needs the extra liger: pip install"):
        choose_kernels(model, "liger")


if __name__ == "__main__":
    compare()
