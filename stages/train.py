"""Train the model on the training part, watching the validation part."""

from nima.checkpoint.finished_runs import drop_stored
from nima.observation import observe
from nima.processes.joining import joined, num_processes
from nima.training import micro_batch, recipe
from nima.training.launch import run_stage_in_processes
from nima.training.loop import Run
from nima.workspace.inputs import contents, fingerprint_of
from nima.workspace.outputs import rewritten
from nima.workspace.params import Params
from nima.workspace.params.params_file import stage_dependencies
from nima.workspace.runtime import Runtime, set_up_torch
from nima.workspace.signals import StopRequest


def main(params: Params, runtime: Runtime) -> dict[str, float]:
    device = set_up_torch(runtime)
    with joined(runtime, device) as processes:
        params = micro_batch.settled(params, runtime, device, processes)
        parts = recipe.assemble(params, device, **recipe.INPUTS, processes=processes)
        if not processes.is_first:
            return recipe.follow(parts, params, processes)
        inputs = contents(stage_dependencies("train"))
        decides = recipe.what_decides_the_result(params, fingerprint_of(inputs), device)
        drop_stored(runtime.checkpoints, runtime.is_in_dvc_cache)
        with (
            recipe.open_folder(runtime, decides, params.run) as folder,
            StopRequest() as stop,
            observe(parts, params, runtime, folder.path, inputs) as seen,
        ):
            run = Run(folder, seen.live(), seen.progress, stop, params.run)
            result = recipe.trained(parts, params, run, processes)
            model, last = map(rewritten, recipe.OUTPUTS)
            recipe.write_outputs(parts, params, run, result, model=model, last=last)
            return seen.finish(result, model)


if __name__ == "__main__":
    run_stage_in_processes("train", main, num_processes)
