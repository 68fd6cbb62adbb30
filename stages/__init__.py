"""The six stages, each run by DVC as `python -m stages.NAME`."""

import sys
from pathlib import Path

# A temporary or queued experiment runs in its own copy of the project: it must use that copy's code,
# not the one that happens to be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
