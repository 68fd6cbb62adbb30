"""A loss or a step of the user's own: what it is given, and how it may fail."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import BLOCK, NEVER, Attempt, bits, model_of, settings_of, weights

from nima.network.decoder import linear_cross_entropy
from nima.training.objective import Objective, ObjectiveError, check_declared, objective_of, source_hashes
from nima.workspace.errors import UserError

DOCS = Path(__file__).parent.parent / "docs/training.md"
OWN = """
import torch
from torch.nn.functional import cross_entropy

calls = 0


def plain(logits, targets):
    return cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")


def plain_step(model, ids, targets, documents):
    return model.loss_sum(ids, targets, documents)


def halved(logits, targets):
    return plain(logits, targets) / 2


def failing(logits, targets):
    global calls
    calls += 1
    if calls > 5:
        return divided(logits, 0)
    return plain(logits, targets)


def divided(logits, number):
    return logits.sum() * (1 // number)


def mean(logits, targets):
    return logits.mean(dim=-1)


def number(logits, targets):
    return 1.0


def detached(logits, targets):
    return plain(logits, targets).detach()


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sum()

    @staticmethod
    def backward(ctx, scale):
        raise RuntimeError("no gradient\\nhere")


def broken(logits, targets):
    return Broken.apply(logits)


def spoilt(logits, targets):
    shifted = logits.exp()
    loss = shifted.square().sum()
    shifted += 1
    return loss


def hungry(logits, targets):
    raise torch.OutOfMemoryError("out of memory")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of a module of the user's in the working folder."""
    name = "own_" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(OWN.splitlines(), start=1) if text in line)


def trained(folder: Path, **changes: Any) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    attempt = Attempt(folder, settings_of(max_steps=3, log_every_steps=1, **changes))
    rows = attempt.go().state.rows
    return bits(weights(attempt.model)), rows


def test_cross_entropy_as_an_own_step_is_the_same_to_the_bit(tmp_path: Path, own: str) -> None:
    for changes in ({}, {"mask_documents": True, "batching": "packed"}):
        expected, _ = trained(tmp_path / f"without-{len(changes)}", **changes)
        assert trained(tmp_path / f"with-{len(changes)}", step=f"{own}:plain_step", **changes)[0] == expected


def test_cross_entropy_as_an_own_loss_learns_the_same(tmp_path: Path, own: str) -> None:
    _, expected = trained(tmp_path / "without", mask_documents=True, batching="packed")
    _, found = trained(tmp_path / "with", mask_documents=True, batching="packed", loss=f"{own}:plain")
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx({key: other[key] for key in row}, rel=1e-3)


def test_an_own_loss_is_logged_as_it_is_and_validated_by_cross_entropy(tmp_path: Path, own: str) -> None:
    _, expected = trained(tmp_path / "without")
    _, found = trained(tmp_path / "with", loss=f"{own}:halved")
    assert found[0]["train/loss"] == pytest.approx(expected[0]["train/loss"] / 2)
    assert "train/bits_per_byte" not in found[0]
    assert found[-1]["validation/loss"] > found[-2]["train/loss"] * 1.5


@pytest.mark.parametrize("blocks", [1, 4])
def test_an_own_loss_does_not_depend_on_the_micro_batch(tmp_path: Path, own: str, blocks: int) -> None:
    _, expected = trained(tmp_path / "whole", loss=f"{own}:halved", micro_batch_tokens=8 * BLOCK)
    _, found = trained(tmp_path / "parts", loss=f"{own}:halved", micro_batch_tokens=blocks * BLOCK)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)


# ------------------------------------------------------------------------------------------ what fails


def test_a_function_that_fails_is_named_with_its_line_and_the_progress_is_saved(
    tmp_path: Path, own: str
) -> None:
    attempt = Attempt(tmp_path / "run", settings_of(loss=f"{own}:failing"), run_settings=NEVER)
    with pytest.raises(UserError) as caught:
        attempt.go()
    place = f"{own}.py:{line_of('1 // number')}"
    assert str(caught.value) == (
        f"training.loss: {own}:failing failed at {place}: ZeroDivisionError: "
        "integer division or modulo by zero"
    )
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-00000002"]


