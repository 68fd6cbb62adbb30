"""Let the model continue each prompt in several ways, to read and to compare."""

import time
from pathlib import Path

from nima.generation import decoding, samples
from nima.network import pretrained
from nima.tokenizer import Tokenizer
from nima.trackers import tell_trackers
from nima.workspace.metrics import write_metrics
from nima.workspace.outputs import write_files
from nima.workspace.params import Params
from nima.workspace.runtime import Runtime, set_up_torch
from nima.workspace.signals import StopRequest
from nima.workspace.stage import run_stage


def main(params: Params, runtime: Runtime) -> dict[str, float]:
    device, folder = set_up_torch(runtime), Path("models/model")
    model, words = pretrained.load(folder).to(device), Tokenizer.load(folder)
    with StopRequest() as stop:
        started = time.perf_counter()
        written = list(decoding.samples(model, words, params.generate, poll=stop.check))
        seconds = time.perf_counter() - started
    files = {"samples.jsonl": samples.jsonl(written), "samples.md": samples.markdown(written)}
    write_files(Path("data/samples"), files)
    scores = samples.scores(written)
    write_metrics("generate_samples", scores)
    tell_trackers(runtime, folder, metrics={"samples": scores}, texts={"samples": files["samples.md"]})
    num_tokens = sum(len(sample.tokens) for sample in written)
    return {"generation_seconds": seconds, "tokens_per_second": num_tokens / seconds}


if __name__ == "__main__":
    run_stage("generate_samples", main)
