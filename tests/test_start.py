"""What a stage loads before its first work: seconds of every start, in every process."""

import os
import subprocess
import sys
from pathlib import Path

from test_tokens import document

from nima.encoding.token_writer import TokenWriter

ROOT = Path(__file__).parent.parent
FIRST_STEPS = """
import sys
from pathlib import Path

import torch

import stages.train
from nima.optimizer import Optimizer, Rates
from nima.workspace.runtime import load, set_up_torch
from nima.dataset.tokens import Tokens

Tokens.open(Path(sys.argv[1]))
set_up_torch(load(Path.cwd()))
for rule in ("muon", "adam", "adamw", "sgd", "adamw_scale", "schedule_free"):
    model = torch.nn.ModuleDict({"layers": torch.nn.Linear(2, 2)})
    optimizer = Optimizer(model, Rates(rule, 0.1, 1, 1, 0, 0.9, 0.99, 0.9))
    model["layers"](torch.ones(2)).sum().backward()
    for inner in optimizer.optimizers:
        inner.step()
        inner.zero_grad()
        inner.load_state_dict(inner.state_dict())
print(sorted({"pandas", "torch._dynamo", "torch._inductor", "transformers", "mlflow"} & sys.modules.keys()))
print(torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
print(torch._inductor.config.deterministic)
"""


def test_training_starts_without_the_compiler_and_without_pandas(tmp_path: Path) -> None:
    with TokenWriter(tmp_path / "tokens", 300, 10**9) as writer:
        writer.write(document(0, [5, 6, 7]))
    command = [sys.executable, "-c", FIRST_STEPS, str(tmp_path / "tokens")]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "True False", "True"], (
        "the last for a compiler that comes later"
    )