def test_a_run_goes_on_after_its_function_was_mended(tmp_path: Path, own: str) -> None:
    expected, _ = trained(tmp_path / "whole", loss=f"{own}:plain")
    settings = settings_of(max_steps=3, log_every_steps=1, loss=f"{own}:failing")
    with pytest.raises(UserError):
        Attempt(tmp_path / "run", settings).go()
    second = Attempt(tmp_path / "run", settings.model_copy(update={"loss": f"{own}:plain"}))
    assert second.go().first_step == 2
    assert bits(weights(second.model)) == expected


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("mean", r"returned a tensor of shape \(4, 8\); it must return a scalar tensor with a gradient"),
        ("number", r"returned 1\.0; it must"),
        ("detached", r"returned a scalar without a gradient; it must"),
        ("broken", r"failed at .*: RuntimeError: no gradient here$"),
        ("spoilt", r"failed in the backward pass: RuntimeError: one of the variables needed"),
    ],
)
def test_what_cannot_be_trained_on_is_one_line(tmp_path: Path, own: str, function: str, message: str) -> None:
    attempt = Attempt(tmp_path / "run", settings_of(loss=f"{own}:{function}"), run_settings=NEVER)
    with pytest.raises(UserError, match=f"^training.loss: {own}:{function} {message}") as caught:
        attempt.go()
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run/step-00000000").is_dir()


def test_lack_of_memory_is_not_the_functions_fault(tmp_path: Path, own: str) -> None:
    with pytest.raises(UserError, match=r"^step 0: out of memory with a micro-batch of one block") as found:
        Attempt(tmp_path / "run", settings_of(loss=f"{own}:hungry")).go()
    assert not isinstance(found.value, ObjectiveError)


def test_a_bug_beside_the_function_keeps_its_traceback(tmp_path: Path, own: str) -> None:
    model = model_of()
    model.layers[0].mlp.up = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        Attempt(tmp_path / "run", settings_of(loss=f"{own}:plain"), model).go()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone", None, "no module 'gone' in "),
        (
            "mistyped",
            "def smoothed(a, b): ...",
            "mistyped has no function 'smooth'; did you mean 'smoothed'?",
        ),
        ("constant", "smooth = 3", "constant has no function 'smooth'"),
        ("unparsed", "x = 1\ndef smooth(:", r"unparsed\.py:2: "),
        ("needy", "import nowhere_to_be_found", "needy needs the module nowhere_to_be_found, which is not"),
        ("dying", "\n1 / 0", r"importing dying failed at dying\.py:2: ZeroDivisionError: division by zero"),
    ],
)
def test_a_function_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"training.step: .*{message}") as caught:
        objective_of(settings_of(step=f"{name}:smooth"))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------- what decides a run's result


def test_the_source_of_the_function_decides_the_result(tmp_path: Path, own: str) -> None:
    objective = objective_of(settings_of(loss=f"{own}:plain"))
    before = source_hashes(objective)
    assert before.keys() == {"training.loss"}
    (tmp_path / f"{own}.py").write_text(OWN + "# another\n")
    assert source_hashes(objective) != before
    assert source_hashes(Objective()) == {}


def test_a_module_that_dvc_does_not_know_of_is_refused(tmp_path: Path, own: str) -> None:
    objective = objective_of(settings_of(loss=f"{own}:plain"))
    with pytest.raises(UserError, match=rf"does not name {own}\.py among the deps of train"):
        check_declared(objective, [Path("src/nima/training/loop.py")])
    check_declared(objective, [])
    check_declared(objective, [Path(f"{own}.py")])
    check_declared(objective, [tmp_path])
    check_declared(Objective(), [Path("src")])


def test_the_examples_of_the_guide_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    own = [block for block in blocks if "def " in block]
    (tmp_path / "guide_losses.py").write_text("\n\n".join(own))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = re.findall(r"^def (\w+)\((\w+)", "\n".join(own), flags=re.MULTILINE)
    assert {first for _, first in names} == {"logits", "model"}
    for name, first in names:
        key = "loss" if first == "logits" else "step"
        _, rows = trained(tmp_path / name, **{key: f"guide_losses:{name}"})
        assert rows[0]["train/loss"] > 0


def test_chunked_cross_entropy_is_what_the_guide_says_it_is() -> None:
    x, weight = torch.randn(6, 4), torch.randn(9, 4)
    targets = torch.tensor([1, 2, -100, 4, 5, -100])
    expected = torch.nn.functional.cross_entropy(x @ weight.T, targets, ignore_index=-100, reduction="sum")
    torch.testing.assert_close(linear_cross_entropy(x, weight, targets), expected)
