"""What an update makes smaller: cross-entropy, or a function of the user's, which params name.

`training.loss` and `training.step` hold `module:function`. The function returns a sum over the trained tokens
of one micro-batch; the loop divides by their number in the global batch, so that neither micro-batch nor
number of processes changes the result.

    loss(logits_BTV, targets_BT)                       targets that are not trained are -100
    step(model, ids_BT, targets_BT, documents_BT)      documents_BT is None without training.mask_documents,
                                                       else numbers, equal inside a document
"""

import contextlib
import hashlib
import importlib
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch import Tensor

from nima.network.decoder import Decoder
from nima.network.varlen import Documents
from nima.training.memory import is_out_of_memory
from nima.workspace.errors import UserError
from nima.workspace.params import TrainingParams, nearest


class ObjectiveError(UserError):
    """The user's function failed, or returned what cannot be trained on."""


@dataclass(frozen=True)
class Objective:
    """Cross-entropy, when there is no function."""

    key: str = "loss"
    name: str = ""
    function: Callable[..., Tensor] | None = None
    file: Path | None = None

    @property
    def is_cross_entropy(self) -> bool:
        return self.function is None

    def __call__(
        self, model: Decoder, ids_BT: Tensor, targets_BT: Tensor, documents_BT: Documents | None
    ) -> Tensor:
        """The summed loss (a scalar) of a micro-batch. Raises `ObjectiveError` for what is none."""
        if self.function is None:
            return model.loss_sum(ids_BT, targets_BT, documents_BT)
        if self.key == "loss":
            logits_BTV = model.head(model.hidden(ids_BT, documents_BT=documents_BT))
            return self.checked(self.function(logits_BTV, targets_BT))
        return self.checked(self.function(model, ids_BT, targets_BT, documents_BT))

    def checked(self, loss: object) -> Tensor:
        if isinstance(loss, Tensor) and loss.ndim == 0 and loss.requires_grad:
            return loss
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)[:80]
        if isinstance(loss, Tensor) and loss.ndim == 0:
            found = "a scalar without a gradient"
        raise ObjectiveError(
            f"training.{self.key}: {self.name} returned {found}; it must return a scalar tensor with a "
            "gradient, the sum over the trained tokens"
        )

    @contextlib.contextmanager
    def blamed(self, save: Callable[[], None]) -> Iterator[None]:
        """Turns what the user's function raises, forward or backward, into one line that says where.

        `save` is called before, so that no progress is lost. Lack of memory is nobody's fault.
        """
        try:
            yield
        except ObjectiveError:
            save()
            raise
        except Exception as error:
            place = None if is_out_of_memory(error) else self.blame_of(error)
            if place is None:
                raise
            save()
            said = " ".join(str(error).split())
            raise ObjectiveError(
                f"training.{self.key}: {self.name} failed {place}: {type(error).__name__}: {said}"
            ) from error

    def blame_of(self, error: Exception) -> str | None:
        """Where the function failed; None when it has no part in the error."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if self.file and frame.filename == str(self.file)]
        if own:
            return f"at {place_of(own[-1])}"
        in_backward = any(Path(frame.filename).match("torch/autograd/*.py") for frame in frames)
        return "in the backward pass" if in_backward and not self.is_cross_entropy else None


def objective_of(settings: TrainingParams) -> Objective:
    """The objective that params name. Raises `UserError` when there is no such function."""
    key = "step" if settings.step else "loss"
    name = getattr(settings, key)
    if not name:
        return Objective()
    module_name, _, function_name = name.partition(":")
    module = imported(f"training.{key}", module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [word for word, value in vars(module).items() if callable(value) and word[0] != "_"]
        close = nearest(function_name, functions)
        raise UserError(f"training.{key}: {module_name} has no function {function_name!r}{close}")
    return Objective(key, name, function, Path(module.__file__) if module.__file__ else None)


def imported(key: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name and not name.startswith(f"{error.name}."):
            raise UserError(f"{key}: {name} needs the module {error.name}, which is not there") from None
        folder = Path.cwd()
        raise UserError(f"{key}: no module {name!r} in {folder}, nor among the packages") from None
    except SyntaxError as error:
        raise UserError(f"{key}: {error.filename}:{error.lineno}: {error.msg}") from None
    except Exception as error:
        place = place_of(traceback.extract_tb(error.__traceback__)[-1])
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{key}: importing {name} failed at {place}: {said}") from error


def place_of(frame: traceback.FrameSummary) -> str:
    """file:line, from the working folder where the file is in it."""
    path = Path(frame.filename)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{shown}:{frame.lineno}"


def source_hashes(objective: Objective) -> dict[str, str]:
    """sha256 (hex) of the user's module by its name in params: it decides a run's result."""
    if objective.file is None:
        return {}
    return {f"training.{objective.key}": hashlib.sha256(objective.file.read_bytes()).hexdigest()}


def check_declared(objective: Objective, dependencies: Iterable[Path]) -> None:
    """Raises `UserError` when DVC would not notice that the user's module changed.

    Without dependencies there is no pipeline, and packages are told apart by their versions.
    """
    declared = [path.resolve() for path in dependencies]
    file, root = objective.file, Path.cwd().resolve()
    if file is None or not declared or "site-packages" in file.parts:
        return
    file = file.resolve()
    if file.is_relative_to(root) and not any(file.is_relative_to(path) for path in declared):
        name = file.relative_to(root).as_posix()
        raise UserError(
            f"training.{objective.key}: dvc.yaml does not name {name} among the deps of train, so DVC would "
            f"not notice its changes; add the line `- {name}` there"
        )
