"""Decide which documents train, validate and test, prove that they are apart, and report on the data."""

from pathlib import Path

from nima.data_report.report import report_of
from nima.dataset import splits
from nima.dataset.tokens import Tokens
from nima.leakage.separation import separated
from nima.workspace.metrics import write_metrics
from nima.workspace.outputs import write_files
from nima.workspace.params import Params
from nima.workspace.runtime import Runtime
from nima.workspace.stage import run_stage

DOCUMENTS, REJECTED = Path("data/documents"), Path("data/rejected")


def main(params: Params, runtime: Runtime) -> None:
    tokens = Tokens.open(Path("data/tokens"))
    prompts = params.generate.prompts if params.split.leakage.prompts else []
    parts = separated(tokens, DOCUMENTS, params.split, prompts, runtime)
    splits.save(Path("data/splits"), parts.assignment)
    totals = {name: tokens.totals(documents) for name, documents in parts.assignment.items()}
    write_metrics("split", totals | {"leakage": parts.figures()})
    report = report_of(tokens, parts, REJECTED)
    write_files(Path("data/report"), report.files())
    write_files(Path("plots/data"), report.tables())


if __name__ == "__main__":
    run_stage("split", main)
