"""Decide by hash which documents train, validate and test, and prove that none is in two of them."""

from pathlib import Path

from nima.metrics import write_metrics
from nima.params import Params
from nima.runtime import Runtime
from nima.splits import assign, check_no_empty, check_no_overlap, save
from nima.stage import run_stage
from nima.tokens import Tokens


def main(params: Params, runtime: Runtime) -> None:  # noqa: ARG001 - stages share one signature
    ratios = (params.split.train, params.split.validation, params.split.test)
    tokens = Tokens.open(Path("data/tokens"))
    assignment = assign(tokens.groups, params.split.seed, ratios)
    check_no_empty(assignment, ratios)
    check_no_overlap(tokens, assignment)
    save(Path("data/splits"), assignment)
    write_metrics("split", {name: tokens.totals(documents) for name, documents in assignment.items()})


if __name__ == "__main__":
    run_stage("split", main)
