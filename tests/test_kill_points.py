"""Ten of the points of benchmarks/kill_points.py, over all its modes and kinds of point."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_run_killed_at_ten_points_and_killed_again_ends_in_the_same_bytes() -> None:
    """In a process of its own, from which trainers are forked before it computes anything."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kill_points", "10"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("10 of 10 points end in equal bytes")
