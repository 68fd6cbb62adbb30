"""The network's layers translated by `torch.compile`, and kernels that others wrote for GPUs.

What `torch.compile` makes is kept where `set_up_torch` says.

All layers have one shape, so one of them is translated and serves all. Each shape of a micro-batch has a
translation of its own: one for any size would depend on which sizes came first, and a resumed run meets
them in another order.
"""

import os
import shutil
import sysconfig
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nima.network.decoder import DTYPES, Decoder
from nima.network.varlen import obstacle
from nima.workspace.errors import UserError

if TYPE_CHECKING:
    from nima.workspace.params import TrainingParams

# Shapes of micro-batches, in training and in validation, that one run may meet.
MAX_SHAPES = 64
COMPILERS = ("g++", "clang++", "c++")


def compile_layers(model: Decoder) -> None:
    """Have the layers translated when they are first called. Raises `UserError` if something is missing."""
    require_compiler(next(model.parameters()).device)
    torch._dynamo.config.recompile_limit = MAX_SHAPES
    for layer in model.layers:
        layer.compile(dynamic=False)


def choose_kernels(model: Decoder, kernels: str) -> None:
    """Those of `liger` where the model is on a GPU, else torch's. Raises `UserError` without the package."""
    model.kernels = kernels if next(model.parameters()).device.type == "cuda" else "torch"
    if model.kernels == "liger" and find_spec("liger_kernel") is None:
        raise UserError("training.kernels: liger needs the extra liger: pip install 'nima-lm[liger]'")


def choose_cut(model: Decoder, settings: "TrainingParams", say: Callable[[str], None]) -> None:
    """Have attention cut at document borders by the kernel for it where that is found right.

    Elsewhere a mask does it, and on a GPU one line says why. A step of the user's own is given numbers.
    """
    if not settings.mask_documents or settings.step is not None:
        return
    device, config = next(model.parameters()).device, model.config
    reason = obstacle(
        device,
        DTYPES[settings.precision],
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_width=config.head_width,
    )
    model.cuts_by = "mask" if reason else "segments"
    if reason and device.type == "cuda":
        say(f"attention is cut at document borders by a mask, which takes longer: {reason}")


def require_compiler(device: torch.device) -> None:
    """Generated code is C++, and on a GPU Triton, whose launcher is C: both need a compiler."""
    named = os.environ.get("CXX")
    if shutil.which(named) is None if named else not any(map(shutil.which, COMPILERS)):
        found = f"CXX names {named!r}, which is not there" if named else "found none"
        raise missing(f"a C++ compiler, {found}: install g++, or set CXX to one")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise missing("the headers of this Python (Python.h): install python3-dev")
    if device.type == "cuda" and not torch.utils._triton.has_triton():
        raise missing("Triton, which this GPU or this torch has not")


def missing(what: str) -> UserError:
    return UserError(f"training.compile: needs {what}; or set training.compile to false")
