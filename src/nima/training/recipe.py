"""From params and data to the parts of a run, and from a finished run to its outputs."""

import os
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nima.batches import TrainingBatches, steps_of, training_batches
from nima.checkpoint.mirror import Mirror
from nima.checkpoint.run_folder import NoFolder, RunFolder, open_run, run_fingerprint
from nima.checkpoint.weights import put_into, resolve, weights_in, weights_sha256
from nima.dataset import splits
from nima.dataset.tokens import Tokens
from nima.monitoring.log_file import note
from nima.monitoring.progress import TrainingProgress
from nima.network import pretrained
from nima.network.decoder import Decoder, DecoderConfig, init_parameters
from nima.processes import ALONE, Processes
from nima.scoring import pictures
from nima.scoring.likelihood import Scorer, scorer_of, total
from nima.tokenizer import Tokenizer
from nima.training.compilation import choose_cut, choose_kernels, compile_layers
from nima.training.loop import Result, Run, train
from nima.training.model_card import trained_card
from nima.training.objective import check_declared, objective_of, source_hashes
from nima.training.schedule import warmup_steps_of
from nima.training.tracking import Unlogged
from nima.workspace.errors import UserError
from nima.workspace.metrics import Row, read_metrics
from nima.workspace.params import Params, RunParams, TrainingParams
from nima.workspace.params.params_file import stage_dependencies
from nima.workspace.runtime import Runtime, set_up_torch
from nima.workspace.signals import StopRequest

INPUTS = {"tokenizer": Path("models/tokenizer"), "tokens": Path("data/tokens"), "split": Path("data/splits")}
OUTPUTS = (Path("models/model"), Path("models/last"))


@dataclass(frozen=True)
class Recipe:
    """What a training run is made of."""

    model: Decoder
    tokenizer: Tokenizer
    batches: TrainingBatches
    scorer: Scorer
    total_steps: int
    text: dict[str, Any]
    """Counts of the training part, in all and by source."""
    init_from_sha256: str | None = None


def assemble(
    params: Params,
    device: torch.device,
    *,
    tokenizer: Path,
    tokens: Path,
    split: Path,
    processes: Processes = ALONE,
) -> Recipe:
    """Read the inputs of the train stage and build the freshly initialised model on `device`."""
    settings = params.training
    words, text, parts = Tokenizer.load(tokenizer), Tokens.open(tokens), splits.load(split)
    model = Decoder(DecoderConfig(vocab_size=words.vocab_size, **params.model.shape()))
    init_parameters(model, settings.seed)
    if origin := origin_of(settings):
        put_into(model, weights_in(origin), origin)
    batches = training_batches(
        text,
        parts["train"],
        seed=settings.seed,
        batching=settings.batching,
        mixture=settings.mixture,
        block_tokens=settings.block_tokens,
        batch_tokens=settings.batch_tokens,
        end_of_text=words.end_of_text,
    )
    scorer = scorer_of(
        text,
        parts["validation"],
        words,
        window_tokens=settings.block_tokens,
        stride_tokens=settings.block_tokens,
        max_tokens=settings.validation_max_tokens,
        micro_batch_tokens=settings.tokens_at_once,
        precision=settings.precision,
        processes=processes,
    )
    total_steps = steps_of(settings.max_steps, settings.max_epochs, batches, settings.max_tokens)
    warmup_steps = warmup_steps_of(settings.warmup_steps, settings.warmup_fraction, total_steps)
    if warmup_steps >= total_steps:
        raise UserError(f"training.warmup_steps: {warmup_steps} must be below the run's {total_steps} steps")
    begun_with = weights_sha256(origin) if origin else None
    counts = text.totals(parts["train"])
    model.to(device)
    choose_kernels(model, settings.kernels)
    choose_cut(model, settings, tell if processes.is_first else note)
    if settings.compile:
        compile_layers(model)
    return Recipe(model, words, batches, scorer, total_steps, counts, begun_with)


def origin_of(settings: TrainingParams) -> Path | None:
    """The folder of the weights that a run begins with, if they are not random. Raises `UserError`."""
    if settings.init_from is None:
        return None
    return resolve(settings.init_from, Path(os.environ.get("DVC_ROOT", ".")), outputs=OUTPUTS)


def what_decides_the_result(params: Params, inputs: str, device: torch.device) -> dict[str, Any]:
    """All that a run's weights depend on; a run continues only from checkpoints with the same.

    Raises `UserError` when params name a function that is not there, or that DVC does not know of.
    """
    objective = objective_of(params.training)
    check_declared(objective, stage_dependencies("train"))
    origin = origin_of(params.training)
    begun_with = {"init_from_sha256": weights_sha256(origin)} if origin else {}
    return begun_with | {
        "model": params.model.model_dump(),
        "training": params.training.model_dump(exclude={"init_from"}),
        "inputs_sha256": inputs,
        "functions_sha256": source_hashes(objective),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": device.type,
    }


