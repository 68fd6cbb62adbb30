"""The six stages, each run by DVC as `python -m stages.NAME`."""

import os
import sys
from pathlib import Path

# Idle threads of torch's OpenMP give their core away soon instead of spinning: no slower on a quiet machine,
# and 1.6 times as fast beside one other busy process on two cores. It is read when the library is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# A temporary or queued experiment runs in its own copy of the project: it must use that copy's code,
# not the one that happens to be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
