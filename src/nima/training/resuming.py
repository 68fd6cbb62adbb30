"""A run that can be left after any step, and gone on with; and gone back with."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nima.checkpoint.state import Checkpoint
from nima.network.decoder import Decoder
from nima.optimizer import Optimizer
from nima.processes import Processes
from nima.training.run_log import validation_at, workforce
from nima.training.run_state import Run, State
from nima.training.steering import Steering
from nima.workspace.metrics import improves
from nima.workspace.params import RunParams


@dataclass
class Resumable:
    """All that a checkpoint is made of, and made into."""

    run: Run
    model: Decoder
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    steering: Steering
    processes: Processes
    state: State = field(default_factory=State)
    saved: float = field(default_factory=time.perf_counter)
    """When it was last saved."""

    def restore(self) -> State:
        """Continue from the newest whole checkpoint, its history replayed into a fresh log; else begin."""
        run, processes = self.run, self.processes
        checkpoint = run.folder.load_newest(warn=run.progress.say) or Checkpoint(0, {}, {}, {})
        now = State(threads=torch.get_num_threads(), processes=processes.count)
        if saved := processes.from_first(checkpoint.state):
            self.state = State(**saved)
            self.put_back(processes.parts_of(checkpoint.model, self.model))
            self.optimizer.load_tensors(processes.parts_of(checkpoint.optimizer, self.model))
            self.steering.load_state(self.state.steering)
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(self.state.scaler)
            run.live.replay(self.state.rows)
            path = run.folder.step_path(self.state.step)
            run.progress.say(f"continuing after step {self.state.step}, from {path}")
            if workforce(self.state) != workforce(now):
                run.progress.say(
                    f"begun with {workforce(self.state)}, continued with {workforce(now)}: the data keeps "
                    "its order, but sums are taken in another, so the result will equal an uninterrupted "
                    "run's only to rounding"
                )
        self.state.threads, self.state.processes = now.threads, now.processes
        return self.state

    def put_back(self, weights: dict[str, Tensor]) -> None:
        """Weights as `parts_of` gives them."""
        self.processes.set_weights(self.model, weights)

    def save(self) -> None:
        """In the background."""
        state, processes = self.state, self.processes
        state.steering, state.scaler = self.steering.state(), self.scaler.state_dict()
        with self.optimizer.weights("trained"):
            weights, moments = processes.weights(self.model), processes.whole(self.optimizer.tensors())
            self.run.folder.begin_save(
                Checkpoint(state.step, weights, moments, vars(state), validation_at(state))
            )
        self.saved = time.perf_counter()

    def save_for_good(self) -> None:
        """All wait until it is saved."""
        self.save()
        self.run.folder.wait()
        self.processes.wait()

    def keep_if_best(self, metric: str, value: float) -> None:
        """The weights that were just judged."""
        if improves(metric, value, self.state.best["value"] if self.state.best else None):
            self.state.best = self.run.folder.save_best(self.state.step, self.judged())
            self.state.best |= {"step": self.state.step, "value": value}

    def judged(self) -> dict[str, Tensor]:
        """The weights; for a run that may go back to them also what training went on from."""
        kept = self.processes.weights(self.model)
        if self.steering.recoveries_left == 0:
            return kept
        trained = {f"trained/{name}": tensor for name, tensor in self.optimizer.trained_weights().items()}
        moments = {f"optimizer/{key}": tensor for key, tensor in self.optimizer.tensors().items()}
        return kept | self.processes.whole(trained | moments)

    def go_back(self) -> None:
        """Put back the best weights and go on from them, at a lower rate, with the next data.

        The steps count on and no batch is met again, as with a loss spike of PaLM (Chowdhery et al. 2022,
        section 5.1, https://arxiv.org/abs/2204.02311). Before the first validation the weights stay.
        """
        steering, state = self.steering, self.state
        why, target = steering.why, "no weights yet that were validated"
        if state.best:
            tensors = self.processes.parts_of(self.run.folder.load_best(state.best), self.model)
            names = (name for name in tensors if "/" not in name)
            self.put_back({name: tensors.get(f"trained/{name}", tensors[name]) for name in names})
            moments = ((key.partition("/"), tensor) for key, tensor in tensors.items())
            self.optimizer.load_tensors({key: t for (kind, _, key), t in moments if kind == "optimizer"})
            target = f"back to the weights of step {state.best['step']}"
        steering.recovered()
        self.run.progress.say(
            f"after step {state.step}: {why}; {target}; the rate is multiplied by {steering.lr_ratio:g}, "
            f"recovery {steering.recoveries} of {steering.settings.recovery.max_recoveries}"
        )


def save_due(step: int, saved: float, settings: RunParams, epochs: Callable[[int], float]) -> bool:
    by_steps = settings.save_every_steps is not None and step > 0 and step % settings.save_every_steps == 0
    every = settings.save_every_epochs
    by_epochs = every is not None and step > 0 and epochs(step) // every > epochs(step - 1) // every
    by_time = (
        settings.save_every_seconds is not None and time.perf_counter() - saved >= settings.save_every_seconds
    )
    return by_steps or by_epochs or by_time
