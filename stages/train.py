"""Train the model on the training part, watching the validation part."""

from pathlib import Path

from nima import recipe
from nima.finished_runs import drop_stored
from nima.inputs import contents, fingerprint_of
from nima.observation import observe
from nima.outputs import rewritten
from nima.params import Params
from nima.params_file import stage_dependencies
from nima.runtime import Runtime, set_up_torch
from nima.signals import StopRequest
from nima.stage import run_stage
from nima.training import Run, train


def main(params: Params, runtime: Runtime) -> dict[str, float]:
    device = set_up_torch(runtime)
    words, tokens, split = Path("models/tokenizer"), Path("data/tokens"), Path("data/splits")
    parts = recipe.assemble(params, device, tokenizer=words, tokens=tokens, split=split)
    inputs = contents(stage_dependencies("train"))
    decides = recipe.what_decides_the_result(params, fingerprint_of(inputs), device)
    drop_stored(runtime.checkpoints, runtime.is_in_dvc_cache)
    path = recipe.run_path(runtime.checkpoints, decides)
    with (
        recipe.open_folder(path, decides, params.run, runtime.mirror) as folder,
        StopRequest() as stop,
        observe(parts, params, runtime, path, inputs) as seen,
    ):
        run = Run(folder, seen.live(), seen.progress, stop, params.run)
        result = train(parts.model, parts.batches, parts.scorer, params.training, parts.total_steps, run)
        model, last = rewritten(Path("models/model")), rewritten(Path("models/last"))
        recipe.write_outputs(parts, params, run, result, model=model, last=last)
        return seen.finish(result, model)


if __name__ == "__main__":
    run_stage("train", main)
