"""Score the model on text that it never saw, beside what compressors make of the same text."""

import time
from pathlib import Path

from nima.checkpoint.finished_runs import drop_stored
from nima.dataset import splits
from nima.dataset.tokens import Tokens
from nima.evaluation.scorecard import ALL_TEXT, bits_per_byte, scorecard, scored_text, tables
from nima.network import pretrained
from nima.scoring.likelihood import scorer_of
from nima.scoring.pictures import draw_bars
from nima.tokenizer import Tokenizer
from nima.trackers import tell_trackers
from nima.workspace import metrics, outputs, stage
from nima.workspace.params import Params
from nima.workspace.runtime import Runtime, set_up_torch
from nima.workspace.signals import StopRequest


def main(params: Params, runtime: Runtime) -> dict[str, float]:
    device, folder = set_up_torch(runtime), Path("models/model")
    model, words, tokens = pretrained.load(folder), Tokenizer.load(folder), Tokens.open(Path("data/tokens"))
    part = splits.load(Path("data/splits"))["test"]
    scorer = scorer_of(tokens, part, words, max_tokens=None, **params.evaluate.model_dump())
    with StopRequest() as stop:
        started = time.perf_counter()
        parts = scorer(model.to(device), poll=stop.check)
        seconds = time.perf_counter() - started
        card = scorecard(parts, scored_text(scorer, words), poll=stop.check)
    metrics.write_metrics("evaluate", card)
    plots = outputs.write_files(Path("plots/evaluate"), tables(bars := bits_per_byte(card)))
    draw_bars(plots / "bits_per_byte.png", "Test text: smaller is better", "bits per byte", bars[ALL_TEXT])
    tell_trackers(runtime, folder, metrics={"evaluate": card})
    drop_stored(runtime.checkpoints, runtime.is_in_dvc_cache)
    return {"scoring_seconds": seconds, "tokens_per_second": card["test"]["tokens"] / seconds}


if __name__ == "__main__":
    stage.run_stage("evaluate", main)
