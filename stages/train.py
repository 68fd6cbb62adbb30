"""Train the model on the training part, watching the validation part."""

from pathlib import Path

from nima import recipe
from nima.checkpoint import drop_stored, open_run
from nima.inputs import fingerprint
from nima.outputs import rewritten
from nima.params import Params
from nima.params_file import stage_dependencies
from nima.progress import TrainingProgress
from nima.runtime import Runtime, set_up_torch
from nima.signals import StopRequest
from nima.stage import run_stage
from nima.tracking import StageLive
from nima.training import Run, train


def main(params: Params, runtime: Runtime) -> dict[str, float]:
    device = set_up_torch(runtime)
    words, tokens, split = Path("models/tokenizer"), Path("data/tokens"), Path("data/splits")
    parts = recipe.assemble(params, device, tokenizer=words, tokens=tokens, split=split)
    inputs = fingerprint(stage_dependencies("train"))
    decides = recipe.what_decides_the_result(params, inputs, device)
    path = recipe.run_path(runtime.checkpoints, decides)
    drop_stored(runtime.checkpoints, runtime.is_in_dvc_cache)
    with (
        open_run(path, decides, params.run.keep_checkpoints) as folder,
        StopRequest() as stop,
        TrainingProgress(parts.total_steps, params.run.print_every_steps) as progress,
    ):
        run = Run(folder, StageLive("train"), progress, stop, params.run)
        result = train(parts.model, parts.batches, parts.scorer, params.training, parts.total_steps, run)
        model, last = rewritten(Path("models/model")), rewritten(Path("models/last"))
        recipe.write_outputs(parts, params, run, result, model=model, last=last)
    return recipe.timing_of(parts, result)


if __name__ == "__main__":
    run_stage("train", main)