def open_folder(
    runtime: Runtime, parts: dict[str, Any], settings: RunParams
) -> AbstractContextManager[RunFolder]:
    """The run's folder, locked, and brought up to date from its mirror if that knows more."""
    path, mirror = run_path(runtime.checkpoints, parts), runtime.mirror
    return open_run(
        path,
        parts,
        keep=settings.keep_checkpoints,
        keep_best=settings.keep_best,
        best_metric=settings.keep_best_by,
        compression=settings.compression,
        mirror=Mirror(mirror, path, tell) if mirror else None,
    )


def trained(recipe: Recipe, params: Params, run: Run, processes: Processes) -> Result:
    parts = (recipe.model, recipe.batches, recipe.scorer)
    return train(*parts, params.training, recipe.total_steps, run, processes)


def follow(recipe: Recipe, params: Params, processes: Processes) -> dict[str, float]:
    """What a process does that is not the first: its part of every update, and not a word."""
    steps = recipe.total_steps
    with StopRequest() as stop, TrainingProgress(steps, params.run.print_every_steps, quiet=True) as progress:
        trained(recipe, params, Run(NoFolder(), Unlogged(), progress, stop, params.run), processes)
    return {}


def tell(line: str) -> None:
    """To the log file and the console, where a bar stays below it."""
    note(line)
    print(f"train: {line}", file=sys.stderr, flush=True)  # noqa: T201


def run_path(checkpoints: Path, parts: dict[str, Any]) -> Path:
    return checkpoints / run_fingerprint(parts)[:16]


def write_outputs(
    recipe: Recipe, params: Params, run: Run, result: Result, *, model: Path, last: Path
) -> None:
    """The kept and the last weights as Hugging Face folders, the card, metrics/train.json, the pictures."""
    best, final = result.best_weights, result.last_weights
    for folder, weights in ((model, best if params.training.keep == "best" else final), (last, final)):
        words = recipe.tokenizer
        pretrained.save(recipe.model, weights, folder, end_of_text=words.end_of_text, pad=words.pad)
        words.save(folder, context_tokens=recipe.model.config.context_tokens)
    pictures.draw_curves("train", result.state.rows)
    run.live.finish(summary_of(recipe, result))
    card = trained_card(params, read_metrics("train"), recipe.text)
    (model / "README.md").write_text(card, encoding="utf-8")
    run.folder.finish(model / "model.safetensors")


def summary_of(recipe: Recipe, result: Result) -> Row:
    """What metrics/train.json says beside the latest value of each curve."""
    state, batches = result.state, recipe.batches
    best = state.best or {"step": None, "value": None}
    by_source = batches.epochs_by_source(state.step)
    begun_with = recipe.init_from_sha256
    return (
        {
            "best": {"step": best["step"], "value": best["value"]},
            "stopped_early": result.stopped_early,
            "skipped_updates": state.skipped_updates,
            "non_finite_updates": state.non_finite_updates,
            "recoveries": state.steering.get("recoveries", 0),
            "micro_batch_tokens": recipe.scorer.micro_batch_tokens,
            "parameters": recipe.model.num_parameters(),
            "tokens_per_epoch": batches.order.num_tokens,
            "epochs": batches.epochs(state.step),
            "packing_efficiency": batches.packing_efficiency,
        }
        | ({"init_from_sha256": begun_with} if begun_with else {})
        | ({"micro_batch_halvings": state.halvings} if state.halvings else {})
        | ({"epochs_by_source": by_source} if by_source else {})
    )


def timing_of(recipe: Recipe, result: Result) -> Row:
    """Clock figures of the updates done by this process; a resumed run counts only its own."""
    tokens = (result.state.step - result.first_step) * recipe.batches.tokens_per_batch
    return {"training_seconds": result.seconds, "tokens_per_second": tokens / max(result.seconds, 1e-9)}


def evaluated(model: Decoder, params: Params, runtime: Runtime, split: str) -> dict[str, dict[str, float]]:
    """The metrics of each source's text in a split, and of all; as the stage `evaluate` scores it."""
    device, words = set_up_torch(runtime), Tokenizer.load(Path("models/tokenizer"))
    if model.config.vocab_size != words.vocab_size:
        raise UserError(
            f"models/tokenizer: has {words.vocab_size} tokens, the model was made for "
            f"{model.config.vocab_size}; evaluate it in the project that trained it"
        )
    text, documents = Tokens.open(Path("data/tokens")), splits.load(Path("data/splits"))[split]
    scorer = scorer_of(text, documents, words, max_tokens=None, **params.evaluate.model_dump())
    parts = scorer(model.to(device))
    return {source: part.metrics() for source, part in parts.items()} | {"all": total(parts).metrics()}
