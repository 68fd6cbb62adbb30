"""What the pipeline costs around the work: a `dvc repro` with nothing to do, and the start of a stage.

Run with `make bench`, after `make repro`. The two commands of a pair take turns, so that a machine whose
speed drifts does not favour one; medians are printed, and their ratio.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
RUNS = 25
NUM_TRIVIAL_STAGES = 6


def seconds_of(command: list[str], folder: Path) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - started


def paired(
    first: list[str], first_folder: Path, second: list[str], second_folder: Path
) -> tuple[float, float]:
    """Medians, in seconds, of two commands that take turns, after one uncounted run of each."""
    seconds_of(first, first_folder)
    seconds_of(second, second_folder)
    pairs = [(seconds_of(first, first_folder), seconds_of(second, second_folder)) for _ in range(RUNS)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def bare_pipeline(folder: Path) -> None:
    """A repository with six stages that do nothing to speak of."""
    lines = ["stages:"]
    for number in range(NUM_TRIVIAL_STAGES):
        lines += [f"  stage{number}:", f"    cmd: echo {number} > out{number + 1}"]
        lines += [f"    deps: [out{number}]", f"    outs: [out{number + 1}]"]
    (folder / "dvc.yaml").write_text("\n".join(lines), encoding="utf-8")
    (folder / "out0").write_text("seed", encoding="utf-8")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "repro", "-q"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)


def main() -> None:
    os.environ["DVC_NO_ANALYTICS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        bare_pipeline(Path(name))
        ours, bare = paired(["dvc", "repro"], ROOT, ["dvc", "repro"], Path(name))
    imports = [sys.executable, "-c", "import torch"]
    as_module = "import sys; sys.argv[0] = '-m'; import stages.train"  # what `python -m` sets
    start = [sys.executable, "-c", as_module]
    stage, torch = paired(start, ROOT, imports, ROOT)
    print("| what | Nima, s | beside, s | figure |\n|---|---|---|---|")
    nothing = "`dvc repro` with nothing to do, against six trivial stages"
    print(f"| {nothing} | {ours:.2f} | {bare:.2f} | {ours / bare:.2f}× |")
    print(
        f"| imports of `train`, against `import torch` | {stage:.2f} | {torch:.2f} | +{stage - torch:.2f} s |"
    )


if __name__ == "__main__":
    main()
